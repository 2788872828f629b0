"""Poisson's equation in five dimensions, −Δu = π² Σ cos(πx_i) on [0,1]^5.

Exact solution, given on the boundary: u = Σ cos(πx_i).
Source: arXiv:2405.15603 (KFAC for PINNs), with its numbers of points.
"""

from math import pi

from torch import cos

from pinnkfac import Box, Problem, Term, lap


def poisson5d(dimension: int = 5) -> Problem:
    box = Box.cube(dimension)

    def solution(at):
        return cos(pi * at.x).sum()

    return Problem(
        fields=("u",),
        terms=[
            Term(
                "poisson", box.interior, lambda u, at: -lap(u) - pi**2 * solution(at), points=3000
            ),
            Term("boundary", box.boundary, lambda u, at: u - solution(at), points=500),
        ],
        solution=solution,
        source="arXiv:2405.15603",
    )
