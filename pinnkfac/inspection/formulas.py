"""A traced residual (tracing.py) as infix formulas: u_t − 0.25 u_xx = 0."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pinnkfac.field import Coordinates, LinearPart
from pinnkfac.inspection import notation
from pinnkfac.inspection.expressions import (
    ATOM,
    POWER,
    SUM,
    Expression,
    constant,
    parts,
    product,
    reachable,
    remainders,
    summands,
)
from pinnkfac.inspection.notation import DIGITS, Summand, number, total
from pinnkfac.inspection.text import TIGHT
from pinnkfac.inspection.tracing import TracedResidual
from pinnkfac.problem import Problem

LONG = 30
"""Operations on the point alone above which a part is not written out, but as f1(t, x)."""
SHARED = 6
"""Operations above which a part that is used twice gets a name."""
MOST_SUMMANDS = 24

FUNCTIONS = {"_softmax": "softmax", "linalg_vector_norm": "norm"}
COMPARISONS = {"gt": ">", "lt": "<", "ge": "≥", "le": "≤", "eq": "==", "ne": "!="}
SILENT = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Keyword arguments that say nothing about the formula."""
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Formulas:
    """The equations of a term, the parts that they name as (name, formula), in the order of use,
    and those that they leave out as (name, operations)."""

    equations: tuple[str, ...]
    named: tuple[tuple[str, str], ...] = ()
    omitted: tuple[tuple[str, int], ...] = ()


def formulas(
    traced: TracedResidual, problem: Problem, *, full: bool = False, digits: int = DIGITS
) -> Formulas:
    """Equations in mathematical notation, with ``digits`` significant digits; long functions of the
    point and long sums are abbreviated unless ``full``."""
    fields, coordinates = problem.fields, problem.coordinates
    writer = Writer(digits, None if full else MOST_SUMMANDS)
    roots = remainders(traced, [_slot(s, problem, writer) for s in traced.residual.slots])
    taken = {*fields, *coordinates.names, *(e.label for e in reachable(roots))}
    omitted = () if full else _omit(roots, coordinates, taken)
    shared = _share(roots, taken)
    equations = []
    for linear, remainder in zip(traced.linear, roots, strict=True):
        sum_ = notation.linear_part(linear, fields, coordinates)
        if remainder != 0.0 or not sum_:
            sum_ += writer.summands(remainder)
        equations.append(f"{writer.total(sum_)} = 0")
    named = [(e.label, writer.sum(replace(e, label=""))) for e in shared]
    return Formulas(tuple(equations), tuple(named), tuple(omitted))


def _slot(linear: LinearPart, problem: Problem, writer: Writer) -> tuple[str, int]:
    """A slot's text: a letter for powers, unless it begins with an operator or is a sum."""
    text = writer.total(notation.linear_part(linear, problem.fields, problem.coordinates))
    if " " in text or TIGHT in text or text.startswith("−"):
        return text, SUM
    return text, POWER if text.startswith("Δ") else ATOM


def _omit(roots: Sequence[Any], coordinates: Coordinates, taken: set[str]) -> list[tuple[str, int]]:
    """Name long functions of the point alone, f1(t, x): the names, and how long these are."""
    pending, seen, omitted = list(roots), set(), []
    while pending:
        part = pending.pop()
        if not isinstance(part, Expression) or part.label or part in seen:
            continue
        seen.add(part)
        _, above, below = product(part)
        multiple = len(above) == 1 and not below and above[0] is not part
        behind = reachable([part])
        length = _operations(behind)
        if length > LONG and not multiple and all(e.operation != "slot" for e in behind):
            part.label = f"{_free('f', taken)}({', '.join(_arguments(behind, coordinates))})"
            omitted.append((part.label, length))
        else:
            pending += part.inputs
    return omitted


def _share(roots: Sequence[Any], taken: set[str]) -> list[Expression]:
    """Name long parts that are used more than once, w1: these parts, inputs first."""
    written = [e for e in reachable(roots) if not e.label]
    uses = Counter(id(e) for e in [*roots, *(part for e in written for part in e.inputs)])
    shared = [e for e in written if uses[id(e)] > 1 and _operations(reachable([e])) > SHARED]
    for expression in shared:
        expression.label = _free("w", taken)
    return shared


def _operations(behind: Sequence[Expression]) -> int:
    return sum(not e.label for e in behind)


