"""Taylor mode of fields that go on from window to window: rows of nets that are not trained.

Both rules get the coordinates themselves. What they give depends on points alone, so that steps on
the same points compute it once.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from pinnkfac.field import LinearPart, MultiIndex
from pinnkfac.nets.windows import Continuation, PiecewiseNet, TimeWindows, WindowField
from pinnkfac.taylor.graph import Graph
from pinnkfac.taylor.jet import MODULES, Adjoint, Adjoints, Jet, Rule, Sink
from pinnkfac.taylor.plan import Operator, Plan, make_plan

KEPT = 2**26
"""Bytes of rows that are kept for points that may come again."""


class Fixed(Rule):
    """A rule of what is not trained: nothing is carried back."""

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints:
        return [None]


class ContinuationRule(Fixed):
    """D^α P_k = Σ_{j≥a} (t − t_k)^{j−a} / (j−a)! · D^β ∂_t^j u_{k−1}(t_k, x), where a = α_t, β the
    rest of α: what goes on is computed for all spatial operators of the plan at once."""

    def __init__(self, module: Continuation) -> None:
        self.windows = windows = module.windows
        self.graphs = [
            Graph(net, windows.coordinates, len(windows.orders), frozen=True) for net in module.nets
        ]
        self.weights = [weight for net in module.nets for weight in net.state_dict().values()]
        self.kept = Kept()

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        x = inputs[0].value
        key = plan.rows, sum(weight._version for weight in self.weights)  # of weights as they are
        rows = self.kept.get(key, x)
        if rows is None:
            rows = self._rows(x, plan)
            self.kept.put(key, x, rows)
        return Jet.of(rows), None

    def _rows(self, x: Tensor, plan: Plan) -> Tensor:
        windows = self.windows
        spatial = _spatial(plan.rows, windows.time, windows.coordinates)
        before = self._before(x, plan, spatial)
        since = windows.since(len(self.graphs), x)
        y = x.new_zeros(len(plan.rows), len(x), len(windows.orders))
        for q, (row, a, _) in enumerate(spatial):
            for j in range(a, len(before)):
                y[row] += since ** (j - a) / math.factorial(j - a) * before[j, q]
        return y

    def _before(self, x: Tensor, plan: Plan, spatial: Spatial) -> Tensor:
        """∂_t^j u_{k−1}(t_k, x) under every spatial operator, [j, operator, batch or 1, field]."""
        windows, before = self.windows, None
        inner = _inner_plan(plan.rows, windows)
        places = windows.places(x)
        for k, graph in enumerate(self.graphs):
            jet, _ = graph.forward(windows.at(places, windows.edges[k + 1]), inner)
            slots = [
                sum((c * jet.row(row).expand_as(jet.value) for c, row, _ in slot), 0.0 * jet.value)
                for slot in inner.slots
            ]
            net = torch.stack(slots).unflatten(0, (windows.carried, len(spatial)))
            before = windows.over(k, before, net)
        assert before is not None
        return before


class PiecewiseRule(Fixed):
    """Points go to the fields of their windows."""

    def __init__(self, module: PiecewiseNet) -> None:
        self.module = module
        self.graphs: dict[int, Graph] = {}

    def _graph(self, k: int) -> Graph:
        if k not in self.graphs:
            windows = self.module.windows
            field = WindowField(list(self.module.nets)[: k + 1], windows)
            self.graphs[k] = Graph(field, windows.coordinates, len(windows.orders), frozen=True)
        return self.graphs[k]

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        x = inputs[0].value
        which = self.module.which(x)[:, 0]
        fields = len(self.module.windows.orders)
        y = x.new_full((len(plan.rows), len(x), fields), math.nan)
        for k in which.unique().tolist():
            if k < len(self.module.nets):
                here = (which == k).nonzero()[:, 0]
                y[:, here] = self._graph(k).forward(x[here], plan)[0].dense()
        return Jet.of(y), None


Spatial = tuple[tuple[int, int, dict[MultiIndex, float]], ...]
"""(row, derivatives by time, Σ c_α D^α without these): the parts of the operators of a plan."""


@lru_cache(maxsize=256)
def _spatial(rows: tuple[Operator, ...], time: int, coordinates: int) -> Spatial:
    parts: dict[tuple[int, int], dict[MultiIndex, float]] = {(0, 0): {(0,) * coordinates: 1.0}}
    for row, operator in enumerate(rows):
        for alpha, c in operator:
            beta = tuple(0 if i == time else a for i, a in enumerate(alpha))
            parts.setdefault((row, alpha[time]), {})[beta] = c
    return tuple((row, a, part) for (row, a), part in parts.items())


@lru_cache(maxsize=256)
def _inner_plan(rows: tuple[Operator, ...], windows: TimeWindows) -> Plan:
    """Rows of a net that carry every spatial operator of ∂_t^j, slots in the order j, operator."""
    slots: list[LinearPart] = []
    for j in range(windows.carried):
        for _, _, part in _spatial(rows, windows.time, windows.coordinates):
            ahead = {
                tuple(b + j * (i == windows.time) for i, b in enumerate(beta)): c
                for beta, c in part.items()
            }
            slots.append(tuple(((0, "", beta), c) for beta, c in sorted(ahead.items())))
    return make_plan(slots, windows.coordinates)


class Kept:
    """Rows of the points that were last asked for, by what they are rows of, up to KEPT bytes."""

    def __init__(self) -> None:
        self._rows: OrderedDict[Any, tuple[Tensor, Tensor]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, what: Hashable, x: Tensor) -> Tensor | None:
        key = what, x.data_ptr(), x.shape
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._rows.move_to_end(key)
        # Other points may have come to lie where these lay.
        return found[1] if found is not None and torch.equal(found[0], x) else None

    def put(self, what: Hashable, x: Tensor, values: Tensor) -> None:
        key = what, x.data_ptr(), x.shape
        with self._lock:
            self._drop(key)
            self._rows[key] = x.clone(), values
            self._bytes += _size(self._rows[key])
            while self._bytes > KEPT:
                self._drop(next(iter(self._rows)))

    def _drop(self, key: Any) -> None:
        if key in self._rows:
            self._bytes -= _size(self._rows.pop(key))


def _size(tensors: tuple[Tensor, ...]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


MODULES[Continuation] = ContinuationRule
MODULES[PiecewiseNet] = PiecewiseRule
