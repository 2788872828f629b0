"""The graph of a residual (tracing.py) as expressions, and these as sums of products.

The graph runs once more, on expressions in place of tensors: what depends on no leaf is computed,
equal operations are one expression, and an entry of a stack is what was stacked.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map, tree_map_with_path

from pinnkfac.inspection.tracing import TracedResidual

CONSTANT = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
"""Operations whose result does not depend on the numbers in their arguments."""
SAME = ("detach", "alias", "clone")
"""Operations that change no number."""

SUM, POWER, ATOM = range(3)
"""How tightly a text holds together."""


@dataclass(eq=False)
class Expression:
    """An operation on expressions, numbers, constant tensors, or lists of them; or a leaf. It has a
    ``value`` at the traced point, a ``label`` where it has a name, and how that holds together."""

    operation: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    value: Any = None
    label: str = ""
    tightness: int = ATOM

    @cached_property
    def inputs(self) -> list[Expression]:
        leaves = tree_leaves((self.args, self.kwargs))
        return [leaf for leaf in leaves if isinstance(leaf, Expression)]


def reachable(roots: Iterable[Any]) -> list[Expression]:
    """These expressions and all that they are written with, inputs first; a name hides its own."""
    done: dict[Expression, None] = {}
    pending = [root for root in roots if isinstance(root, Expression)][::-1]
    while pending:
        parts = [] if pending[-1].label else pending[-1].inputs
        missing = [part for part in parts if part not in done]
        pending += reversed(missing)
        if not missing:
            done[pending.pop()] = None
    return list(done)


def remainders(
    traced: TracedResidual, slots: Sequence[tuple[str, int]]
) -> list[Expression | float]:
    """The remainders of the equations; ``slots`` are texts of the slots, and their tightness."""
    coordinates = traced.residual.coordinates
    reader = _Reader(traced.graph)
    z, theta, arguments = traced.inputs

    def argument(path: Sequence[Any], value: Tensor) -> Expression:
        kind, *name = (step.key for step in path)
        if kind == "values":
            return Expression("number", value=value, label=name[0])
        if kind == "normal":
            return reader.vector([f"n_{s}" for s in coordinates.space], value, "normal")
        place = f"({name[0]})" if name else ""
        if coordinates.vector:
            at = [coordinates.index(name) for name in coordinates.space]
            labels = [f"{s}{place}" for s in coordinates.space]
            reader.vector(labels, value[at], f"{coordinates.vector}{place}")
        return reader.vector([f"{c}{place}" for c in coordinates.names], value)

    entries = [Expression("slot", (), {}, v, *text) for v, text in zip(z, slots, strict=True)]
    roots = reader.run(
        reader.expression("stack", (entries,), {}, z),
        reader.vector([p.name for p in traced.residual.parameters], theta),
        tree_map_with_path(argument, arguments),
    )[len(traced.linear) :]
    return [root if isinstance(root, Expression) else float(root) for root in roots]


class _Reader(fx.Interpreter):
    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__(graph)
        self.same: dict[Any, Expression] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not any(isinstance(leaf, Expression) for leaf in tree_leaves((args, kwargs))):
            return super().call_function(target, args, kwargs)
        if target is operator.getitem:
            return args[0][args[1]]
        numbers, named_numbers = tree_map(_number, (args, kwargs))
        value = target(*numbers, **named_numbers)
        name, (first, *rest) = target._opname.removesuffix("_"), args
        if name in CONSTANT:
            return value
        if name in SAME or (name == "_to_copy" and kwargs.get("dtype") == torch.float64):
            return first
        stacked = _stacked(first)
        if stacked and name == "select" and rest[0] == 0:
            return stacked[rest[1]]
        if stacked and name == "slice" and rest[0] == 0:
            return self.expression("stack", (stacked[slice(*rest[1:])],), {}, value)
        if name == "unbind" and not any(rest):
            parts = enumerate(value)
            return stacked or [self.expression("select", (first, 0, i), {}, v) for i, v in parts]
        whole = self.expression(name, args, kwargs, value)
        if isinstance(value, Tensor):
            return whole
        return [self.expression("item", (whole, i), {}, part) for i, part in enumerate(value)]

    def expression(self, name: str, args: Any, kwargs: Any, value: Any) -> Expression:
        """An operation, the same one for the same arguments."""
        args, kwargs = tree_map(_plain, (tuple(args), dict(kwargs)))
        key = (name, *tree_leaves((args, kwargs)))
        return self.same.setdefault(key, Expression(name, args, kwargs, value))

    def vector(self, names: Sequence[str], values: Tensor, label: str = "") -> Expression:
        """A stack of numbers with these names."""
        entries = [
            self.same.setdefault(n, Expression("number", (), {}, v, n))
            for n, v in zip(names, values, strict=True)
        ]
        vector = self.expression("stack", (entries,), {}, values)
        vector.label = vector.label or label
        return vector


def _number(value: Any) -> Any:
    """The number behind an expression; a constant is copied, lest it be changed in place."""
    if isinstance(value, Expression):
        return value.value
    return value.clone() if isinstance(value, Tensor) else value


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, Tensor) and value.dim() == 0 else value


def _stacked(value: Any) -> list[Expression]:
    """a and b of ``stack([a, b])``; nothing of anything else."""
    if not isinstance(value, Expression) or value.operation != "stack" or any(value.args[1:]):
        return []
    entries = list(value.args[0])
    return entries if all(isinstance(entry, Expression) for entry in entries) else []


Product = tuple[float, list[Any], list[Any]]
"""A number, factors, and the factors below the line."""


def constant(value: Any) -> float | None:
    """The number that a Python number is; None of anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def parts(value: Any) -> list[tuple[float, Any]] | None:
    """The summands of a sum with their factors, zeros left out; None where it is none."""
    if not isinstance(value, Expression) or value.label:
        return None
    if value.operation not in ("add", "sub", "rsub"):
        return None
    first, second, *more = value.args
    alpha = float(value.kwargs.get("alpha", more[0] if more else 1.0))
    if value.operation == "rsub":
        first, second = second, first
    pairs = [(1.0, first), (alpha if value.operation == "add" else -alpha, second)]
    return [pair for pair in pairs if constant(pair[1]) != 0.0] or [(1.0, 0.0)]


