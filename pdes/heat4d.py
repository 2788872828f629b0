"""The heat equation u_t = κ Δu for t in [0,1] and x in [0,1]^4, κ = ¼.

Exact solution, given at t = 0 and on the boundary: u = exp(−4κt) Σ sin(2x_i).
Source: arXiv:2405.15603 (KFAC for PINNs), with its numbers of points.
"""

from torch import exp, sin

from pinnkfac import Box, Problem, Term, lap


def heat4d(dimension: int = 4, kappa: float = 0.25) -> Problem:
    box = Box.cube(dimension, t=(0, 1))

    def solution(at):
        return exp(-4 * kappa * at.t) * sin(2 * at.x).sum()

    # The paper takes one mean over 500 points, half of them on the walls and half at the start.
    return Problem(
        fields=("u",),
        terms=[
            Term("heat", box.interior, lambda u, at: u.t - kappa * lap(u), points=3000),
            Term("walls", box.boundary, lambda u, at: u - solution(at), weight=0.5, points=250),
            Term("start", box.at(t=0), lambda u, at: u - solution(at), weight=0.5, points=250),
        ],
        solution=solution,
        source="arXiv:2405.15603",
    )
