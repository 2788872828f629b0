"""Poisson's equation in a hundred dimensions, −Δu = −2d on [0,1]^d, d = 100.

Exact solution, given on the boundary: u = |x|².
Source: arXiv:2405.15603 (KFAC for PINNs). The paper tunes the numbers of points for every
optimizer, between 100 and 2100 inside and between 550 and 2400 on the boundary.
"""

from pinnkfac import Box, Problem, Term, lap


def poisson100d(dimension: int = 100) -> Problem:
    box = Box.cube(dimension)

    def solution(at):
        return (at.x**2).sum()

    return Problem(
        fields=("u",),
        terms=[
            Term("poisson", box.interior, lambda u, at: -lap(u) + 2 * dimension, points=200),
            Term("boundary", box.boundary, lambda u, at: u - solution(at), points=2000),
        ],
        solution=solution,
        source="arXiv:2405.15603",
    )
