"""Whether to go on with a method, by its progress and its cost: decisions alone."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pinnkfac.common.settings import Count, NonNegative, Number, Positive, Range

Name = Literal["exact", "factored"]
EXACT: Name = "exact"
FACTORED: Name = "factored"
WORDS: dict[str, str] = {EXACT: "exact steps", FACTORED: "KFAC with conjugate gradients"}
"""The methods, as a state and as a user's note name them."""
NOTHING = 1e-300
"""Losses below it are it."""


def other(method: Name) -> Name:
    return FACTORED if method == EXACT else EXACT


def total(losses: Sequence[float]) -> float:
    """The logarithm of their sum."""
    return math.log10(max(sum(losses), NOTHING))


def level(losses: Sequence[float], part: float = 1e-8) -> float:
    """The mean of the logarithms of all terms' losses, so that none hides the others; those that
    are a smaller ``part`` of all losses count as that part."""
    least = max(part * sum(losses), NOTHING)
    return statistics.fmean(math.log10(max(v, least)) for v in losses)


@dataclass(frozen=True)
class Window:
    """The progress of one method over some steps: the ``levels`` of the losses that each started
    from (to which scales do not matter), the ``total`` of the last of these, the ``cost`` of all
    steps, whether one was ``guarded`` by unseen points, and how many ``fitted`` their own only."""

    levels: tuple[float, ...] = ()
    total: float = 0.0
    cost: float = 0.0
    guarded: bool = False
    fitted: int = 0

    def after(
        self, losses: Sequence[float], cost: float, *, guarded: bool = False, fitted: bool = False
    ) -> Window:
        """With a step that started from these losses of the terms."""
        return Window(
            (*self.levels, level(losses)),
            total(losses),
            self.cost + cost,
            self.guarded or guarded,
            self.fitted + fitted,
        )

    @property
    def steps(self) -> int:
        return len(self.levels)

    @property
    def decades(self) -> float:
        """By how many powers of ten the losses fell: twice the fall from the mean logarithm of the
        first half to that of the second, as losses on new points in every step are noisy."""
        half = len(self.levels) // 2
        if not half:
            return 0.0
        return 2.0 * (statistics.fmean(self.levels[:half]) - statistics.fmean(self.levels[-half:]))

    @property
    def rate(self) -> float:
        """Decades per multiplication."""
        return self.decades / self.cost if self.cost else 0.0

    @property
    def overfit(self) -> bool:
        """Whether most steps fitted their own points only."""
        return 2 * self.fitted > self.steps


@dataclass(frozen=True)
class Trial:
    """One method is tried: the ``rate`` of the one that it is compared with, whether that one
    lowered the loss no more (``stuck``), and what the trial may cost (``budget``)."""

    rate: float
    stuck: bool
    budget: float


@dataclass(frozen=True)
class Standing:
    """Where the contest of both methods stands: ``waits`` are the fewest windows before the next
    trial of a method, ``windows`` those since the last one, ``grown`` how often exact steps got
    more points, ``first`` the level and the total of the first losses; ``may_restart``: exact steps
    may have gone astray from the start."""

    current: Name = EXACT
    window: Window = field(default_factory=Window)
    trial: Trial | None = None
    waits: dict[str, int] = field(default_factory=lambda: {EXACT: 1, FACTORED: 1})
    windows: int = 0
    grown: int = 0
    first: tuple[float, float] | None = None
    may_restart: bool = False

    def exchanged(self) -> Standing:
        """Going on with the other method."""
        return replace(self, current=other(self.current), may_restart=False)

    def doubled_wait(self) -> Standing:
        """The current method failed in a trial."""
        return replace(self, waits={**self.waits, self.current: 2 * self.waits[self.current]})


@dataclass(frozen=True)
class Stay:
    note: str = ""


@dataclass(frozen=True)
class Grow:
    """Take so many times the points."""

    factor: float
    note: str


@dataclass(frozen=True)
class Switch:
    """Go on with the other method."""

    note: str


@dataclass(frozen=True)
class Restart:
    """Begin anew from the first parameters, with KFAC."""

    note: str


