"""The version of pinnkfac."""

__version__ = "0.1.0"
