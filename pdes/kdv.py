"""The Korteweg-de Vries equation u_t + 6u u_x + u_xxx = 0: a fast soliton overtakes a slow one.

t in [0,5], x in [0,20]. Waves of small amplitude run to the left, so the right end needs two
conditions (u and u_x) and the left end one (u): Bona, Sun, Zhang, Comm. PDE 28 (2003).
Exact solution: u = 2 ∂²/∂x² log(1 + e^{θ₁} + e^{θ₂} + A e^{θ₁+θ₂}), with speeds c_i = k_i²,
A = (k₁ − k₂)²/(k₁ + k₂)², θ_i = k_i (x − c_i t − x_i) − ½ log A.
Source: Hirota, Phys. Rev. Lett. 27 (1971), 1192.
"""

from math import log, sqrt

import torch
from torch import stack

from pinnkfac import Box, Problem, Term


def kdv(c1: float = 6.0, c2: float = 2.0, x1: float = -2.0, x2: float = 2.0) -> Problem:
    """Two solitons of different speeds c1, c2 > 0, near x1 and x2 at the start."""
    box = Box(t=(0, 5), x=(0, 20))
    k1, k2 = sqrt(c1), sqrt(c2)
    half_log_a = log(abs(k1 - k2) / (k1 + k2))

    def cumulants(at):
        """∂_x² and ∂_x³ of log Σ exp(a_i x + b_i): no overflow, unlike the sum itself.

        They are the central moments of the slopes a_i under the weights softmax(a_i x + b_i).
        """
        theta1 = k1 * (at.x - c1 * at.t - x1) - half_log_a
        theta2 = k2 * (at.x - c2 * at.t - x2) - half_log_a
        exponents = stack([0 * at.x, theta1, theta2, theta1 + theta2 + 2 * half_log_a])
        slopes = at.x.new_tensor([0, k1, k2, k1 + k2])
        weights = torch.softmax(exponents, 0)
        deviation = slopes - (weights * slopes).sum()
        return (weights * deviation**2).sum(), (weights * deviation**3).sum()

    def solution(at):
        return 2 * cumulants(at)[0]

    def right(u, at):
        second, third = cumulants(at)
        return u - 2 * second, u.x - 2 * third

    return Problem(
        fields=("u",),
        terms=[
            Term("kdv", box.interior, lambda u, at: u.t + 6 * u * u.x + u.xxx, points=3000),
            Term("start", box.at(t=0), lambda u, at: u - solution(at), points=200),
            Term("left", box.faces("x", side="low"), lambda u, at: u - solution(at), points=200),
            Term("right", box.faces("x", side="high"), right, points=200),
        ],
        solution=solution,
        source="Hirota, Phys. Rev. Lett. 27 (1971), 1192",
    )
