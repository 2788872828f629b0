"""A term with any function in place of the net, by nested automatic differentiation.

Slow and without Taylor mode: it is what Taylor mode is compared with, and what an exact solution
is put into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from pinnkfac.domain import PointSet
from pinnkfac.field import At, MultiIndex
from pinnkfac.problem import Problem
from pinnkfac.residual import Residual, flatten

Function = Callable[[Tensor], Tensor]
"""A point [coord] to the values of all fields [field]."""


def of_net(net: nn.Module) -> Function:
    """The fields as a net gives them."""
    return lambda point: net(point[None])[0]


def of_solution(problem: Problem) -> Function:
    """The fields as the problem's exact solution gives them."""
    solution = problem.solution
    assert solution is not None

    def fields(point: Tensor) -> Tensor:
        output = solution(At(problem.coordinates, point))
        if isinstance(output, Tensor) and output.dim() == 1:
            return output
        return torch.stack([torch.as_tensor(v, dtype=point.dtype) for v in flatten(output)])

    return fields


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

    def one(alpha: MultiIndex) -> Tensor:
        return vmap(lambda point: derivative(function, point, alpha))(points).detach()

    return {alpha: one(alpha) for alpha in alphas}


def evaluate(
    residual: Residual, points: PointSet, function: Function, theta: Tensor
) -> tuple[Tensor, Tensor]:
    """The residual [batch, equation] and its slots [batch, slot], with the fields of a function."""
    places = {"": points.coordinates, **points.links}
    alphas: dict[str, set[MultiIndex]] = {}
    for slot in residual.slots:
        for (_, place, alpha), _ in slot:
            alphas.setdefault(place, set()).add(alpha)
    values = {p: derivatives(function, places[p], sorted(wanted)) for p, wanted in alphas.items()}
    columns = [
        sum(c * values[place][alpha][:, field] for (field, place, alpha), c in slot)
        for slot in residual.slots
    ]
    z = torch.stack(columns, -1)  # type: ignore[arg-type]
    return residual.value(z, theta, points, None), z
