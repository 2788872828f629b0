"""Burgers' equation u_t + u u_x = ν u_xx: a sine steepens into a shock at x = 0.

t in [0,1], x in [−1,1], u(0, x) = −sin(πx), u = 0 at both ends, ν = 0.01/π. (Papers also use
ν = 0.01: never compare the two.)
Exact solution (Cole-Hopf): u = −E[w sin(πy)] / E[w] with w = exp(−cos(πy)/(2πν)),
y = x − 2√(νt) z and z drawn from exp(−z²)/√π; the mean E is a Gauss-Hermite sum,
exact to 1e-13 for 0.001 ≤ ν ≤ 0.1. It can be differentiated for t > 0.
Source: arXiv:1711.10561 (Raissi, Perdikaris, Karniadakis); Cole, Quart. Appl. Math. 9 (1951).
"""

from math import pi

import numpy as np
import torch
from torch import cos, sin, sqrt

from pinnkfac import Box, Problem, Term


def burgers(nu: float = 0.01 / pi, nodes: int = 200) -> Problem:
    """``nodes`` is the size of the Gauss-Hermite sum."""
    box = Box(t=(0, 1), x=(-1, 1))
    z, weights = (torch.from_numpy(a) for a in np.polynomial.hermite.hermgauss(nodes))

    def solution(at):
        y = pi * (at.x - 2 * sqrt(nu * at.t) * z.to(at.x))
        log_w = weights.log().to(at.x) - cos(y) / (2 * pi * nu)
        return -(torch.softmax(log_w, 0) * sin(y)).sum()

    return Problem(
        fields=("u",),
        terms=[
            Term("burgers", box.interior, lambda u, at: u.t + u * u.x - nu * u.xx, points=2000),
            Term("ends", box.boundary, lambda u, at: u, points=200),
            Term("start", box.at(t=0), lambda u, at: u + sin(pi * at.x), points=200),
        ],
        solution=solution,
        source="arXiv:1711.10561",
    )
