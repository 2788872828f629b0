"""Collapsed Taylor mode: every derivative that a term needs, in one forward pass of the net."""
