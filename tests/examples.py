"""Small nets and problems that several tests share: each shows one thing."""

from __future__ import annotations

import importlib.util
import itertools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch
from torch import Generator, Tensor, nn

from pinnkfac import Box, Parameter, Points, Problem, Term, Uniform, div, dot, grad, lap
from pinnkfac.domain import PointSet
from pinnkfac.linearise import System, TermPoints
from pinnkfac.nets import (
    Activation,
    FixedLinear,
    FourierFeatures,
    InputScaling,
    Mlp,
    PeriodicEmbedding,
    Scale,
)

FLOAT = torch.float64


# -- nets ----------------------------------------------------------------------------------------
class Net(nn.Module):
    """Named modules and a function of (net, x) that uses them."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], **modules: nn.Module):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


class Gaussian(Activation):
    """exp(−z²/2), a user's own: its derivatives are (−1)^n He_n(z) exp(−z²/2)."""

    def tower(self, z: Tensor, order: int) -> list[Tensor]:
        hermite = [torch.ones_like(z), z]
        for n in range(1, order + 1):
            hermite.append(z * hermite[n] - n * hermite[n - 1])
        bell = torch.exp(-0.5 * z * z)
        return [(-1.0) ** n * hermite[n] * bell for n in range(order + 1)]


class FirstOrderOnly(Activation):
    """tanh with too few derivatives, and honest about it."""

    highest = 2

    def tower(self, z: Tensor, order: int) -> list[Tensor]:
        y = torch.tanh(z)
        return [y, 1 - y * y, -2 * y * (1 - y * y)][: order + 1]


class TooShort(FirstOrderOnly):
    """tanh with too few derivatives, and silent about it."""

    highest = None


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=bias, dtype=FLOAT)


def sequential(d: int, activation: Callable[[], nn.Module], outputs: int = 2) -> nn.Module:
    return nn.Sequential(linear(d, 4), activation(), linear(4, 3), activation(), linear(3, outputs))


def functional(d: int, f: Callable[[Tensor], Tensor], g: Callable[[Tensor], Tensor]) -> nn.Module:
    """Activations that forward calls as functions or methods."""
    return Net(
        lambda net, x: net.c(g(net.b(f(net.a(x))))), a=linear(d, 4), b=linear(4, 3), c=linear(3, 2)
    )


def deep_linear(d: int, widths: Sequence[int] = (3, 4, 3), outputs: int = 1) -> nn.Module:
    sizes = [d, *widths, outputs]
    net = nn.Sequential(*(linear(a, b) for a, b in itertools.pairwise(sizes)))
    for parameter in net.parameters():  # larger than torch's own, so that all rows matter
        nn.init.normal_(parameter)
    return net


def _buffered(d: int) -> nn.Module:
    net = Net(
        lambda net, x: net.b(torch.tanh(net.factor * net.a(x) + net.shift)),
        a=linear(d, 4),
        b=linear(4, 2),
    )
    net.register_buffer("factor", torch.tensor([1.0, -0.5, 2.0, 0.3], dtype=FLOAT))
    net.register_buffer("shift", torch.tensor([0.1, 0.2, -0.3, 0.4], dtype=FLOAT))
    return net


def _frozen_parameter(d: int) -> nn.Module:
    net = Net(lambda net, x: net.b(torch.tanh(net.a(x) * net.factor)), a=linear(d, 4))
    net.b = linear(4, 2)
    net.factor = nn.Parameter(torch.tensor(1.3, dtype=FLOAT), requires_grad=False)
    return net


def _frozen_layers(d: int) -> nn.Module:
    net = nn.Sequential(linear(d, 4), Scale(4, 1.3), nn.Tanh(), linear(4, 4), nn.Tanh())
    net += nn.Sequential(linear(4, 3, False), nn.Tanh(), linear(3, 2))
    for i in (1, 3, 5):
        net[i].requires_grad_(False)
    return net


def _twice(d: int) -> nn.Module:
    return Net(
        lambda net, x: net.c(torch.tanh(net.b(torch.tanh(net.b(torch.tanh(net.a(x))))))),
        a=linear(d, 4),
        b=linear(4, 4),
        c=linear(4, 2),
    )


def _embedded(d: int, embedding: nn.Module) -> nn.Module:
    return Mlp(d, 2, (4, 3), embedding=[embedding])


