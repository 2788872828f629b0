"""Boxes of any dimension, in space or in space and time."""

from __future__ import annotations

import keyword
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.domain.part import ROUNDING
from pinnkfac.domain.patches import Patch, Patches
from pinnkfac.field import ELEMENTWISE, At, Coordinates, Form

Interval = tuple[float, float]
OPPOSITE = "opposite"
TAKEN = frozenset((*dir(Form), *ELEMENTWISE, *dir(At), OPPOSITE)) | {
    name for name in dir(Tensor) if not callable(getattr(Tensor, name))
}
"""What ``u.NAME`` and ``at.NAME`` are already, and ``.NAME`` of a product of fields (``.T``)."""


class Box:
    """A product of intervals, one per named coordinate: ``Box(t=(0, 1), x=(-1, 1))``.

    The coordinate ``t`` is time unless ``time=`` names another one (``time=None``: none is).
    Everything called *space* (lap, grad, faces, normals) leaves time out.

    Regions: ``interior``; ``boundary`` (every face of space); ``faces("x")``;
    ``at(t=0)``; ``opposite("x")`` (the low face, each point linked to the high one).

    Raises UserError for an empty, reversed or infinite range, or an unknown coordinate.
    """

    def __init__(
        self,
        ranges: Mapping[str, Interval] | None = None,
        *,
        time: str | None = "t",
        **named: Interval,
    ) -> None:
        self.ranges = {k: _range(k, v) for k, v in {**(ranges or {}), **named}.items()}
        if not self.ranges:
            raise UserError("Box needs at least one range, such as Box(x=(0, 1))")
        for name in self.ranges:
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("__"):
                raise UserError(f"Box: '{name}' cannot name a coordinate; use a letter or x1, x2")
        if time not in (None, "t") and time not in self.ranges:
            raise UserError(f"Box: time='{time}' is not a coordinate. {suggest(time, self.ranges)}")
        self.coordinates = Coordinates(tuple(self.ranges), time if time in self.ranges else None)
        for name in (*self.ranges, self.coordinates.vector):
            if name in TAKEN:
                what = "a coordinate" if name in self.ranges else "the vector of coordinates"
                raise UserError(
                    f"Box: '{name}' cannot name {what}: u.{name} or at.{name} is something else; "
                    "use another letter, or x1, x2"
                )
        if not self.coordinates.space:
            raise UserError(
                "Box has no coordinate of space; for an ordinary differential equation in t "
                "write Box(t=(0, 1), time=None)"
            )

    @classmethod
    def cube(
        cls, dimension: int, low: float = 0.0, high: float = 1.0, *, t: Interval | None = None
    ) -> Box:
        """[low, high]^dimension with coordinates x1 … xd (and time t, if given, first)."""
        if dimension < 1:
            raise UserError(f"Box.cube: the dimension is {dimension}; it must be at least 1")
        ranges: dict[str, Interval] = {} if t is None else {"t": t}
        ranges |= {f"x{i + 1}": (low, high) for i in range(dimension)}
        return cls(ranges)

    @property
    def low(self) -> tuple[float, ...]:
        return tuple(a for a, _ in self.ranges.values())

    @property
    def high(self) -> tuple[float, ...]:
        return tuple(b for _, b in self.ranges.values())

    @property
    def bounds(self) -> Box:
        return self

    def contains(self, points: Tensor) -> Tensor:
        """Which points [batch, coord] lie in the box, its faces included, up to rounding: bool
        [batch]."""
        low, high = (torch.tensor(v, dtype=torch.float64).to(points) for v in (self.low, self.high))
        slack = ROUNDING * torch.maximum(low.abs(), high.abs())
        return ((points >= low - slack) & (points <= high + slack)).all(dim=1)

    @property
    def interior(self) -> Patches:
        """All of the box."""
        return self._region("interior", [Patch(self.coordinates, self.low, self.high)])

    @property
    def boundary(self) -> Patches:
        """Every face of space (at all times, where there is time), with outward normals."""
        return self._region("boundary", self._faces(self.coordinates.space, (0, 1)))

    def _region(self, name: str, patches: list[Patch]) -> Patches:
        return Patches(name, patches, tuple(self.ranges.values()))

    def _names(self, names: tuple[str, ...]) -> list[str]:
        result: list[str] = []
        for name in names:
            if name == self.coordinates.vector:
                result += self.coordinates.space
            else:
                self.coordinates.index(name)
                result.append(name)
        return result

    def faces(self, *names: str, side: str = "both") -> Patches:
        """The faces where the named coordinates take their lowest or highest value.

        ``side`` is 'low', 'high' or 'both'; ``at.normal`` is the outward normal in space.
        """
        sides = {"low": (0,), "high": (1,), "both": (0, 1)}
        if side not in sides:
            raise UserError(f"faces: side='{side}'. {suggest(side, sides)}")
        if not names:
            raise UserError("faces: name at least one coordinate, such as box.faces('x')")
        label = ", ".join(repr(n) for n in names)
        label += "" if side == "both" else f", side={side!r}"
        return self._region(f"faces({label})", self._faces(self._names(names), sides[side]))

    def _faces(self, names: Sequence[str], sides: tuple[int, ...]) -> list[Patch]:
        return [self._face(name, which) for name in names for which in sides]

    def _face(
        self, name: str, which: int, shift: dict[str, tuple[float, ...]] | None = None
    ) -> Patch:
        i = self.coordinates.index(name)
        low, high = list(self.low), list(self.high)
        low[i] = high[i] = (self.low, self.high)[which][i]
        space = self.coordinates.space
        normal = tuple((-1.0, 1.0)[which] if s == name else 0.0 for s in space)
        return Patch(self.coordinates, tuple(low), tuple(high), normal, shift or {})

    def at(self, **values: float) -> Patches:
        """The slice where the named coordinates take the given values: ``box.at(t=0)``."""
        low, high = list(self.low), list(self.high)
        if not values:
            raise UserError("at: name at least one coordinate, such as box.at(t=0)")
        for name, value in values.items():
            i = self.coordinates.index(name)
            if not low[i] <= value <= high[i]:
                raise UserError(
                    f"at({name}={value}) lies outside the box, whose {name} goes from "
                    f"{low[i]} to {high[i]}"
                )
            low[i] = high[i] = float(value)
        label = ", ".join(f"{k}={v:g}" for k, v in values.items())
        return self._region(f"at({label})", [Patch(self.coordinates, tuple(low), tuple(high))])

    def opposite(self, name: str) -> Patches:
        """The low face of a coordinate, each point linked to its partner on the high face.

        ``lambda u, at: u - u(at.opposite)`` on it is a periodic condition.
        """
        patches = []
        for coordinate in self._names((name,)):
            shift = tuple(b - a if k == coordinate else 0.0 for k, (a, b) in self.ranges.items())
            patches.append(self._face(coordinate, 0, {OPPOSITE: shift}))
        return self._region(f"opposite({name!r})", patches)

    def as_dict(self) -> dict[str, Any]:
        """Its ranges and its time, as plain values."""
        ranges = {name: list(bounds) for name, bounds in self.ranges.items()}
        return {"coordinates": ranges, "time": self.coordinates.time}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Box:
        """The opposite of ``as_dict``; raises KeyError, TypeError or UserError for other values."""
        ranges: Mapping[str, Sequence[float]] = values["coordinates"]
        return cls({name: (low, high) for name, (low, high) in ranges.items()}, time=values["time"])

    def __repr__(self) -> str:
        shown = list(self.ranges.items())
        inside = ", ".join(f"{k}=({a:g}, {b:g})" for k, (a, b) in shown[:4])
        if len(shown) > 4:
            inside += f", … {len(shown)} coordinates"
        return f"Box({inside})"


def _range(name: str, value: object) -> Interval:
    try:
        low, high = (float(v) for v in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise UserError(
            f"Box: the range of '{name}' is {value!r}; give two numbers, {name}=(low, high)"
        ) from None
    if not (math.isfinite(low) and math.isfinite(high)):
        raise UserError(f"Box: the range of '{name}' is ({low}, {high}); both must be finite")
    if low >= high:
        kind = "empty" if low == high else "reversed"
        raise UserError(
            f"Box: the range of '{name}' is {kind}, ({low:g}, {high:g}); give low < high"
        )
    return low, high
