"""The graph of a residual (tracing.py) as infix formulas: u_t − 0.25 u_xx = 0."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pinnkfac.field import Coordinates
from pinnkfac.inspection import notation
from pinnkfac.inspection.notation import DIGITS, Summand, number, total
from pinnkfac.inspection.text import TIGHT
from pinnkfac.inspection.tracing import Equation, Node, reachable
from pinnkfac.problem import Problem

LONG = 30
"""Operations on the point alone above which a part is not written out, but as f1(t, x)."""
SHARED = 6
"""Operations above which a part that is used twice gets a name."""
MOST_SUMMANDS = 24

SUM, POWER, ATOM = range(3)
"""How tightly a text holds together."""

FUNCTIONS = {"_softmax": "softmax", "linalg_vector_norm": "norm", "entry": "item"}
COMPARISONS = {"gt": ">", "lt": "<", "ge": "≥", "le": "≤", "eq": "==", "ne": "!="}
SILENT = ("dtype", "layout", "device", "pin_memory", "memory_format", "non_blocking")
"""Keyword arguments that say nothing about the formula."""
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Formulas:
    """The equations of a term, the named parts that they use, and the parts left out.

    ``named`` are (name, formula) in the order of use; ``omitted`` are (name, operations).
    """

    equations: tuple[str, ...]
    named: tuple[tuple[str, str], ...] = ()
    omitted: tuple[tuple[str, int], ...] = ()


def formulas(
    equations: Sequence[Equation], problem: Problem, *, full: bool = False, digits: int = DIGITS
) -> Formulas:
    """Equations in mathematical notation, with ``digits`` significant digits.

    Long functions of the point and long sums are abbreviated unless ``full``.
    """
    writer = _Writer(equations, problem, full, digits)
    texts = tuple(f"{writer.equation(e)} = 0" for e in equations)
    named = tuple(
        (writer.names[n.number], writer.definition(n))
        for n in writer.nodes
        if n.number in writer.shared
    )
    return Formulas(texts, named, tuple(writer.omitted))


def _constant(value: Any) -> float | None:
    """The number behind a Python number or a constant tensor without axes."""
    if isinstance(value, Tensor) and value.dim() == 0:
        value = value.item()
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


class _Writer:
    def __init__(
        self, equations: Sequence[Equation], problem: Problem, full: bool, digits: int
    ) -> None:
        self.problem, self.full, self.digits = problem, full, digits
        self.names: dict[int, str] = {}
        self.shared: set[int] = set()
        self.omitted: list[tuple[str, int]] = []
        self.nodes = reachable(e.remainder for e in equations)
        self._name_parts([e.remainder for e in equations if isinstance(e.remainder, Node)])

    # -- parts with a name of their own ---------------------------------------------------------
    def _name_parts(self, roots: list[Node]) -> None:
        operations = {n.number: _operations(n) for n in self.nodes}
        taken = {
            *self.problem.fields,
            *self.problem.coordinates.names,
            *(p.name for p in self.problem.parameters),
            *(n.name for n in self.nodes),
        }
        pending, seen = list(roots), set()
        uses = Counter(n.number for n in roots)
        while pending:
            node = pending.pop()
            if node.number in seen:
                continue
            seen.add(node.number)
            _, above, below = self._factors(node)
            multiple = len(above) == 1 and not below and above[0] is not node
            long = operations[node.number] > LONG and not multiple
            if not self.full and long and not _reads_slots(node):
                name = _free("f", taken)
                self.names[node.number] = (
                    f"{name}({', '.join(_leaves(node, self.problem.coordinates))})"
                )
                self.omitted.append((self.names[node.number], operations[node.number]))
                continue
            if not node.label:
                uses.update(n.number for n in node.inputs)
                pending += node.inputs
        for node in self.nodes:
            named = node.number in self.names or node.label or node.number not in seen
            if not named and uses[node.number] > 1 and operations[node.number] > SHARED:
                self.names[node.number] = _free("w", taken)
                self.shared.add(node.number)

    def definition(self, node: Node) -> str:
        """The formula behind a name."""
        name = self.names.pop(node.number)
        text = self._sum(node)
        self.names[node.number] = name
        return text

    # -- sums ------------------------------------------------------------------------------------
    def equation(self, equation: Equation) -> str:
        problem = self.problem
        summands = notation.linear_part(equation.linear, problem.fields, problem.coordinates)
        if isinstance(equation.remainder, Node):
            summands = summands + list(self._summands(equation.remainder))
        elif equation.remainder or not summands:
            summands = [*summands, (equation.remainder, "")]
        return self._total(summands)

    def _total(self, summands: list[Summand]) -> str:
        return total(summands, self.digits, None if self.full else MOST_SUMMANDS)

    def _sum(self, value: Any) -> str:
        return self._total(list(self._summands(value)))

    def _summands(self, value: Any) -> Iterator[Summand]:
        """Signed summands in order; an iteration, since sums of many coordinates are deep."""
        pending: list[tuple[float, Any]] = [(1.0, value)]
        while pending:
            factor, value = pending.pop()
            coefficient, above, below = self._factors(value)
            factor *= coefficient
            parts = self._parts(above[0]) if len(above) == 1 and not below else None
            if parts is not None and (abs(factor) == 1.0 or above[0] is value):
                pending += [(factor * c, part) for c, part in reversed(parts)]
            elif above or below:
                yield factor, self._product(above, below)
            else:
                yield factor, ""

    def _parts(self, value: Any) -> list[tuple[float, Any]] | None:
        """The summands of a sum with their factors, zeros left out; None where it is none."""
        if not isinstance(value, Node) or value.number in self.names or value.label:
            return None
        name, args = value.name, value.args
        if name not in ("add", "sub", "rsub"):
            return None
        alpha = float(value.kwargs.get("alpha", args[2] if len(args) > 2 else 1.0))
        first, second = (args[1], args[0]) if name == "rsub" else (args[0], args[1])
        parts = [(1.0, first), (alpha if name == "add" else -alpha, second)]
        return [part for part in parts if _constant(part[1]) != 0.0] or [(1.0, 0.0)]

    # -- products --------------------------------------------------------------------------------
    def _factors(self, value: Any) -> tuple[float, list[Any], list[Any]]:
        """A product as a number, its factors, and the factors below the line."""
        known = _constant(value)
        if known is not None:
            return known, [], []
        if isinstance(value, Node) and value.number not in self.names and not value.label:
            args = value.args
            parts = self._parts(value)
            if parts is not None and len(parts) == 1:
                return self._scaled(*parts[0])
            if value.name == "neg":
                return self._scaled(-1.0, args[0])
            if value.name == "mul":
                a, b = (self._factors(v) for v in args[:2])
                return a[0] * b[0], a[1] + b[1], a[2] + b[2]
            if value.name == "div" and len(args) == 2 and not value.kwargs:
                return self._quotient(args[0], args[1])
            if value.name == "reciprocal":
                return self._quotient(1.0, args[0])
        return 1.0, [value], []

    def _scaled(self, factor: float, value: Any) -> tuple[float, list[Any], list[Any]]:
        coefficient, above, below = self._factors(value)
        return factor * coefficient, above, below

    def _quotient(self, top: Any, bottom: Any) -> tuple[float, list[Any], list[Any]]:
        a, b = self._factors(top), self._factors(bottom)
        if b[0] == 0.0:
            return a[0], a[1], [*a[2], bottom]
        return a[0] / b[0], a[1] + b[2], a[2] + b[1]

    def _product(self, above: list[Any], below: list[Any]) -> str:
        """Factors with the repeated ones as powers, over those below the line."""
        text = self._powers(above) or "1"
        if not below:
            return text
        under = self._powers(below)
        return f"{text} / {f'({under})' if TIGHT in under else under}"

    def _powers(self, factors: list[Any]) -> str:
        counts = Counter(id(v) for v in factors)
        distinct = {id(v): v for v in factors}
        return TIGHT.join(
            self._power(v, counts[i]) if counts[i] > 1 else self._tight(v, POWER)
            for i, v in distinct.items()
        )

    # -- everything else ---------------------------------------------------------------------------
    def _tight(self, value: Any, least: int) -> str:
        """The text of a factor, in brackets where it holds together less tightly than that."""
        text, tightness = self._atom(value)
        return text if tightness >= least else f"({text})"

    def _slot(self, node: Node) -> list[Summand]:
        assert node.slot is not None
        return notation.linear_part(node.slot, self.problem.fields, self.problem.coordinates)

    def _atom(self, value: Any) -> tuple[str, int]:
        if not isinstance(value, Node):
            return self._plain(value)
        if value.number in self.names:
            return self.names[value.number], ATOM
        if value.label:
            return value.label, ATOM
        if value.slot is not None:
            text = self._total(self._slot(value))
            return text, _tightness(text)
        if value.name == "pow":
            return self._power(*value.args), POWER
        if value.name in COMPARISONS:
            a, b = (self._sum(v) for v in value.args)
            return f"{a} {COMPARISONS[value.name]} {b}", SUM
        coefficient, above, below = self._factors(value)
        if self._parts(value) is not None or coefficient != 1.0 or below or above != [value]:
            return self._sum(value), SUM
        return self._call(value), ATOM

    def _power(self, base: Any, exponent: Any) -> str:
        known = _constant(exponent)
        text = self._tight(base, ATOM)
        if known is not None and known == int(known) and 0 <= known < 100:
            return text + str(int(known)).translate(SUPERSCRIPTS)
        return f"{text}^({self._argument(exponent)})"

    def _plain(self, value: Any) -> tuple[str, int]:
        known = _constant(value)
        if known is not None:
            text = number(known, self.digits)
            return text, ATOM if math.copysign(1.0, known) > 0 and "e" not in text else SUM
        if isinstance(value, Tensor):
            if value.dim() == 1 and len(value) <= 4:
                return f"[{', '.join(number(v, self.digits) for v in value.tolist())}]", ATOM
            return f"array({', '.join(map(str, value.shape))})", ATOM
        return str(value), ATOM

    def _call(self, node: Node) -> str:
        if node.name == "stack" and len(node.args) == 1:
            return f"[{', '.join(map(self._argument, node.args[0]))}]"
        if node.name == "select":
            return f"item({self._argument(node.args[0])}, {node.args[2]})"
        args = node.args[:1] if node.name == "_softmax" else node.args
        given = [*args, *(v for k, v in node.kwargs.items() if k not in SILENT)]
        while given and given[-1] is None:
            given.pop()
        name = FUNCTIONS.get(node.name, node.name)
        if name == "_to_copy" and "dtype" in node.kwargs:
            name = str(node.kwargs["dtype"]).removeprefix("torch.")
        return f"{name}({', '.join(map(self._argument, given))})"

    def _argument(self, value: Any) -> str:
        if isinstance(value, list | tuple):
            return f"[{', '.join(map(self._argument, value))}]"
        if isinstance(value, Node) and value.name in COMPARISONS:
            return self._atom(value)[0]
        return self._sum(value) if isinstance(value, Node) else self._plain(value)[0]


def _tightness(text: str) -> int:
    """A slot's symbol is one letter for powers, unless it begins with an operator or is a sum."""
    if " " in text or TIGHT in text or text.startswith("−"):
        return SUM
    return POWER if text.startswith("Δ") else ATOM


def _operations(node: Node) -> int:
    """Distinct operations behind a node, names of coordinates not counted."""
    return sum(n.function is not None and not n.label for n in reachable([node]))


def _reads_slots(node: Node) -> bool:
    return any(n.slot is not None for n in reachable([node]))


def _leaves(node: Node, coordinates: Coordinates) -> list[str]:
    """The names of what a function of the point depends on, the vector for all of its entries."""
    labels = {n.label for n in reachable([node]) if n.label}
    for place in {label[label.find("(") :] if "(" in label else "" for label in labels}:
        entries = [f"{name}{place}" for name in coordinates.space]
        if coordinates.vector and labels.issuperset(entries):
            labels = (labels - set(entries)) | {f"{coordinates.vector}{place}"}
        elif f"{coordinates.vector}{place}" in labels:
            labels -= set(entries)
    order = [*coordinates.names, coordinates.vector]
    return sorted(labels, key=lambda n: (order.index(n) if n in order else len(order), n))


def _free(letter: str, taken: set[str]) -> str:
    i = 1
    while f"{letter}{i}" in taken:
        i += 1
    taken.add(f"{letter}{i}")
    return f"{letter}{i}"
