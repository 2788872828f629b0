"""Activations as towers of derivatives: [σ(z), σ'(z), …, σ^(order)(z)].

A tower is all that Taylor mode needs of an elementwise function. One of torch's is a line of
``TOWERS``; any other is a subclass of ``Activation`` with its ``tower``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from numpy.polynomial.polynomial import polyadd, polyder, polymul
from torch import Tensor, nn

from pinnkfac.common.errors import UserError

Tower = Callable[..., list[Tensor]]
"""tower(z, order, *options of the function)"""


class Activation(nn.Module):
    """A user's own elementwise function, given by its tower of derivatives.

    Subclasses define ``tower(z, order)``, the list [σ(z), σ'(z), …, σ^(order)(z)], each shaped
    like z. A residual of order K needs derivatives up to K + 1 (one more for the backward pass);
    ``highest`` says how many there are (None: any number).
    """

    highest: int | None = None

    def tower(self, z: Tensor, order: int) -> list[Tensor]:
        raise NotImplementedError(f"{type(self).__name__} must define tower(z, order)")

    def forward(self, z: Tensor) -> Tensor:
        return self.tower(z, 0)[0]

    def checked_tower(self, z: Tensor, order: int) -> list[Tensor]:
        """The tower; UserError where it is shorter than asked for."""
        name = type(self).__name__
        if self.highest is not None and order > self.highest:
            raise UserError(
                f"activation {name} has derivatives up to order {self.highest}, but order {order} "
                "is needed (the order of the PDE plus one for the backward pass): extend its tower "
                "or choose another activation"
            )
        result = self.tower(z, order)
        if len(result) < order + 1:
            raise UserError(
                f"activation {name}: tower(z, {order}) returned {len(result)} entries; it must "
                f"return {order + 1}, [σ, σ', …, σ^({order})]"
            )
        return result


@cache
def _polynomial(kind: str, n: int) -> tuple[float, ...]:
    """Coefficients (lowest first) of Q_n, where σ^(n) = σ'·Q_n(σ).

    σ' = 1 − σ² for tanh and σ − σ² for the sigmoid, and Q_{n+1} = Q_n'·σ' + Q_n·dσ'/dσ.
    """
    if n == 1:
        return (1.0,)
    inner = {"tanh": (1, 0, -1), "sigmoid": (0, 1, -1)}[kind]
    q = _polynomial(kind, n - 1)
    return tuple(map(float, polyadd(polymul(polyder(q), inner), polymul(q, polyder(inner)))))


def _horner(coefficients: tuple[float, ...], x: Tensor, x2: Tensor) -> Tensor:
    """The polynomial at x; an even or odd one is evaluated in x² = x2."""
    odd = not any(coefficients[0::2])
    if odd or not any(coefficients[1::2]):
        value = _horner_full(coefficients[1::2] if odd else coefficients[0::2], x2)
        return value.mul_(x) if odd else value
    return _horner_full(coefficients, x)


def _horner_full(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    *rest, top = coefficients
    value = torch.full_like(x, top)
    for i, c in enumerate(reversed(rest)):
        value = x * top if i == 0 else value.mul_(x)
        if c:
            value.add_(c)
    return value


def _polynomial_tower(kind: str, s: Tensor, order: int) -> list[Tensor]:
    result = [s]
    if order < 1:
        return result
    s2 = s * s
    first = 1.0 - s2 if kind == "tanh" else s - s2
    result.append(first)
    for n in range(2, order + 1):
        result.append(_horner(_polynomial(kind, n), s, s2).mul_(first))
    return result


def tanh(z: Tensor, order: int) -> list[Tensor]:
    return _polynomial_tower("tanh", torch.tanh(z), order)


def sigmoid(z: Tensor, order: int) -> list[Tensor]:
    return _polynomial_tower("sigmoid", torch.sigmoid(z), order)


def softplus(z: Tensor, order: int, beta: float = 1.0, threshold: float = math.inf) -> list[Tensor]:
    """log(1 + exp(βz))/β. Beyond ``threshold`` torch rounds it to z, and this one does not."""
    value = torch.logaddexp(beta * z, torch.zeros_like(z))
    tower = [value, *sigmoid(beta * z, order - 1)] if order else [value]
    return [beta ** (n - 1) * f for n, f in enumerate(tower)]


def sin(z: Tensor, order: int) -> list[Tensor]:
    s = torch.sin(z)
    if not order:
        return [s]
    c = torch.cos(z)
    return [(s, c, -s, -c)[n % 4] for n in range(order + 1)]


def cos(z: Tensor, order: int) -> list[Tensor]:
    c = torch.cos(z)
    if not order:
        return [c]
    s = torch.sin(z)
    return [(c, -s, -c, s)[n % 4] for n in range(order + 1)]


def exp(z: Tensor, order: int) -> list[Tensor]:
    return [torch.exp(z)] * (order + 1)


def _times_identity(z: Tensor, tower: list[Tensor], order: int) -> list[Tensor]:
    """The tower of z·f(z) from that of f: z f^(n) + n f^(n−1)."""
    return [
        z * tower[n] if n == 0 else torch.add(z * tower[n], tower[n - 1], alpha=n)
        for n in range(order + 1)
    ]


def silu(z: Tensor, order: int) -> list[Tensor]:
    return _times_identity(z, sigmoid(z, order), order)


def gelu(z: Tensor, order: int, approximate: str = "none") -> list[Tensor]:
    """z Φ(z); Φ^(n) = (−1)^(n−1) He_{n−1}(z) φ(z)."""
    if approximate != "none":
        raise UserError(
            "net: GELU(approximate='tanh') has no rule: use GELU() with the exact error function"
        )
    cdf = torch.special.ndtr(z)
    density = torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)
    tower = [cdf]
    hermite = [torch.ones_like(z), z]
    for n in range(1, order + 1):
        if n - 1 >= len(hermite):
            hermite.append(z * hermite[-1] - (n - 2) * hermite[-2])
        tower.append((-1.0) ** (n - 1) * hermite[n - 1] * density)
    return _times_identity(z, tower, order)


def log(z: Tensor, order: int) -> list[Tensor]:
    return [torch.log(z), *power(z, order - 1, -1)]


def power(z: Tensor, order: int, exponent: float) -> list[Tensor]:
    """z^p with any real p: p (p − 1) … (p − n + 1) z^(p − n)."""
    p = int(exponent) if float(exponent).is_integer() else float(exponent)
    factor, result = 1.0, []
    for n in range(order + 1):
        result.append(factor * z ** (p - n if factor else 0))
        factor *= p - n
    return result


TOWERS: dict[str, Tower] = {
    "tanh": tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "silu": silu,
    "gelu": gelu,
    "sin": sin,
    "cos": cos,
    "exp": exp,
    "log": log,
    "pow": power,
    "square": partial(power, exponent=2),
    "sqrt": partial(power, exponent=0.5),
    "rsqrt": partial(power, exponent=-0.5),
    "reciprocal": partial(power, exponent=-1),
}
"""By torch's names: functions, methods and layers of each name get the tower."""


class Named(Activation):
    """A function of ``TOWERS`` as a layer."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def tower(self, z: Tensor, order: int) -> list[Tensor]:
        return TOWERS[self.name](z, order)


NOT_SMOOTH = {
    nn.ReLU: "second derivatives",
    nn.LeakyReLU: "second derivatives",
    nn.ReLU6: "second derivatives",
    nn.PReLU: "second derivatives",
    nn.ELU: "continuous second derivatives",
    nn.Hardtanh: "second derivatives",
    nn.Softshrink: "second derivatives",
}
