"""Laplace's equation in ten dimensions, −Δu = 0 on [0,1]^10.

Exact solution, given on the boundary: u = x1 x2 + x3 x4 + … + x9 x10.
Source: arXiv:2405.15603 (KFAC for PINNs), with its numbers of points.
"""

from pinnkfac import Box, Problem, Term, dot, lap


def poisson10d(dimension: int = 10) -> Problem:
    """``dimension`` is even: coordinates come in pairs."""
    box = Box.cube(dimension)

    def solution(at):
        return dot(at.x[0::2], at.x[1::2])

    return Problem(
        fields=("u",),
        terms=[
            Term("poisson", box.interior, lambda u, at: -lap(u), points=3000),
            Term("boundary", box.boundary, lambda u, at: u - solution(at), points=1000),
        ],
        solution=solution,
        source="arXiv:2405.15603",
    )