NETS: dict[str, Callable[[int], nn.Module]] = {
    # activations
    "tanh": lambda d: sequential(d, nn.Tanh),
    "sigmoid": lambda d: sequential(d, nn.Sigmoid),
    "softplus": lambda d: sequential(d, nn.Softplus),
    "softplus(beta=3)": lambda d: sequential(d, lambda: nn.Softplus(beta=3.0)),
    "SiLU": lambda d: sequential(d, nn.SiLU),
    "GELU": lambda d: sequential(d, nn.GELU),
    "own activation": lambda d: sequential(d, Gaussian),
    "sin and cos": lambda d: functional(d, torch.sin, torch.cos),
    "sin and exp methods": lambda d: functional(d, lambda z: z.sin(), lambda z: z.exp()),
    "functions of torch.nn": lambda d: functional(d, nn.functional.gelu, nn.functional.softplus),
    "functions and methods": lambda d: functional(d, torch.sigmoid, lambda z: z.tanh()),
    "powers": lambda d: functional(d, lambda z: z**3, torch.square),
    "power 1 and 5": lambda d: functional(d, lambda z: z**1, lambda z: torch.pow(z, 5)),
    "silu and a power in floating point": lambda d: functional(
        d, nn.functional.silu, lambda z: z**2.0
    ),
    "Mlp of sin": lambda d: Mlp(d, 2, (4, 3), "sin"),
    "Mlp of exp": lambda d: Mlp(d, 2, (4, 3), "exp"),
    # linear layers and embeddings
    "deep linear": lambda d: deep_linear(d, (4, 3), 2),
    "no bias": lambda d: nn.Sequential(
        linear(d, 4, False), nn.Tanh(), linear(4, 3), nn.Tanh(), linear(3, 2, False)
    ),
    "InputScaling": lambda d: _embedded(d, InputScaling((-1.0, 0.5, 0.0)[:d], (2.0, 1.0, 3.0)[:d])),
    "FourierFeatures": lambda d: _embedded(
        d, FourierFeatures(d, 6, 0.3, Generator().manual_seed(1))
    ),
    "PeriodicEmbedding": lambda d: _embedded(
        d, PeriodicEmbedding((None, 2.0, 3.0)[:d], harmonics=2)
    ),
    "PeriodicEmbedding of all": lambda d: _embedded(d, PeriodicEmbedding((5.0, 4.0, 3.0)[:d])),
    "FixedLinear inside": lambda d: Net(
        lambda net, x: net.b(torch.tanh(net.fixed(torch.tanh(net.a(x))))),
        a=linear(d, 4),
        fixed=FixedLinear(torch.linspace(-1, 1, 12, dtype=FLOAT).view(3, 4)),
        b=linear(3, 2),
    ),
    # trained scales
    "Scale": lambda d: Net(
        lambda net, x: net.c(torch.tanh(net.s(net.b(torch.sin(net.s(net.a(x))))))),
        a=linear(d, 4),
        b=linear(4, 3),
        c=linear(3, 2),
        s=Scale(initial=1.2),
    ),
    "Scale a feature": lambda d: Net(
        lambda net, x: net.t(net.b(torch.tanh(net.s(net.a(x))))),
        a=linear(d, 4),
        b=linear(4, 2),
        s=Scale(4, 0.8),
        t=Scale(2, 1.1),
    ),
    "Scale of the input": lambda d: Net(
        lambda net, x: net.b(torch.tanh(net.a(net.s(x)))),
        a=linear(d, 4),
        b=linear(4, 2),
        s=Scale(d),
    ),
    # structure
    "residual connection": lambda d: Mlp(d, 2, (4, 4, 4), residual=True),
    "difference": lambda d: Net(
        lambda net, x: net.c(torch.tanh(net.a(x)) - torch.sin(net.b(x))),
        a=linear(d, 4),
        b=linear(d, 4),
        c=linear(4, 2),
    ),
    "product": lambda d: Net(
        lambda net, x: net.c(torch.tanh(net.a(x)) * torch.sin(net.b(x))),
        a=linear(d, 4),
        b=linear(d, 4),
        c=linear(4, 2),
    ),
    "sum with one feature": lambda d: Net(
        lambda net, x: net.c(torch.sin(net.b(x)) - torch.tanh(net.a(x)) + x[:, 1:2]),
        a=linear(d, 4),
        b=linear(d, 1),
        c=linear(4, 2),
    ),
    "product with itself": lambda d: Net(
        lambda net, x: net.b((z := torch.tanh(net.a(x))) * z), a=linear(d, 4), b=linear(4, 2)
    ),
    "product with one feature": lambda d: Net(
        lambda net, x: net.c(torch.tanh(net.a(x)) * torch.sin(net.b(x))),
        a=linear(d, 4),
        b=linear(d, 1),
        c=linear(4, 2),
    ),
    "concatenation with the input": lambda d: Net(
        lambda net, x: net.b(torch.cat([x, torch.tanh(net.a(x)), x[:, 1:]], dim=-1)),
        a=linear(d, 4),
        b=linear(2 * d + 3, 2),
    ),
    "concatenation of slices": lambda d: Net(
        lambda net, x: net.b(
            torch.cat([torch.tanh(net.a(x))[..., 2:], torch.sin(net.a(x))[:, :2]], 1)
        ),
        a=linear(d, 4),
        b=linear(4, 2),
    ),
    "zero on two faces": lambda d: Net(
        lambda net, x: x[:, 0:1] * (1.0 - x[:, 0:1]) * net.b(torch.tanh(net.a(x))),
        a=linear(d, 4),
        b=linear(4, 2),
    ),
    "arithmetic with numbers": lambda d: Net(
        lambda net, x: 2.0 * net.b(-torch.tanh((1.0 - net.a(x)) / 3.0 + 0.2)) - 0.4,
        a=linear(d, 4),
        b=linear(4, 2),
    ),
    "buffers": _buffered,
    "frozen layers": _frozen_layers,
    "arguments by name": lambda d: Net(
        lambda net, x: net.b(
            input=torch.cat(tensors=[torch.tanh(input=net.a(x)), torch.mul(x, other=x)], dim=-1)
        ),
        a=linear(d, 4),
        b=linear(4 + d, 2),
    ),
    "untrained parameter": _frozen_parameter,
    "layer called twice": _twice,
    "activation called twice": lambda d: Net(
        lambda net, x: net.b(net.act(net.act(net.a(x)))),
        a=linear(d, 4),
        b=linear(4, 2),
        act=nn.Tanh(),
    ),
    "identity": lambda d: nn.Sequential(linear(d, 4), nn.Identity(), nn.Tanh(), linear(4, 2)),
    "layer without effect": lambda d: Net(
        lambda net, x: (net.b(x), net.c(torch.tanh(net.a(x))))[1],
        a=linear(d, 4),
        b=linear(d, 3),
        c=linear(4, 2),
    ),
}


