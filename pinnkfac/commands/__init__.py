"""The commands of python -m pinnkfac, one file each."""
