"""Points of a term: drawn in a region, or given with values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain.sampling import Sampling
from pinnkfac.field import Coordinates, shadowed


@dataclass(frozen=True)
class PointSet:
    """Points of a term: coordinates [batch, coord], and what ``at`` knows about each of them.

    ``normals`` [batch, coord of space] are outward unit normals; ``links`` are the coordinates of
    linked points, ``values`` [batch] given numbers by name. ``weights`` [batch] are what points
    count in the mean over their term (None: all 1). ``ranges`` [batch, coord, 2] are lowest and
    highest coordinates of the box that each was drawn from, ``chart`` where those of a curved
    region come from; ``inside`` says which points of a set are in a part of a region.
    """

    coordinates: Tensor
    normals: Tensor | None = None
    links: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    ranges: Tensor | None = None
    chart: Chart | None = None
    inside: Callable[[PointSet], Tensor] | None = None

    def __len__(self) -> int:
        return self.coordinates.shape[0]

    def _map(self, f: Callable[[Tensor], Tensor]) -> PointSet:
        return _combined([self], lambda tensors: f(tensors[0]))

    def to(self, device: torch.device | str, dtype: torch.dtype) -> PointSet:
        return self._map(lambda v: v.to(device=device, dtype=dtype))

    def __getitem__(self, rows: slice | Tensor) -> PointSet:
        return self._map(lambda v: v[rows])

    @staticmethod
    def concatenate(parts: list[PointSet]) -> PointSet:
        return _combined(parts, lambda tensors: torch.cat(list(tensors)))

    def state_dict(self) -> dict[str, Any]:
        """The points as plain values, without their chart: what is stored is not moved any more."""
        code = ("chart", "inside")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in code}

    def within(self, inside: Callable[[PointSet], Tensor]) -> PointSet:
        """The same points, which are not moved out of where that holds."""
        return replace(self, inside=inside)

    @property
    def movable(self) -> bool:
        """Whether it is known which part of its region a point stands for."""
        return self.ranges is not None or self.chart is not None

    def spread(self, rows: Tensor, generator: Generator) -> PointSet:
        """The points of these rows, each at a random place in the part of its region that it stands
        for among all points here, so that one that is taken several times is not the same point;
        as they are where they are not ``movable``. Those of one box follow each other.

        All are moved: where only some were, as many would leave a front as enter it no more. Only
        those that would leave a part of a region stay.
        """
        if self.inside is not None:
            here, there = self[rows], replace(self, inside=None).spread(rows, generator)
            stay = ~self.inside(there)
            return _combined([there, here], lambda pair: _chosen(stay, *pair)).within(self.inside)
        if self.chart is not None:
            return image(self.chart.origin.spread(rows, generator), self.chart.map)
        chosen = self[rows]
        if self.ranges is None:
            return chosen
        ranges = self.ranges.to("cpu", torch.float64)
        _, which, counts = ranges.unique_consecutive(return_inverse=True, return_counts=True, dim=0)
        sides = (ranges[..., 1] - ranges[..., 0])[rows]
        part = 1.0 / counts[which[rows]].to(sides)
        if chosen.weights is not None:
            part = part * chosen.weights.to(sides)
        dimension = (sides > 0).sum(dim=1).clamp_min(1)
        cells = sides * (part ** (1.0 / dimension))[:, None]
        move = torch.rand(sides.shape, dtype=torch.float64, generator=generator) - 0.5
        return chosen.moved((move * cells).to(chosen.coordinates))

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


Map = Callable[[Tensor], PointSet]
"""Parameters [batch, param] to points: their coordinates, and normals and links where they have
any."""


@dataclass(frozen=True)
class Chart:
    """Points of a box of parameters, and the ``map`` from there to the region."""

    origin: PointSet
    map: Map


def image(origin: PointSet, map: Map) -> PointSet:
    """The points that a map takes the parameters of ``origin`` to, with the weights of these."""
    return replace(map(origin.coordinates), weights=origin.weights, chart=Chart(origin, map))


def _chosen(second: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of ``other`` where ``second`` [batch] says so."""
    return torch.where(second.view(-1, *[1] * (one.dim() - 1)), other, one)


def _combined(parts: Sequence[Any], f: Callable[[Sequence[Tensor]], Tensor]) -> Any:
    """``f`` of the tensors that stand in the same place of all parts."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return f(parts)
    if isinstance(first, Mapping):
        return {name: _combined([part[name] for part in parts], f) for name in first}
    if callable(first):
        return first
    if isinstance(first, Chart):
        maps = {part.map for part in parts}
        origin = _combined([part.origin for part in parts], f)
        return Chart(origin, first.map) if len(maps) == 1 else None
    names = [f.name for f in fields(first)]
    return type(first)(**{n: _combined([getattr(p, n) for p in parts], f) for n in names})


class Region(Protocol):
    """A set of points that a term holds on.

    It may have ``bounds`` too, (low, high) of its domain by coordinate, or the ``domain`` itself.
    """

    coordinates: Coordinates
    dimension: int
    link_names: tuple[str, ...]

    def draw(self, number: int, sampling: Sampling, generator: Generator) -> PointSet:
        """About ``number`` points, float64 on the CPU."""

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
        """All of them, or so many at random where there are more."""
        stacked = torch.stack([self.given[name] for name in self.coordinates.names], dim=-1)
        points = PointSet(stacked, values=dict(self.values))
        if number >= self.number:
            return points
        return points[torch.randperm(self.number, generator=generator)[:number]]

    def __str__(self) -> str:
        return f"{self.number} given points"


def _array(name: str, value: Any) -> Tensor:
    try:
        array = np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value)
    except Exception as error:  # lists of different lengths, or what numpy cannot read
        raise UserError(f"Points: '{name}' is {value!r:.80}; give one number per point") from error
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
