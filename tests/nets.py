"""Small nets that several tests share: each shows one thing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Generator, Tensor, nn

from pinnkfac.nets import (
    Activation,
    FixedLinear,
    FourierFeatures,
    InputScaling,
    Mlp,
    PeriodicEmbedding,
    Scale,
    affine_layer,
)
from pinnkfac.problem import Problem

FLOAT = torch.float64


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


@affine_layer
class Masked(nn.Linear):
    """y = (W ∘ mask) z + b: a layer with trained parameters of its own, and its registration."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__(mask.shape[1], mask.shape[0], dtype=FLOAT)
        self.register_buffer("mask", mask)

    def forward(self, z: Tensor) -> Tensor:
        return nn.functional.linear(z, self.weight * self.mask, self.bias)


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


def _fixed_matrices(d: int) -> nn.Module:
    def forward(net: nn.Module, x: Tensor) -> Tensor:
        z = torch.tanh(net.a(x) @ net.matrix)
        return net.b(torch.sin(torch.einsum("bi,ji->bj", z, net.matrix.exp())))

    net = Net(forward, a=linear(d, 4), b=linear(4, 2))
    net.register_buffer("matrix", torch.linspace(-1, 1, 16, dtype=FLOAT).view(4, 4))
    return net


def _two_axes(net: nn.Module, x: Tensor) -> Tensor:
    """A product over two axes of features, summed over one."""
    z = torch.tanh(net.a(x)).view(-1, 2, 2)
    weights = torch.sin(net.b(x)).unsqueeze(1)
    return net.c((z * weights).sum(-1) - z.transpose(1, 2)[..., 0])


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
    "powers as methods": lambda d: functional(d, lambda z: z.square(), lambda z: z.pow(2.0)),
    "roots": lambda d: functional(
        d, lambda z: (z.square() + 1.3).sqrt(), lambda z: torch.rsqrt(z * z + 0.7)
    ),
    "real powers": lambda d: functional(
        d, lambda z: (1.5 + torch.sin(z)) ** 0.5, lambda z: torch.pow(2.0 + z.tanh(), -1.3)
    ),
    "reciprocals": lambda d: functional(
        d, lambda z: 1.0 / (2.0 + torch.tanh(z)), lambda z: (2.5 + z.sin()).reciprocal() ** -1
    ),
    "logarithm": lambda d: functional(d, lambda z: torch.log(2.0 + torch.sin(z)), torch.tanh),
    "softplus with options": lambda d: functional(
        d, lambda z: nn.functional.softplus(z, 2.0), lambda z: nn.functional.softplus(z, beta=0.5)
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
    "Scales behind several axes of features": lambda d: nn.Sequential(
        linear(d, 6),
        nn.Unflatten(1, (2, 3)),
        Scale(initial=1.2),
        nn.Tanh(),
        Scale(3, 0.8),
        nn.Flatten(),
        linear(6, 2),
    ),
    "Scale of the input": lambda d: Net(
        lambda net, x: net.b(torch.tanh(net.a(net.s(x)))),
        a=linear(d, 4),
        b=linear(4, 2),
        s=Scale(d),
    ),
    "masked layer": lambda d: nn.Sequential(
        linear(d, 4),
        nn.Tanh(),
        Masked(torch.eye(4, dtype=FLOAT)[:3] + 0.5),
        nn.Tanh(),
        linear(3, 2),
    ),
    "masked layer called twice": lambda d: Net(
        lambda net, x: net.c(torch.tanh(net.b(torch.tanh(net.b(torch.tanh(net.a(x))))))),
        a=Masked(torch.ones(4, d, dtype=FLOAT)),
        b=Masked(torch.ones(4, 4, dtype=FLOAT).tril()),
        c=linear(4, 2),
    ),
    # linear functions
    "sums and means": lambda d: Net(
        lambda net, x: net.b(
            torch.cat([(z := net.a(x).sin()).sum(-1, keepdim=True), z.mean(1, True), z], -1)
        ),
        a=linear(d, 4),
        b=linear(6, 2),
    ),
    "flip and roll": lambda d: Net(
        lambda net, x: net.b(torch.tanh(net.a(x)).flip(-1) * torch.roll(net.a(x), 1, dims=1)),
        a=linear(d, 4),
        b=linear(4, 2),
    ),
    "every second feature": lambda d: Net(
        lambda net, x: net.b(torch.tanh(net.a(x))[:, ::2]), a=linear(d, 4), b=linear(2, 2)
    ),
    "columns": lambda d: Net(
        lambda net, x: net.b(torch.stack([x[:, 0], torch.tanh(net.a(x)).sum(1) / x[:, 1]], dim=-1)),
        a=linear(d, 4),
        b=linear(2, 2),
    ),
    "chunks": lambda d: Net(
        lambda net, x: net.b(
            torch.cat((z := torch.sin(net.a(x)).chunk(2, dim=-1))[::-1], -1) * z[1][:, :1]
        ),
        a=linear(d, 4),
        b=linear(4, 2),
    ),
    "expanded": lambda d: Net(
        lambda net, x: net.b(torch.tanh(net.a(x).expand(-1, 3).cumsum(-1))),
        a=linear(d, 1),
        b=linear(3, 2),
    ),
    "shapes": lambda d: nn.Sequential(
        linear(d, 4), nn.Unflatten(1, (2, 2)), nn.Tanh(), nn.Flatten(), linear(4, 2)
    ),
    "fixed matrices": _fixed_matrices,
    "two axes of features": lambda d: Net(
        _two_axes, a=linear(d, 4), b=linear(d, 2), c=linear(2, 2)
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
    "quotient": lambda d: Net(
        lambda net, x: net.c(torch.tanh(net.a(x)) / (2.0 + torch.sin(net.b(x)))),
        a=linear(d, 4),
        b=linear(d, 1),
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


def net_for(problem: Problem, widths: Sequence[int] = (5, 4)) -> nn.Module:
    return Mlp(len(problem.coordinates.names), len(problem.fields), widths)
