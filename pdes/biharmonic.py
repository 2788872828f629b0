"""The biharmonic equation Δ²u = 4π⁴ sin(πx) sin(πy) on the unit square: a loaded plate.

The plate is simply supported: u = 0 and Δu = 0 on the boundary.
Exact solution: u = sin(πx) sin(πy).
Source: Timoshenko & Woinowsky-Krieger, Theory of Plates and Shells, 1959, ch. 5.
"""

from math import pi

from torch import sin

from pinnkfac import Box, Problem, Term, lap


def biharmonic() -> Problem:
    box = Box(x=(0, 1), y=(0, 1))

    def solution(at):
        return sin(pi * at.x) * sin(pi * at.y)

    def plate(u, at):
        return lap(lap(u)) - 4 * pi**4 * solution(at)

    return Problem(
        fields=("u",),
        terms=[
            Term("plate", box.interior, plate, points=900),
            Term("support", box.boundary, lambda u, at: (u, lap(u)), points=150),
        ],
        solution=solution,
        source="Timoshenko & Woinowsky-Krieger, Theory of Plates and Shells, 1959, ch. 5",
    )
