"""Approximations of the Gramian JᵀJ, made from a linearisation."""