def product(value: Any) -> Product:
    """An expression as a product; one factor, itself, where it is none."""
    number = constant(value)
    if number is not None:
        return number, [], []
    if isinstance(value, Expression) and not value.label:
        args, inner = value.args, parts(value)
        if inner is not None and len(inner) == 1:
            return _times(*inner[0])
        if value.operation == "neg":
            return _times(-1.0, args[0])
        if value.operation == "mul":
            return _times(args[0], args[1])
        if value.operation == "div" and len(args) == 2 and not value.kwargs:
            return _over(args[0], args[1])
        if value.operation == "reciprocal":
            return _over(1.0, args[0])
    return 1.0, [value], []


def _times(a: Any, b: Any) -> Product:
    (number, above, below), (more, above_too, below_too) = product(a), product(b)
    return number * more, above + above_too, below + below_too


def _over(top: Any, bottom: Any) -> Product:
    (number, above, below), (divisor, above_too, below_too) = product(top), product(bottom)
    if divisor == 0.0:
        return number, above, [*below, bottom]
    return number / divisor, above + below_too, below + above_too


def summands(value: Any) -> Iterator[Product]:
    """Products in order; an iteration, since sums of many coordinates are deep."""
    pending: list[tuple[float, Any]] = [(1.0, value)]
    while pending:
        factor, value = pending.pop()
        number, above, below = product(value)
        factor *= number
        inner = parts(above[0]) if len(above) == 1 and not below else None
        if inner is not None and (abs(factor) == 1.0 or above[0] is value):
            pending += [(factor * c, part) for c, part in reversed(inner)]
        else:
            yield factor, above, below