Verdict = Stay | Grow | Switch | Restart


@dataclass(frozen=True)
class Circumstances:
    """What a judgement depends on beside the standing: costs of a step now (infinite where it
    cannot be taken), that of an exact one on more points, and whether residuals are few."""

    costs: dict[str, float]
    grown_cost: float
    few_residuals: bool


@dataclass(frozen=True)
class Referee:
    """Thresholds of the contest.

    Exact steps are left after a trial only where the loss rose by ``risen`` decades: where it falls
    no more, its noise says little, and exact steps still lower the error.
    """

    risen: NonNegative = 1.0
    """powers of ten that the loss has to rise by in a trial of exact steps for them to be left"""
    fitted: Positive = 2.0
    """how many times lower than on unseen points the loss of a step that fitted its own only is"""
    slow: NonNegative = 0.3
    """powers of ten in a window below which most of the steps being such is a stall"""
    far: Positive = 1.0
    """powers of ten that losses have fallen by in all where a net is near a solution"""
    early: Count = 4
    """windows in which exact steps may be found to have gone astray"""
    growth: Annotated[float, Range(least=1)] = 1.5
    """how many times the points where exact steps stall"""
    times: Number = 3
    """how often"""

    def judge(
        self, standing: Standing, circumstances: Circumstances, stalled: float
    ) -> tuple[Verdict, Standing]:
        """At the end of a window: whether to go on, with how many times the points, to try the
        other method, or to return from a trial."""
        window = standing.window
        standing = replace(standing, window=Window())
        if standing.trial is not None:
            return self._after_trial(window, standing.trial, replace(standing, trial=None))
        fallen = self._fallen(window, standing)
        windows = standing.windows + 1
        early = standing.may_restart and fallen < self.far and windows <= self.early
        standing = replace(standing, windows=windows, may_restart=early)
        rival, costs = other(standing.current), circumstances.costs
        due = standing.windows >= standing.waits[rival] and math.isfinite(costs[rival])
        stuck = window.decades < stalled
        words = f"losses fell by {max(window.decades, 0.0):.1g} decades in {window.steps} steps"
        stands_still = stuck or (window.overfit and window.decades < self.slow)
        if standing.current == EXACT and stands_still:
            if window.overfit and standing.may_restart:
                note = (
                    f"from the first parameters again, with {WORDS[FACTORED]}: losses fell by "
                    f"{max(fallen, 0.0):.1g} decades since the start"
                )
                return Restart(note), replace(standing, windows=0).exchanged()
            cheaper = due and costs[rival] < costs[EXACT]
            few = window.guarded or circumstances.few_residuals
            may_grow = few and standing.grown < self.times
            affordable = math.isfinite(circumstances.grown_cost)
            if may_grow and affordable and (window.overfit or not cheaper):
                note = f"{self.growth:g} times the points: {words}"
                return Grow(self.growth, note), replace(standing, grown=standing.grown + 1)
        if not due or not (stuck or rival == EXACT):
            return Stay(), standing
        trial = Trial(window.rate, stuck, window.cost)
        standing = replace(standing, trial=trial, windows=0).exchanged()
        return Switch(f"trying {WORDS[rival]}: {words}"), standing

    def _after_trial(
        self, window: Window, trial: Trial, standing: Standing
    ) -> tuple[Verdict, Standing]:
        kept = standing.current == EXACT and trial.stuck and window.decades > -self.risen
        if kept or window.rate > trial.rate:
            return Stay(f"going on with {WORDS[standing.current]}"), standing
        standing = standing.doubled_wait().exchanged()
        back = f"back to {WORDS[standing.current]}: their losses fell faster for the cost"
        return Switch(back), standing

    def _fallen(self, window: Window, standing: Standing) -> float:
        """By how many powers of ten the losses have fallen since the run began: their level, or
        their sum if that is more (a term that began at nothing cannot fall)."""
        assert standing.first is not None
        now = statistics.fmean(window.levels[-(window.steps // 2) :])
        return max(standing.first[0] - now, standing.first[1] - window.total)
