"""The wave equation u_tt = 4 u_xx for t and x in [0,1], fixed ends, at rest at the start.

Exact solution: u = sin(πx) cos(2πt) + ½ sin(4πx) cos(8πt).
Source: arXiv:2007.14527 (Wang, Yu, Perdikaris).
"""

from math import pi

from torch import cos, sin

from pinnkfac import Box, Problem, Term


def wave() -> Problem:
    box = Box(t=(0, 1), x=(0, 1))

    def solution(at):
        slow = sin(pi * at.x) * cos(2 * pi * at.t)
        fast = sin(4 * pi * at.x) * cos(8 * pi * at.t)
        return slow + fast / 2

    return Problem(
        fields=("u",),
        terms=[
            Term("wave", box.interior, lambda u, at: u.tt - 4 * u.xx, points=1500),
            Term("ends", box.boundary, lambda u, at: u, points=150),
            Term("start", box.at(t=0), lambda u, at: (u - solution(at), u.t), points=150),
        ],
        solution=solution,
        source="arXiv:2007.14527",
    )
