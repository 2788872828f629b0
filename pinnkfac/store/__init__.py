"""Run folders: written, and read again."""
