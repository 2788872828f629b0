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

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pinnkfac.field import LinearPart, MultiIndex, factorial, multi_indices

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

    dimension: int
    rows: tuple[Operator, ...]
    powers: tuple[dict[int, tuple[Monomial, ...]], ...]
    products: tuple[tuple[tuple[float, int, int], ...], ...]
    slots: tuple[tuple[tuple[float, int, int], ...], ...]

    @property
    def order(self) -> int:
        """The highest derivative among the rows."""
        return max((order(row) for row in self.rows), default=0)

    def input_row(self, s: int) -> list[float] | None:
        """P_s x, the row of the coordinates themselves: constant; None where it is zero."""
        vector = [0.0] * self.dimension
        for alpha, c in self.rows[s]:
            if sum(alpha) == 1:
                vector[alpha.index(1)] = c
        return vector if any(vector) else None


def order(operator: Operator) -> int:
    return max((sum(alpha) for alpha, _ in operator), default=0)


def _operator(coefficients: dict[MultiIndex, float]) -> tuple[Operator, float]:
    """An operator with largest coefficient 1, and the factor that was divided out."""
    items = sorted((a, c) for a, c in coefficients.items() if c != 0.0)
    if not items:
        return (), 0.0
    lead = max((c for _, c in items), key=abs)
    return tuple((a, c / lead) for a, c in items), lead


def _unit(i: int, dimension: int) -> MultiIndex:
    return tuple(int(j == i) for j in range(dimension))


def _minus(a: MultiIndex, b: MultiIndex) -> MultiIndex:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def _partitions(items: tuple[int, ...]) -> Iterable[list[tuple[int, ...]]]:
    """All set partitions of distinguishable items into unordered blocks."""
    if not items:
        yield []
        return
    first, rest = items[0], items[1:]
    for mask in range(2 ** len(rest)):
        block = (first, *(x for j, x in enumerate(rest) if mask >> j & 1))
        others = tuple(x for j, x in enumerate(rest) if not mask >> j & 1)
        for partition in _partitions(others):
            yield [block, *partition]


def _faa_di_bruno(alpha: MultiIndex) -> Counter[tuple[MultiIndex, ...]]:
    """Blocks of derivatives in D^α σ(z), two or more of them, with their multiplicities."""
    items = [i for i, a in enumerate(alpha) for _ in range(a)]
    result: Counter[tuple[MultiIndex, ...]] = Counter()
    for partition in _partitions(tuple(range(len(items)))):
        if len(partition) < 2:
            continue
        blocks = []
        for block in partition:
            beta = [0] * len(alpha)
            for j in block:
                beta[items[j]] += 1
            blocks.append(tuple(beta))
        result[tuple(sorted(blocks))] += 1
    return result


class _Builder:
    def __init__(self, dimension: int) -> None:
        self.dimension = dimension
        self.rows: list[Operator] = [()]
        self.collapsed_parts: dict[Operator, list[tuple[int, float, Operator]]] = {}

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
            inner, factor = self._inner(operator, i)
            if inner:
                self.monomial(_unit(i, self.dimension))
                if not self.expand(inner):
                    self.require(inner)
                parts.append((i, factor, inner))
        self.collapsed_parts[operator] = parts
        if operator not in self.rows:
            self.rows.append(operator)

    def _inner(self, operator: Operator, i: int) -> tuple[Operator, float]:
        """∂P/∂ξ_i of the parts of order ≥ 3."""
        inner: dict[MultiIndex, float] = {}
        for alpha, c in operator:
            if sum(alpha) >= 3 and alpha[i]:
                inner[_minus(alpha, _unit(i, self.dimension))] = alpha[i] * c
        return _operator(inner)

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

    # -- rules -----------------------------------------------------------------------------------
    def _pairs(self, operator: Operator) -> Iterable[tuple[float, int, int]]:
        """(coefficient, row of D_i, row) of Σ_i D_i z · P_i z over the parts of order ≥ 3."""
        for i, factor, inner in self.collapsed_parts[operator]:
            first = self.rows.index(((_unit(i, self.dimension), 1.0),))
            for c, row in self.expand(inner) or ():
                yield factor * c, first, row

    def powers(self, operator: Operator) -> dict[int, tuple[Monomial, ...]]:
        terms: dict[int, Counter[tuple[int, ...]]] = {}

        def add(c: float, rows: Iterable[int]) -> None:
            key = tuple(sorted(rows))
            counter = terms.setdefault(len(key), Counter())
            counter[key] += c  # type: ignore[assignment]

        for c, first, row in self._pairs(operator):
            add(c, (first, row))
        for alpha, c in operator:
            for blocks, count in _faa_di_bruno(alpha).items():
                if not _is_pair(blocks, alpha):
                    add(c * count, (self.monomial(beta) for beta in blocks))
        return {
            m: tuple(Monomial(float(c), rows) for rows, c in sorted(counter.items()) if c)
            for m, counter in sorted(terms.items())
        }

    def products(self, operator: Operator) -> tuple[tuple[float, int, int], ...]:
        terms: dict[tuple[int, int], float] = {}

        def add(c: float, f: int, g: int) -> None:
            terms[f, g] = terms.get((f, g), 0.0) + c

        for c, first, row in self._pairs(operator):
            add(c, first, row)
            add(c, row, first)
        for alpha, c in operator:
            for beta in _below(alpha):
                rest = _minus(alpha, beta)
                if _is_pair(tuple(sorted((beta, rest))), alpha):
                    continue
                binomial = factorial(alpha) / (factorial(beta) * factorial(rest))
                add(c * binomial, self.monomial(beta), self.monomial(rest))
        return tuple((c, f, g) for (f, g), c in sorted(terms.items()) if c)


