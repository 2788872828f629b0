"""A residual written down: every operation that the user's function does, as a graph.

The function is called once, at one point, on numbers that stand for slots, coordinates, given
values and Parameters, and torch records the operations (``make_fx``). ``TracedResidual.values``
runs the graph again on other numbers, so that what is printed can be compared with what is solved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx

from pinnkfac.domain import PointSet
from pinnkfac.field import At, Form, Key, LinearPart, tensors
from pinnkfac.problem import bind
from pinnkfac.residual import Evaluator, Residual, call


@dataclass(frozen=True)
class TracedResidual:
    """Equations Σ c D^α u + remainder = 0, as the user's function returned them.

    ``graph`` maps the leaves to the equations, and behind them to their remainders. ``leaves`` are
    slots, or names of other numbers with the values that these had; ``linear`` are the sums.
    """

    residual: Residual
    graph: GraphModule
    leaves: tuple[tuple[LinearPart | str, Tensor], ...]
    linear: tuple[tuple[tuple[Key, float], ...], ...]

    @torch.no_grad()
    def values(self, z: Tensor, theta: Tensor, points: PointSet) -> Tensor:
        """The equations [batch, equation] from slots z [batch, slot] and Parameters θ [param]."""
        rows = []
        for i in range(len(points)):
            numbers = [number for _, number in _leaves(self.residual, z[i], theta, points[i : i + 1])]
            rows.append([float(value) for value in self.graph(*numbers)[: len(self.linear)]])
        return torch.tensor(rows, dtype=torch.float64)


def _leaves(
    residual: Residual, z: Tensor, theta: Tensor, point: PointSet
) -> Iterator[tuple[LinearPart | str, Tensor]]:
    """What a residual may read, in the order in which ``trace`` reads it: names and numbers."""
    coordinates = residual.coordinates
    yield from zip(residual.slots, z, strict=True)
    yield from zip((p.name for p in residual.parameters), theta, strict=True)
    for place, x in {"": point.coordinates, **point.links}.items():
        where = f"({place})" if place else ""
        for name, number in zip(coordinates.names, x[0], strict=True):
            yield f"{name}{where}", number
    if point.normals is not None:
        for name, number in zip(coordinates.space, point.normals[0], strict=True):
            yield f"n_{name}", number
    for name, value in point.values.items():
        yield name, value[0]


@torch.no_grad()
def trace(residual: Residual, points: PointSet) -> TracedResidual:
    """The graph of a residual, from one call of it at the first of these points.

    Raises UserError where the residual does.
    """
    point = points[:1].to("cpu", torch.float64)
    z = 0.7 + 0.1 * torch.arange(len(residual.slots), dtype=torch.float64)
    theta = torch.tensor([p.initial for p in residual.parameters], dtype=torch.float64)
    leaves = tuple(_leaves(residual, z, theta, point))
    coordinates = residual.coordinates
    linear: list[tuple[tuple[Key, float], ...]] = []

    def equations(*numbers: Tensor) -> list[Tensor | float]:
        following = iter(numbers)

        def take(number: int) -> list[Tensor]:
            return [next(following) for _ in range(number)]

        slots, parameters = take(len(residual.slots)), take(len(residual.parameters))
        x, *linked = (torch.stack(take(len(coordinates.names))) for _ in ("", *point.links))
        normal = None if point.normals is None else torch.stack(take(len(coordinates.space)))
        values = dict(zip(point.values, following, strict=True))
        at = At(coordinates, x, normal, values, dict(zip(point.links, linked, strict=True)))
        context = Evaluator(coordinates, {s: i for i, s in enumerate(residual.slots)}, slots, x)
        with bind(residual.parameters, parameters):
            entries = call(residual.term, context, at, residual.fields)
            linear[:] = [tuple(e.linear.items()) if isinstance(e, Form) else () for e in entries]
            remainders = [e.remainder if isinstance(e, Form) else e for e in entries]
            return [tensors(value) for value in (*entries, *remainders)]

    # A number that is read from a constant tensor is a constant: no branch on data is hidden.
    graph = make_fx(equations, _error_on_data_dependent_ops=False)(*(n for _, n in leaves))
    return TracedResidual(residual, graph, leaves, tuple(linear))


def is_faithful(traced: TracedResidual, points: PointSet, tolerance: float = 1e-9) -> bool:
    """Whether the graph gives the numbers that the residual gives, at random slots and points.

    It does not where a function leaves torch on the way, or does something else at every call.
    """
    residual = traced.residual
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(len(points), len(residual.slots), generator=generator, dtype=torch.float64) + 0.5
    theta = torch.tensor([p.initial for p in residual.parameters], dtype=torch.float64)
    expected = residual.value(z, theta, points, residual.remainder(points))
    rounding = tolerance * float(expected.nan_to_num(0.0).abs().max())
    values = traced.values(z, theta, points)
    return torch.allclose(values, expected, rtol=0.0, atol=rounding, equal_nan=True)
