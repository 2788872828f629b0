"""The fields of a net and their derivatives at points, by Taylor mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.field import At, Context, Form, LinearPart
from pinnkfac.problem.signature import Signature
from pinnkfac.residual import Evaluator, Recorder, explain, fields_in
from pinnkfac.taylor.graph import Graph, slot_values
from pinnkfac.taylor.plan import make_plan

POINTS = 16384
"""Points that go through the net, or an expression, at once."""
LAYER_BYTES = 2**22
"""What one layer's rows of one piece of points may take."""

_plan = lru_cache(maxsize=256)(make_plan)


class NetFields(Context):
    """The fields of a net [batch, coord] → [batch, field], with all their derivatives, by forms
    that are written down, never evaluated in place. The net is looked at for its rules when the
    first derivative is asked for; its parameters are read at every call: it may be trained on
    meanwhile."""

    def __init__(self, signature: Signature, net: nn.Module) -> None:
        self.signature, self.coordinates = signature, signature.coordinates
        self.net = net
        self.dimension = len(self.coordinates.names)
        self._graphs: dict[tuple[torch.dtype, torch.device], Graph] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without the operations of the net, which are traced again."""
        return {**vars(self), "_graphs": {}}

    @torch.no_grad()
    def __call__(self, points: Tensor) -> Tensor:
        """The fields [batch, field] at points [batch, coord]; UserError for another shape."""
        if not isinstance(points, Tensor) or points.dim() != 2 or points.shape[1] != self.dimension:
            what = tuple(points.shape) if isinstance(points, Tensor) else type(points).__name__
            names = ", ".join(self.coordinates.names) if self.dimension <= 6 else "x1, x2, …"
            raise UserError(
                f"solution(points): points is {what}; give a tensor [batch, {self.dimension}] with "
                f"the coordinates ({names}), or coordinates by name, solution."
                f"{self.signature.fields[0]}(...)"
            )
        return torch.cat([self.net(part) for part in self._here(points).split(POINTS)])

    def _here(self, points: Tensor) -> Tensor:
        reference = next(self.net.parameters())
        return points.to(device=reference.device, dtype=reference.dtype)

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
            matrix = x.new_zeros(len(self.signature.fields), len(slots))
            for i, slot in enumerate(slots):
                for (field, _, _), c in slot:
                    matrix[field, i] = c
            return self(x) @ matrix
        graph, plan = self._traced(x), _plan(tuple(slots), self.dimension)
        shapes = [value.shape for value in self.net.state_dict().values()]
        widest = max((n for shape in shapes for n in shape), default=1)
        size = LAYER_BYTES // (len(plan.rows) * widest * x.element_size())
        parts = x.split(min(POINTS, max(16, size)))
        return torch.cat([slot_values(plan, graph.forward(part, plan)[0]) for part in parts])

    def _traced(self, x: Tensor) -> Graph:
        """The graph of the net; a new one where the net has moved, since it holds constants."""
        kind = (x.dtype, x.device)
        if kind not in self._graphs:
            graph = Graph(self.net, self.dimension, len(self.signature.fields), frozen=True)
            self._graphs = {kind: graph}
        return self._graphs[kind]

    @torch.no_grad()
    def expression(self, function: Callable[..., Any], points: Tensor) -> tuple[list[Tensor], bool]:
        """Whatever ``function(u, v, …, at)`` makes of the fields, [batch, …] each, and whether it
        returned a tuple; raises UserError for every mistake in it."""
        coordinates, number = self.coordinates, len(self.signature.fields)
        ranges = self.signature.domain.bounds.ranges.values()
        middle = torch.tensor([[0.5 * (low + high) for low, high in ranges]])
        x = self._here(points if len(points) else middle)  # for the shapes of what comes back
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
            torch.vmap(noted)(x[:2])
        z = self.slots(slots, x) if slots else x.new_zeros(len(x), 0)
        with _explained(number):
            parts = zip(x.split(POINTS), z.split(POINTS), strict=True)
            pieces = [torch.vmap(evaluated)(*part) for part in parts]
        entries = zip(*pieces, strict=True)
        return [torch.cat(entry)[: len(points)] for entry in entries], tuples[0]


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


@contextmanager
def _explained(fields: int) -> Iterator[None]:
    """Within it every mistake becomes a UserError that speaks of the expression."""
    try:
        yield
    except Exception as error:
        text = str(error) if isinstance(error, UserError) else explain(error, fields)
        for old, new in (("A residual", "An expression"), ("a residual", "an expression")):
            text = text.replace(old, new)
        raise UserError(f"evaluate: {text.replace('the residual', 'the expression')}") from error
