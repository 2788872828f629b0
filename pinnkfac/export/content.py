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


class GridValues(Protocol):
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
    functions that evaluate it, and what is to be written: a grid by its ``axes``, as in on_grid, or
    ``points`` by name. ``chosen(axes)`` has the ``axes`` of ``on_grid(**axes)``, unevaluated;
    ``at(points)`` is a table of coordinates and fields, [batch, coord + field]."""

    signature: Signature
    net: nn.Module
    coefficients: Mapping[str, float]
    chosen: Callable[[Mapping[str, Any]], Any]
    on_grid: Callable[..., GridValues]
    at: Callable[[Mapping[str, Any]], Array]
    axes: Mapping[str, Any]
    points: Mapping[str, Any] | None = None

    def described(self, **more: Any) -> str:
        """Names, units, ranges and coefficients, as JSON."""
        names = self.signature.as_dict()
        content = {**names, "coefficients": dict(self.coefficients), "pinnkfac": __version__}
        return json.dumps({**more, **content})

    def grid_of(self, path: Path) -> Mapping[str, Any]:
        """The axes, for a format that takes no points; UserError where there are some."""
        if self.points is not None:
            raise UserError(f"export to {path}: points= is for .csv; other files hold a grid")
        return self.axes
