"""A term with any function in place of the net, by nested automatic differentiation.

Slow and without Taylor mode: it is what Taylor mode is compared with, and what an exact solution
is put into.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import jvp, vmap

from pinnkfac.domain import PointSet
from pinnkfac.field import At, Context, Coordinates, LinearPart, MultiIndex
from pinnkfac.problem import Problem, Term, bind
from pinnkfac.residual import arguments_of, call, flatten

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


class _Exact(Context):
    """Answers Σ c D^α u_k(place) from the function itself."""

    def __init__(
        self, coordinates: Coordinates, function: Function, places: Mapping[str, Tensor]
    ) -> None:
        self.coordinates = coordinates
        self.function = function
        self.places = places
        self.like = places[""]
        self.known: dict[tuple[str, MultiIndex], Tensor] = {}

    def value(self, linear: LinearPart) -> Tensor:
        total = torch.zeros_like(self.like[0])
        for (field, place, alpha), c in linear:
            key = (place, alpha)
            if key not in self.known:
                self.known[key] = derivative(self.function, self.places[place], alpha)
            total = total + c * self.known[key][field]
        return total


def evaluate(
    term: Term,
    problem: Problem,
    points: PointSet,
    function: Function,
    slots: Sequence[LinearPart],
    theta: Tensor,
) -> tuple[Tensor, Tensor]:
    """The residual [batch, equation] and the slots [batch, slot], from the user's function."""

    def one(arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
        places = {"": arguments["point"], **arguments.get("links", {})}
        context = _Exact(problem.coordinates, function, places)
        at = At(problem.coordinates, **arguments)
        with bind(problem.parameters, list(theta)):
            entries = call(term, context, at, len(problem.fields))
            numbers = [e.as_tensor() if hasattr(e, "as_tensor") else e for e in entries]
        like = context.like
        residual = torch.stack([torch.as_tensor(n, dtype=like.dtype) for n in numbers])
        return residual, torch.stack([context.value(linear) for linear in slots])

    residual, values = vmap(one)(arguments_of(points))
    return residual.detach(), values.detach()
