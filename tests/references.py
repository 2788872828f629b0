"""Slow and independent: residuals of any function, by nested automatic differentiation.

Nothing here shares code with Taylor mode or with the net; only the language of residuals
(field.Context) is used. Other tests may put a net in place of the exact solution.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

from pinnkfac.domain import PointSet
from pinnkfac.field import At, Context, Coordinates, Form, LinearPart
from pinnkfac.problem import Problem, Term
from pinnkfac.residual import call, flatten

Fields = Callable[[Tensor], Tensor]
"""A point [coord] to the values of all fields [field]."""


def exact(problem: Problem) -> Fields:
    """The problem's exact solution as a function of plain points."""

    def fields(point: Tensor) -> Tensor:
        values = flatten(problem.solution(At(problem.coordinates, point)))
        return torch.stack([torch.as_tensor(v, dtype=point.dtype) for v in values])

    return fields


def derivative(f: Fields, point: Tensor, alpha: tuple[int, ...]) -> Tensor:
    """D^α f at a point, [field], one nested forward derivative per order."""
    if not any(alpha):
        return f(point)
    i = next(i for i, a in enumerate(alpha) if a)
    rest = tuple(a - (j == i) for j, a in enumerate(alpha))
    direction = torch.zeros_like(point)
    direction[i] = 1.0
    return jvp(lambda x: derivative(f, x, rest), (point,), (direction,))[1]


class Oracle(Context):
    """Answers Σ c D^α u_k(place) at one point from the fields themselves."""

    def __init__(
        self, coordinates: Coordinates, fields: Fields, places: Mapping[str, Tensor]
    ) -> None:
        self.coordinates = coordinates
        self.like = places[""]
        self.fields = fields
        self.places = places

    def value(self, linear: LinearPart) -> Tensor:
        known: dict[tuple[str, tuple[int, ...]], Tensor] = {}
        total = torch.zeros_like(self.places[""][0])
        for (k, place, alpha), c in linear:
            if (place, alpha) not in known:
                known[place, alpha] = derivative(self.fields, self.places[place], alpha)
            total = total + c * known[place, alpha][k]
        return total


def residual(term: Term, problem: Problem, points: PointSet, fields: Fields) -> Tensor:
    """A term's residual [batch, equation] with ``fields`` in place of the net."""

    def one(arguments: dict[str, Any]) -> Tensor:
        places = {"": arguments["point"], **arguments["links"]}
        oracle = Oracle(problem.coordinates, fields, places)
        entries = call(term, oracle, At(problem.coordinates, **arguments), len(problem.fields))
        numbers = [e.as_tensor() if isinstance(e, Form) else torch.as_tensor(e) for e in entries]
        return torch.stack(numbers)

    return vmap(one)(_arguments(points))


def slots(
    linear: Sequence[LinearPart], problem: Problem, points: PointSet, fields: Fields
) -> Tensor:
    """The values [batch, slot] of slots such as ``record(...).slots``."""

    def one(arguments: dict[str, Any]) -> Tensor:
        places = {"": arguments["point"], **arguments["links"]}
        oracle = Oracle(problem.coordinates, fields, places)
        return torch.stack([oracle.value(part) for part in linear])

    return vmap(one)(_arguments(points))


def _arguments(points: PointSet) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "point": points.coordinates,
        "values": dict(points.values),
        "links": dict(points.links),
    }
    if points.normals is not None:
        arguments["normal"] = points.normals
    return arguments
