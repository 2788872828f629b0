"""Derivatives, slots and rows in mathematical notation: u_xx, ∂t − 0.25 ∂xx, Δu."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache

from pinnkfac.field import Coordinates, Key, LinearPart, MultiIndex
from pinnkfac.inspection.text import TIGHT
from pinnkfac.taylor.plan import Operator

DIGITS = 6
Summand = tuple[float, str]
"""A coefficient and what it multiplies ('' for a number alone)."""


def number(value: float, digits: int = DIGITS) -> str:
    """A number as ``%g`` writes it, with a short exponent and a mathematical minus."""
    mantissa, e, exponent = f"{value:.{digits}g}".partition("e")
    return mantissa.replace("-", "−") + (f"e{int(exponent)}" if e else "")


def total(summands: Sequence[Summand], digits: int = DIGITS, most: int | None = None) -> str:
    """Summands as a sum, ``−Δu + 2 u − 3``; with ``most``, a longer one is abbreviated."""
    texts = []
    for c, body in summands:
        factor = "" if body and abs(c) == 1.0 else number(abs(c), digits)
        sign = "−" if math.copysign(1.0, c) < 0 else "+"
        texts.append(f"{sign} {TIGHT.join(filter(None, (factor, body)))}")
    if most is not None and len(texts) > most:
        texts = [*texts[:4], "+ …", texts[-1]]
    sign, _, rest = (" ".join(texts) or "+ 0").partition(" ")
    return rest if sign == "+" else f"{sign}{rest}"


def combination(part: Mapping[MultiIndex, float], coordinates: Coordinates) -> list[Summand]:
    """Σ c_α D^α in the order of the part, with Δ and Δ² where space has several coordinates; u_xxy
    is 'xxy'."""
    left = dict(part)
    result: list[Summand] = []
    for alpha, c in part.items():
        if alpha not in left:
            continue
        symbol, pattern = _laplacian(sum(alpha), coordinates)
        if alpha not in pattern or any(left.get(b) != c * n for b, n in pattern.items()):
            letters = zip(coordinates.names, alpha, strict=True)
            symbol, pattern = "".join(name * times for name, times in letters), {alpha: 1.0}
        for b in pattern:
            del left[b]
        result.append((c, symbol))
    return result


@lru_cache(maxsize=16)
def _laplacian(order: int, coordinates: Coordinates) -> tuple[str, dict[MultiIndex, float]]:
    """Δ of order 2, or Δ² of order 4: its symbol, and multi-indices with their coefficients."""
    space = [coordinates.index(name) for name in coordinates.space]
    if len(space) < 2 or order not in (2, 4):
        return "", {}

    def at(*positions: int) -> MultiIndex:
        return tuple(2 * positions.count(i) for i in range(len(coordinates.names)))

    if order == 2:
        return "Δ", {at(i): 1.0 for i in space}
    return "Δ²", {at(i, j): 1.0 if i == j else 2.0 for i in space for j in space}


def linear_part(
    linear: Iterable[tuple[Key, float]], fields: Sequence[str], coordinates: Coordinates
) -> list[Summand]:
    """Σ c D^α u_k(place) as summands: (1, 'u_t'), (−0.25, 'u_xx'), (1, 'Δv(opposite)')."""
    groups: dict[tuple[str, str], dict[MultiIndex, float]] = {}
    for (field, place, alpha), c in linear:
        where = f"({place})" if place else ""
        groups.setdefault((fields[field], where), {})[alpha] = c
    result = []
    for (name, where), part in groups.items():
        for c, symbol in combination(part, coordinates):
            index = f"_{symbol}" if symbol else ""
            text = f"{symbol}{name}" if symbol.startswith("Δ") else f"{name}{index}"
            result.append((c, f"{text}{where}"))
    return result


def slot(linear: LinearPart, fields: Sequence[str], coordinates: Coordinates) -> str:
    """A slot, such as 'u_t − 0.25 u_xx': field by field, derivatives by time in front."""
    leading = sorted(linear, key=lambda item: (*item[0][:2], [-a for a in item[0][2]]))
    return total(linear_part(leading, fields, coordinates)).replace(TIGHT, " ")


def row(operator: Operator, coordinates: Coordinates) -> str:
    """The operator of a row that travels through the net; that of row 0 is 'value'."""
    if not operator:
        return "value"
    summands = combination(dict(sorted(operator, reverse=True)), coordinates)
    marked = [(c, text if text.startswith("Δ") else f"∂{text}") for c, text in summands]
    return total(marked).replace(TIGHT, " ")
