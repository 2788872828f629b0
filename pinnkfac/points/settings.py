"""What a user may set about points: how many, how they are drawn, and how often anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Count, Number, Positive, Range
from pinnkfac.domain import Sampling, Uniform
from pinnkfac.domain.sampling import Clustered
from pinnkfac.points.horizon import Reach
from pinnkfac.points.numbers import Allocation
from pinnkfac.points.selection import Selection
from pinnkfac.problem import Term


@dataclass(frozen=True)
class Growth:
    """More points whenever they are exchanged because of ``gap``."""

    factor: Annotated[float, Range(least=1)] = 1.0
    """as many points where they are exchanged because of gap; 1: no growth"""
    most: Annotated[float, Range(least=1)] = 10.0
    """multiple of the first number of points"""

    def after(self, size: float) -> float:
        """The next multiple of the first number of points."""
        return min(self.most, size * self.factor)


INTERIOR, LINE = 1000, 250
"""Points of a term inside of a domain of several coordinates, and of one."""


@dataclass(frozen=True)
class PointSettings:
    """How many points each term gets (``number``), how they are drawn (``rule``), and how often
    anew (exchange.py): every so many steps, or where the loss on unseen points exceeds that on the
    current ones by a ``gap``, as the net has begun to fit the points instead of the equation.

    Raises UserError where points are to be denser at the faces, but ``adaptive`` has no weights.
    """

    sampling: Sampling = field(default_factory=Uniform)
    """how points are drawn"""
    faces: Annotated[float, Range(least=0, below=1)] = 0.0
    """how much denser points are at the faces of the domain, where they count less by as much; 0:
    as dense everywhere"""
    every: Number = 0
    """steps between new points; 0: they stay, those of adaptive for `check` steps"""
    gap: Positive | None = 3.0
    """new points also where the loss on unseen ones is this many times larger; null: never"""
    check: Count = 10
    """the most steps between these checks: they are as frequent as points are exchanged"""
    interior: Count | None = None
    """points of a term on a region of full dimension, where the PDE file says nothing; null: 1000,
    or 250 where there is one coordinate only"""
    lower: Count = 200
    """points of a term on a face or slice"""
    scale: Positive = 1.0
    """multiplies all numbers but those of `numbers`"""
    numbers: Mapping[str, Count] = field(default_factory=dict)
    """by the name of the term, points.numbers.walls=500"""
    adaptive: Selection | None = None
    """points where the residual is large; null: not, choose points=adaptive or points=rad"""
    growth: Growth = field(default_factory=Growth)
    """more points where the net fits them"""
    allocation: Allocation | None = field(default_factory=Allocation)
    """more points for terms that are harder to fit; null: the numbers as given"""
    reach: Reach = field(default_factory=Reach)
    """how far points go at first, in one coordinate with conditions at a single place"""

    def __post_init__(self) -> None:
        if self.faces and self.adaptive is not None and not self.adaptive.faithful:
            raise UserError(
                f"points.faces={self.faces} needs points with weights, and those of "
                "points.adaptive have none: set points.faces=0"
            )

    @property
    def rule(self) -> Sampling:
        """How candidates are drawn."""
        return Clustered(self.sampling, self.faces) if self.faces else self.sampling

    @property
    def faithful(self) -> bool:
        """Whether losses on new points are estimates of those on the regions."""
        return self.adaptive is None or self.adaptive.faithful

    def number(self, term: Term, dimension: int, *, full: bool = False) -> int:
        """How many points a term gets at first, in a problem of that many coordinates; ``full``:
        its region counts as one of full dimension."""
        if term.name in self.numbers:
            return self.numbers[term.name]
        full = full or term.where.dimension == dimension
        inside = self.interior or (LINE if dimension == 1 else INTERIOR)
        number = term.points or (inside if full else self.lower)
        return max(1, round(number * self.scale))

    def deciding(self, term: Term, size: float) -> str:
        """The settings that decide how many points of a term are drawn, at a multiple ``size`` of
        the first numbers, in words."""
        if term.name in self.numbers:
            words = f"points.numbers.{term.name}"
        else:
            words = "points.scale" + ("" if term.points else ", points.interior or points.lower")
        if self.adaptive is not None:
            words += ", or points.adaptive.factor"
        return words if size <= 1.0 else f"{words}, or points.growth.most"
