"""A step is a direction from a linearisation, a length along it, and the damping of the next."""
