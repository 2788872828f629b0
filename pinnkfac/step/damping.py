"""Damping λ over steps. A new schedule is a new dataclass here."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from pinnkfac.common.settings import Count, Fraction, NonNegative, Positive, Range, check_order


class Damping(Protocol):
    """``start`` is λ of step 0; ``after(λ, ratio, step, length)`` the next one, where ``ratio`` is
    the reduction of the loss over the one that the quadratic model predicted (NaN: not known, or
    the step was rejected) and ``length`` the accepted step length (0: rejected). ``needs_ratio``:
    whether it has to be computed. ``adapts``: whether λ depends on what steps did; then a λ that is
    below what rounding leaves is raised to it first."""

    needs_ratio: ClassVar[bool] = False
    adapts: ClassVar[bool] = False

    @property
    def start(self) -> float: ...

    def after(self, damping: float, ratio: float, step: int, length: float = math.nan) -> float: ...


@dataclass(frozen=True)
class NoDamping(Damping):
    """For steps without damping."""

    start: ClassVar[float] = 0.0

    def after(self, damping: float, ratio: float, step: int, length: float = math.nan) -> float:
        return damping


@dataclass(frozen=True)
class Constant(Damping):
    """The same λ in every step."""

    start: NonNegative = 1e-8
    """λ of every step"""

    def after(self, damping: float, ratio: float, step: int, length: float = math.nan) -> float:
        return damping


@dataclass(frozen=True)
class Exponential(Damping):
    """λ_k = max(start · factor^k, lowest)."""

    start: Positive = 1e-2
    """λ of the first step"""
    factor: Fraction = 0.99
    """on λ in every step"""
    lowest: NonNegative = 1e-12
    """the smallest λ"""

    def after(self, damping: float, ratio: float, step: int, length: float = math.nan) -> float:
        return max(damping * self.factor, self.lowest)


@dataclass(frozen=True)
class Steps(Damping):
    """λ is multiplied by ``factor`` after every ``every`` steps, down to ``lowest``."""

    start: Positive = 1e-2
    """λ of the first step"""
    factor: Fraction = 0.1
    """on λ, once in `every` steps"""
    every: Count = 100
    """steps between changes of λ"""
    lowest: NonNegative = 1e-12
    """the smallest λ"""

    def after(self, damping: float, ratio: float, step: int, length: float = math.nan) -> float:
        if (step + 1) % self.every:
            return damping
        return max(damping * self.factor, self.lowest)


class Adaptive(Damping):
    """λ ← lower·λ where a step was ``trusted`` rightly, λ ← higher·λ where it was ``missed``,
    within [lowest, highest]."""

    adapts: ClassVar[bool] = True
    lower: float
    higher: float
    lowest: float
    highest: float

    def moved(self, damping: float, *, missed: bool, trusted: bool) -> float:
        if missed:
            damping *= self.higher
        elif trusted:
            damping *= self.lower
        return min(max(damping, self.lowest), self.highest)


@dataclass(frozen=True)
class LevenbergMarquardt(Adaptive):
    """λ falls where the gain ratio exceeds ``good``, and rises where it is below ``bad`` or the
    step was rejected (Martens & Grosse 2015, arXiv:1503.05671, section 6.5)."""

    needs_ratio: ClassVar[bool] = True
    start: Positive = 1e-2
    """λ of the first step"""
    lower: Fraction = 0.5
    """factor on λ where the loss fell by more than `good` of the prediction"""
    higher: Annotated[float, Range(above=1)] = 2.0
    """factor on λ where it fell by less than `bad` of it, or the step was rejected"""
    good: Positive = 0.75
    """part of the predicted fall above which λ falls"""
    bad: NonNegative = 0.25
    """part of the predicted fall below which λ rises"""
    lowest: Positive = 1e-14
    """the smallest λ"""
    highest: Positive = 1e4
    """the largest λ"""

    def __post_init__(self) -> None:
        check_order("damping", self, "bad", "good")
        check_order("damping", self, "lowest", "highest")

    def after(self, damping: float, ratio: float, step: int, length: float = math.nan) -> float:
        missed = math.isnan(ratio) or ratio < self.bad
        return self.moved(damping, missed=missed, trusted=ratio > self.good)


@dataclass(frozen=True)
class ByLength(Adaptive):
    """λ falls where the accepted length is at least ``long``, and rises where it is below ``short``
    or the step was rejected: for steps whose direction is exact, whose best length is below 1
    though a small λ is right, which the gain ratio would raise."""

    start: Positive = 1e-2
    """λ of the first step"""
    lower: Fraction = 0.25
    """factor on λ where the accepted length is at least `long`"""
    higher: Annotated[float, Range(above=1)] = 4.0
    """factor on λ where it is below `short`, or the step was rejected"""
    long: Positive = 0.5
    """accepted length from which λ falls"""
    short: Positive = 0.125
    """accepted length below which λ rises"""
    lowest: Positive = 1e-14
    """the smallest λ"""
    highest: Positive = 1e4
    """the largest λ"""

    def __post_init__(self) -> None:
        check_order("damping", self, "short", "long")
        check_order("damping", self, "lowest", "highest")

    def after(self, damping: float, ratio: float, step: int, length: float = math.nan) -> float:
        return self.moved(damping, missed=length < self.short, trusted=length >= self.long)
