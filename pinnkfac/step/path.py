"""Where a step of a given length leads: straight on, or along the bend of a narrow valley."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pinnkfac.linearisation.direction import Direction, combine, norm
from pinnkfac.linearisation.system import Linearisation, System, TermPoints

DIFFERENCE = 0.1
"""Part of a step over which its second derivative is measured."""
BENT = 0.75
"""Largest acceleration: half of it, over the length of the step."""
CLOSE = 0.05
"""Corrections end where the loss that is left to correct is this part of the model's."""


class Path:
    """θ + αδ."""

    def __init__(self, system: System, points: Sequence[TermPoints], direction: Direction) -> None:
        self.system = system
        self.points = points
        self.start = system.get_parameters()
        self.direction = direction

    def at(self, length: float) -> Direction:
        if not length:  # a direction that is not finite has this place too
            return self.start
        return combine((1.0, self.start), (length, self.direction))

    def move(self, length: float, limit: float = math.inf) -> None:
        """Set the parameters to that length, as ``go`` does, but without the loss."""
        self.system.set_parameters(self.at(length))

    def go(self, length: float, limit: float = math.inf) -> float:
        """Move to that length and return the loss there; ``limit`` is a loss from which on its
        value does not matter."""
        self.move(length)
        return self.system.loss(self.points)


class CurvedPath(Path):
    """The way along δ on which the residual stays close to its linear model r₀ + αJδ.

    Near a solution what is left of the residual lies where J is almost zero. A step that lowers it
    is long, and its second derivative, where J is large, soon exceeds what it gains. With ``bent``
    the path is θ + αδ + ½α²a with the acceleration J a = −∂²r/∂α², by a difference quotient
    (Transtrum & Sethna 2012, arXiv:1201.5885); from there at most ``corrections`` steps
    −J⁺(r − r₀ − αJδ) with the same factor lead back to the model (as in the modified
    Levenberg-Marquardt method, Fan 2012, doi:10.1090/S0025-5718-2011-02496-8, whose target is
    zero). ``solve`` is J⁺.
    """

    def __init__(
        self,
        linearisation: Linearisation,
        points: Sequence[TermPoints],
        direction: Direction,
        solve: Callable[[Tensor], Direction],
        *,
        bent: bool = True,
        corrections: int = 0,
    ) -> None:
        super().__init__(linearisation.system, points, direction)
        self.residual = linearisation.residual
        self.slope = linearisation.jvp(direction)
        self.solve = solve
        self.corrections = corrections
        self.bend = self._acceleration() if bent else None

    def _acceleration(self) -> Direction | None:
        self.system.set_parameters(super().at(DIFFERENCE))
        ahead = self.system.weighted_residual(self.points)
        self.system.set_parameters(self.start)
        second = (2.0 / DIFFERENCE) * ((ahead - self.residual) / DIFFERENCE - self.slope)
        if not bool(torch.isfinite(second).all()):
            return None
        bend = self.solve(-second)
        size, limit = norm(bend), 2.0 * BENT * norm(self.direction)
        if not math.isfinite(size):
            return None
        return bend if size <= limit else [limit / size * v for v in bend]

    def at(self, length: float) -> Direction:
        if not length or self.bend is None:
            return super().at(length)
        parts = (length, self.direction), (0.5 * length * length, self.bend)
        return combine((1.0, self.start), *parts)

    def move(self, length: float, limit: float = math.inf) -> None:
        if not length or not self.corrections:
            super().move(length)
        else:
            self.go(length, limit)

    def go(self, length: float, limit: float = math.inf) -> float:
        if not length or not self.corrections:
            return super().go(length)
        model = self.residual + length * self.slope
        enough = CLOSE * _half_square(model)
        place = self.at(length)
        found, away = self._found(place, model)
        for left in reversed(range(self.corrections)):
            if away <= enough or not math.isfinite(away):
                break
            nearer = combine((1.0, place), (1.0, self.solve(model - found)))
            residual, rest = self._found(nearer, model)
            if not rest < away:
                self.system.set_parameters(place)
                break
            place, found, away, rate = nearer, residual, rest, rest / away
            if not away * rate**left < limit:  # at this rate all of them won't do
                break
        loss = _half_square(found)
        return loss if math.isfinite(loss) else math.inf

    def _found(self, place: Direction, model: Tensor) -> tuple[Tensor, float]:
        """The residual there, and the loss that its distance from the model makes."""
        self.system.set_parameters(place)
        residual = self.system.weighted_residual(self.points)
        return residual, _half_square(residual - model)


def _half_square(residual: Tensor) -> float:
    return 0.5 * float(residual.square().sum())
