"""A net as a graph of rules: traced once, then run forward on jets and backward on adjoints."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pinnkfac.errors import UserError
from pinnkfac.taylor import activations, rules
from pinnkfac.taylor.plan import Plan
from pinnkfac.taylor.rules import Adjoint, Elementwise, Jet, Linear, Rule, Shift, Sink, Slice


@dataclass
class Node:
    """One operation and the numbers of the nodes it reads; node −1 is the input."""

    rule: Rule
    inputs: tuple[int, ...]


@dataclass
class Tape:
    """What a forward pass keeps for backward passes."""

    kept: list[Any]
    inputs: dict[tuple[int, int], Jet]
    """Jets that enter Linear layers, by (layer, use)."""


class Graph:
    """The operations of a net in order. ``linears`` are its distinct nn.Linear modules, in the
    order of their first call, ``uses[l]`` how often layer l is called; ``dense`` are the trained
    parameters outside them."""

    def __init__(self, net: nn.Module, coordinates: int, outputs: int) -> None:
        self.net = net
        self.nodes: list[Node] = []
        self.linears: list[nn.Linear] = []
        self.uses: list[int] = []
        self.dense: list[nn.Parameter] = []
        self.output = -1
        _Builder(self).build()
        self._needs_backward = self._reach_parameters()
        self._check(coordinates, outputs)

    def _reach_parameters(self) -> list[bool]:
        """Whether a trained parameter lies at or before each node."""
        reach: list[bool] = []
        for node in self.nodes:
            trained = isinstance(node.rule, Linear | rules.ScaleBy)
            reach.append(trained or any(i >= 0 and reach[i] for i in node.inputs))
        return reach

    def _check(self, coordinates: int, outputs: int) -> None:
        trained = {id(p) for p in self.dense}
        for linear in self.linears:
            trained.update(id(p) for p in linear.parameters())
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                raise UserError(
                    f"net: the parameter '{name}' is not used by any layer with a rule: put "
                    "weights into nn.Linear, and scales into pinnkfac.nets.Scale"
                )
        if not trained:
            raise UserError("net: there is nothing to train, it has no nn.Linear layer")
        reference = next(p for p in self.net.parameters())
        x = torch.zeros(1, coordinates, dtype=reference.dtype, device=reference.device)
        with torch.no_grad():
            value = self.forward(x, _value_plan(coordinates))[0].value
        if value.shape[-1] != outputs:
            raise UserError(
                f"net: it has {value.shape[-1]} outputs, but the problem has {outputs} fields: "
                "give the last layer one output per field"
            )

    def forward(self, x: Tensor, plan: Plan, *, keep: bool = False) -> tuple[Jet, Tape | None]:
        """Rows of the output at points x [batch, coord]; with ``keep`` also the tape."""
        jets = {-1: input_jet(x, plan)}
        tape = Tape([], {})
        last = self._last_uses()
        for i, node in enumerate(self.nodes):
            inputs = [jets[j] for j in node.inputs]
            jets[i], kept = node.rule.forward(inputs, plan, keep)
            if keep:
                tape.kept.append(kept)
                if isinstance(node.rule, Linear):
                    tape.inputs[node.rule.layer, node.rule.use] = inputs[0]
            for j in last.get(i, ()):
                del jets[j]
        return jets[self.output], tape if keep else None

    def _last_uses(self) -> dict[int, list[int]]:
        last: dict[int, int] = {}
        for i, node in enumerate(self.nodes):
            for j in node.inputs:
                last[j] = i
        last.pop(self.output, None)
        result: dict[int, list[int]] = {}
        for j, i in last.items():
            result.setdefault(i, []).append(j)
        return result

    def backward(self, adjoint: Adjoint, tape: Tape, plan: Plan, sink: Sink) -> None:
        """Carry the adjoint of the output rows back to every trained parameter."""
        adjoints: dict[int, Adjoint] = {self.output: adjoint}
        for i in reversed(range(len(self.nodes))):
            own = adjoints.pop(i, None)
            if own is None or not self._needs_backward[i]:
                continue
            node = self.nodes[i]
            wanted = [j >= 0 and self._needs_backward[j] for j in node.inputs]
            back = node.rule.backward(own, tape.kept[i], plan, sink, wanted)
            for j, part, want in zip(node.inputs, back, wanted, strict=True):
                if want and part is not None:
                    adjoints[j] = part.plus(adjoints.get(j))


def input_jet(x: Tensor, plan: Plan) -> Jet:
    """The coordinates themselves as a jet: constant first-derivative rows, no higher ones."""
    rows = x.new_zeros(len(plan.rows) - 1, 1, x.shape[1])
    for s in range(1, len(plan.rows)):
        vector = plan.input_row(s)
        if vector is not None:
            rows[s - 1, 0] = x.new_tensor(vector)
    return Jet(x, rows)


def _value_plan(dimension: int) -> Plan:
    return Plan(dimension, ((),), ({},), ((),), ())


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        known: tuple[type[nn.Module], ...] = (
            nn.Linear,
            *rules.MODULES,
            *activations.MODULES,
            *activations.NOT_SMOOTH,
        )
        return isinstance(module, known) or super().is_leaf_module(module, qualified_name)


class _Builder:
    """Turns a traced net into nodes; refuses by name what has no rule."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.index: dict[fx.Node, int] = {}
        self.constants: dict[fx.Node, Any] = {}

    def build(self) -> None:
        net = self.graph.net
        try:
            traced = _Tracer().trace(net)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"net: {type(net).__name__}.forward cannot be traced "
                f"({str(error).splitlines()[0]}): write it without branches on values, from "
                "layers and torch functions that have a rule"
            ) from error
        for node in traced.nodes:
            if node.op == "placeholder":
                self.index[node] = -1
            elif node.op == "get_attr":
                self.constants[node] = self._attribute(str(node.target))
            elif node.op == "call_module":
                self._module(node, net.get_submodule(str(node.target)))
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "output":
                (result,) = node.args
                if not isinstance(result, fx.Node) or result not in self.index:
                    raise UserError("net: forward must return one tensor, [batch, field]")
                self.graph.output = self.index[result]

    def _attribute(self, target: str) -> Any:
        value: Any = self.graph.net
        for part in target.split("."):
            value = getattr(value, part)
        if isinstance(value, nn.Parameter) and value.requires_grad:
            raise UserError(
                f"net: the trained parameter '{target}' is used directly in forward: use "
                "pinnkfac.nets.Scale for a trained factor, or nn.Linear for weights"
            )
        return value

    def _add(self, node: fx.Node, rule: Rule, *inputs: fx.Node) -> None:
        self.graph.nodes.append(Node(rule, tuple(self.index[i] for i in inputs)))
        self.index[node] = len(self.graph.nodes) - 1

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        name = type(module).__name__
        for kind, missing in activations.NOT_SMOOTH.items():
            if isinstance(module, kind):
                raise UserError(
                    f"net: the layer '{node.target}' ({name}) has no {missing}: use a smooth "
                    "activation (tanh, sin, sigmoid, softplus, SiLU, GELU)"
                )
        inputs = [a for a in node.args if isinstance(a, fx.Node)]
        if isinstance(module, nn.Linear):
            self._add(node, self._linear(module), *inputs)
            return
        rule = rules.elementwise_module(module)
        for kind, make in rules.MODULES.items():
            if isinstance(module, kind):
                rule = make(module)
                if isinstance(rule, rules.ScaleBy) and rule.module.scale not in _By(
                    self.graph.dense
                ):
                    self.graph.dense.append(rule.module.scale)
        if isinstance(module, nn.Identity):
            rule = Shift()
        if rule is None:
            raise UserError(
                f"net: the layer '{node.target}' ({name}) has no Taylor-mode rule: use nn.Linear, "
                "tanh, sin, sigmoid, softplus, SiLU, GELU, exp, sums, products, concatenation, "
                "or subclass pinnkfac.nets.Activation for a function of your own"
            )
        self._add(node, rule, *inputs)

    def _linear(self, module: nn.Linear) -> Linear:
        graph = self.graph
        for layer, known in enumerate(graph.linears):
            if known is module:
                graph.uses[layer] += 1
                return Linear(module, layer, graph.uses[layer] - 1)
        graph.linears.append(module)
        graph.uses.append(1)
        return Linear(module, len(graph.linears) - 1, 0)

    def _function(self, node: fx.Node) -> None:
        function = node.target
        args = list(node.args)
        name = function if isinstance(function, str) else getattr(function, "__name__", function)
        if function in (torch.cat, torch.concat, torch.concatenate):
            dim = node.kwargs.get("dim", args[1] if len(args) > 1 else 0)
            if dim not in (-1, 1):
                raise UserError("net: torch.cat must join features: give dim=-1")
            self._add(node, rules.Concatenate(), *args[0])  # type: ignore[misc]
        elif function is operator.getitem:
            self._add(node, Slice(self._features(args[1])), args[0])  # type: ignore[arg-type]
        elif function in rules.UNARY and len(args) == 1 and not node.kwargs:
            self._add(node, rules.UNARY[function](), args[0])  # type: ignore[arg-type]
        elif function in (operator.pow, torch.pow, "pow") and _is_power(args[1]):
            self._add(node, Elementwise(activations.power(args[1])), args[0])  # type: ignore[arg-type]
        elif function in rules.BINARY and len(args) == 2 and not node.kwargs:
            self._binary(node, function, args)
        elif function in (operator.truediv, torch.div, "div") and args[1] not in self.index:
            constant: Any = self.constants.get(args[1], args[1])  # type: ignore[arg-type]
            self._add(node, Shift(1.0 / constant), args[0])  # type: ignore[arg-type]
        else:
            raise UserError(
                f"net: the operation '{name}' has no Taylor-mode rule: use nn.Linear, smooth "
                "activations, + - * between layers, torch.cat(dim=-1) and slices of features, "
                "or subclass pinnkfac.nets.Activation for an elementwise function of your own"
            )

    def _binary(self, node: fx.Node, function: Any, args: list[Any]) -> None:
        left, right = (a in self.index if isinstance(a, fx.Node) else False for a in args)
        if left and right:
            self._add(node, rules.BINARY[function](), *args)
            return
        constant, layer = (args[0], args[1]) if right else (args[1], args[0])
        constant = (
            self.constants.get(constant, constant) if isinstance(constant, fx.Node) else constant
        )
        self._add(node, rules.WITH_CONSTANT[function](constant, not left), layer)

    @staticmethod
    def _features(key: Any) -> slice:
        """The slice of features in x[:, a:b] or x[..., a:b]; a single column stays a column."""
        if isinstance(key, tuple) and len(key) == 2 and key[0] in (slice(None), Ellipsis):
            feature = key[1]
            if isinstance(feature, slice) and feature.step in (None, 1):
                return feature
        raise UserError("net: slice features as x[:, a:b]; one column is x[:, a:a + 1]")


class _By(list):  # type: ignore[type-arg]
    """Membership by identity, since == on tensors compares entries."""

    def __contains__(self, item: object) -> bool:
        return any(item is x for x in self)


def _is_power(value: Any) -> bool:
    return isinstance(value, int) and value >= 1
