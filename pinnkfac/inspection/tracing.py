"""A residual written down: every operation that the user's function does, as a graph.

The function is called once, at one point, and torch records the operations (``make_fx``).
``TracedResidual.values`` runs the graph again on other numbers, so that what is printed can be
compared with what is solved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_map

from pinnkfac.domain import PointSet
from pinnkfac.field import At, Form, Key, tensors
from pinnkfac.problem import bind
from pinnkfac.residual import Evaluator, Residual, arguments_of, call


@dataclass(frozen=True)
class TracedResidual:
    """Equations Σ c D^α u + remainder = 0, as the user's function returned them: ``linear`` are the
    sums. ``graph`` maps slots z [slot], Parameters θ [param] and what ``At`` is made of, ``inputs``
    in its call, to the equations and, behind them, their remainders."""

    residual: Residual
    graph: GraphModule
    inputs: tuple[Tensor, Tensor, dict[str, Any]]
    linear: tuple[tuple[tuple[Key, float], ...], ...]

    @torch.no_grad()
    def values(self, z: Tensor, theta: Tensor, points: PointSet) -> Tensor:
        """The equations [batch, equation] from z [batch, slot] and θ [param]."""
        outputs = (self.graph(z[i], theta, _argument(points, i)) for i in range(len(points)))
        rows = [[float(value) for value in output[: len(self.linear)]] for output in outputs]
        return torch.tensor(rows, dtype=torch.float64)


def _argument(points: PointSet, i: int) -> dict[str, Any]:
    return tree_map(lambda values: values[i], arguments_of(points))


@torch.no_grad()
def trace(residual: Residual, points: PointSet) -> TracedResidual:
    """The graph of a residual, from one call of it at the first of these points; raises UserError
    where the residual does."""
    z = 0.7 + 0.1 * torch.arange(len(residual.slots), dtype=torch.float64)
    theta = torch.tensor([p.initial for p in residual.parameters], dtype=torch.float64)
    inputs = z, theta, _argument(points.to("cpu", torch.float64), 0)
    index = {slot: i for i, slot in enumerate(residual.slots)}
    linear: list[tuple[tuple[Key, float], ...]] = []

    def equations(z: Tensor, theta: Tensor, arguments: dict[str, Any]) -> list[Tensor | float]:
        context = Evaluator(residual.coordinates, index, z, arguments["point"])
        with bind(residual.parameters, list(theta)):
            at = At(residual.coordinates, **arguments)
            entries = call(residual.term, context, at, residual.fields)
            linear[:] = [tuple(e.linear.items()) if isinstance(e, Form) else () for e in entries]
            remainders = [e.remainder if isinstance(e, Form) else e for e in entries]
            return [tensors(value) for value in (*entries, *remainders)]

    # What is read from a constant tensor, float(table[3]), is a constant.
    graph = make_fx(equations, _error_on_data_dependent_ops=False)(*inputs)
    return TracedResidual(residual, graph, inputs, tuple(linear))


def is_faithful(traced: TracedResidual, points: PointSet, tolerance: float = 1e-9) -> bool:
    """Whether the graph gives the numbers that the residual gives, at random slots and points: not
    where a function leaves torch on the way, or does something else at every call."""
    residual = traced.residual
    generator = torch.Generator().manual_seed(0)
    z = torch.rand(len(points), len(residual.slots), generator=generator, dtype=torch.float64) + 0.5
    theta = torch.tensor([p.initial for p in residual.parameters], dtype=torch.float64)
    expected = residual.value(z, theta, points, residual.remainder(points))
    rounding = tolerance * float(expected.nan_to_num(0.0).abs().max())
    values = traced.values(z, theta, points)
    return torch.allclose(values, expected, rtol=0.0, atol=rounding, equal_nan=True)
