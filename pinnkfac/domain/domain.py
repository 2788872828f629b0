"""What a shape is, and how one is stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain.box import Box
from pinnkfac.domain.part import Part
from pinnkfac.domain.patches import Patches
from pinnkfac.domain.points import Region
from pinnkfac.field import Coordinates


class Domain(Protocol):
    """A shape in named coordinates, a ``Box`` for one.

    ``bounds`` is the box around it. ``interior`` is all of it, ``boundary`` its surface in space
    (at all times, where there is time) with outward normals; both are drawn uniformly in measure.
    """

    @property
    def coordinates(self) -> Coordinates: ...

    @property
    def bounds(self) -> Box: ...

    @property
    def interior(self) -> Region: ...

    @property
    def boundary(self) -> Region: ...

    def contains(self, points: Tensor) -> Tensor:
        """Which points [batch, coord] lie in it, its boundary included, up to rounding: bool
        [batch]."""

    def as_dict(self) -> dict[str, Any]:
        """What describes the shape beside the name of its class: plain values, no code."""


MEMBERS = ("coordinates", "bounds", "interior", "boundary", "contains", "as_dict")


def lacking(domain: Any) -> list[str]:
    """What an object lacks to be a Domain, by name."""
    return [name for name in MEMBERS if not hasattr(domain, name)]


def left_out(domain: Domain, points: Tensor) -> Tensor:
    """Which points [batch, coord] lie in the bounds of a domain and outside its shape: bool
    [batch]; none where it is a box."""
    return domain.bounds.contains(points) & ~domain.contains(points)


@dataclass(frozen=True)
class Outline:
    """A shape of which no more can be used than the box around it: one of a stored run, whose
    folder holds no code (``values`` are what it said of itself), or a ``region`` of a user's own
    that says no more than its bounds, or what is a part of another shape by a condition. ``kind``
    is the class of either, or the part in words."""

    bounds: Box
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)
    region: Region | None = None

    @staticmethod
    def of(bounds: Box, region: Region, shape: Domain | None = None) -> Outline:
        """That of a region, of a ``shape`` where it is a part of one."""
        kind = str(region) if isinstance(region, Part) else type(region).__name__
        return Outline(bounds, kind, {} if shape is None else shape.as_dict(), region)

    @property
    def coordinates(self) -> Coordinates:
        return self.bounds.coordinates

    @property
    def interior(self) -> Region:
        return self.bounds.interior if self.region is None else self.region

    @property
    def boundary(self) -> Region:
        whole: Domain = getattr(self.region, "domain", self.bounds)
        return whole.boundary

    def contains(self, points: Tensor) -> Tensor:
        inside = self.bounds.contains(points)
        region = getattr(self.region, "contains", None)
        return inside if region is None else inside & region(points)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.values)

    def __repr__(self) -> str:
        return f"{self.kind} in {self.bounds}"


def as_stored(domain: Domain) -> dict[str, Any]:
    """Plain values: those of the bounds, and of a shape that is no box its name and description."""
    stored = domain.bounds.as_dict()
    if domain is not domain.bounds:
        kind = domain.kind if isinstance(domain, Outline) else type(domain).__name__
        stored["domain"] = {"kind": kind, **domain.as_dict()}
    return stored


def from_stored(values: Mapping[str, Any]) -> Domain:
    """The opposite of ``as_stored``, but for shapes that are no box: their Outline."""
    bounds = Box.from_dict(values)
    if "domain" not in values:
        return bounds
    described = dict(values["domain"])
    return Outline(bounds, str(described.pop("kind")), described)


def around(regions: Sequence[Region]) -> Domain:
    """The domain that the regions of a problem name, or else the box around them, an Outline where
    the only region of full dimension is of a user's own, or a part of a shape by a condition.

    Raises UserError where they name several, or where nothing says how far they reach.
    """
    every: list[Any] = [getattr(region, "domain", None) for region in regions]
    shapes = [d for i, d in enumerate(every) if d is not None and d not in every[:i]]
    full = [r for r in regions if r.dimension == len(r.coordinates.names)]
    if len(shapes) == 1:
        part = len(full) == 1 and isinstance(full[0], Part)
        return Outline.of(shapes[0].bounds, full[0], shapes[0]) if part else shapes[0]
    if shapes:
        names = " and ".join(map(repr, shapes[:2]))
        raise UserError(
            f"Problem: its terms lie in {names}: say which one errors and pictures are to use, "
            "Problem(domain=...)"
        )
    box = _box_around(regions)
    if len(full) == 1 and not isinstance(full[0], Patches):
        return Outline.of(box, full[0])
    return box


def _box_around(regions: Sequence[Region]) -> Box:
    coordinates = regions[0].coordinates
    bounds = [b for region in regions if (b := getattr(region, "bounds", None))]
    if not bounds:
        raise UserError(
            "Problem: nothing says how far its domain reaches, as the regions of its terms "
            f"({', '.join(dict.fromkeys(type(r).__name__ for r in regions))}) have no bounds: give "
            "domain=Box(...), or the regions bounds, (low, high) for each coordinate"
        )
    ranges = {
        name: (min(b[i][0] for b in bounds), max(b[i][1] for b in bounds))
        for i, name in enumerate(coordinates.names)
    }
    return Box(ranges, time=coordinates.time)
