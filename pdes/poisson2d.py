"""Poisson's equation on the unit square, −Δu = 2π² sin(πx) sin(πy), u = 0 on the boundary.

Exact solution: u = sin(πx) sin(πy).
Source: arXiv:2405.15603 (KFAC for PINNs), with its numbers of points.
"""

from math import pi

from torch import sin

from pinnkfac import Box, Problem, Term, lap


def poisson2d() -> Problem:
    box = Box(x=(0, 1), y=(0, 1))

    def solution(at):
        return sin(pi * at.x) * sin(pi * at.y)

    return Problem(
        fields=("u",),
        terms=[
            Term(
                "poisson",
                box.interior,
                lambda u, at: -lap(u) - 2 * pi**2 * solution(at),
                points=900,
            ),
            Term("boundary", box.boundary, lambda u, at: u, points=120),
        ],
        solution=solution,
        source="arXiv:2405.15603",
    )
