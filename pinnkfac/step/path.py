"""Where a step of a given length leads: straight on, or along the bend of a narrow valley."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from pinnkfac.common.settings import Number
from pinnkfac.curvature.base import Solver
from pinnkfac.linearisation.direction import Direction, combine, norm
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.objective import Objective

DIFFERENCE = 0.1
"""Part of a step over which its second derivative is measured."""
BENT = 0.75
"""Largest acceleration: half of it, over the length of the step."""
CLOSE = 0.05
"""Corrections end where the loss that is left to correct is this part of the model's."""


@dataclass(frozen=True)
class Arrival:
    """The parameters at some length of a path, and the loss there."""

    parameters: Direction
    loss: float


class Path(Protocol):
    """A way through the parameters that begins along a direction."""

    def go(self, length: float, limit: float = math.inf) -> Arrival:
        """Where that length leads; ``limit`` is a loss from which on its value does not matter."""

    def end(self, length: float, limit: float = math.inf) -> Direction:
        """The parameters there alone."""


class Bend(Protocol):
    """The settings of a path."""

    def along(self, line: Line, solver: Solver) -> Path: ...


@dataclass(frozen=True)
class Line:
    """θ + αδ."""

    objective: Objective
    points: Any
    start: Direction
    direction: Direction

    def at(self, length: float) -> Direction:
        if not length:  # a direction that is not finite has this place too
            return self.start
        return combine((1.0, self.start), (length, self.direction))

    def go(self, length: float, limit: float = math.inf) -> Arrival:
        place = self.at(length)
        return Arrival(place, self.objective.loss(self.points, place))

    def end(self, length: float, limit: float = math.inf) -> Direction:
        return self.at(length)


@dataclass(frozen=True)
class Curved:
    """Straight on, unless ``geodesic`` bends the step by the second derivative of the residual, or
    at most ``corrections`` further solves near a solution correct it; see ``CurvedPath``."""

    geodesic: bool = False
    corrections: Number = 0

    def along(self, line: Line, solver: Solver) -> Path:
        corrections = self.corrections if solver.near else 0
        if not (self.geodesic or corrections):
            return line
        here = solver.linearisation
        return CurvedPath(line, here, solver, bent=self.geodesic, corrections=corrections)


class CurvedPath:
    """The way along δ on which the residual stays close to its linear model r₀ + αJδ.

    Near a solution what is left of the residual lies where J is almost zero. A step that lowers it
    is long, and its second derivative, where J is large, soon exceeds what it gains. With ``bent``
    the path is θ + αδ + ½α²a with the acceleration J a = −∂²r/∂α², by a difference quotient
    (Transtrum & Sethna 2012, arXiv:1201.5885, eq. 9); from there at most ``corrections`` steps
    −J⁺(r − r₀ − αJδ) with the same factor lead back to the model (as in the modified
    Levenberg-Marquardt method, Fan 2012, doi:10.1090/S0025-5718-2011-02496-8, whose target is
    zero). J⁺ is the least squares of ``solver``.
    """

    def __init__(
        self,
        line: Line,
        linearisation: Linearisation,
        solver: Solver,
        *,
        bent: bool = True,
        corrections: int = 0,
    ) -> None:
        self.line = line
        self.residual = linearisation.residual
        self.slope = linearisation.jvp(line.direction)
        self.solver = solver
        self.corrections = corrections
        self.bend = self._acceleration() if bent else None

    def _solve(self, right: Tensor) -> Direction:
        return self.solver.least_squares(right, refined=False)

    def _residual(self, place: Direction) -> Tensor:
        return self.line.objective.residual(self.line.points, place)

    def _acceleration(self) -> Direction | None:
        ahead = self._residual(self.line.at(DIFFERENCE))
        second = (2.0 / DIFFERENCE) * ((ahead - self.residual) / DIFFERENCE - self.slope)
        if not bool(torch.isfinite(second).all()):
            return None
        bend = self._solve(-second)
        size, limit = norm(bend), 2.0 * BENT * norm(self.line.direction)
        if not math.isfinite(size):
            return None
        return bend if size <= limit else [limit / size * v for v in bend]

    def at(self, length: float) -> Direction:
        """Before corrections."""
        if not length or self.bend is None:
            return self.line.at(length)
        parts = (length, self.line.direction), (0.5 * length * length, self.bend)
        return combine((1.0, self.line.start), *parts)

    def go(self, length: float, limit: float = math.inf) -> Arrival:
        place = self.at(length)
        if not length or not self.corrections:
            return Arrival(place, self.line.objective.loss(self.line.points, place))
        model = self.residual + length * self.slope
        enough = CLOSE * _half_square(model)
        residual = self._residual(place)
        away = _half_square(residual - model)
        for left in reversed(range(self.corrections)):
            if away <= enough or not math.isfinite(away):
                break
            nearer = combine((1.0, place), (1.0, self._solve(model - residual)))
            corrected = self._residual(nearer)
            rest = _half_square(corrected - model)
            if not rest < away:
                break
            place, residual, away, rate = nearer, corrected, rest, rest / away
            if not away * rate**left < limit:  # at this rate all of them won't do
                break
        loss = _half_square(residual)
        return Arrival(place, loss if math.isfinite(loss) else math.inf)

    def end(self, length: float, limit: float = math.inf) -> Direction:
        corrected = length and self.corrections
        return self.go(length, limit).parameters if corrected else self.at(length)


def _half_square(residual: Tensor) -> float:
    return 0.5 * float(residual.square().sum())
