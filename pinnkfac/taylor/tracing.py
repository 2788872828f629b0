"""A net → the rules of its operations: its forward is traced once, and tried on a few points."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from pinnkfac.common.errors import UserError
from pinnkfac.taylor import linear
from pinnkfac.taylor.activations import NOT_SMOOTH, TOWERS
from pinnkfac.taylor.jet import MODULES, Jet, Rule
from pinnkfac.taylor.linear import Linear, Linearly
from pinnkfac.taylor.nonlinear import Multiply, elementwise
from pinnkfac.taylor.plan import Plan


@dataclass
class Node:
    """One operation and the numbers of the nodes it reads; node −1 is the input."""

    rule: Rule
    inputs: tuple[int, ...]


@dataclass(eq=False)
class Traced:
    """What a node gives, with its values at the points on which it was tried."""

    node: int
    jet: Jet


class Tracing:
    """The operations of a net, ``nodes`` in order, and its ``output`` at points x [batch, coord].

    Raises UserError, by name, for what has no rule, mixes points or shares trained parameters.
    """

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        tracer = _Tracer()
        if tracer.is_leaf_module(net, ""):
            net = nn.Sequential(net)  # a net that is one layer: its own forward is not traced
        self.net = net
        self.nodes: list[Node] = []
        self.largest = 0.0
        """The largest number among the values of the nodes."""
        self.names = _spellings()
        self.plan = Plan(((),), ({},), ((),), ())
        self.owners: dict[int, tuple[nn.Module, str]] = {}
        """Which layer a trained parameter belongs to, and the layer's name."""
        values: dict[fx.Node, Any] = {}
        for node in _calls(net, tracer):
            target: Any = node.target
            args: Any
            named: Any
            args, named = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
            if node.op == "placeholder":
                values[node] = Traced(-1, Jet(x, x[None][:0]))
            elif node.op == "get_attr":
                values[node] = self._attribute(target)
            elif node.op == "call_module":
                values[node] = self._layer(target, [*args, *named.values()])
            elif node.op == "output":
                if not isinstance(args[0], Traced):
                    raise UserError("net: forward must return one tensor, [batch, field]")
                self.output = args[0]
            else:
                values[node] = self._call(target, args, named)

    def _add(self, name: str, rule: Rule, *inputs: Traced) -> Traced:
        self.nodes.append(Node(rule, tuple(z.node for z in inputs)))
        if isinstance(rule, Linearly):
            _try(name, rule.check, name, [z.jet.value for z in inputs])
        jet, _ = _try(name, rule.forward, [z.jet for z in inputs], self.plan, False)
        self.largest = max(self.largest, float(jet.value.abs().max().nan_to_num(0.0, 0.0)))
        return Traced(len(self.nodes) - 1, jet)

    def _attribute(self, target: str) -> Any:
        value = operator.attrgetter(target)(self.net)
        if isinstance(value, nn.Parameter) and value.requires_grad:
            raise UserError(
                f"net: the trained parameter '{target}' is used directly in forward: use "
                "pinnkfac.nets.Scale for a trained factor, or nn.Linear for weights"
            )
        return value

    def _layer(self, name: str, inputs: list[Any]) -> Traced:
        module = self.net.get_submodule(name)
        what = f"the layer '{name}' ({type(module).__name__})"
        kinds = [kind for kind in type(module).__mro__ if kind in MODULES or kind in NOT_SMOOTH]
        if not kinds:
            raise UserError(
                f"net: {what} has no Taylor-mode rule: use nn.Linear, tanh, sin, sigmoid, "
                "softplus, SiLU, GELU, exp, sums, products, concatenation, or subclass "
                "pinnkfac.nets.Activation for a function of your own"
            )
        if kinds[0] in NOT_SMOOTH:
            raise UserError(
                f"net: {what} has no {NOT_SMOOTH[kinds[0]]}: use a smooth activation (tanh, sin, "
                "sigmoid, softplus, SiLU, GELU)"
            )
        if len(inputs) != 1:
            raise UserError(
                f"net: {what} is called with {len(inputs)} arguments: call it with one, the layer "
                "before it"
            )
        if not isinstance(inputs[0], Traced):
            raise UserError(
                f"net: '{name}' is called on {inputs[0]}, which is neither the coordinates nor a "
                "layer's output"
            )
        rule = MODULES[kinds[0]](module)
        self._check_parameters(name, module, rule)
        return self._add(name, rule, *inputs)

    def _check_parameters(self, name: str, module: nn.Module, rule: Rule) -> None:
        """Raise UserError where trained parameters are another layer's too, or are computed."""
        for label, parameter in module.named_parameters():
            if isinstance(rule, Linear) and label not in ("weight", "bias"):
                raise UserError(
                    f"net: the layer '{name}' has a parameter '{label}' beside weight and bias (a "
                    "weight_norm, a spectral_norm or a subclass): remove the parametrization and "
                    "train the layer itself"
                )
            if isinstance(rule, Linear) and not parameter.requires_grad:
                raise UserError(
                    f"net: only one of the weight and the bias of '{name}' is trained: freeze both "
                    "or none (requires_grad_), or use bias=False"
                )
            if parameter.requires_grad:
                owner, other = self.owners.setdefault(id(parameter), (module, name))
                if owner is not module:
                    raise UserError(
                        f"net: the layers '{other}' and '{name}' share their {label}: call the "
                        "same module twice instead"
                    )

    def _call(self, target: Any, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        layers: dict[Traced, None] = {}  # each once, in order

        def note(leaf: Any) -> Any:
            if isinstance(leaf, Traced):
                layers[leaf] = None
            return leaf

        fx.node.map_aggregate((args, named), note)
        name = self.names.get(target, "")
        function: Any = getattr(Tensor, name or target, None) if isinstance(target, str) else target

        def op(*tensors: Tensor) -> Any:
            values = dict(zip(layers, tensors, strict=True))
            here, options = fx.node.map_aggregate(
                (args, named), lambda leaf: values[leaf] if isinstance(leaf, Traced) else leaf
            )
            return function(*here, **options)

        if not layers:
            return op()
        if name == "getitem" and isinstance(args[0], tuple):
            return args[0][args[1]]
        if name in linear.NAMES:
            return self._linearly(name, op, list(layers))
        operands, options = _operands(args, named)
        try:
            if name in ARITHMETIC and not options:
                return ARITHMETIC[name](self, *operands)
            if name in TOWERS and list(layers) == operands[:1]:
                return self._add(name, elementwise(name, *operands[1:], **options), operands[0])
        except TypeError:
            pass  # arguments for which there is no rule
        raise UserError(
            f"net: the operation '{getattr(target, '__name__', target)}' has no Taylor-mode rule: "
            "use nn.Linear, smooth activations, + - * / between layers, linear functions of torch "
            "that act on features (cat, sum, reshape, slices), or subclass "
            "pinnkfac.nets.Activation for an elementwise function of your own"
        )

    def _linearly(self, name: str, op: Callable[..., Any], layers: list[Traced]) -> Any:
        """One operation a result of a function of the layers' values."""
        results = _try(name, op, *(z.jet.value for z in layers))
        if isinstance(results, Tensor):
            return self._add(name, Linearly(op), *layers)
        parts = [lambda *z, i=i: op(*z)[i] for i in range(len(results))]
        return tuple(self._add(name, Linearly(part), *layers) for part in parts)

    def add(self, f: Any, g: Any, sign: float = 1.0) -> Traced:
        if isinstance(f, Traced) and isinstance(g, Traced):
            return self._add("add", linear.add(sign), f, g)
        if isinstance(f, Traced):
            return self._add("add", linear.shift(1.0, sign * _constant(g, f)), f)
        return self._add("add", linear.shift(sign, _constant(f, g)), g)

    def subtract(self, f: Any, g: Any) -> Traced:
        return self.add(f, g, -1.0)

    def multiply(self, f: Any, g: Any) -> Traced:
        if isinstance(f, Traced) and isinstance(g, Traced):
            return self._add("mul", Multiply(), f, g)
        z, constant = (f, g) if isinstance(f, Traced) else (g, f)
        return self._add("mul", linear.shift(_constant(constant, z)), z)

    def divide(self, f: Any, g: Any) -> Traced:
        if isinstance(g, Traced):
            return self.multiply(f, self._add("div", elementwise("reciprocal"), g))
        return self._add("div", linear.shift(1.0 / _constant(g, f)), f)


ARITHMETIC: dict[str, Callable[..., Traced]] = {
    "add": Tracing.add,
    "sub": Tracing.subtract,
    "mul": Tracing.multiply,
    "div": Tracing.divide,
}
ALIASES = {
    **{"iadd": "add", "isub": "sub", "imul": "mul", "itruediv": "div", "truediv": "div"},
    **{"subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div"},
    **{"negative": "neg", "expit": "sigmoid", "view": "reshape"},
    **{"concat": "cat", "concatenate": "cat"},
}


def _spellings() -> dict[Any, str]:
    """The name in the tables of every function and method of torch, and every operator."""
    names = {name: name for name in (*linear.NAMES, *TOWERS, *ARITHMETIC)} | ALIASES
    spaces = (operator, torch, torch.special, nn.functional)
    return names | {
        getattr(space, spelling): name
        for spelling, name in names.items()
        for space in spaces
        if hasattr(space, spelling)
    }


def _operands(args: tuple[Any, ...], named: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """A call's operands in order, given by position or by torch's names, and what else is given."""
    options = {k: v for k, v in named.items() if (k, v) != ("inplace", False)}
    first = [options.pop("input")] if "input" in options else []
    last = [options.pop("other")] if "other" in options else []
    return [*first, *args, *last], options


def _try(name: str, function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"net: '{name}' fails with {type(error).__name__}: {error}") from error


def _constant(value: Any, layer: Traced) -> Any:
    """A number, or a tensor over features, never over points."""
    if not isinstance(value, Tensor) or value.numel() == 1:
        return value.reshape(()) if isinstance(value, Tensor) else value
    if value.numel() != value.shape[-1] or layer.jet.value.dim() < 2:
        raise UserError(
            f"net: a fixed tensor of shape {tuple(value.shape)} is combined with a layer: give it "
            "one entry per feature, shape (features,)"
        )
    return value.flatten()


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        layers = (*MODULES, *NOT_SMOOTH)
        return isinstance(module, layers) or super().is_leaf_module(module, qualified_name)


def _calls(net: nn.Module, tracer: fx.Tracer) -> list[fx.Node]:
    """The calls in forward, as torch.fx sees them; UserError where it has branches."""
    try:
        calls = list(tracer.trace(net).nodes)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"net: {type(net).__name__}.forward cannot be traced ({str(error).splitlines()[0]}): "
            "write it without branches on values, from layers and torch functions that have a rule"
        ) from error
    arguments = [str(node.target) for node in calls if node.op == "placeholder"]
    if len(arguments) != 1:
        raise UserError(
            f"net: {type(net).__name__}.forward takes {len(arguments)} arguments "
            f"({', '.join(arguments)}): it must take one, the coordinates [batch, coord]; slice "
            "it, as in t = x[:, 0:1]"
        )
    return calls
