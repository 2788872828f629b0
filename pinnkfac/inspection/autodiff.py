"""A term with any function in place of the net, by nested automatic differentiation: slow, and what
Taylor mode is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from torch.func import jvp, vmap

from pinnkfac.domain import PointSet
from pinnkfac.field import MultiIndex
from pinnkfac.residual import Residual

Function = Callable[[Tensor], Tensor]
"""A point [coord] to the values of all fields [field]."""


def derivative(function: Function, point: Tensor, alpha: MultiIndex) -> Tensor:
    """D^α of all fields at a point, [field]: one forward derivative inside another."""
    if not any(alpha):
        return function(point)
    i = next(i for i, a in enumerate(alpha) if a)
    less = (*alpha[:i], alpha[i] - 1, *alpha[i + 1 :])
    direction = torch.zeros_like(point)
    direction[i] = 1.0
    return jvp(lambda x: derivative(function, x, less), (point,), (direction,))[1]


def derivatives(
    function: Function, points: Tensor, alphas: Sequence[MultiIndex]
) -> dict[MultiIndex, Tensor]:
    """Every D^α at points [batch, coord], each [batch, field]."""
    return {
        alpha: vmap(partial(derivative, function, alpha=alpha))(points).detach() for alpha in alphas
    }


Derivative = Callable[[Tensor, MultiIndex], Tensor]
"""Points [batch, coord] and α to D^α of all fields there, [batch, field]."""


def slots(residual: Residual, points: PointSet, derivative: Derivative) -> Tensor:
    """The slots [batch, slot] of a residual at some points."""
    places = {"": points.coordinates, **points.links}

    @cache
    def values(place: str, alpha: MultiIndex) -> Tensor:
        return derivative(places[place], alpha)

    columns = [
        sum(c * values(place, alpha)[:, field] for (field, place, alpha), c in slot)
        for slot in residual.slots
    ]
    return torch.stack(columns, -1)  # type: ignore[arg-type]


def evaluate(
    residual: Residual, points: PointSet, function: Function, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """The residual [batch, equation] and its slots [batch, slot], with the fields of a function."""
    z = slots(residual, points, lambda x, alpha: derivatives(function, x, [alpha])[alpha])
    return residual.value(z, theta, points, None), z
