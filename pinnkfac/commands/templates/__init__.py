"""Files that ``python -m pinnkfac new`` copies; each is a working example itself."""
