"""The Allen-Cahn equation u_t = D u_xx + R (u − u³): a smooth start separates into phases.

t in [0,1], x in [−1,1], periodic, u(0, x) = u₀ = x² cos(πx), D = 1e-4, R = 5.

There is no closed form. The reference is u = u₀ + layer + w: u₀ has a kink at x = ±1 (periodic),
diffusion rounds it off at once, ``layer`` is that exactly, and so w is smooth. In τ = √t it obeys
w_τ = 2τ (D w_xx + D u₀'' + R (u − u³)): 4096 Fourier modes, 500 steps of Lawson's fourth-order
method (diffusion exact), at first use, in a second; then polynomials of degree 7 between nodes.
Accuracy by refinement: 5e-10 (root mean square); at most 2e-7 next to x = ±1 at t < 0.01,
and 1e-8 elsewhere; at most 2e-6 for 1e-5 ≤ D ≤ 5e-3. It can be differentiated for t > 0.
Source: arXiv:1711.10561 (Raissi, Perdikaris, Karniadakis).
"""

import math
from functools import lru_cache
from math import pi

import numpy as np
import torch

from pinnkfac import Box, Problem, Term

MODES, STEPS = 4096, 500


def allen_cahn(diffusion: float = 1e-4, reaction: float = 5.0) -> Problem:
    box = Box(t=(0, 1), x=(-1, 1))

    def initial(at):
        return at.x**2 * torch.cos(pi * at.x)

    def solution(at):
        table = torch.from_numpy(_smooth_part(diffusion, reaction)).to(at.x)
        tau = torch.sqrt(at.t.clamp(min=1e-30))
        layer = _layer(1 - at.x.abs(), tau, diffusion, torch.exp, torch.erfc)
        return initial(at) + layer + _interpolate(table, STEPS * tau, MODES * (at.x + 1) / 2)

    def phases(u, at):
        return u.t - diffusion * u.xx - reaction * (u - u**3)

    return Problem(
        fields=("u",),
        terms=[
            Term("phases", box.interior, phases, points=3000),
            Term("start", box.at(t=0), lambda u, at: u - initial(at), points=400),
        ],
        solution=solution,
        periodic=("x",),
        source="arXiv:1711.10561",
    )


def _layer(distance, tau, diffusion, exp, erfc):
    """How the heat equation rounds off the kink 2 |x ∓ 1| of u₀, at a distance from it."""
    width = 2 * math.sqrt(diffusion) * tau
    z = distance / width
    return 2 * width * (exp(-(z**2)) / math.sqrt(pi) - z * erfc(z))


@lru_cache(maxsize=4)
def _smooth_part(diffusion, reaction, modes=MODES, steps=STEPS):
    """w at τ = i/steps and x = −1 + 2j/modes, as an array [steps + 1, modes + 1]."""
    x = 2 * np.arange(modes) / modes - 1
    u0 = x**2 * np.cos(pi * x)
    u0_xx = (2 - (pi * x) ** 2) * np.cos(pi * x) - 4 * pi * x * np.sin(pi * x)
    decay = diffusion * (pi * np.arange(modes // 2 + 1)) ** 2
    erfc = np.vectorize(math.erfc)

    @lru_cache(maxsize=2)
    def rough(tau):
        return u0 + _layer(1 - np.abs(x), max(tau, 1e-15), diffusion, np.exp, erfc)

    def slope(tau, w):
        u = rough(tau) + np.fft.irfft(w, modes)
        return 2 * tau * np.fft.rfft(diffusion * u0_xx + reaction * (u - u**3))

    h = 1 / steps
    w, history = np.zeros(len(decay), complex), [np.zeros(modes)]
    for i in range(steps):
        start, middle, end = i * h, (i + 0.5) * h, (i + 1) * h
        first = np.exp(-decay * (middle**2 - start**2))
        second = np.exp(-decay * (end**2 - middle**2))
        k1 = slope(start, w)
        k2 = slope(middle, first * (w + h / 2 * k1))
        k3 = slope(middle, first * w + h / 2 * k2)
        k4 = slope(end, second * (first * w + h * k3))
        w = second * (first * (w + h / 6 * k1) + h / 3 * (k2 + k3)) + h / 6 * k4
        history.append(np.fft.irfft(w, modes))
    return np.pad(history, ((0, 0), (0, 1)), mode="wrap")


def _interpolate(table, row, column):
    """The table at a fractional row and column, from the nearest 8 by 8 entries."""
    rows, left = _lagrange(row, table.shape[0])
    columns, right = _lagrange(column, table.shape[1])
    return left @ table[rows[:, None], columns[None, :]] @ right


def _lagrange(position, size, width=8):
    """The nearest integers in [0, size), and the weights of the values there."""
    first = (position.floor() - width // 2 + 1).clamp(0, size - width)
    nodes, s = range(width), position - first
    weights = [math.prod((s - j) / (i - j) for j in nodes if j != i) for i in nodes]
    return first.long() + torch.arange(width, device=position.device), torch.stack(weights)
