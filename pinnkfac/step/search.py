"""Step lengths: how far to go along a direction. A new search is a new dataclass here."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from pinnkfac.common.settings import Count, Fraction, NonNegative, Positive, Range, check_order

Loss = Callable[[float], float]


@dataclass(frozen=True)
class Accepted:
    """A step length and the loss there; length 0 where no trial lowers the loss.

    ``shrunk``: longer steps were tried first and did not lower the loss.
    """

    length: float
    loss: float
    trials: int
    shrunk: bool = False


class Search(Protocol):
    """``run(loss, loss_0, slope, last)``: ``loss(α)`` is the loss at θ + α·direction, ``slope``
    its derivative at 0, ``last`` the last accepted length (None at the start), or, where the norm
    of the direction has changed, what leads about as far. ``evaluates``: whether it looks at losses
    (one that does not say so does)."""

    evaluates: ClassVar[bool] = True

    def run(self, loss: Loss, loss_0: float, slope: float, last: float | None) -> Accepted: ...


@dataclass(frozen=True)
class NoSearch(Search):
    """For steps that choose their own length."""

    def run(self, loss: Loss, loss_0: float, slope: float, last: float | None) -> Accepted:
        raise NotImplementedError("a step without a search asked for one")


ROUNDING = 1e-13
"""Falls of the loss below this part of it are rounding, not progress."""


def _falls_enough(value: float, loss_0: float, allowed: float) -> bool:
    return value <= loss_0 + allowed and value < loss_0 * (1.0 - ROUNDING)


@dataclass(frozen=True)
class Fixed(Search):
    """Always the same length; the loss is not evaluated."""

    evaluates: ClassVar[bool] = False
    length: Positive = 1.0
    """of every step"""

    def run(self, loss: Loss, loss_0: float, slope: float, last: float | None) -> Accepted:
        return Accepted(self.length, math.nan, 0)


@dataclass(frozen=True)
class Grid(Search):
    """The best of base^low … base^high, as in arXiv:2405.15603 (2^-30 … 2^0)."""

    base: Annotated[float, Range(above=1)] = 2.0
    """lengths are powers of it"""
    low: int = -30
    """the lowest power"""
    high: int = 0
    """the highest power; one loss for each"""

    def __post_init__(self) -> None:
        check_order("search", self, "low", "high")

    def run(self, loss: Loss, loss_0: float, slope: float, last: float | None) -> Accepted:
        lengths = [self.base**k for k in range(self.low, self.high + 1)]
        losses = [loss(length) for length in lengths]
        best = min(range(len(losses)), key=losses.__getitem__)
        if losses[best] < loss_0:  # as published, however little (but for rounding)
            return Accepted(lengths[best], losses[best], len(losses))
        return Accepted(0.0, loss_0, len(losses))


@dataclass(frozen=True)
class Backtracking(Search):
    """Shrink from ``grow`` times the last accepted length until the loss falls enough.

    Enough is loss(α) ≤ loss(0) + sufficient·α·slope (Armijo). The first length tried is at most
    ``longest`` (1, the full step, unless the direction has no natural length).
    """

    shrink: Fraction = 0.5
    """factor on a length at which the loss did not fall enough"""
    grow: Annotated[float, Range(least=1)] = 4.0
    """the first trial over the last accepted length, where the step has no length of its own"""
    sufficient: NonNegative = 1e-4
    """part of the fall that the slope promises which is enough"""
    longest: Positive = 1.0
    """the longest trial"""
    most: Count = 30
    """trials after which the step is rejected"""

    def run(self, loss: Loss, loss_0: float, slope: float, last: float | None) -> Accepted:
        length = self.longest if not last else min(self.longest, self.grow * last)
        for trial in range(1, self.most + 1):
            value = loss(length)
            if _falls_enough(value, loss_0, self.sufficient * length * min(slope, 0.0)):
                return Accepted(length, value, trial, shrunk=trial > 1)
            length *= self.shrink
        return Accepted(0.0, loss_0, self.most)


@dataclass(frozen=True)
class Quadratic(Search):
    """Backtracking along parabolas: each next trial is the minimum of the parabola through
    loss(0), slope and the last trial, kept between 0.1 and 0.5 of it (Nocedal & Wright 2006,
    eq. 3.57)."""

    grow: Annotated[float, Range(least=1)] = 2.0
    """the first trial over the last accepted length, where the step has no length of its own"""
    sufficient: NonNegative = 1e-4
    """part of the fall that the slope promises which is enough"""
    longest: Positive = 1.0
    """the longest trial"""
    most: Count = 30
    """trials after which the step is rejected"""

    def run(self, loss: Loss, loss_0: float, slope: float, last: float | None) -> Accepted:
        slope = min(slope, 0.0)
        length = self.longest if not last else min(self.longest, self.grow * last)
        for trial in range(1, self.most + 1):
            value = loss(length)
            if _falls_enough(value, loss_0, self.sufficient * length * slope):
                return Accepted(length, value, trial, shrunk=trial > 1)
            rise = value - loss_0 - slope * length
            curved = math.isfinite(rise) and rise > 0
            minimum = -slope * length * length / (2 * rise) if curved else 0.0
            length = min(max(minimum, 0.1 * length), 0.5 * length)
        return Accepted(0.0, loss_0, self.most)
