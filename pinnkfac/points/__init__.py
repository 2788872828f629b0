"""The points of a run: how many, where, and when anew."""
