"""What a format may write of a solution."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import nn

from pinnkfac.common.errors import UserError
from pinnkfac.problem.signature import Signature
from pinnkfac.version import __version__

Array = NDArray[Any]


class Grid(Protocol):
    """Fields on a grid: ``values`` {field: array [axis, axis, …]} over the ``axes`` that vary, with
    the other coordinates ``fixed``; ``coordinates`` are all of them, [axis, axis, …] each."""

    @property
    def axes(self) -> dict[str, Array]: ...
    @property
    def fixed(self) -> dict[str, float]: ...
    @property
    def values(self) -> dict[str, Array]: ...
    @property
    def coordinates(self) -> dict[str, Array]: ...


@dataclass(frozen=True)
class Content:
    """A solution as formats see it: its names and units, its net [batch, coord] → [batch, field],
    and functions that evaluate it.

    ``varying(axes)`` are the axes of the grid that ``on_grid(**axes)`` evaluates, {name: values},
    and ``at(points)`` is a table of the coordinates and fields at named points,
    [batch, coord + field].
    """

    signature: Signature
    net: nn.Module
    coefficients: Mapping[str, float]
    varying: Callable[[Mapping[str, Any]], Mapping[str, Array]]
    on_grid: Callable[..., Grid]
    at: Callable[[Mapping[str, Any]], Array]

    def described(self, **more: Any) -> str:
        """Names, units, ranges and coefficients, as JSON."""
        names = self.signature.as_dict()
        content = {**names, "coefficients": dict(self.coefficients), "pinnkfac": __version__}
        return json.dumps({**more, **content})


@dataclass(frozen=True)
class Wanted:
    """What is to be written: a grid by its ``axes``, as in on_grid, or ``points`` by name."""

    axes: Mapping[str, Any]
    points: Mapping[str, Any] | None = None

    def grid(self, path: Path) -> Mapping[str, Any]:
        """The axes, for a format that takes no points; UserError where there are some."""
        if self.points is not None:
            raise UserError(f"export to {path}: points= is for .csv; other files hold a grid")
        return self.axes
