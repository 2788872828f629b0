"""Solving from the start on: points reach as far as the solution is known, and then further.

An equation in one coordinate whose conditions are all at one place has wrong solutions that
fulfil it almost everywhere, which forget the start; a net that is right as far as it goes is
carried on to the right one. Source: Wight & Zhao 2021, Commun. Comput. Phys. 29, 930, §3.2
(arXiv:2007.04542), there with time steps of a partial differential equation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from torch import Generator, Tensor

from pinnkfac.common.settings import Count, Fraction, Range
from pinnkfac.common.state import Fixed
from pinnkfac.domain import Patches, Points, PointSet, Uniform
from pinnkfac.problem import Term


@dataclass(frozen=True)
class Reach:
    """How far points go, and when they go further."""

    first: Annotated[float, Range(above=0, most=1)] = 0.1
    """part of the length that they have at first; 1: all of it"""
    factor: Annotated[float, Range(above=1)] = 1.5
    """how many times further they go next"""
    solved: Fraction = 1e-5
    """part of the first loss below which they do"""
    patience: Count = 30
    """steps after which they do in any case"""


@dataclass(frozen=True)
class Horizon:
    """Points go to the ``part`` of the way from ``origin`` to the ends, since a ``step`` of the
    run; ``loss`` is the first one."""

    reach: Fixed[Reach]
    origin: Fixed[float]
    part: float = 1.0
    step: int = 0
    loss: float = 0.0

    def applied(self, points: PointSet) -> PointSet:
        """The points as near to the origin."""
        if self.part == 1.0:
            return points

        def near(x: Tensor) -> Tensor:
            return self.origin + self.part * (x - self.origin)

        ranges = None if points.ranges is None else near(points.ranges)
        links = {name: near(x) for name, x in points.links.items()}
        return replace(points, coordinates=near(points.coordinates), ranges=ranges, links=links)

    def after(self, step: int, loss: float) -> Horizon:
        """After a step that began with that relative loss."""
        first = self.loss or loss
        fallen = loss < self.reach.solved * first
        if self.part == 1.0 or not (fallen or step - self.step >= self.reach.patience):
            return replace(self, loss=first)
        return replace(self, part=min(1.0, self.part * self.reach.factor), step=step, loss=first)


def horizon_of(terms: Sequence[Term], reach: Reach) -> Horizon:
    """Where points begin; everywhere but for problems in one coordinate with conditions at a single
    place of it, and equations that all hold on one interval with that place in it: points of a part
    of it would leave that."""
    coordinates = terms[0].where.coordinates.names
    given = any(isinstance(term.where, Points) for term in terms)
    if len(coordinates) > 1 or given:
        return Horizon(reach, 0.0)
    places = {
        float(x)
        for term in terms
        if term.where.dimension == 0
        for x in term.where.draw(1, Uniform(), Generator().manual_seed(0)).coordinates.flatten()
    }
    linked = any(term.where.link_names for term in terms)
    span = _span(terms)
    if len(places) != 1 or linked or span is None:
        return Horizon(reach, 0.0)
    place, (low, high) = places.pop(), span
    return Horizon(reach, place, reach.first if low <= place <= high else 1.0)


def _span(terms: Sequence[Term]) -> tuple[float, float] | None:
    """The interval that all equations hold on; None where there are several, parts of one, or
    none."""
    spans: set[tuple[float, float]] = set()
    for region in (term.where for term in terms if term.where.dimension > 0):
        if not isinstance(region, Patches):
            return None
        spans |= {(patch.low[0], patch.high[0]) for patch in region.patches}
    return spans.pop() if len(spans) == 1 else None