def _arguments(behind: Sequence[Expression], coordinates: Coordinates) -> list[str]:
    """The names of what a function of the point depends on, the vector for all of its entries."""
    labels = {e.label for e in behind if e.label}
    for place in {label[label.find("(") :] if "(" in label else "" for label in labels}:
        entries = {f"{name}{place}" for name in coordinates.space}
        vector = f"{coordinates.vector}{place}"
        if vector in labels or (coordinates.vector and entries <= labels):
            labels = (labels - entries) | {vector}
    order = [*coordinates.names, coordinates.vector]
    return sorted(labels, key=lambda n: (order.index(n) if n in order else len(order), n))


def _free(letter: str, taken: set[str]) -> str:
    name = next(name for i in itertools.count(1) if (name := f"{letter}{i}") not in taken)
    taken.add(name)
    return name


@dataclass(frozen=True)
class Writer:
    """Writes expressions with that many digits, and sums of at most that many summands."""

    digits: int = DIGITS
    most: int | None = None

    def total(self, sum_: Sequence[Summand]) -> str:
        return total(sum_, self.digits, self.most)

    def sum(self, value: Any) -> str:
        return self.total(self.summands(value))

    def summands(self, value: Any) -> list[Summand]:
        return [(c, self._product(above, below)) for c, above, below in summands(value)]

    def _product(self, above: Sequence[Any], below: Sequence[Any]) -> str:
        """Factors with the repeated ones as powers, over those below the line."""
        text = self._powers(above)
        if not below:
            return text
        under = self._powers(below)
        return f"{text or '1'} / {f'({under})' if TIGHT in under else under}"

    def _powers(self, factors: Sequence[Any]) -> str:
        counts = Counter(factors)  # by identity
        return TIGHT.join(
            self._power(v, n) if n > 1 else self._tight(v, POWER) for v, n in counts.items()
        )

    def _tight(self, value: Any, least: int) -> str:
        """The text of a factor, in brackets where it holds together less tightly than that."""
        text, tightness = self.atom(value)
        return text if tightness >= least else f"({text})"

    def atom(self, value: Any) -> tuple[str, int]:
        """A text, and how tightly it holds together."""
        if not isinstance(value, Expression):
            return self._plain(value)
        if value.label:
            return value.label, value.tightness
        if value.operation == "pow":
            return self._power(*value.args), POWER
        if value.operation in COMPARISONS:
            a, b = (self.sum(v) for v in value.args)
            return f"{a} {COMPARISONS[value.operation]} {b}", SUM
        if parts(value) is not None or product(value) != (1.0, [value], []):
            return self.sum(value), SUM
        return self._call(value), ATOM

    def _power(self, base: Any, exponent: Any) -> str:
        n, text = constant(exponent), self._tight(base, ATOM)
        if n is not None and n == int(n) and 0 <= n < 100:
            return text + str(int(n)).translate(SUPERSCRIPTS)
        return f"{text}^({self._argument(exponent)})"

    def _plain(self, value: Any) -> tuple[str, int]:
        size = constant(value)
        if size is not None:
            text = number(size, self.digits)
            return text, ATOM if math.copysign(1.0, size) > 0 and "e" not in text else SUM
        if not isinstance(value, Tensor):
            return str(value), ATOM
        if value.dim() == 1 and len(value) <= 4:
            return f"[{', '.join(number(v, self.digits) for v in value.tolist())}]", ATOM
        return f"array({', '.join(map(str, value.shape))})", ATOM

    def _call(self, expression: Expression) -> str:
        name, args = expression.operation, expression.args
        if name == "stack" and len(args) == 1:
            return self._argument(args[0])
        if name == "select":
            name, args = "item", (args[0], args[2])
        if name == "_softmax":
            args = args[:1]
        if name == "_to_copy" and "dtype" in expression.kwargs:
            name = str(expression.kwargs["dtype"]).removeprefix("torch.")
        shown = [*args, *(v for k, v in expression.kwargs.items() if k not in SILENT)]
        while shown and shown[-1] is None:
            shown.pop()
        return f"{FUNCTIONS.get(name, name)}({', '.join(map(self._argument, shown))})"

    def _argument(self, value: Any) -> str:
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._argument, value))}]"
        if isinstance(value, Expression) and value.operation not in COMPARISONS:
            return self.sum(value)
        return self.atom(value)[0]
