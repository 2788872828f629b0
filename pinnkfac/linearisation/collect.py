"""Gathering (Z, G) from the tapes and backward passes of one block."""

from __future__ import annotations

from itertools import takewhile

import torch
from torch import Tensor, nn

from pinnkfac.linearisation.layer import Layer
from pinnkfac.taylor.graph import Graph, Tape
from pinnkfac.taylor.jet import Adjoint, Jet, Sink
from pinnkfac.taylor.plan import Plan


def seed_of(plan: Plan, by_slot: Tensor, reads: tuple[int, ...], output: Tensor) -> Adjoint | None:
    """The adjoint of the output rows of one equation, from ∂F/∂z [batch or 1, slot].

    Active are the rows of the slots that the equation ``reads``: the same in every chunk.
    """
    rows: dict[int, Tensor] = {}
    for i in reads:
        for c, row, field in plan.slots[i]:
            if row not in rows:
                rows[row] = torch.zeros_like(output)
            rows[row][:, field] += c * by_slot[:, i]
    if not rows:
        return None
    order = tuple(sorted(rows))
    return Adjoint(order, torch.stack([rows[s] for s in order]))


class Collector:
    """Gathers (Z, G) over places and repeated calls of a layer, joined along the shared axis."""

    def __init__(self, graph: Graph, residual: Tensor, dense_size: int) -> None:
        self.graph = graph
        self.residual = residual
        self.batch, self.equations = residual.shape
        self.dense_size = dense_size
        self.dense: Tensor | None = None
        self.adjoints: dict[tuple[int, int], list[tuple[int, int, Adjoint]]] = {}

    def dense_of(self) -> Tensor:
        if self.dense is None:
            self.dense = self.residual.new_zeros(self.equations, self.batch, self.dense_size)
        return self.dense

    def sink(self, equation: int, place: int) -> Sink:
        def linear(layer: int, use: int, adjoint: Adjoint) -> None:
            self.adjoints.setdefault((equation, layer), []).append((place, use, adjoint))

        def dense(parameter: nn.Parameter, derivative: Tensor) -> None:
            before = takewhile(lambda other: other is not parameter, self.graph.dense)
            start = sum(other.numel() for other in before)
            block = self.dense_of()[equation, :, start : start + parameter.numel()]
            block += derivative.reshape(self.batch, -1)

        return Sink(linear, dense)

    def layers(self, tapes: list[Tape | None]) -> tuple[Layer, ...]:
        return tuple(self._layer(layer, tapes) for layer in range(len(self.graph.linears)))

    def _layer(self, layer: int, tapes: list[Tape | None]) -> Layer:
        linear, jets, offsets, total = self.graph.linears[layer], [], {}, 0
        for place, tape in enumerate(tapes):
            assert tape is not None
            for use in range(self.graph.uses[layer]):
                jets.append(tape.inputs[layer, use])
                offsets[place, use] = total
                total += 1 + len(jets[-1].rows)
        active, gradients = [], []
        for equation in range(self.equations):
            adjoints = sorted(
                self.adjoints.get((equation, layer), []), key=lambda f: offsets[f[0], f[1]]
            )
            active.append(
                tuple(offsets[p, u] + s for p, u, adjoint in adjoints for s in adjoint.rows)
            )
            parts = [adjoint.tensor for _, _, adjoint in adjoints]
            if not parts:
                parts = [self.residual.new_zeros(0, self.batch, linear.out_features)]
            gradients.append(parts[0] if len(parts) == 1 else torch.cat(parts))
        bias = linear.bias is not None
        return Layer(self._inputs(jets, total, bias), tuple(active), tuple(gradients))

    def _inputs(self, jets: list[Jet], shared: int, bias: bool) -> Tensor:
        """The rows of all jets, [shared, batch, in + bias]."""
        if len(jets) == 1 and not bias:
            return jets[0].dense()
        features = jets[0].value.shape[-1]
        inputs = self.residual.new_empty(shared, self.batch, features + bias)
        start = 0
        for jet in jets:
            stop = start + 1 + len(jet.rows)
            inputs[start, :, :features] = jet.value
            inputs[start + 1 : stop, :, :features] = jet.rows
            if bias:
                inputs[start, :, features] = 1.0
                inputs[start + 1 : stop, :, features] = 0.0
            start = stop
        return inputs