# -- problems ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Linked:
    """Points of a box, each linked to others by name at the given shifts."""

    box: Box
    shifts: dict[str, tuple[float, ...]]

    @property
    def coordinates(self):
        return self.box.coordinates

    @property
    def dimension(self) -> int:
        return len(self.coordinates.names)

    @property
    def link_names(self) -> tuple[str, ...]:
        return tuple(self.shifts)

    def draw(self, number, sampling, generator) -> PointSet:
        points = self.box.interior.draw(number, sampling, generator)
        x = points.coordinates
        return PointSet(x, links={k: x + x.new_tensor(v) for k, v in self.shifts.items()})

    def __str__(self) -> str:
        return "linked points"


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


def net_for(problem: Problem, widths: Sequence[int] = (5, 4)) -> nn.Module:
    return Mlp(len(problem.coordinates.names), len(problem.fields), widths)


def points_for(system: System, *numbers: int) -> list[TermPoints]:
    """Uniform points, as many a term as given (the last number repeats); 7 by default."""
    numbers = numbers or (7,)
    generator = Generator().manual_seed(3)
    return system.prepare(
        [
            term.where.draw(numbers[min(i, len(numbers) - 1)], Uniform(), generator)
            for i, term in enumerate(system.problem.terms)
        ]
    )


def everything(d: int) -> Problem:
    """One term on the box [0, 1]^d that reads many derivatives of two fields, nonlinearly."""
    box = Box({name: (0.0, 1.0) for name in "xyz"[:d]})

    def residual(u, v, at):
        return (
            u * v.x - 0.3 * u.xxy + torch.sin(u.xy) * v.yy,
            lap(u) + 0.1 * lap(lap(v)) + v.x * u.xxxy,
        )

    return Problem(fields=("u", "v"), terms=[Term("all", box.interior, residual)])


def experiment(name: str) -> ModuleType:
    """A script of experiments/, as a module."""
    file = Path(__file__).parents[1] / "experiments" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
