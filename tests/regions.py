"""Regions of a user's own that tests share."""

from __future__ import annotations

from dataclasses import dataclass

from pinnkfac import Box
from pinnkfac.domain import PointSet, Uniform


@dataclass(frozen=True)
class Linked:
    """Points of a box, each linked to others by name at the given shifts."""

    box: Box
    shifts: dict[str, tuple[float, ...]]

    @property
    def coordinates(self):
        return self.box.coordinates

    @property
    def dimension(self) -> int:
        return len(self.coordinates.names)

    @property
    def link_names(self) -> tuple[str, ...]:
        return tuple(self.shifts)

    def draw(self, number, sampling, generator) -> PointSet:
        points = self.box.interior.draw(number, sampling, generator)
        x = points.coordinates
        return PointSet(x, links={k: x + x.new_tensor(v) for k, v in self.shifts.items()})

    def __str__(self) -> str:
        return "linked points"


@dataclass(frozen=True)
class Quarter:
    """Points of the unit square within 1 of the origin, and nothing that says how to move them."""

    bounds: tuple[tuple[float, float], ...] | None = ((0.0, 1.0), (0.0, 1.0))

    link_names = ()
    dimension = 2
    box = Box(x=(0, 1), y=(0, 1))
    coordinates = box.coordinates

    def draw(self, number, sampling, generator) -> PointSet:
        x = self.box.interior.draw(4 * number + 20, Uniform(), generator).coordinates
        return PointSet(x[x.norm(dim=1) <= 1.0][:number])

    def __str__(self) -> str:
        return "quarter of a disk"
