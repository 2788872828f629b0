"""The points of a run: how many each term gets, how they are drawn, and when anew."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any

from torch import Generator, Tensor

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.common.memory import check_fits, making
from pinnkfac.common.settings import Count, Number, Positive, Range
from pinnkfac.curvature.cost import forward
from pinnkfac.domain import PointSet, Sampling, Uniform
from pinnkfac.domain.sampling import Clustered
from pinnkfac.linearisation.compiled import TermPoints, with_scales
from pinnkfac.linearisation.system import System
from pinnkfac.points.numbers import Allocation, Numbered, PointNumbers
from pinnkfac.points.selection import Selection
from pinnkfac.problem import Term

PART, SOME = 0.2, 10.0
"""Of the cost of a step, that the residuals at candidates may cost; and that cost in evaluations of
the residuals, where the step does not say what it is."""
HEATED, HOT, HOTTEST = 3, 5, 10
"""What a step that fitted its own points only adds to the heat, of which every other takes 1; above
HOT, points are new in every step; the most."""


@dataclass(frozen=True)
class Growth:
    """More points where the net fits them: ``factor`` times as many whenever they are exchanged
    because of ``gap``, up to ``most`` times the first number."""

    factor: Annotated[float, Range(least=1)] = 1.0
    """as many points where they are exchanged because of gap; 1: no growth"""
    most: Annotated[float, Range(least=1)] = 10.0
    """multiple of the first number of points"""

    def after(self, size: float) -> float:
        """The next multiple of the first number of points."""
        return min(self.most, size * self.factor)


@dataclass(frozen=True)
class PointSettings:
    """How many points each term gets, how they are drawn, and how often anew.

    A term's number is ``numbers[name]``, else the term's own ``points``, else ``interior`` for a
    region of full dimension and ``lower`` for faces and slices; ``scale`` multiplies all but
    ``numbers``. ``every``: draw new points every k steps; 0: not for that. ``gap``: beside that,
    the loss is now and then evaluated on new points, and these replace the old ones where it
    exceeds ``gap`` times the loss reached on those: the net has begun to fit the points instead of
    the equation. Checks are as frequent as that happens: after an exchange half as many steps apart
    as before (at once every step, where the step was guarded by unseen points), else twice as many,
    up to ``check``; and at once where the loss falls below that on the last unseen points by
    ``gap``. None: never. ``faces``: points are denser
    at the faces of the domain, 1/(1 − faces) times at an edge in two dimensions, and count less
    there (see ``Clustered``); 0: as dense everywhere. ``adaptive`` chooses all but the first points
    among candidates, and, where it gives them weights, takes new ones after ``check`` steps if
    ``every`` is 0. ``allocation`` says which terms get more of the points; None: the numbers stay.

    Raises UserError where points are to be denser at the faces, but ``adaptive`` has no weights.
    """

    sampling: Sampling = field(default_factory=Uniform)
    """how points are drawn"""
    faces: Annotated[float, Range(least=0, below=1)] = 0.0
    """how much denser points are at the faces of the domain, where they count less by as much; 0:
    as dense everywhere"""
    every: Number = 0
    """steps between new points; 0: they stay, those of adaptive for `check` steps"""
    gap: Positive | None = 3.0
    """new points also where the loss on unseen ones is this many times larger; null: never"""
    check: Count = 10
    """the most steps between these checks: they are as frequent as points are exchanged"""
    interior: Count = 1000
    """points of a term on a region of full dimension, where the PDE file says nothing"""
    lower: Count = 200
    """points of a term on a face or slice"""
    scale: Positive = 1.0
    """multiplies all numbers but those of `numbers`"""
    numbers: Mapping[str, Count] = field(default_factory=dict)
    """by the name of the term, points.numbers.walls=500"""
    adaptive: Selection | None = None
    """points where the residual is large; null: not, choose points=adaptive or points=rad"""
    growth: Growth = field(default_factory=Growth)
    """more points where the net fits them"""
    allocation: Allocation | None = field(default_factory=Allocation)
    """more points for terms that are harder to fit; null: the numbers as given"""

    def __post_init__(self) -> None:
        if self.faces and self.adaptive is not None and not self.adaptive.faithful:
            raise UserError(
                f"points.faces={self.faces} needs points with weights, and those of "
                "points.adaptive have none: set points.faces=0"
            )

    @property
    def rule(self) -> Sampling:
        """How candidates are drawn."""
        return Clustered(self.sampling, self.faces) if self.faces else self.sampling

    def number(self, term: Term, dimension: int) -> int:
        """How many points a term gets at first, in a problem of that many coordinates."""
        if term.name in self.numbers:
            return self.numbers[term.name]
        full = term.where.dimension == dimension
        number = term.points or (self.interior if full else self.lower)
        return max(1, round(number * self.scale))


class PointSource:
    """Draws the points of all terms of a system.

    Raises UserError for a number of points of a term that does not exist.
    """

    def __init__(
        self,
        system: System,
        settings: PointSettings,
        generator: Generator,
        price: Callable[[Sequence[int]], float] | None = None,
    ) -> None:
        self.system = system
        self.settings = settings
        self.generator = generator
        self.current: list[TermPoints] = []
        self.scales: list[Tensor] | None = None
        """Factors [equation] on the residuals of each term (balance.py); None: all 1."""
        self.exchanged = 0
        self.last_unseen = 0.0
        """The loss on unseen points at the last check: where the loss is a gap below it, the next
        check is due."""
        self.heat = 0
        """How many of the last steps fitted their own points only: see HEATED."""
        self.drawn = 0
        """How often points were drawn: losses at different counts do not compare."""
        self.cost = math.nan
        """Of the last step (curvature/cost.py), where it says so."""
        self.taken = 0
        """The first step that has the current points."""
        self.drawn_for = -1
        """The step that its points were drawn for when the run ended before it."""
        self.judged = False
        """Whether it was decided after the last step that its points stay, or not."""
        self.interval = 1
        self.next_check = 1
        """Steps between checks, and the step of the next one."""
        names = [t.name for t in system.terms]
        for name in settings.numbers:
            if name not in names:
                raise UserError(f"points.numbers.{name}: no such term. {suggest(name, names)}")
        numbered = [self._numbered(term) for term in self._terms]
        self.plan = PointNumbers(
            numbered, settings.allocation, price or partial(forward, system.workload)
        )

    @property
    def _terms(self) -> list[Term]:
        return [t.residual.term for t in self.system.terms]

    def _numbered(self, term: Term) -> Numbered:
        if term.where.dimension == 0:  # single or given points: there are as many as there are
            only = term.where.draw(1, self.settings.sampling, self.generator)
            return Numbered(len(only), varies=False)
        number = self.settings.number(term, len(self.system.problem.coordinates.names))
        given = term.name in self.settings.numbers
        return Numbered(number, exchangeable=not given, weight=term.weight)

    def numbers(self) -> dict[str, int]:
        """How many points each term has, by its name."""
        if self.current:
            pairs = zip(self._terms, self.current, strict=True)
            return {term.name: len(own) for term, own in pairs}
        return dict(zip((term.name for term in self._terms), self.plan.now(), strict=True))

    def allocate(self, losses: Sequence[float]) -> None:
        """Learn from the losses of the terms on new points how many the next ones should be."""
        self.plan.learn(losses, list(self.numbers().values()))

    def at(self, step: int, loss: float = math.inf) -> list[TermPoints]:
        """The points of a step: those of the last one, or new ones when it is time.

        ``loss`` is the last one that was reached on the current points.
        """
        if self.current and step == self.drawn_for:
            self.drawn_for = -1
            return self.current
        settings = self.settings
        due = settings.every > 0 and step % settings.every == 0
        judged, self.judged = self.judged, False
        if self.drawn == 0 or (due and step == 0):
            self._take(self._prepare(self._draw()), step)
        elif not self.current:
            self._take(self._new(), step)
        elif judged:
            pass
        elif due or self._stale(step):
            self._take(self._new(), step)
        elif settings.gap is not None and (
            step >= self.next_check or self.last_unseen > settings.gap * loss
        ):
            unseen = self._fair()
            self.last_unseen = self.system.loss(unseen)
            if self.last_unseen > settings.gap * loss:
                self._exchange(unseen, step)
                self._next(step, max(1, self.interval // 2))
            else:
                self._next(step, 2 * self.interval)
        return self.current

    def ready(self, step: int) -> list[TermPoints]:
        """The points that there are, after the last step of a run; where it asked for more, those
        of the step that would have come next, and will where the run goes on."""
        if not self.current:
            self.at(step)
            self.drawn_for = step
        return self.current

    def _take(self, points: list[TermPoints], step: int) -> None:
        self.current = points
        self.taken = step
        self.drawn += 1

    @property
    def _faithful(self) -> bool:
        """Whether losses on new points are estimates of those on the regions."""
        return self.settings.adaptive is None or self.settings.adaptive.faithful

    def _stale(self, step: int) -> bool:
        """Whether points were chosen by residuals that may be large elsewhere by now, or are the
        first ones, and nothing but checks says when they are to be new."""
        settings = self.settings
        if settings.adaptive is None or not self._faithful or settings.every:
            return False
        return step - self.taken >= settings.check

    def unseen(self) -> list[TermPoints] | None:
        """New points to guard a step by, which may come next; None where it cannot fit its own
        only, as there are more residuals than parameters and points are seldom exchanged, where
        points are chosen by their residuals without weights, where they stay for ``every`` > 1
        steps, and where they stay for good."""
        settings = self.settings
        never = settings.gap is None and settings.every != 1
        if not self._faithful or never or settings.every > 1:
            return None
        workload = self.system.workload
        fits = workload.residuals(list(self.numbers().values())) < workload.parameters
        if not (fits or settings.every == 1 or self.interval == 1):
            return None
        return self._new()

    def judge(self, step: int, points: list[TermPoints], reached: float, unseen: float) -> None:
        """After a step that was guarded by unseen ``points``: the losses that it reached on the
        points that it was computed from, and on those. They come next where the second is ``gap``
        times the first, and anyway where that has been so in many of the last steps."""
        self.judged, self.last_unseen = True, unseen
        gap = self.settings.gap
        if self.settings.every or gap is None:
            self._take(points, step + 1)
            return
        if unseen > gap * reached:
            self.heat = min(self.heat + HEATED, HOTTEST)
            self._exchange(points, step + 1)
            self._next(step, 1)
            return
        self.heat = max(0, self.heat - 1)
        if self.heat > HOT or self._stale(step + 1):
            self._take(points, step + 1)
        else:
            self._next(step, 2)

    def _next(self, step: int, interval: int) -> None:
        self.interval = min(interval, self.settings.check)
        self.next_check = step + self.interval

    def balance(self, scales: list[Tensor] | None) -> None:
        """Have points trained with other scales of the equations from now on."""
        self.scales = scales
        self.current = with_scales(self.current, scales)

    def _prepare(self, points: Sequence[PointSet]) -> list[TermPoints]:
        return with_scales(self.system.prepare(points), self.scales)

    def grow(self, factor: float) -> None:
        """Take so many times the points, all of them new, from the next step on."""
        self.plan.size *= factor
        self.current = []

    def state_dict(self) -> dict[str, Any]:
        """The current points, so that a run can go on with them."""
        points = [own.points.state_dict() for own in self.current]
        plain = {name: getattr(self, name) for name in self._plain}
        return {"points": points, "numbers": self.plan.state_dict(), **plain}

    _plain = (
        *("exchanged", "interval", "next_check", "drawn", "judged", "drawn_for"),
        *("last_unseen", "heat", "taken", "cost"),
    )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        stored = [PointSet(**points) for points in state["points"]]
        same = self.plan.load_state_dict(state["numbers"])
        self.current = self._prepare(stored) if stored and same else []
        for name in self._plain:
            setattr(self, name, state.get(name, getattr(self, name)))

    # -- new points --------------------------------------------------------------------------------
    def _exchange(self, unseen: list[TermPoints], step: int) -> None:
        """Take unseen points, or more than these."""
        self.exchanged += 1
        larger = self.settings.growth.after(self.plan.size)
        grown = larger > self.plan.size
        if grown:
            self.plan.size = larger
        self._take(self._new() if grown or not self._faithful else unseen, step)

    def _fair(self) -> list[TermPoints]:
        """New points, the loss on which is that on the regions, up to chance."""
        return self._new() if self._faithful else self._prepare(self._draw())

    def _new(self) -> list[TermPoints]:
        """New points; chosen among candidates where that is wanted."""
        adaptive, numbers = self.settings.adaptive, self.plan.now()
        factors = [1] * len(numbers) if adaptive is None else self._candidates(adaptive, numbers)
        drawn = self._prepare(self._draw(factors))
        if adaptive is None or max(factors) == 1:
            return drawn
        residuals = self.system.trained_residuals(drawn)
        return self._prepare(
            [
                adaptive.choose(own.points, residual, number, self.generator)
                if factor > 1
                else own.points
                for own, residual, number, factor in zip(
                    drawn, residuals, numbers, factors, strict=True
                )
            ]
        )

    def _candidates(self, adaptive: Selection, numbers: list[int]) -> list[int]:
        """How many candidates there are for a point of each term: fewer where their residuals
        would cost more than a part of a step, and every step may ask for them."""
        wanted = [adaptive.candidates(term.where.dimension) for term in self._terms]
        if not self._faithful:
            return wanted
        once = forward(self.system.workload, numbers)
        most = PART * (SOME if math.isnan(self.cost) else self.cost / once)
        return [max(1, int(min(most, factor))) for factor in wanted]

    # -- drawing -----------------------------------------------------------------------------------
    def _draw(self, factors: Sequence[int] | None = None) -> list[PointSet]:
        numbers = self.plan.now()
        given = zip(self._terms, numbers, factors or [1] * len(numbers), strict=True)
        return [self._points(term, factor * number) for term, number, factor in given]

    def _setting(self, term: Term) -> str:
        """What decides how many points a term gets."""
        if term.name in self.settings.numbers:
            own = f"points.numbers.{term.name}"
        else:
            own = "points.scale" if term.points else "points.scale, points.interior or points.lower"
        if self.settings.adaptive is not None:
            own += ", or points.adaptive.factor"
        return own if self.plan.size <= 1.0 else f"{own}, or points.growth.most"

    def _points(self, term: Term, number: int) -> PointSet:
        coordinates = len(self.system.problem.coordinates.names)
        what, setting = f"{number} points of term '{term.name}'", self._setting(term)
        check_fits(8 * 8 * number * coordinates, what, setting)
        with making(what, setting):
            return term.where.draw(number, self.settings.rule, self.generator)
