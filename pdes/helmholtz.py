"""The Helmholtz equation Δu + k²u = q on [−1,1]², u = 0 on the boundary.

Exact solution, from which q is made: u = sin(a₁πx) sin(a₂πy).
Source: arXiv:2001.04536 (Wang, Teng, Perdikaris), where (a₁, a₂, k) = (1, 4, 1).
"""

from math import pi

from torch import sin

from pinnkfac import Box, Problem, Term, lap


def helmholtz(a1: int = 1, a2: int = 4, k: float = 1.0) -> Problem:
    box = Box(x=(-1, 1), y=(-1, 1))

    def solution(at):
        return sin(a1 * pi * at.x) * sin(a2 * pi * at.y)

    def source(at):
        return (k**2 - pi**2 * (a1**2 + a2**2)) * solution(at)

    return Problem(
        fields=("u",),
        terms=[
            Term(
                "helmholtz", box.interior, lambda u, at: lap(u) + k**2 * u - source(at), points=1500
            ),
            Term("boundary", box.boundary, lambda u, at: u, points=300),
        ],
        solution=solution,
        source="arXiv:2001.04536",
    )
