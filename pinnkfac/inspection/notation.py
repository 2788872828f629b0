"""Derivatives, slots and rows in mathematical notation: u_xx, ∂t − 0.25 ∂xx, Δu."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
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
    texts = [(coefficient, _summand(coefficient, body, digits)) for coefficient, body in summands]
    if most is not None and len(texts) > most:
        texts = [*texts[:4], (1.0, "…"), texts[-1]]
    if not texts:
        return "0"
    (first, text), *rest = texts
    result = ("−" if _negative(first) else "") + text
    for coefficient, text in rest:
        result += f" {'−' if _negative(coefficient) else '+'} {text}"
    return result


def _negative(value: float) -> bool:
    return math.copysign(1.0, value) < 0


def _summand(coefficient: float, body: str, digits: int) -> str:
    size = abs(coefficient)
    if not body:
        return number(size, digits)
    return body if size == 1.0 else f"{number(size, digits)}{TIGHT}{body}"


def derivative(alpha: MultiIndex, coordinates: Coordinates) -> str:
    """The coordinates of D^α, each as often as it is differentiated by: 'xxy'."""
    return "".join(name * times for name, times in zip(coordinates.names, alpha, strict=True))


def combination(
    part: dict[MultiIndex, float],
    coordinates: Coordinates,
    write: Callable[[str], str],
) -> list[Summand]:
    """Σ c_α D^α in the order given, with Δ and Δ² where space has several coordinates.

    ``write`` makes a symbol of '', 'xx', 'Δ' or 'Δ²'.
    """
    left = dict(part)
    result: list[Summand] = []
    for alpha, c in part.items():
        if alpha not in left:
            continue
        symbol, pattern = _laplacian(sum(alpha), coordinates)
        if alpha in pattern and all(left.get(b) == c * n for b, n in pattern.items()):
            for b in pattern:
                del left[b]
            result.append((c, write(symbol)))
        else:
            del left[alpha]
            result.append((c, write(derivative(alpha, coordinates))))
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
    groups: dict[tuple[int, str], dict[MultiIndex, float]] = {}
    for (field, place, alpha), c in linear:
        groups.setdefault((field, place), {})[alpha] = c
    result = []
    for (field, place), part in groups.items():

        def write(symbol: str, name: str = fields[field], place: str = place) -> str:
            where = f"({place})" if place else ""
            if symbol.startswith("Δ"):
                return f"{symbol}{name}{where}"
            return f"{name}_{symbol}{where}" if symbol else f"{name}{where}"

        result += combination(part, coordinates, write)
    return result


def slot(linear: LinearPart, fields: Sequence[str], coordinates: Coordinates) -> str:
    """A slot, such as 'u_t − 0.25 u_xx'."""
    return total(linear_part(_leading(linear), fields, coordinates)).replace(TIGHT, " ")


def _leading(linear: LinearPart) -> LinearPart:
    """Field by field, derivatives by the first coordinate (time) in front."""
    return tuple(sorted(linear, key=lambda item: (*item[0][:2], [-a for a in item[0][2]])))


def row(operator: Operator, coordinates: Coordinates) -> str:
    """The operator of a row that travels through the net; that of row 0 is 'value'."""
    if not operator:
        return "value"

    def write(symbol: str) -> str:
        return symbol if symbol.startswith("Δ") else f"∂{symbol}"

    leading = dict(sorted(operator, reverse=True))
    return total(combination(leading, coordinates, write)).replace(TIGHT, " ")
