"""Solutions as files for other programs: a format is a module, see formats.py."""
