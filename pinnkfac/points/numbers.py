"""How many points each term gets, at first and in the course of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pinnkfac.common.settings import Range

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
    """A term as far as its number of points goes: the first one, whether steps may have more or
    fewer of them, and whether they may be exchanged for points of other terms; and its weight."""

    first: int
    varies: bool = True
    exchangeable: bool = True
    weight: float = 1.0


class PointNumbers:
    """The numbers of points of all terms: multiples of the first ones, or, once losses are known,
    parts of a total that costs as much. ``price(numbers)`` is what a step on them costs."""

    def __init__(
        self,
        terms: Sequence[Numbered],
        allocation: Allocation | None,
        price: Callable[[Sequence[int]], float],
    ) -> None:
        self.terms = terms
        self.allocation = allocation
        self.price = price
        self.share = 1.0
        """Of the first numbers, that a run begins with."""
        self.size = 1.0
        """Of the first numbers, that there are now."""
        self.parts: list[float] = []
        self.total = 0.0
        """Once points were allocated: the part of every term (0: it keeps its number), and how
        many there are in all at size 1."""

    def thin(self, share: float) -> None:
        """Begin with a share of the first numbers."""
        self.share = self.size = share

    def first(self, size: float) -> list[int]:
        """The numbers at a multiple of the first ones, before points were allocated."""
        return [max(1, round(size * t.first)) if t.varies else t.first for t in self.terms]

    def now(self) -> list[int]:
        if not self.parts:
            return self.first(self.size)
        return self._allocated(self.total)

    def _allocated(self, total: float) -> list[int]:
        pairs = zip(self.first(self.size), self.parts, strict=True)
        return [max(1, round(self.size * total * part)) if part else n for n, part in pairs]

    def learn(self, losses: Sequence[float], numbers: Sequence[int]) -> None:
        """Allocate the next points by the losses of the terms on so many new ones."""
        firsts = [t.first if t.varies and t.exchangeable else 0 for t in self.terms]
        if self.allocation is None or not losses or sum(n > 0 for n in firsts) < 2:
            return
        roots = [
            math.sqrt(term.weight * loss / price) if first and price > 0 else 0.0
            for term, loss, price, first in zip(
                self.terms, losses, self._prices(numbers), firsts, strict=True
            )
        ]
        if not 0.0 < sum(roots) < math.inf:
            return
        targets = [
            max(root / sum(roots), self.allocation.least) if first else 0.0
            for root, first in zip(roots, firsts, strict=True)
        ]
        parts = self.parts or [n / sum(firsts) for n in firsts]
        self.parts = [
            part + self.allocation.rate * (target / sum(targets) - part)
            for part, target in zip(parts, targets, strict=True)
        ]
        self._spend(sum(firsts))

    def _prices(self, numbers: Sequence[int]) -> list[float]:
        """What one more point of each term costs."""
        price, prices = self.price(numbers), []
        for i, n in enumerate(numbers):
            more = max(1, n // 10)
            dearer = self.price([*numbers[:i], n + more, *numbers[i + 1 :]])
            prices.append((dearer - price) / more)
        return prices

    def _spend(self, first: float) -> None:
        """As many points as cost what the first numbers, ``first`` in all, would."""
        budget = self.price(self.first(self.size))
        if not math.isfinite(budget):  # beyond the memory: nothing says how many would cost that
            self.total = self.total or first
            return
        low, high = first / WIDEST, first * WIDEST
        for _ in range(HALVINGS):
            middle = math.sqrt(low * high)
            if self.price(self._allocated(middle)) > budget:
                high = middle
            else:
                low = middle
        self.total = low

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._plain}

    def load_state_dict(self, state: dict[str, Any]) -> bool:
        """Go on with these numbers; whether they are for a run that began with the same share."""
        same = bool(state["share"] == self.share)
        for name in self._plain if same else ("parts", "total"):
            setattr(self, name, state[name])
        return same

    _plain = ("share", "size", "parts", "total")
