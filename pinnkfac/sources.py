"""The points of a run: how many each term gets, how they are drawn, and when anew."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Generator

from pinnkfac.domain import PointSet, Sampling, Uniform
from pinnkfac.errors import UserError, suggest
from pinnkfac.linearise import System, TermPoints
from pinnkfac.memory import check_fits, making
from pinnkfac.problem import Term
from pinnkfac.settings import Count, Number, Positive


@dataclass(frozen=True)
class PointSettings:
    """How many points each term gets, how they are drawn, and how often anew.

    A term's number is ``numbers[name]``, else the term's own ``points``, else ``interior`` for a
    region of full dimension and ``lower`` for faces and slices; ``scale`` multiplies all but
    ``numbers``. ``every``: draw new points every k steps; 0 keeps them. ``gap``: beside that,
    every ``check`` steps the loss is evaluated on new points, and these replace the old ones where
    it exceeds ``gap`` times the loss trained on: the net has begun to fit the points instead of
    the equation. None: never.
    """

    sampling: Sampling = field(default_factory=Uniform)
    every: Number = 0
    gap: Positive | None = 3.0
    check: Count = 10
    interior: Count = 1000
    lower: Count = 200
    scale: Positive = 1.0
    numbers: Mapping[str, Count] = field(default_factory=dict)

    def number(self, term: Term, dimension: int) -> int:
        """How many points a term gets in a problem of that many coordinates."""
        if term.name in self.numbers:
            return self.numbers[term.name]
        full = term.where.dimension == dimension
        number = term.points or (self.interior if full else self.lower)
        return max(1, round(number * self.scale))


class PointSource:
    """Draws the points of all terms of a system.

    Raises UserError for a number of points of a term that does not exist.
    """

    def __init__(self, system: System, settings: PointSettings, generator: Generator) -> None:
        self.system = system
        self.settings = settings
        self.generator = generator
        self.current: list[TermPoints] = []
        self.exchanged = 0
        names = [t.residual.term.name for t in system.terms]
        for name in settings.numbers:
            if name not in names:
                raise UserError(f"points.numbers.{name}: no such term. {suggest(name, names)}")

    def numbers(self) -> dict[str, int]:
        """How many points each term has, by its name."""
        terms = [t.residual.term for t in self.system.terms]
        if self.current:
            return {t.name: len(own) for t, own in zip(terms, self.current, strict=True)}
        dimension = len(self.system.problem.coordinates.names)
        return {t.name: self.settings.number(t, dimension) for t in terms}

    def at(self, step: int, loss: float = math.inf) -> list[TermPoints]:
        """The points of a step: those of the last one, or new ones when it is time.

        ``loss`` is the last one that was trained on with the current points.
        """
        settings = self.settings
        if not self.current or (settings.every and step % settings.every == 0):
            self.current = self._draw()
        elif settings.gap is not None and step % settings.check == 0:
            fresh = self._draw()
            if self.system.loss(fresh) > settings.gap * loss:
                self.current = fresh
                self.exchanged += 1
        return self.current

    def state_dict(self) -> dict[str, Any]:
        """The current points, so that a run can go on with them."""
        points = [own.points.state_dict() for own in self.current]
        return {"points": points, "exchanged": self.exchanged}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.current = self.system.prepare([PointSet(**points) for points in state["points"]])
        self.exchanged = state["exchanged"]

    def _draw(self) -> list[TermPoints]:
        return self.system.prepare([self._points(t.residual.term) for t in self.system.terms])

    def _setting(self, term: Term) -> str:
        """What decides how many points a term gets."""
        if term.name in self.settings.numbers:
            return f"points.numbers.{term.name}"
        return "points.scale" if term.points else "points.scale, points.interior or points.lower"

    def _points(self, term: Term) -> PointSet:
        coordinates = len(self.system.problem.coordinates.names)
        number = self.settings.number(term, coordinates)
        what, setting = f"{number} points of term '{term.name}'", self._setting(term)
        check_fits(4 * 8 * number * coordinates, what, setting)
        with making(what, setting):
            return term.where.draw(number, self.settings.sampling, self.generator)
