"""Regions, the points drawn in them, and given points with values."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain.sampling import Clustered, Sampling
from pinnkfac.field import Coordinates, shadowed


@dataclass(frozen=True)
class PointSet:
    """Points of a term: coordinates [batch, coord], and what ``at`` knows about each of them.

    ``normals`` [batch, coord of space] are outward unit normals; ``links`` are the coordinates of
    linked points by name; ``values`` [batch] are given numbers by name. ``weights`` [batch] are
    what points count in the mean over their term, where they are not drawn uniformly; None: all 1.
    ``ranges`` [batch, coord, 2] are lowest and highest coordinates in the box that each was drawn
    from, the same where it is flat.
    """

    coordinates: Tensor
    normals: Tensor | None = None
    links: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    ranges: Tensor | None = None

    def __len__(self) -> int:
        return self.coordinates.shape[0]

    def _map(self, f: Any) -> PointSet:
        return PointSet(
            f(self.coordinates),
            None if self.normals is None else f(self.normals),
            {name: f(v) for name, v in self.links.items()},
            {name: f(v) for name, v in self.values.items()},
            None if self.weights is None else f(self.weights),
            None if self.ranges is None else f(self.ranges),
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PointSet:
        return self._map(lambda v: v.to(device=device, dtype=dtype))

    def __getitem__(self, rows: slice | Tensor) -> PointSet:
        return self._map(lambda v: v[rows])

    def moved(self, by: Tensor) -> PointSet:
        """Each point moved by a vector [batch, coord] and reflected at the ends of its ranges, its
        linked points with it."""
        if self.ranges is None:
            return self
        low, high = self.ranges.unbind(-1)
        size = high - low
        away = (self.coordinates + by - low) % (2.0 * size).clamp_min(1e-300)
        place = low + torch.minimum(away, 2.0 * size - away)
        now = torch.where(size > 0, place, self.coordinates)
        links = {name: v + (now - self.coordinates) for name, v in self.links.items()}
        return replace(self, coordinates=now, links=links)

    def state_dict(self) -> dict[str, Any]:
        return {
            "coordinates": self.coordinates,
            "normals": self.normals,
            "links": dict(self.links),
            "values": dict(self.values),
            "weights": self.weights,
            "ranges": self.ranges,
        }

    @staticmethod
    def concatenate(parts: list[PointSet]) -> PointSet:
        first = parts[0]
        return PointSet(
            torch.cat([p.coordinates for p in parts]),
            None
            if first.normals is None
            else torch.cat([p.normals for p in parts if p.normals is not None]),
            {k: torch.cat([p.links[k] for p in parts]) for k in first.links},
            {k: torch.cat([p.values[k] for p in parts]) for k in first.values},
            None
            if first.weights is None
            else torch.cat([p.weights for p in parts if p.weights is not None]),
            None
            if first.ranges is None
            else torch.cat([p.ranges for p in parts if p.ranges is not None]),
        )


class Region(Protocol):
    """A set of points that a term holds on."""

    coordinates: Coordinates
    dimension: int
    link_names: tuple[str, ...]

    def draw(self, number: int, sampling: Sampling, generator: Generator) -> PointSet:
        """About ``number`` points, float64 on the CPU."""
        ...

    def __str__(self) -> str: ...


class Points:
    """Given points, with values that ``at`` reads by name.

    ``Points({"x": xs, "t": ts}, measured=us)`` on a term ``lambda u, at: u - at.measured`` fits
    measurements. Every array has one entry per point; coordinates must be those of the box.

    Raises UserError for arrays of different lengths, more than one axis, NaN, or a value whose
    name ``at`` has already.
    """

    link_names: tuple[str, ...] = ()

    def __init__(self, coordinates: Mapping[str, Any], **values: Any) -> None:
        if not coordinates:
            raise UserError("Points needs one array per coordinate, such as Points({'x': xs})")
        self.given = {name: _array(name, v) for name, v in coordinates.items()}
        self.values = {name: _array(name, v) for name, v in values.items()}
        self.coordinates = Coordinates(tuple(coordinates))
        self._check_names()
        lengths = {name: len(v) for name, v in {**self.given, **self.values}.items()}
        if len(set(lengths.values())) != 1:
            raise UserError(
                "Points: arrays of different lengths: "
                + ", ".join(f"{k} has {n}" for k, n in lengths.items())
            )
        self.number = next(iter(lengths.values()))
        self.dimension = 0

    def _check_names(self) -> None:
        for name in self.values:
            hidden_by = shadowed(name, self.coordinates)
            if hidden_by:
                raise UserError(
                    f"Points: the value '{name}' would be hidden, at.{name} is {hidden_by}; give "
                    "it another name"
                )

    def bound(self, coordinates: Coordinates) -> Points:
        """The same points in the order of a problem's coordinates.

        Raises UserError where they are given by other coordinates.
        """
        if set(self.given) != set(coordinates.names):
            raise UserError(
                f"Points gives {', '.join(self.given)}, but the problem's coordinates are "
                f"{', '.join(coordinates.names)}: give one array for each"
            )
        result = copy(self)
        result.coordinates = coordinates
        result._check_names()
        return result

    def draw(self, number: int, sampling: Sampling, generator: Generator) -> PointSet:
        stacked = torch.stack([self.given[name] for name in self.coordinates.names], dim=-1)
        return PointSet(stacked, values=dict(self.values))

    def __str__(self) -> str:
        return f"{self.number} given points"


def _array(name: str, value: Any) -> Tensor:
    array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    if array.ndim != 1:
        raise UserError(
            f"Points: '{name}' has shape {array.shape}; give one number per point, shape (N,)"
        )
    if not np.issubdtype(array.dtype, np.number) or np.iscomplexobj(array):
        raise UserError(f"Points: '{name}' has dtype {array.dtype}; give real numbers")
    tensor = torch.from_numpy(array.astype(np.float64))
    if not torch.isfinite(tensor).all():
        raise UserError(f"Points: '{name}' has NaN or infinite entries; drop those points")
    return tensor


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
        result = 1.0
        for i in self.free:
            result *= self.high[i] - self.low[i]
        return result

    def place(self, unit: Tensor, sampling: Sampling) -> PointSet:
        """Unit-cube points [batch, free coordinates] of a rule, moved into the patch."""
        weights = None
        if isinstance(sampling, Clustered):
            unit, weights = sampling.moved(unit)
        low = torch.tensor(self.low, dtype=torch.float64)
        points = low.expand(len(unit), -1).clone()
        for column, i in enumerate(self.free):
            points[:, i] = self.low[i] + (self.high[i] - self.low[i]) * unit[:, column]
        normals = None
        if self.normal is not None:
            normals = torch.tensor(self.normal, dtype=torch.float64).expand(len(unit), -1).clone()
        links = {
            name: points + torch.tensor(delta, dtype=torch.float64)
            for name, delta in self.shift.items()
        }
        ranges = torch.stack([low, torch.tensor(self.high, dtype=torch.float64)], dim=-1)
        ranges = ranges.expand(len(unit), -1, -1)
        return PointSet(points, normals, links, weights=weights, ranges=ranges)


class Patches:
    """A union of patches of one box (its interior, faces, a slice), drawn by their measure."""

    def __init__(
        self, name: str, patches: list[Patch], bounds: tuple[tuple[float, float], ...]
    ) -> None:
        self.name = name
        self.patches = patches
        self.bounds = bounds
        """(low, high) of the whole box, by coordinate."""
        self.coordinates = patches[0].coordinates
        self.dimension = max(len(p.free) for p in patches)
        self.link_names = tuple(patches[0].shift)

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