def _is_pair(blocks: Sequence[MultiIndex], alpha: MultiIndex) -> bool:
    """Two blocks of orders 1 and |α| − 1 ≥ 2: these are collapsed."""
    return len(blocks) == 2 and sum(alpha) >= 3 and min(sum(b) for b in blocks) == 1


def _below(alpha: MultiIndex) -> Iterable[MultiIndex]:
    """All 0 < β < α."""
    total = sum(alpha)
    for k in range(1, total):
        for beta in multi_indices(k, len(alpha)):
            if all(b <= a for a, b in zip(alpha, beta, strict=True)):
                yield beta


def make_plan(
    slots: Sequence[LinearPart], dimension: int, place: str = "", *, published_rows: bool = False
) -> Plan:
    """The rows that carry the given slots at one place.

    ``published_rows`` keeps the rows of arXiv:2405.15603 instead: the value, every first
    derivative (time too), and one row of pure second order; nothing is folded into it.
    """
    builder = _Builder(dimension)
    wanted: list[dict[int, dict[MultiIndex, float]]] = []
    for slot in slots:
        by_field: dict[int, dict[MultiIndex, float]] = {}
        for (field, where, alpha), c in slot:
            if where == place:
                by_field.setdefault(field, {})[alpha] = c
        wanted.append(by_field)
    operators = [_split(part, published_rows) for by in wanted for part in by.values()]
    if published_rows and any(order(op) >= 2 for ops in operators for op, _ in ops):
        for i in range(dimension):
            builder.monomial(_unit(i, dimension))
    # Monomials first, long operators last: an operator that the rows span needs none of its own.
    for op in sorted({op for ops in operators for op, _ in ops}, key=lambda o: (len(o), order(o))):
        if len(op) == 1:
            builder.monomial(op[0][0])
    combined = {op for ops in operators for op, _ in ops if len(op) > 1}
    monomials = {alpha for op in combined for alpha, _ in op}
    if len(combined) >= len(monomials):
        for alpha in sorted(monomials, key=lambda a: (sum(a), a)):
            builder.monomial(alpha)
    for op in sorted(combined, key=lambda o: (order(o), len(o), o)):
        if builder.expand(op) is None:
            builder.require(op)
    rules = _sorted_by_order(builder)
    slot_rules = []
    for by_field in wanted:
        rule: list[tuple[float, int, int]] = []
        for field, part in sorted(by_field.items()):
            zero = (0,) * dimension
            if zero in part:
                rule.append((part[zero], 0, field))
            for op, factor in _split(part, published_rows):
                for c, row in builder.expand(op) or ():
                    rule.append((factor * c, row, field))
        slot_rules.append(tuple(rule))
    return Plan(dimension, tuple(builder.rows), rules[0], rules[1], tuple(slot_rules))


def _sorted_by_order(
    builder: _Builder,
) -> tuple[
    tuple[dict[int, tuple[Monomial, ...]], ...], tuple[tuple[tuple[float, int, int], ...], ...]
]:
    """Fix the order of rows: value, first derivatives, then higher ones, collapsed ones last."""
    builder.rows.sort(key=lambda op: (order(op), len(op), op))
    first = [op for op in builder.rows if order(op) == 1 and len(op) == 1]
    first.sort(key=lambda op: op[0][0].index(1))
    rest = [op for op in builder.rows if op and op not in first]
    builder.rows = [(), *first, *rest]
    builder.collapsed_parts.setdefault((), [])
    powers = tuple(builder.powers(op) for op in builder.rows)
    products = tuple(builder.products(op) if op else () for op in builder.rows)
    return powers, products


def _split(part: dict[MultiIndex, float], published_rows: bool) -> list[tuple[Operator, float]]:
    """The operator of a slot on one field: its order-0 part is read from row 0, the rest is one
    operator; published rows keep first derivatives apart."""
    rest = {alpha: c for alpha, c in part.items() if sum(alpha) > 0}
    if not published_rows:
        op, factor = _operator(rest)
        return [(op, factor)] if op else []
    pieces = [{a: c} for a, c in rest.items() if sum(a) == 1]
    high = {a: c for a, c in rest.items() if sum(a) > 1}
    return [_operator(p) for p in (*pieces, high) if p]
