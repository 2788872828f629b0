"""Random features as a start: what they leave of a residual says which functions fit a problem."""
