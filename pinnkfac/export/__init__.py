"""Solutions as files for other programs."""
