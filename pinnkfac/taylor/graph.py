"""A net as a graph of rules: traced once, then run forward on jets and backward on adjoints."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pinnkfac.common.errors import UserError
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
    parameters outside them. ``frozen`` allows a net in which nothing is trained."""

    def __init__(
        self, net: nn.Module, coordinates: int, outputs: int, *, frozen: bool = False
    ) -> None:
        self.net = net
        self.nodes: list[Node] = []
        self.linears: list[nn.Linear] = []
        self.uses: list[int] = []
        self.dense: list[nn.Parameter] = []
        self.output = -1
        _Builder(self).build()
        self._needs_backward = self._reach_parameters()
        self._check_parameters(frozen)
        self._check(coordinates, outputs)

    def _reach_parameters(self) -> list[bool]:
        """Whether a trained parameter lies at or before each node."""
        reach: list[bool] = []
        for node in self.nodes:
            rule = node.rule
            trained = isinstance(rule, Linear) or (isinstance(rule, rules.ScaleBy) and rule.trained)
            reach.append(trained or any(i >= 0 and reach[i] for i in node.inputs))
        return reach

    def _check_parameters(self, frozen: bool) -> None:
        trained = {id(p) for p in self.dense}
        for linear in self.linears:
            trained.update(id(p) for p in linear.parameters())
        for name, parameter in self.net.named_parameters():
            if parameter.requires_grad and id(parameter) not in trained:
                raise UserError(
                    f"net: the parameter '{name}' is not used by any layer with a rule: put "
                    "weights into nn.Linear, and scales into pinnkfac.nets.Scale"
                )
        if not self.linears and not frozen:
            raise UserError("net: there is nothing to train, it has no nn.Linear layer")

    def _check(self, coordinates: int, outputs: int) -> None:
        reference = next(self.net.parameters())
        x = 2 * torch.rand(3, coordinates, generator=torch.Generator().manual_seed(0)) - 1
        x = x.to(reference)
        with torch.no_grad():
            jet, tape = self.forward(x, _value_plan(coordinates), keep=True)
        assert tape is not None
        if jet.value.shape[-1] != outputs:
            raise UserError(
                f"net: it has {jet.value.shape[-1]} outputs, but the problem has {outputs} fields: "
                "give the last layer one output per field"
            )
        self._compare(x, jet.value, tape)

    def _compare(self, x: Tensor, value: Tensor, tape: Tape) -> None:
        """Raise UserError where the net's own forward is not the function that was traced.

        Differences up to √eps of the largest number on the way are taken for rounding.
        """
        try:
            with torch.no_grad():
                expected = self.net(x)
        except Exception as error:
            raise UserError(
                f"net: its forward fails with {type(error).__name__}: {error}"
            ) from error
        sizes = [v.abs().max() for v in (value, *(jet.value for jet in tape.inputs.values()))]
        rounding = torch.finfo(x.dtype).eps ** 0.5 * float(torch.stack(sizes).nan_to_num(0.0).max())
        if getattr(expected, "shape", None) != value.shape or not torch.allclose(
            value, expected, rtol=0.0, atol=rounding, equal_nan=True
        ):
            raise UserError(
                "net: its forward gives other values than the layers and operations that it is "
                "made of. What a subclass of a torch layer adds in its own forward, forward hooks "
                "and changes in place (z += y) are not seen: subclass pinnkfac.nets.Activation, "
                "or write them as operations in forward (z = z + y)"
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


def slot_values(plan: Plan, output: Jet) -> Tensor:
    """The slots z [batch, slot] of a plan from the rows of the net's output."""
    value = output.value
    z = value.new_zeros(len(value), len(plan.slots))
    for i, rule in enumerate(plan.slots):
        for c, row, field in rule:
            z[:, i] += c * output.row(row)[:, field]
    return z


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


_HARMLESS = {"inplace": False, "approximate": "none"}
"""Keyword arguments of torch functions that say what the function does anyway."""


class _Builder:
    """Turns a traced net into nodes; refuses by name what has no rule."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.index: dict[fx.Node, int] = {}
        self.constants: dict[fx.Node, Any] = {}
        self.owners: dict[int, tuple[nn.Module, str]] = {}
        """Which layer a trained parameter belongs to, and the layer's name."""

    def build(self) -> None:
        net, tracer = self.graph.net, _Tracer()
        if tracer.is_leaf_module(net, ""):
            net = nn.Sequential(net)  # a net that is one layer: its own forward is not traced
        try:
            traced = tracer.trace(net)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"net: {type(net).__name__}.forward cannot be traced "
                f"({str(error).splitlines()[0]}): write it without branches on values, from "
                "layers and torch functions that have a rule"
            ) from error
        arguments = [str(node.target) for node in traced.nodes if node.op == "placeholder"]
        if len(arguments) != 1:
            raise UserError(
                f"net: {type(net).__name__}.forward takes {len(arguments)} arguments "
                f"({', '.join(arguments)}): it must take one, the coordinates [batch, coord]; "
                "slice it, as in t = x[:, 0:1]"
            )
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

    def _add(self, node: fx.Node, rule: Rule, *inputs: Any) -> None:
        for i in inputs:
            if not isinstance(i, fx.Node) or i not in self.index:
                raise UserError(
                    f"net: '{node.name}' is called on {i}, which is neither the coordinates nor a "
                    "layer's output"
                )
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
        rule = rules.elementwise_module(module)
        if isinstance(module, nn.Linear):
            rule = self._linear(str(node.target), module)
        for kind, make in rules.MODULES.items():
            if isinstance(module, kind):
                rule = make(module)
                if isinstance(rule, rules.ScaleBy) and rule.trained:
                    self._own(str(node.target), module, ("scale",))
                    if rule.module.scale not in _By(self.graph.dense):
                        self.graph.dense.append(rule.module.scale)
        if isinstance(module, nn.Identity):
            rule = Shift()
        if rule is None:
            raise UserError(
                f"net: the layer '{node.target}' ({name}) has no Taylor-mode rule: use nn.Linear, "
                "tanh, sin, sigmoid, softplus, SiLU, GELU, exp, sums, products, concatenation, "
                "or subclass pinnkfac.nets.Activation for a function of your own"
            )
        given = [*node.args, *node.kwargs.values()]
        if len(given) != 1:
            raise UserError(
                f"net: the layer '{node.target}' ({name}) is called with {len(given)} arguments: "
                "call it with one, the layer before it"
            )
        self._add(node, rule, given[0])

    def _linear(self, name: str, module: nn.Linear) -> Rule:
        graph = self.graph
        trained = {p.requires_grad for p in module.parameters()}
        if True not in trained:
            return rules.Affine(module)
        self._own(name, module, ("weight", "bias"))
        if False in trained:
            raise UserError(
                f"net: only one of the weight and the bias of '{name}' is trained: freeze both or "
                "none (requires_grad_), or use bias=False"
            )
        for layer, known in enumerate(graph.linears):
            if known is module:
                graph.uses[layer] += 1
                return Linear(module, layer, graph.uses[layer] - 1)
        graph.linears.append(module)
        graph.uses.append(1)
        return Linear(module, len(graph.linears) - 1, 0)

    def _own(self, name: str, module: nn.Module, parameters: tuple[str, ...]) -> None:
        """Note whose the trained parameters of a layer are.

        Raises UserError where they are another layer's too, or are computed from others.
        """
        for own, parameter in module.named_parameters():
            if own not in parameters:
                raise UserError(
                    f"net: the layer '{name}' has a parameter '{own}' beside "
                    f"{' and '.join(parameters)} (a weight_norm, a spectral_norm or a subclass): "
                    "remove the parametrization and train the layer itself"
                )
            owner, other = self.owners.setdefault(id(parameter), (module, name))
            if owner is not module:
                raise UserError(
                    f"net: the layers '{other}' and '{name}' share their {own}: call the same "
                    "module twice instead"
                )

    def _function(self, node: fx.Node) -> None:
        function: Any = node.target
        name = function if isinstance(function, str) else getattr(function, "__name__", function)
        if function in (torch.cat, torch.concat, torch.concatenate):
            self._concatenate(node)
            return
        args, left = _arguments(node)
        if left:
            function = None  # no rule heeds other keyword arguments
        if function is operator.getitem:
            self._add(node, Slice(self._features(args[1])), args[0])
        elif function in rules.UNARY and len(args) == 1:
            self._add(node, rules.UNARY[function](), args[0])
        elif function in (operator.pow, torch.pow, "pow") and _is_power(args[1]):
            self._add(node, Elementwise(activations.power(int(args[1]))), args[0])
        elif function in rules.BINARY and len(args) == 2:
            self._binary(node, function, args)
        elif function in (operator.truediv, torch.div, "div") and args[1] not in self.index:
            constant = self._constant(args[1])
            self._add(node, Shift(1.0 / constant), args[0])
        else:
            raise UserError(
                f"net: the operation '{name}' has no Taylor-mode rule: use nn.Linear, smooth "
                "activations, + - * between layers, torch.cat(dim=-1) and slices of features, "
                "or subclass pinnkfac.nets.Activation for an elementwise function of your own"
            )

    def _concatenate(self, node: fx.Node) -> None:
        given = dict(zip(("tensors", "dim"), node.args, strict=False)) | dict(node.kwargs)
        if given.get("dim", given.get("axis", 0)) not in (-1, 1):
            raise UserError("net: torch.cat must join features: give dim=-1")
        self._add(node, rules.Concatenate(), *given["tensors"])  # type: ignore[misc]

    def _constant(self, value: Any) -> Any:
        """A number, or the tensor that a node stands for; over features, never over points."""
        value = self.constants.get(value, value) if isinstance(value, fx.Node) else value
        if isinstance(value, Tensor) and value.dim() and value.numel() != value.shape[-1]:
            raise UserError(
                f"net: a fixed tensor of shape {tuple(value.shape)} is combined with a layer: give "
                "it one entry per feature, shape (features,)"
            )
        return value

    def _binary(self, node: fx.Node, function: Any, args: list[Any]) -> None:
        left, right = (a in self.index if isinstance(a, fx.Node) else False for a in args)
        if left and right:
            self._add(node, rules.BINARY[function](), *args)
            return
        constant, layer = (args[0], args[1]) if right else (args[1], args[0])
        rule = rules.WITH_CONSTANT[function](self._constant(constant), not left)
        self._add(node, rule, layer)

    @staticmethod
    def _features(key: Any) -> slice:
        """The slice of features in x[:, a:b] or x[..., a:b]; a single column stays a column."""
        if isinstance(key, tuple) and len(key) == 2 and key[0] in (slice(None), Ellipsis):
            feature = key[1]
            if isinstance(feature, slice) and feature.step in (None, 1):
                return feature
        raise UserError("net: slice features as x[:, a:b]; one column is x[:, a:a + 1]")


def _arguments(node: fx.Node) -> tuple[list[Any], dict[str, Any]]:
    """A call's operands in order, given by position or by torch's names, and what else is given."""
    left = {k: v for k, v in node.kwargs.items() if v != _HARMLESS.get(k, object)}
    first = [left.pop("input")] if "input" in left else []
    last = [left.pop(name) for name in ("other", "exponent") if name in left]
    return [*first, *node.args, *last], left


class _By(list):  # type: ignore[type-arg]
    """Membership by identity, since == on tensors compares entries."""

    def __contains__(self, item: object) -> bool:
        return any(item is x for x in self)


def _is_power(value: Any) -> bool:
    return isinstance(value, int | float) and value >= 1 and float(value).is_integer()
