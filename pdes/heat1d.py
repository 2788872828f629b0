"""The heat equation u_t = κ u_xx for t and x in [0,1], u = 0 at x = 0 and 1, κ = ¼.

Exact solution: u = exp(−κπ²t) sin(πx).
Source: arXiv:2405.15603 (KFAC for PINNs), with its numbers of points.
"""

from math import pi

from torch import exp, sin

from pinnkfac import Box, Problem, Term, lap


def heat1d(kappa: float = 0.25) -> Problem:
    box = Box(t=(0, 1), x=(0, 1))

    def solution(at):
        return exp(-kappa * pi**2 * at.t) * sin(pi * at.x)

    # The paper takes one mean over 120 points, half of them on the walls and half at the start.
    return Problem(
        fields=("u",),
        terms=[
            Term("heat", box.interior, lambda u, at: u.t - kappa * lap(u), points=900),
            Term("walls", box.boundary, lambda u, at: u, weight=0.5, points=60),
            Term("start", box.at(t=0), lambda u, at: u - sin(pi * at.x), weight=0.5, points=60),
        ],
        solution=solution,
        source="arXiv:2405.15603",
    )
