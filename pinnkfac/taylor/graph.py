"""A net as a graph of rules: traced once, then run forward on jets and backward on adjoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.taylor.jet import Adjoint, Jet, Sink
from pinnkfac.taylor.linear import Linear
from pinnkfac.taylor.plan import Operator, Plan
from pinnkfac.taylor.tracing import Node, Tracing


@dataclass
class Tape:
    """What a forward pass keeps for backward passes."""

    kept: list[Any]
    inputs: dict[tuple[int, int], Jet]
    """Jets that enter Linear layers, by (layer, use)."""


class Graph:
    """The operations of a net in order. ``linears`` are its distinct nn.Linear modules, in the
    order of their first call, ``uses[l]`` how often layer l is called; ``dense`` are the trained
    parameters outside them. ``frozen`` allows a net in which nothing is trained."""

    def __init__(
        self, net: nn.Module, coordinates: int, outputs: int, *, frozen: bool = False
    ) -> None:
        reference = next(net.parameters(), torch.empty(0, dtype=torch.float64))
        x = 2 * torch.rand(3, coordinates, generator=torch.Generator().manual_seed(0)) - 1
        x = x.to(reference)
        with torch.no_grad():
            tracing = Tracing(net, x)
        self.nodes, self.output = tracing.nodes, tracing.output.node
        self.linears: list[nn.Linear] = []
        self.uses: list[int] = []
        self.dense: list[nn.Parameter] = []
        self._needs_backward: list[bool] = []
        """Whether a trained parameter lies at or before each node."""
        for node in self.nodes:
            self._register(node)
        self._last_uses = self._lifetimes()
        self._check_parameters(net, frozen)
        self._check_values(net, x, tracing, outputs)

    def _register(self, node: Node) -> None:
        rule, before = node.rule, self._needs_backward
        if isinstance(rule, Linear):
            rule.layer = _position(rule.module, self.linears)
            if rule.layer == len(self.uses):
                self.uses.append(0)
            rule.use = self.uses[rule.layer]
            self.uses[rule.layer] += 1
        else:
            for parameter in rule.trained:
                _position(parameter, self.dense)
        before.append(bool(rule.trained) or any(i >= 0 and before[i] for i in node.inputs))

    def _lifetimes(self) -> dict[int, list[int]]:
        """The nodes whose jets are needed no more after each node."""
        last = {j: i for i, node in enumerate(self.nodes) for j in node.inputs}
        last.pop(self.output, None)
        result: dict[int, list[int]] = {}
        for j, i in last.items():
            result.setdefault(i, []).append(j)
        return result

    def _check_parameters(self, net: nn.Module, frozen: bool) -> None:
        trained = {id(p) for node in self.nodes for p in node.rule.trained}
        for name, parameter in net.named_parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                raise UserError(
                    f"net: the parameter '{name}' is not used by any layer with a rule: put "
                    "weights into nn.Linear, and scales into pinnkfac.nets.Scale"
                )
        if not self.linears and not frozen:
            raise UserError("net: there is nothing to train, it has no nn.Linear layer")

    @staticmethod
    @torch.no_grad()
    def _check_values(net: nn.Module, x: Tensor, tracing: Tracing, outputs: int) -> None:
        """Raise UserError where the net's own forward is not the function that was traced.

        Differences up to √eps of the largest number on the way are taken for rounding.
        """
        value = tracing.output.jet.value
        if value.shape[1:] != (outputs,):
            number = " × ".join(str(size) for size in value.shape[1:]) or "no axis of"
            raise UserError(
                f"net: it has {number} outputs, but the problem has {outputs} fields: "
                "give the last layer one output per field"
            )
        try:
            expected = net(x)
        except Exception as error:
            raise UserError(
                f"net: its forward fails with {type(error).__name__}: {error}"
            ) from error
        rounding = torch.finfo(x.dtype).eps ** 0.5 * tracing.largest
        if getattr(expected, "shape", None) != value.shape or not torch.allclose(
            value, expected, rtol=0.0, atol=rounding, equal_nan=True
        ):
            raise UserError(
                "net: its forward gives other values than the layers and operations that it is "
                "made of. What a subclass of a torch layer adds in its own forward, forward hooks "
                "and changes in place (z += y) are not seen: subclass pinnkfac.nets.Activation, "
                "or write them as operations in forward (z = z + y)"
            )

    @torch.no_grad()
    def weights(self) -> list[Tensor]:
        """A copy of [W | b] of every linear layer."""
        result = []
        for linear in self.linears:
            bias = [] if linear.bias is None else [linear.bias[:, None]]
            result.append(torch.cat([linear.weight, *bias], dim=1))
        return result

    @torch.no_grad()
    def set_weights(self, values: Sequence[Tensor]) -> None:
        """Give the linear layers these [W | b], the first of the values."""
        for linear, value in zip(self.linears, values, strict=False):
            linear.weight.copy_(value[:, : linear.in_features])
            if linear.bias is not None:
                linear.bias.copy_(value[:, linear.in_features])

    def forward(self, x: Tensor, plan: Plan, *, keep: bool = False) -> tuple[Jet, Tape | None]:
        """Rows of the output at points x [batch, coord]; with ``keep`` also the tape."""
        jets = {-1: input_jet(x, plan)}
        tape = Tape([], {})
        for i, node in enumerate(self.nodes):
            inputs = [jets[j] for j in node.inputs]
            jets[i], kept = node.rule.forward(inputs, plan, keep)
            if keep:
                tape.kept.append(kept)
                if isinstance(node.rule, Linear):
                    tape.inputs[node.rule.layer, node.rule.use] = inputs[0]
            for j in self._last_uses.get(i, ()):
                del jets[j]
        return jets[self.output], tape if keep else None

    def backward(self, adjoint: Adjoint, tape: Tape, sink: Sink) -> None:
        """Carry the adjoint of the output rows back to every trained parameter."""
        adjoints: dict[int, Adjoint] = {self.output: adjoint}
        for i in reversed(range(len(self.nodes))):
            output = adjoints.pop(i, None)
            if output is None or not self._needs_backward[i]:
                continue
            node = self.nodes[i]
            wanted = [j >= 0 and self._needs_backward[j] for j in node.inputs]
            back = node.rule.backward(output, tape.kept[i], sink, wanted)
            for j, part, want in zip(node.inputs, back, wanted, strict=True):
                if want and part is not None:
                    adjoints[j] = part.plus(adjoints.get(j))


def slot_values(plan: Plan, output: Jet, z: Tensor | None = None) -> Tensor:
    """The slots [batch, slot] of a plan from the rows of the net's output, added to those of other
    places where there are some."""
    if z is None:
        z = output.value.new_zeros(len(output.value), len(plan.slots))
    for i, rule in enumerate(plan.slots):
        for c, row, field in rule:
            z[:, i] += c * output.row(row)[:, field]
    return z


def input_jet(x: Tensor, plan: Plan) -> Jet:
    """The coordinates themselves as a jet: constant first-derivative rows, no higher ones."""
    return Jet(x, _input_rows(plan.rows[1:], x.shape[1], x.dtype, x.device))


@lru_cache
def _input_rows(
    operators: tuple[Operator, ...], dimension: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """The same for every chunk of points, and so made once."""
    rows = torch.zeros(len(operators), 1, dimension, dtype=dtype)
    for row, operator in zip(rows, operators, strict=True):
        for alpha, c in operator:
            if sum(alpha) == 1:
                row[0, alpha.index(1)] = c
    return rows.to(device)


def _position(item: Any, items: list[Any]) -> int:
    """Where it stands in a list, by identity; a new one is appended."""
    if not any(item is other for other in items):
        items.append(item)
    return next(i for i, other in enumerate(items) if item is other)
