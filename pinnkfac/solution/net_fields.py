"""The fields of a net and their derivatives at points, by Taylor mode."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.field import At, Context, Form, LinearPart
from pinnkfac.problem.signature import Signature
from pinnkfac.residual import Evaluator, Recorder, explain, fields_in
from pinnkfac.taylor.graph import Graph, slot_values
from pinnkfac.taylor.plan import Plan, make_plan

POINTS = 16384
"""Points that go through the net, or an expression, at once."""
LAYER_BYTES = 2**22
"""What one layer's rows of one piece of points may take."""


class NetFields:
    """The fields of a net [batch, coord] → [batch, field], with all their derivatives.

    The net is looked at for its rules when the first derivative is asked for, and its parameters
    are read at every call, so that it may be trained on meanwhile.
    """

    def __init__(self, signature: Signature, net: nn.Module) -> None:
        self.signature = signature
        self.net = net
        self._graph: tuple[Graph, Tensor] | None = None
        self._plans: dict[tuple[LinearPart, ...], Plan] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the operations of the net, which are traced again."""
        return {**vars(self), "_graph": None}

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """The fields [batch, field] at points [batch, coord]; UserError for another shape."""
        if not isinstance(points, Tensor) or points.dim() != 2 or points.shape[1] != self.dimension:
            raise UserError(self._wrong_shape(points))
        return torch.cat([self.net(part) for part in self._here(points).split(POINTS)])

    @property
    def dimension(self) -> int:
        return len(self.signature.coordinates.names)

    def _here(self, points: Tensor) -> Tensor:
        reference = next(self.net.parameters())
        return points.to(device=reference.device, dtype=reference.dtype)

    def _wrong_shape(self, points: Any) -> str:
        what = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
        names = ", ".join(self.signature.coordinates.names) if self.dimension <= 6 else "x1, x2, …"
        return (
            f"solution(points): points is {what}; give a tensor [batch, {self.dimension}] with "
            f"the coordinates ({names}), or coordinates by name, solution."
            f"{self.signature.fields[0]}(...)"
        )

    # -- derivatives -----------------------------------------------------------------------------
    @torch.no_grad()
    def forms(self, forms: Sequence[Form], points: Tensor) -> Tensor:
        """Forms Σ c D^α u_k at points, [batch, form]."""
        parts = [form.normalised() for form in forms]
        z = self.slots([slot for slot, _ in parts], points)
        return z * z.new_tensor([lead for _, lead in parts])

    @torch.no_grad()
    def slots(self, slots: Sequence[LinearPart], points: Tensor) -> Tensor:
        """Slots z [batch, slot] at points [batch, coord], piece by piece."""
        x = self._here(points)
        if not len(x):
            return x.new_zeros(0, len(slots))
        if not any(sum(alpha) for slot in slots for (_, _, alpha), _ in slot):
            return self._without_derivatives(slots, x)
        graph, plan = self._traced(x), self._plan(tuple(slots))
        per_point = len(plan.rows) * self._widest() * x.element_size()
        size = min(POINTS, max(16, LAYER_BYTES // per_point))
        return torch.cat(
            [slot_values(plan, graph.forward(part, plan)[0]) for part in x.split(size)]
        )

    def _without_derivatives(self, slots: Sequence[LinearPart], x: Tensor) -> Tensor:
        matrix = x.new_zeros(len(self.signature.fields), len(slots))
        for i, slot in enumerate(slots):
            for (field, _, _), c in slot:
                matrix[field, i] = c
        return self(x) @ matrix

    def _traced(self, x: Tensor) -> Graph:
        """The graph of the net; a new one where the net has moved, since it holds constants."""
        if self._graph is None or (self._graph[1].dtype, self._graph[1].device) != (
            x.dtype,
            x.device,
        ):
            graph = Graph(self.net, self.dimension, len(self.signature.fields), frozen=True)
            self._graph = (graph, x[:0])
        return self._graph[0]

    def _plan(self, slots: tuple[LinearPart, ...]) -> Plan:
        if slots not in self._plans:
            self._plans[slots] = make_plan(slots, self.dimension)
        return self._plans[slots]

    def _widest(self) -> int:
        shapes = [value.shape for value in self.net.state_dict().values()]
        return max((size for shape in shapes for size in shape), default=1)

    # -- expressions -------------------------------------------------------------------------------
    @torch.no_grad()
    def expression(self, function: Callable[..., Any], points: Tensor) -> tuple[list[Tensor], bool]:
        """Whatever ``function(u, v, …, at)`` makes of the fields, [batch, …] each, and whether it
        returned a tuple.

        Raises UserError for every mistake in it.
        """
        coordinates, number = self.signature.coordinates, len(self.signature.fields)
        x = self._here(points)
        slots: list[LinearPart] = []
        tuples: list[bool] = []

        def outputs(context: Context, point: Tensor) -> tuple[Tensor, ...]:
            returned = function(*fields_in(context, number), At(coordinates, point))
            tuples.append(isinstance(returned, tuple | list))
            entries = returned if isinstance(returned, tuple | list) else (returned,)
            if not entries:
                raise UserError("the expression returned nothing")
            return tuple(_as_tensor(entry, point) for entry in entries)

        def noted(point: Tensor) -> Tensor:
            recorder = Recorder(coordinates, 0.7 + 0.01 * point.sum())
            outputs(recorder, point)
            slots[:] = recorder.slots
            return point.sum()

        def evaluated(point: Tensor, z: Tensor) -> tuple[Tensor, ...]:
            index = {slot: i for i, slot in enumerate(slots)}
            return outputs(Evaluator(coordinates, index, z, point), point)

        with _explained(number):
            torch.vmap(noted)(x[:2] if len(x) else self._middle(x))
        z = self.slots(slots, x) if slots else x.new_zeros(len(x), 0)
        with _explained(number):
            if not len(x):
                one = torch.vmap(evaluated)(self._middle(x), x.new_zeros(1, len(slots)))
                return [entry[:0] for entry in one], tuples[0]
            pieces = [
                torch.vmap(evaluated)(*part)
                for part in zip(x.split(POINTS), z.split(POINTS), strict=True)
            ]
        return [torch.cat(entries) for entries in zip(*pieces, strict=True)], tuples[0]

    def _middle(self, x: Tensor) -> Tensor:
        ranges = self.signature.domain.bounds.ranges.values()
        return x.new_tensor([[0.5 * (low + high) for low, high in ranges]])


def _as_tensor(entry: Any, like: Tensor) -> Tensor:
    if hasattr(entry, "as_tensor"):
        entry = entry.as_tensor()
    if isinstance(entry, int | float):
        entry = like.new_tensor(float(entry))
    if not isinstance(entry, Tensor):
        raise UserError(
            f"the expression returned {type(entry).__name__}; return a field, a number, a vector "
            "such as grad(u), or a tuple of these"
        )
    return entry


class _explained:
    """Within it every mistake becomes a UserError that speaks of the expression."""

    def __init__(self, fields: int) -> None:
        self.fields = fields

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if not isinstance(error, Exception):
            return
        text = str(error) if isinstance(error, UserError) else explain(error, self.fields)
        for old, new in (("A residual", "An expression"), ("a residual", "an expression")):
            text = text.replace(old, new)
        raise UserError(f"evaluate: {text.replace('the residual', 'the expression')}") from error
