"""One condition of a problem: a residual on a region."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from pinnkfac.common.errors import UserError
from pinnkfac.domain import Points, Region
from pinnkfac.problem.parameter import is_finite


@dataclass(frozen=True)
class Term:
    """One condition: ``residual(u, …, at) = 0`` on the region ``where``.

    ``residual`` gets one form per field and ``at``, the point: coordinates by name (``at.x`` is
    the vector where they are x1 … xd), ``at.normal`` on faces, values of given points, linked
    points. It returns one number, or a tuple of them for a system. The term enters the loss as
    ``weight · ½ · mean over points of Σ residual²``. ``points`` is the number of points to draw
    (default: the configuration's).
    """

    name: str
    where: Region | Points
    residual: Callable[..., Any]
    weight: float = 1.0
    points: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise UserError(f"Term: the name is {self.name!r}; give each term a short name")
        if not hasattr(self.where, "draw"):
            raise UserError(
                f"term '{self.name}': where is {type(self.where).__name__}; give a region such "
                "as box.interior, box.boundary, box.at(t=0) or Points(...)"
            )
        if not callable(self.residual):
            raise UserError(f"term '{self.name}': residual must be a function (u, at) -> number")
        if not (is_finite(self.weight) and self.weight > 0):
            raise UserError(f"term '{self.name}': weight={self.weight!r}; give a positive number")
        if self.points is not None and not isinstance(self.points, Integral):
            raise UserError(f"term '{self.name}': points={self.points!r}; give a whole number")
        if self.points is not None and self.points < 1:
            raise UserError(
                f"term '{self.name}': points={self.points}: a term without points cannot hold "
                "anywhere; give at least 1, or leave it out for the default"
            )
        if isinstance(self.where, Points) and self.where.number == 0:
            raise UserError(f"term '{self.name}' has no points: its Points are empty")
