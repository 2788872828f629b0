"""The logarithm of a Fokker-Planck equation in nine dimensions: q = log p, where p is a density.

    q_t = d/2 + ½ ∇q·x + |∇q|² + Δq,    t in [0,1], x in [−5,5]^d, d = 9,

with an initial condition only: p starts as the standard normal density.
Exact solution: q is the log density of N(0, s I), s = e^{−t} + 2 (1 − e^{−t}).
Source: arXiv:2405.15603 (KFAC for PINNs), with its numbers of points.
"""

from math import log, pi

from torch import exp

from pinnkfac import Box, Problem, Term, dot, grad, lap


def log_fokker_planck9d(dimension: int = 9) -> Problem:
    box = Box.cube(dimension, -5, 5, t=(0, 1))

    def solution(at):
        s = 2 - exp(-at.t)
        return -dimension / 2 * (log(2 * pi) + s.log()) - dot(at.x, at.x) / (2 * s)

    def fokker_planck(q, at):
        slope = grad(q)
        return q.t - dimension / 2 - dot(slope, at.x) / 2 - dot(slope, slope) - lap(q)

    return Problem(
        fields=("q",),
        terms=[
            Term("fokker-planck", box.interior, fokker_planck, points=3000),
            Term("start", box.at(t=0), lambda q, at: q - solution(at), points=1000),
        ],
        solution=solution,
        source="arXiv:2405.15603",
    )
