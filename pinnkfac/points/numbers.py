"""How many points each term gets, at first and in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pinnkfac.common.settings import Range
from pinnkfac.common.state import Fixed

Price = Callable[[Sequence[int]], float]
"""What a step costs on so many points of every term."""

WIDEST, HALVINGS = 16.0, 10
"""How far the number of all points may move for the same cost, and how closely it is found."""


@dataclass(frozen=True)
class Allocation:
    """More points for terms that are hard to fit and cheap: where points are new, the part of each
    term moves by ``rate`` of the way towards

        n_i ∝ √(w_i L_i / c_i),

    with L_i the loss of a term on points that no step has seen, as written, w_i its weight, and
    c_i what one more point of it adds to the cost of a step (curvature/cost.py); a part is at
    least ``least``, before the sum of all is made 1. The cost of a step stays what the first
    numbers cost. With these numbers the sum of the losses is estimated best for the cost (optimum
    allocation, Neyman 1934, doi:10.2307/2342192; Cochran 1977, Sampling Techniques, eq. 5.23).
    """

    rate: Annotated[float, Range(above=0, most=1)] = 0.1
    """of the way to the best parts, whenever points are new"""
    least: Annotated[float, Range(least=0, most=0.5)] = 0.05
    """part of all points that a term keeps"""


@dataclass(frozen=True)
class Numbered:
    """A term as far as its number of points goes: the first one, the ``least`` and the ``most``
    that steps may have (None: no limit), whether they may be exchanged for points of other terms;
    and its weight."""

    first: int
    least: int = 1
    most: int | None = None
    exchangeable: bool = True
    weight: float = 1.0

    @property
    def varies(self) -> bool:
        return self.most is None or self.least < self.most

    def limited(self, number: float) -> int:
        """A number of points that may be."""
        most = math.inf if self.most is None else self.most
        return int(min(max(self.least, round(number)), most))


@dataclass(frozen=True)
class Numbers:
    """The numbers of points of all ``terms``: multiples of the first ones, or, once losses are
    known, parts of a total that costs as much.

    A run begins with a ``share`` of the first numbers; there are ``size`` times these now, or, once
    points were allocated, ``size`` · ``total`` in all, of which every term has one of the ``parts``
    (0: it keeps its number). ``price(numbers)`` is what a step on them costs.
    """

    terms: Fixed[tuple[Numbered, ...]]
    allocation: Fixed[Allocation | None]
    share: float = 1.0
    size: float = 1.0
    parts: tuple[float, ...] = ()
    total: float = 0.0

    def thinned(self, share: float) -> Numbers:
        """Begin with a share of the first numbers."""
        return replace(self, share=share, size=share)

    def grown(self, factor: float) -> Numbers:
        """With so many times the points."""
        return replace(self, size=self.size * factor)

    def first(self, size: float) -> list[int]:
        """The numbers at a multiple of the first ones, before points were allocated."""
        return [t.limited(size * t.first) for t in self.terms]

    def now(self) -> list[int]:
        numbers = self.first(self.size)
        if not self.parts:
            return numbers
        total = self.size * self.total
        terms = zip(self.terms, numbers, self.parts, strict=True)
        return [t.limited(total * part) if part else n for t, n, part in terms]

    def learned(self, losses: Sequence[float], numbers: Sequence[int], price: Price) -> Numbers:
        """Allocated by the losses of the terms on so many new points."""
        firsts = [t.first if t.varies and t.exchangeable else 0 for t in self.terms]
        if self.allocation is None or not losses or sum(n > 0 for n in firsts) < 2:
            return self
        roots = [
            math.sqrt(term.weight * loss / cost) if first and cost > 0 else 0.0
            for term, loss, cost, first in zip(
                self.terms, losses, _prices(numbers, price), firsts, strict=True
            )
        ]
        if not 0.0 < sum(roots) < math.inf:
            return self
        targets = [
            max(root / sum(roots), self.allocation.least) if first else 0.0
            for root, first in zip(roots, firsts, strict=True)
        ]
        rate, parts = self.allocation.rate, self.parts or [n / sum(firsts) for n in firsts]
        parts = tuple(
            part + rate * (target / sum(targets) - part)
            for part, target in zip(parts, targets, strict=True)
        )
        return replace(self, parts=parts)._spent(sum(firsts), price)

    def _spent(self, first: float, price: Price) -> Numbers:
        """With as many points as cost what the first numbers, ``first`` in all, would."""
        budget = price(self.first(self.size))
        if not math.isfinite(budget):  # beyond the memory: nothing says how many would cost that
            return replace(self, total=self.total or first)
        low, high = first / WIDEST, first * WIDEST
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            if price(replace(self, total=middle).now()) > budget:
                high = middle
            else:
                low = middle
        return replace(self, total=low)


def _prices(numbers: Sequence[int], price: Price) -> list[float]:
    """What one more point of each term costs."""
    now, prices = price(numbers), []
    for i, n in enumerate(numbers):
        more = max(1, n // 10)
        prices.append((price([*numbers[:i], n + more, *numbers[i + 1 :]]) - now) / more)
    return prices
