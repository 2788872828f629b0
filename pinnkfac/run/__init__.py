"""A run: its loop, its parts, and what is kept and shown of it."""
