"""Small problems that several tests share, and their points: each shows one thing."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from nets import FLOAT
from regions import Linked
from torch import Generator

from pinnkfac import Box, Parameter, Points, Problem, Term, Uniform, div, dot, grad, lap
from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.system import System


def poisson(d: int = 2, weight: float = 1.0) -> Problem:
    box = Box.cube(d)

    def source(at):
        return math.pi**2 * torch.sin(math.pi * at.x).prod()

    return Problem(
        fields=("u",),
        terms=[
            Term("interior", box.interior, lambda u, at: -lap(u) - source(at)),
            Term("boundary", box.boundary, lambda u, at: u, weight=weight),
        ],
    )


def heat() -> Problem:
    box = Box(t=(0, 1), x=(0, 1), y=(0, 2))
    return Problem(
        fields=("u",),
        terms=[
            Term("heat", box.interior, lambda u, at: u.t - 0.25 * lap(u) - at.x * at.t),
            Term("start", box.at(t=0), lambda u, at: u - torch.sin(at.x)),
        ],
    )


def allen_cahn() -> Problem:
    box = Box(t=(0, 1), x=(-1, 1))
    return Problem(
        fields=("u",),
        terms=[
            Term("phases", box.interior, lambda u, at: u.t - 1e-2 * u.xx + 5 * (u**3 - u)),
            Term(
                "periodic",
                box.opposite("x"),
                lambda u, at: (u - u(at.opposite), u.x - u.x(at.opposite)),
                weight=3.0,
            ),
            Term("start", box.at(t=0), lambda u, at: u - at.x**2 * torch.cos(math.pi * at.x)),
        ],
    )


def flow() -> Problem:
    """Kovasznay's equations: three fields, a vector residual."""
    box = Box(x=(-0.5, 1), y=(-0.5, 1.5))
    nu = 0.05

    def momentum(u, v, p, at):
        return (
            u * u.x + v * u.y + p.x - nu * lap(u),
            u * v.x + v * v.y + p.y - nu * lap(v),
            div((u, v)),
        )

    return Problem(
        fields=("u", "v", "p"),
        terms=[
            Term("flow", box.interior, momentum, weight=0.7),
            Term("walls", box.boundary, lambda u, v, p, at: (u - at.x, v + at.y)),
            Term("pressure", box.at(x=1, y=0), lambda u, v, p, at: p),
        ],
    )


def flux() -> Problem:
    """Normals, and a coefficient that depends on the place."""
    box = Box(x=(0, 1), y=(0, 1))
    return Problem(
        fields=("u",),
        terms=[
            Term(
                "inside",
                box.interior,
                lambda u, at: torch.exp(at.x) * lap(u) + dot(grad(u), grad(u)) - torch.sin(u),
            ),
            Term("flux", box.faces("x"), lambda u, at: dot(at.normal, grad(u)) - at.y),
        ],
    )


def inverse() -> Problem:
    """Two unknown coefficients, one of them in a nonlinear place, and measurements."""
    box = Box(t=(0, 1), x=(0, 1))
    kappa, a = Parameter("kappa", 0.4), Parameter("a", -0.7)
    t = torch.linspace(0, 1, 7, dtype=FLOAT)
    measured = Points({"t": t, "x": t**2}, measured=torch.exp(-t) * torch.sin(t))
    return Problem(
        fields=("u",),
        terms=[
            Term("heat", box.interior, lambda u, at: u.t - kappa * u.xx + torch.sin(a * u)),
            Term("data", measured, lambda u, at: u - at.measured, weight=10.0),
        ],
        parameters=(kappa, a),
    )


def linked() -> Problem:
    """A nonlocal equation: the value, and derivatives at two shifted points."""
    box = Box(x=(0, 1), y=(0, 1))
    region = Linked(box, {"left": (-0.3, 0.0), "above": (0.1, 0.4)})
    return Problem(
        fields=("u", "v"),
        terms=[
            Term(
                "delay",
                region,
                lambda u, v, at: (
                    lap(u) - u(at.left) * v + at.left.x,
                    v.x(at.above) * u.xy(at.left) - v,
                ),
            ),
            Term("boundary", box.boundary, lambda u, v, at: u - v),
        ],
    )


def high_order() -> Problem:
    """Orders up to four, mixed, linear and not."""
    box = Box(x=(0, 1), y=(0, 1))
    return Problem(
        fields=("u", "v"),
        terms=[
            Term("plate", box.interior, lambda u, v, at: lap(lap(u)) - at.x * v.xy, weight=1e-2),
            Term(
                "mixed",
                box.interior,
                lambda u, v, at: u.xxyy * v.xxx + v * u.xxxy + torch.cos(v.yyyy) - u.xyy,
            ),
        ],
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "poisson": lambda: poisson(weight=5.0),
    "poisson 3d": lambda: poisson(3),
    "heat": heat,
    "allen-cahn": allen_cahn,
    "flow": flow,
    "flux": flux,
    "inverse": inverse,
    "linked": linked,
    "high order": high_order,
}


def points_for(system: System, *numbers: int) -> list[TermPoints]:
    """Uniform points, as many a term as given (the last number repeats), 7 by default; all of
    given ones."""
    numbers = numbers or (7,)
    generator = Generator().manual_seed(3)
    drawn = []
    for i, term in enumerate(system.problem.terms):
        number = getattr(term.where, "number", numbers[min(i, len(numbers) - 1)])
        drawn.append(term.where.draw(number, Uniform(), generator))
    return system.prepare(drawn)


def everything(d: int) -> Problem:
    """One term on the box [0, 1]^d that reads many derivatives of two fields, nonlinearly."""
    box = Box({name: (0.0, 1.0) for name in "xyz"[:d]})

    def residual(u, v, at):
        return (
            u * v.x - 0.3 * u.xxy + torch.sin(u.xy) * v.yy,
            lap(u) + 0.1 * lap(lap(v)) + v.x * u.xxxy,
        )

    return Problem(fields=("u", "v"), terms=[Term("all", box.interior, residual)])
