"""Slots → rows: which derivatives travel through the net, and how they mix in nonlinear layers.

A row carries an operator P(D) = Σ_α c_α D^α with constant coefficients, applied to every feature
of a layer. Row 0 is the identity (the value). Linear layers act on each row alone. A nonlinear
layer y = σ(z) mixes rows; with w = z(·) − z(x) (Faà di Bruno, Leibniz–Hörmander),

    P σ(z) = σ'(z) P z + Σ_{m ≥ 2} σ^(m)(z) / m! · P[w^m],
    P(f g) = f P g + g P f + (products of lower rows).

``P[w^m]`` needs proper sub-derivatives only. Those of order |P| − 1 come in pairs
Σ_i D_i z · P_i z with P_i = ∂P/∂ξ_i, so that they are collapsed into one row per coordinate:
a Laplacian needs the first derivatives and one more row; the bilaplacian in d dimensions needs d
rows of third order instead of d(d+1)(d+2)/6.

Sources: Griewank & Walther, Evaluating Derivatives, 2008, ch. 13; collapsed Taylor mode,
arXiv:2505.13644; forward Laplacian, arXiv:2307.08214.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pinnkfac.field import LinearPart, MultiIndex, factorial

Operator = tuple[tuple[MultiIndex, float], ...]
"""Σ c_α D^α as sorted pairs (α, c_α), none of order 0, the largest coefficient 1."""


@dataclass(frozen=True)
class Monomial:
    """coefficient · Π of the named rows."""

    coefficient: float
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """The rows of one place, and the rules by which nonlinear layers mix them.

    ``rows[s]`` is the operator of row s (row 0: the empty one). ``powers[s][m]`` lists the
    monomials of P_s[w^m] / m!, m ≥ 2. ``products[s]`` lists (coefficient, row of f, row of g) of
    P_s(f g) other than f P g + g P f.
    ``slots[i]`` lists (coefficient, row, field): slot i = Σ coefficient · output[row, field].
    """

    rows: tuple[Operator, ...]
    powers: tuple[dict[int, tuple[Monomial, ...]], ...]
    products: tuple[tuple[tuple[float, int, int], ...], ...]
    slots: tuple[tuple[tuple[float, int, int], ...], ...]


def order(operator: Operator) -> int:
    return max((sum(alpha) for alpha, _ in operator), default=0)


def operator_of(coefficients: dict[MultiIndex, float]) -> tuple[Operator, float]:
    """An operator with largest coefficient 1, and the factor that was divided out."""
    items = sorted((a, c) for a, c in coefficients.items() if c != 0.0)
    if not items:
        return (), 0.0
    lead = max((c for _, c in items), key=abs)
    return tuple((a, c / lead) for a, c in items), lead


def unit(i: int, dimension: int) -> MultiIndex:
    return tuple(int(j == i) for j in range(dimension))


def _minus(a: MultiIndex, b: MultiIndex) -> MultiIndex:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _partitions(items: Sequence[int]) -> Iterator[list[list[int]]]:
    """All set partitions of distinguishable items into unordered blocks."""
    if not items:
        yield []
        return
    first, *others = items
    for blocks in _partitions(others):
        yield [[first], *blocks]
        for i, block in enumerate(blocks):
            yield [[first, *block], *blocks[:i], *blocks[i + 1 :]]


def _faa_di_bruno(alpha: MultiIndex) -> Counter[tuple[MultiIndex, ...]]:
    """Blocks of derivatives in D^α σ(z), two or more of them, with their multiplicities."""
    result: Counter[tuple[MultiIndex, ...]] = Counter()
    for partition in _partitions([i for i, a in enumerate(alpha) for _ in range(a)]):
        if len(partition) > 1:
            blocks = [[0] * len(alpha) for _ in partition]
            for beta, block in zip(blocks, partition, strict=True):
                for i in block:
                    beta[i] += 1
            result[tuple(sorted(map(tuple, blocks)))] += 1
    return result


class RowBuilder:
    """Collects the rows that operators need, with all that these need themselves."""

    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.rows: list[Operator] = [()]
        self.collapsed_parts: dict[Operator, list[tuple[int, float, Operator]]] = {(): []}

    def monomial(self, alpha: MultiIndex) -> int:
        """The row of D^α, added together with all that it needs."""
        operator: Operator = ((alpha, 1.0),)
        if operator not in self.rows:
            self.require(operator)
        return self.rows.index(operator)

    def require(self, operator: Operator) -> None:
        if operator in self.rows:
            return
        for alpha, _ in operator:
            for blocks in _faa_di_bruno(alpha):
                if not _is_pair(blocks, alpha):
                    for beta in blocks:
                        self.monomial(beta)
        parts = []
        for i in range(self.dimension):
            first = unit(i, self.dimension)
            higher = [(alpha, c) for alpha, c in operator if sum(alpha) >= 3 and alpha[i]]
            inner, factor = operator_of({_minus(alpha, first): alpha[i] * c for alpha, c in higher})
            if inner:
                self.monomial(first)
                if not self.expand(inner):
                    self.require(inner)
                parts.append((i, factor, inner))
        self.collapsed_parts[operator] = parts
        if operator not in self.rows:
            self.rows.append(operator)

    def expand(self, operator: Operator) -> list[tuple[float, int]] | None:
        """The operator as a combination of rows that are already there, or None."""
        if operator in self.rows:
            return [(1.0, self.rows.index(operator))]
        result = []
        for alpha, c in operator:
            if ((alpha, 1.0),) not in self.rows:
                return None
            result.append((c, self.rows.index(((alpha, 1.0),))))
        return result

    def add(self, operators: set[Operator]) -> None:
        """Rows for operators: monomials first, as one that the rows span needs none of its own."""
        for op in sorted(operators, key=lambda o: (len(o), order(o))):
            if len(op) == 1:
                self.monomial(op[0][0])
        combined = {op for op in operators if len(op) > 1}
        monomials = {alpha for op in combined for alpha, _ in op}
        if len(combined) >= len(monomials):
            for alpha in sorted(monomials, key=lambda a: (sum(a), a)):
                self.monomial(alpha)
        for op in sorted(combined, key=lambda o: (order(o), len(o), o)):
            if self.expand(op) is None:
                self.require(op)

    def _pairs(self, operator: Operator) -> Iterable[tuple[float, int, int]]:
        """(coefficient, row of D_i, row) of Σ_i D_i z · P_i z over the parts of order ≥ 3."""
        for i, factor, inner in self.collapsed_parts[operator]:
            first = self.rows.index(((unit(i, self.dimension), 1.0),))
            for c, row in self.expand(inner) or ():
                yield factor * c, first, row

    def powers(self, operator: Operator) -> dict[int, tuple[Monomial, ...]]:
        terms: defaultdict[tuple[int, ...], float] = defaultdict(float)
        for c, first, row in self._pairs(operator):
            terms[tuple(sorted((first, row)))] += c
        for alpha, c in operator:
            for blocks, count in _faa_di_bruno(alpha).items():
                if not _is_pair(blocks, alpha):
                    terms[tuple(sorted(map(self.monomial, blocks)))] += c * count
        monomials = [Monomial(c, rows) for rows, c in sorted(terms.items()) if c]
        return {
            m: tuple(monomial for monomial in monomials if len(monomial.rows) == m)
            for m in sorted(set(map(len, terms)))
        }

    def products(self, operator: Operator) -> tuple[tuple[float, int, int], ...]:
        terms: defaultdict[tuple[int, int], float] = defaultdict(float)
        for c, first, row in self._pairs(operator):
            terms[first, row] += c
            terms[row, first] += c
        for alpha, c in operator:
            for beta in list(itertools.product(*(range(a + 1) for a in alpha)))[1:-1]:
                rest = _minus(alpha, beta)
                if _is_pair(tuple(sorted((beta, rest))), alpha):
                    continue
                binomial = factorial(alpha) / (factorial(beta) * factorial(rest))
                terms[self.monomial(beta), self.monomial(rest)] += c * binomial
        return tuple((c, f, g) for (f, g), c in sorted(terms.items()) if c)


def _is_pair(blocks: Sequence[MultiIndex], alpha: MultiIndex) -> bool:
    """Two blocks of orders 1 and |α| − 1 ≥ 2: these are collapsed."""
    return len(blocks) == 2 and sum(alpha) >= 3 and min(sum(b) for b in blocks) == 1


Part = dict[MultiIndex, float]
"""Coefficients of the derivatives of one field in one slot."""
Planner = Callable[[Sequence[LinearPart], int, str], Plan]
"""(slots, dimension, place) → the rows that carry the slots at that place."""


def make_plan(slots: Sequence[LinearPart], dimension: int, place: str = "") -> Plan:
    """The fewest rows that carry the given slots at one place: each slot's derivatives of a field
    are one operator."""
    return assemble(RowBuilder(dimension), parts_at(slots, place), lambda part: [part])


def parts_at(slots: Sequence[LinearPart], place: str) -> list[dict[int, Part]]:
    """What each slot reads at a place, by field."""
    result: list[dict[int, Part]] = []
    for slot in slots:
        by_field: dict[int, Part] = {}
        for (field, where, alpha), c in slot:
            if where == place:
                by_field.setdefault(field, {})[alpha] = c
        result.append(by_field)
    return result


def assemble(
    builder: RowBuilder, slots: Sequence[dict[int, Part]], split: Callable[[Part], list[Part]]
) -> Plan:
    """The plan in which ``split`` makes the operators of the derivatives of order 1 and higher."""

    def operators_of(part: Part) -> list[tuple[Operator, float]]:
        derivatives = {alpha: c for alpha, c in part.items() if sum(alpha) > 0}
        return [operator_of(piece) for piece in split(derivatives) if piece]

    operators = {op for slot in slots for part in slot.values() for op, _ in operators_of(part)}
    builder.add(operators)
    builder.rows.sort(key=_place)
    rules = []
    for slot in slots:
        rule: list[tuple[float, int, int]] = []
        for field, part in sorted(slot.items()):
            zero = (0,) * builder.dimension
            if zero in part:
                rule.append((part[zero], 0, field))
            for op, factor in operators_of(part):
                rule += [(factor * c, row, field) for c, row in builder.expand(op) or ()]
        rules.append(tuple(rule))
    return Plan(
        tuple(builder.rows),
        tuple(builder.powers(op) for op in builder.rows),
        tuple(builder.products(op) for op in builder.rows),
        tuple(rules),
    )


def _place(operator: Operator) -> tuple[int, int, Any]:
    """Rows in order: the value, first derivatives, then higher ones, collapsed ones last."""
    single = len(operator) == order(operator) == 1
    return order(operator), len(operator), operator[0][0].index(1) if single else operator
