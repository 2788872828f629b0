"""The point that a residual is evaluated at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.field.coordinates import Coordinates


class At:
    """The point a residual is evaluated at: coordinates, normal, given values, linked points."""

    __slots__ = ("_coordinates", "_links", "_normal", "_point", "_values", "place")

    def __init__(
        self,
        coordinates: Coordinates,
        point: Tensor,
        normal: Tensor | None = None,
        values: dict[str, Tensor] | None = None,
        links: dict[str, Tensor] | None = None,
        place: str = "",
    ) -> None:
        self._coordinates = coordinates
        self._point = point
        self._normal = normal
        self._values = values or {}
        self._links = links or {}
        self.place = place

    @property
    def normal(self) -> Tensor:
        if self._normal is None:
            raise UserError(
                "at.normal exists on faces only: put the term on box.boundary or box.faces(...)"
            )
        return self._normal

    def __getattr__(self, name: str) -> Any:
        coordinates = self._coordinates
        if name in coordinates.names:
            return self._point[coordinates.names.index(name)]
        if name == coordinates.vector:
            return torch.stack([getattr(self, s) for s in coordinates.space])
        if name in self._values:
            return self._values[name]
        if name in self._links:
            return At(coordinates, self._links[name], place=name)
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "opposite":
            raise UserError(
                "at.opposite exists on linked points only: put the term on box.opposite"
            )
        vector = [coordinates.vector] if coordinates.vector else []
        names = [*coordinates.names, *vector, *self._values, *self._links]
        raise UserError(f"unknown coordinate 'at.{name}'. {suggest(name, names)}")


def shadowed(name: str, coordinates: Coordinates) -> str:
    """What ``at.NAME`` already is, where a value or a linked point of that name would be hidden."""
    if name in coordinates.names:
        return f"the coordinate {name}"
    if name == coordinates.vector:
        return f"the vector of the coordinates {', '.join(coordinates.space)}"
    return f"at.{name} itself" if name in dir(At) or name.startswith("__") else ""
