"""Axis-parallel pieces of a box, and the regions that are made of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain.points import PointSet
from pinnkfac.domain.sampling import Clustered, Sampling
from pinnkfac.field import Coordinates


@dataclass(frozen=True)
class Patch:
    """An axis-parallel piece of a box: a [low, high] range per coordinate, some of them fixed.

    ``shift`` by name moves a point to its linked point (added to the coordinates).
    """

    coordinates: Coordinates
    low: tuple[float, ...]
    high: tuple[float, ...]
    normal: tuple[float, ...] | None = None
    shift: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    @property
    def free(self) -> list[int]:
        return [i for i, (a, b) in enumerate(zip(self.low, self.high, strict=True)) if b > a]

    @property
    def measure(self) -> float:
        return math.prod((self.high[i] - self.low[i] for i in self.free), start=1.0)

    def place(self, unit: Tensor, sampling: Sampling) -> PointSet:
        """Unit-cube points [batch, free coordinates] of a rule, moved into the patch."""
        weights = None
        if isinstance(sampling, Clustered):
            unit, weights = sampling.moved(unit)
        ranges = torch.tensor([self.low, self.high], dtype=torch.float64).T
        low, high = ranges.unbind(-1)
        points = low.expand(len(unit), -1).clone()
        points[:, self.free] = low[self.free] + (high - low)[self.free] * unit
        normals = None
        if self.normal is not None:
            normals = torch.tensor(self.normal, dtype=torch.float64).expand(len(unit), -1).clone()
        links = {
            name: points + torch.tensor(delta, dtype=torch.float64)
            for name, delta in self.shift.items()
        }
        ranges = ranges.expand(len(unit), -1, -1)
        return PointSet(points, normals, links, weights=weights, ranges=ranges)


@dataclass(eq=False)
class Patches:
    """A union of patches of one box (its interior, faces, a slice), drawn by their measure;
    ``bounds`` are (low, high) of the whole box by coordinate."""

    name: str
    patches: list[Patch]
    bounds: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        self.coordinates = self.patches[0].coordinates
        self.dimension = max(len(p.free) for p in self.patches)
        self.link_names = tuple(self.patches[0].shift)

    def draw(self, number: int, sampling: Sampling, generator: Generator) -> PointSet:
        if number < 1:
            raise UserError(f"{self}: at least one point is needed, {number} were asked for")
        if self.dimension == 0:  # single points, once each: more would be the same ones again
            return PointSet.concatenate(
                [p.place(torch.empty(1, 0), sampling) for p in self.patches]
            )
        if len(self.patches) == 1:
            unit = sampling.unit(number, self.dimension, generator)
            return self.patches[0].place(unit, sampling)
        weights = [p.measure for p in self.patches]
        total = sum(weights)
        if sampling.regular:
            shares = [max(1, round(number * w / total)) for w in weights]
            parts = [
                patch.place(sampling.unit(share, len(patch.free), generator), sampling)
                for patch, share in zip(self.patches, shares, strict=True)
            ]
            return PointSet.concatenate(parts)
        unit = sampling.unit(number, self.dimension + 1, generator)
        edges = torch.cumsum(torch.tensor(weights, dtype=torch.float64) / total, 0)
        chosen = torch.bucketize(unit[:, 0].contiguous(), edges[:-1].contiguous(), right=True)
        parts = [
            patch.place(unit[chosen == i][:, 1 : 1 + len(patch.free)], sampling)
            for i, patch in enumerate(self.patches)
        ]
        return PointSet.concatenate([p for p in parts if len(p)])

    def __or__(self, other: Patches) -> Patches:
        """The union of two regions of one box, ``box.faces("x", side="low") | box.at(t=0)``.

        It has normals where both have them. Raises UserError where their points are linked to
        others by different names.
        """
        if not isinstance(other, Patches) or other.coordinates != self.coordinates:
            raise UserError("a union needs two regions of the same box")
        if set(self.link_names) != set(other.link_names):
            raise UserError(
                f"the points of '{self}' and '{other}' have different linked points "
                f"({', '.join(self.link_names) or 'none'}; {', '.join(other.link_names) or 'none'})"
                ": write one term for each"
            )
        patches = [*self.patches, *other.patches]
        if any(p.normal is None for p in patches):
            patches = [replace(p, normal=None) for p in patches]
        bounds = tuple(
            (min(a[0], b[0]), max(a[1], b[1]))
            for a, b in zip(self.bounds, other.bounds, strict=True)
        )
        return Patches(f"{self.name} | {other.name}", patches, bounds)

    def __str__(self) -> str:
        return self.name
