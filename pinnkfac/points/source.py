"""The points of a run: draws them plainly, and does what was decided about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator, Tensor

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.common.memory import check_fits, making
from pinnkfac.common.state import Fixed, restore, state_of
from pinnkfac.domain import Points, PointSet
from pinnkfac.linearisation.compiled import TermPoints, with_scales
from pinnkfac.points.exchange import Decision, Exchange
from pinnkfac.points.functions import Functions
from pinnkfac.points.horizon import Horizon, horizon_of
from pinnkfac.points.numbers import Numbered, Numbers
from pinnkfac.points.selection import affordable
from pinnkfac.points.settings import PointSettings
from pinnkfac.problem import Problem, Term
from pinnkfac.step.base import Report

KEPT = 200
"""Given points without values of which a step has all."""


@dataclass
class PointSource:
    """Holds the ``current`` points of all terms of a problem, and draws new ones.

    ``cost`` is that of the last step (NaN: not known), ``decided`` the step that the current points
    are for in any case, ``scales`` are those of the equations (balance.py; None: all 1). Raises
    UserError for a number of points of a term that does not exist.
    """

    problem: Fixed[Problem]
    settings: Fixed[PointSettings]
    functions: Fixed[Functions]
    generator: Fixed[Generator]
    current: Fixed[list[TermPoints]] = field(default_factory=list)
    plan: Numbers = field(init=False)
    exchange: Exchange = field(default_factory=Exchange)
    horizon: Horizon = field(init=False)
    cost: float = math.nan
    decided: int = -1
    scales: Fixed[list[Tensor] | None] = None

    def __post_init__(self) -> None:
        names = [term.name for term in self.problem.terms]
        for name in self.settings.numbers:
            if name not in names:
                raise UserError(f"points.numbers.{name}: no such term. {suggest(name, names)}")
        numbered = tuple(self._numbered(term) for term in self.problem.terms)
        self.plan = Numbers(numbered, self.settings.allocation)
        self.horizon = horizon_of(self.problem.terms, self.settings.reach)

    def _numbered(self, term: Term) -> Numbered:
        if isinstance(term.where, Points):
            return self._given(term, term.where)
        if term.where.dimension == 0:  # single points: there are as many as there are
            single = len(term.where.draw(1, self.settings.sampling, self.generator))
            return Numbered(single, single, single)
        number = self.settings.number(term, len(self.problem.coordinates.names))
        by_name = term.name in self.settings.numbers
        return Numbered(number, exchangeable=not by_name, weight=term.weight)

    def _given(self, term: Term, points: Points) -> Numbered:
        """Measurements are all taken, as each says something; given points without values stand
        for a region of full dimension, and steps may have some of them."""
        asked = self.settings.numbers.get(term.name) or term.points
        if points.values:
            first = least = min(asked or points.number, points.number)
        else:
            dimension = len(self.problem.coordinates.names)
            first = min(self.settings.number(term, dimension, full=True), points.number)
            least = min(first, KEPT)
        exchangeable = least < first and term.name not in self.settings.numbers
        return Numbered(first, least, points.number, exchangeable, term.weight)

    def numbers(self) -> dict[str, int]:
        """How many points each term has, by its name."""
        return {t.name: n for t, n in zip(self.problem.terms, self._numbers(), strict=True)}

    def asked(self) -> dict[str, tuple[int, int]]:
        """How many points each term has, and how many were asked for, or given."""
        firsts = [max(term.first, term.most or 0) for term in self.plan.terms]
        return {k: (n, first) for (k, n), first in zip(self.numbers().items(), firsts, strict=True)}

    def _numbers(self) -> list[int]:
        return [len(points) for points in self.current] or self.plan.now()

    def at(self, step: int, loss: float = math.inf) -> list[TermPoints]:
        """The points of a step: those of the last one, or new ones when it is time.

        ``loss`` is the last one that was reached on the current points.
        """
        decided, self.decided = self.decided, -1
        if self.current and step == decided:
            return self.current
        due = self.exchange.due(self.settings, step, loss, missing=not self.current)
        if due in (Decision.FIRST, Decision.DRAW):
            self.current = self._draw() if due is Decision.FIRST else self._new()
            self.exchange = self.exchange.renewed(step)
        elif due is Decision.CHECK:
            unseen = self._new() if self.settings.faithful else self._draw()
            losses = loss, self.functions.loss(unseen)
            self._decide(*self.exchange.checked(self.settings, step, *losses), unseen)
        return self.current

    def ready(self, step: int) -> list[TermPoints]:
        """The points that there are, after the last step of a run; where it asked for more, those
        of the step that would have come next, and will where the run goes on."""
        if not self.current:
            self.at(step)
            self.decided = step
        return self.current

    def unseen(self) -> list[TermPoints] | None:
        """New points to guard a step by, which may come next; None where there are to be none."""
        few = self.functions.few(self._numbers())
        return self._new() if self.exchange.guards(self.settings, few=few) else None

    def after(
        self, step: int, report: Report, unseen: list[TermPoints] | None, *, renewed: bool
    ) -> None:
        """Learn from what a step did, which may have been guarded by ``unseen`` points; ``renewed``
        says that its own were new."""
        self.cost = report.cost
        if renewed:
            self.plan = self.plan.learned(
                report.losses.relative, self._numbers(), self.functions.price
            )
        if unseen is not None and math.isfinite(report.unseen):
            losses = report.reached, report.unseen
            self._decide(*self.exchange.guarded(self.settings, step, *losses), unseen)
            self.decided = step + 1
        if report.request.growth > 1.0:
            self.plan, self.current = self.plan.grown(report.request.growth), []
        before, self.horizon = self.horizon, self.horizon.after(step, sum(report.losses.relative))
        if self.horizon.part != before.part:
            self.current = []

    def undone(self) -> None:
        """A step has failed: what the next one costs is not known."""
        self.cost = math.nan

    def balanced(self, scales: list[Tensor] | None) -> list[TermPoints]:
        """The current points, trained with other scales of the equations from now on."""
        self.scales = scales
        if self.current:
            self.current = with_scales(self.current, scales)
        return self.current

    def _decide(self, exchange: Exchange, decision: Decision, unseen: list[TermPoints]) -> None:
        """Keep the current points, or take the unseen ones, or more than these."""
        self.exchange = exchange
        if decision is Decision.KEEP:
            return
        size = self.plan.size
        if decision is Decision.REPLACE:
            self.plan = replace(self.plan, size=max(size, self.settings.growth.after(size)))
        other = self.plan.size > size or not self.settings.faithful
        self.current = self._new() if other else unseen

    def state_dict(self) -> dict[str, Any]:
        """The current points and all that was decided, so that a run can go on with them."""
        return {**state_of(self), "points": [p.points.state_dict() for p in self.current]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Points of a run that began with another share of them stay as many parts of this one."""
        plan, share = self.plan, self.plan.share
        restore(self, state)
        same = self.plan.share == share
        if not same:
            self.plan = replace(plan, parts=self.plan.parts, total=self.plan.total)
        stored = [PointSet(**points) for points in state["points"]]
        self.current = self._prepared(stored) if stored and same else []

    def _new(self) -> list[TermPoints]:
        """New points; chosen among candidates where that is wanted."""
        adaptive, numbers = self.settings.adaptive, self.plan.now()
        if adaptive is None:
            return self._draw()
        dimensions = [term.where.dimension for term in self.problem.terms]
        factors = affordable(adaptive, dimensions, self.cost / self.functions.evaluation(numbers))
        drawn = self._draw(factors)
        if max(factors) == 1:
            return drawn
        terms = zip(drawn, self.functions.residuals(drawn), numbers, factors, strict=True)
        return self._prepared(
            [
                adaptive.choose(candidates.points, residual, number, self.generator)
                if factor > 1
                else candidates.points
                for candidates, residual, number, factor in terms
            ]
        )

    def _draw(self, factors: Sequence[int] | None = None) -> list[TermPoints]:
        """As many points as there are to be, or times these factors, as they are drawn."""
        numbers = self.plan.now()
        terms = zip(self.problem.terms, numbers, factors or [1] * len(numbers), strict=True)
        return self._prepared([self._points(term, factor * n) for term, n, factor in terms])

    def _prepared(self, points: Sequence[PointSet]) -> list[TermPoints]:
        return with_scales(self.functions.prepare(points), self.scales)

    def _points(self, term: Term, number: int) -> PointSet:
        coordinates = len(self.problem.coordinates.names)
        what = f"{number} points of term '{term.name}'"
        setting = self.settings.deciding(term, self.plan.size)
        check_fits(8 * 8 * number * coordinates, what, setting)
        with making(what, setting):
            drawn = term.where.draw(number, self.settings.rule, self.generator)
            return self.horizon.applied(drawn)
