"""The step that chooses among steps: exact ones where they are affordable, KFAC elsewhere."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

from torch import Generator

from pinnkfac.common.settings import Count, NonNegative, Positive, Range
from pinnkfac.curvature.cost import (
    conjugate_gradient_step,
    exact_bytes,
    exact_step,
    residual_number,
)
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import System, TermPoints
from pinnkfac.step.base import Report, Request, Stepper
from pinnkfac.step.damping import Damping, LevenbergMarquardt
from pinnkfac.step.gauss_newton import Automatic, GaussNewtonStepper
from pinnkfac.step.kfac import Kfac
from pinnkfac.step.search import Search
from pinnkfac.step.spring import Spring

EXACT, FACTORED = "exact", "factored"
WORDS = {EXACT: "exact steps", FACTORED: "KFAC with conjugate gradients"}
"""The methods, as a state and as a user's note name them."""
TOO_LARGE = "a kernel of all residuals does not fit into memory"
SLACK = 1.2
"""Thinned points cost a little more or less than they may, by rounding."""
FAIR = 0.5
"""Of the share that terms would keep if given points were thinned too, the least that they keep."""
RISEN = 1.0
"""By how many powers of ten the loss has to rise in a trial of exact steps for them to be left:
where the loss falls no more, its noise says little, and exact steps still lower the error."""
FITTED, SLOW = 2.0, 0.3
"""How many times lower than on unseen points the loss is after a step that fitted its own only;
and powers of ten in ``patience`` steps, below which most of the steps being such is a stall."""
PART, NOTHING = 1e-8, 1e-300
"""Terms whose loss is a smaller part of all losses than PART count as that part."""
FAR, EARLY = 1.0, 4
"""By how many powers of ten losses have fallen in all where a net is far from a solution still, and
how many windows long that is looked at."""
GROWTH, TIMES = 1.5, 3
"""How many times the points where exact steps stall, and how often."""


@dataclass(frozen=True)
class Auto:
    """Exact steps or, as ``factored``, KFAC with conjugate gradients, by cost and progress.

    Points are thinned to the share at which an exact step costs ``multiplications`` by the cost
    model (curvature/cost.py), its kernel fits into memory, and there are at most ``per_parameter``
    residuals for each parameter, but not further than to ``fewest`` residuals, nor to less than
    half of a fair share beside given points, which are never thinned. A run begins with exact
    steps, or with the others where these are cheaper and an exact one still costs more than that,
    as where there are too many given points.

    Where ``patience`` steps (or as many as cost a quarter of ``patience`` · ``multiplications``)
    lowered the loss by less than ``stalled`` powers of ten in all, exact steps that could fit
    their own points only, or have less than twice ``per_parameter``, take half as many again,
    three times at most; where most steps did fit their own points only, already at less than 0.3
    powers of ten. If these have lowered the loss by less than one power of ten since the run began,
    they have gone astray, and KFAC begins anew from the first parameters. Otherwise, and before
    where it is the cheaper one, the other method is tried at the same cost (for at least as many
    steps), and the one that lowered the loss more per cost goes on (exact steps also where the
    other method had stalled and the loss did not rise
    much); exact steps are tried again without a stall, as they are fast near a solution. A trial
    that fails makes the next one of this method wait twice as long. Decisions depend on counts of
    operations, on losses, and on the memory that is free at the start where it is short, never on
    the clock, so that a run can be repeated.
    """

    exact: Spring = field(default_factory=lambda: Spring(geodesic=True, corrections=8))
    """the exact steps, set like spring; their damping is that of the group, the search that of
    both"""
    factored: Kfac = field(default_factory=lambda: Kfac(iterations=10, lengths=Automatic()))
    """KFAC with conjugate gradients, set like kfac_cg"""
    factored_damping: Any = field(default_factory=LevenbergMarquardt)
    """its damping, set like levenberg_marquardt"""
    multiplications: Positive = 3e10
    """that an exact step may cost: points are thinned to that"""
    fewest: Count = 200
    """residuals that are taken whatever they cost"""
    per_parameter: Positive = 4.0
    """residuals for each parameter that are enough: points are thinned to that"""
    patience: Annotated[int, Range(least=2)] = 20
    """steps after which progress is judged"""
    stalled: NonNegative = 0.05
    """powers of ten that the loss must fall by in that time"""

    def cost(self, system: System, numbers: Sequence[int]) -> float:
        """Of an exact step on so many points of every term; infinite where it does not fit."""
        if exact_bytes(system, numbers) > system.memory:
            return math.inf
        return exact_step(system, numbers)

    def share_of_points(self, system: System, numbers: Callable[[float], Sequence[int]]) -> float:
        """The part of the points that steps are to begin with; ``numbers(share)`` are those of
        every term, of which given points are always all.

        No term pays for given points with more than half of its own: the share is at least FAIR
        times the one that would do if those were thinned like all others. Where exact steps are
        too dear even so, no points are thinned, since KFAC, which then begins, needs no few.
        """
        first = numbers(1.0)
        alike = self._thinned(system, lambda share: [max(1, round(share * n)) for n in first])
        share, least = self._thinned(system, numbers), FAIR * alike
        if share >= least:
            return share
        dear = self.cost(system, numbers(least)) > SLACK * self.multiplications
        return 1.0 if dear else least

    def _thinned(self, system: System, numbers: Callable[[float], Sequence[int]]) -> float:
        """The share at which exact steps are as cheap as they should be, or points the fewest."""
        share, fewest = 1.0, max(self.fewest, residual_number(system, numbers(0.0)))
        enough = self.per_parameter * system.parameter_number
        while (residuals := residual_number(system, numbers(share))) > fewest:
            if residuals <= enough and self.cost(system, numbers(share)) <= self.multiplications:
                break
            share *= 0.95
        return share

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> AutoStepper:
        return AutoStepper(self, system, search, damping, generator)


def total(losses: Sequence[float]) -> float:
    """The logarithm of their sum."""
    return math.log10(max(sum(losses), NOTHING))


def level(losses: Sequence[float]) -> float:
    """The mean of the logarithms of all terms' losses, so that none hides the others."""
    least = max(PART * sum(losses), NOTHING)
    return statistics.fmean(math.log10(max(v, least)) for v in losses)


@dataclass
class Window:
    """The progress of one method over some steps: the ``level`` of the losses that each started
    from (scales do not matter to it, nor how they change), and its cost."""

    levels: list[float] = field(default_factory=list)
    total: float = 0.0
    """The logarithm of the sum of the losses that the last one started from."""
    cost: float = 0.0
    guarded: bool = False
    """Whether a step was guarded by unseen points, since it could fit its own only."""
    fitted: int = 0
    """How many of the steps did."""

    def add(
        self, losses: Sequence[float], cost: float, guarded: bool, fitted: bool = False
    ) -> None:
        """Count a step that started from these losses of the terms."""
        self.guarded |= guarded
        self.fitted += fitted
        self.levels.append(level(losses))
        self.total = total(losses)
        self.cost += cost

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


class AutoStepper(Stepper):
    """Both methods in the course of a run; the one that is not used rests."""

    def __init__(
        self, settings: Auto, system: System, search: Search, damping: Damping, generator: Generator
    ) -> None:
        self.settings = settings
        self.system = system
        self.parts = search, damping, generator
        self.methods = self._start()
        self.guarded = self.methods[EXACT].guarded
        self.current = ""
        self.window = Window()
        self.rival: float | None = None
        """During a trial, the rate of the method that it is compared with."""
        self.stuck = False
        """Whether that one lowered the loss no more."""
        self.budget = 0.0
        """What a trial may cost."""
        self.waits = {EXACT: 1, FACTORED: 1}
        """Windows before the next trial of a method, at least."""
        self.windows = 0
        """Windows since the last trial."""
        self.grown = 0
        """How often exact steps were given more points."""
        self.first: tuple[float, float] | None = None
        """The level of the losses that the run began from, and the logarithm of their sum."""
        self.origin: Direction | None = None
        """The parameters that it began from, as long as exact steps may have gone astray."""

    def _start(self) -> dict[str, GaussNewtonStepper]:
        own, (search, damping, generator) = self.settings, self.parts
        return {
            EXACT: own.exact.start(self.system, search, damping, generator),
            FACTORED: own.factored.start(self.system, search, own.factored_damping, generator),
        }

    def update(
        self,
        points: Sequence[TermPoints],
        *,
        same_loss: bool = True,
        unseen: Sequence[TermPoints] | None = None,
    ) -> Report:
        numbers = [len(own) for own in points]
        costs = self._costs(numbers)
        note = self._leave(costs) if self.current else self._begin(costs)
        report = self.methods[self.current].update(
            points, same_loss=same_loss and not note, unseen=unseen
        )
        report = replace(report, cost=costs[self.current])
        if not math.isfinite(self.system.weighted(report.losses)):
            # a divergence, which the loop deals with
            return replace(report, request=Request(note=note))
        self.first = self.first or (level(report.losses), total(report.losses))
        fitted = report.unseen > FITTED * report.reached  # never where one is not known
        self.window.add(report.losses, costs[self.current], unseen is not None, fitted)
        if note:
            return replace(report, request=Request(note=note))
        methods = self.methods
        note, growth = self._judge(numbers, costs)
        return replace(report, request=Request(growth, self.methods is not methods, note))

    def _costs(self, numbers: list[int]) -> dict[str, float]:
        """Multiplications of a step of each method; infinite where it cannot be taken."""
        iterations = self.settings.factored.iterations
        return {
            EXACT: self.settings.cost(self.system, numbers),
            FACTORED: conjugate_gradient_step(self.system, numbers, iterations),
        }

    def _begin(self, costs: dict[str, float]) -> str:
        if math.isinf(costs[EXACT]):
            self.current = FACTORED
            return f"{WORDS[FACTORED]}: {TOO_LARGE}"
        cheap = costs[EXACT] <= max(SLACK * self.settings.multiplications, costs[FACTORED])
        self.current = EXACT if cheap else FACTORED
        if cheap and self.fresh:
            self.origin = self.system.get_parameters()
        ratio = costs[EXACT] / costs[FACTORED]
        return f"{WORDS[self.current]}: an exact step costs about {ratio:.2g} of the other kind"

    def _leave(self, costs: dict[str, float]) -> str:
        """Exact steps whose kernel no longer fits, since points were added, end; in words."""
        if math.isfinite(costs[self.current]):
            return ""
        self.window, self.rival, self.budget = Window(), None, 0.0
        return f"{self._exchange()}: {TOO_LARGE}"

    def _judge(self, numbers: list[int], costs: dict[str, float]) -> tuple[str, float]:
        """Whether to go on, with how many times the points, to try the other method, or to return
        from a trial; in words first."""
        window, own = self.window, self.settings
        enough = max(self.budget, own.patience * own.multiplications / 4)
        if window.steps < own.patience or window.cost < enough:
            return "", 1.0
        self.window = Window()
        tried, self.rival = self.rival, None
        if tried is not None:
            self.budget = 0.0
            kept = self.current == EXACT and self.stuck and window.decades > -RISEN
            if kept or window.rate > tried:
                return f"going on with {WORDS[self.current]}", 1.0
            self.waits[self.current] *= 2
            return f"back to {self._exchange()}: their losses fell faster for the cost", 1.0
        self.windows += 1
        fallen_in_all = self._fallen(window)
        if fallen_in_all >= FAR or self.windows > EARLY:
            self.origin = None
        other = FACTORED if self.current == EXACT else EXACT
        due = self.windows >= self.waits[other] and math.isfinite(costs[other])
        overfit = 2 * window.fitted > window.steps
        stuck = window.decades < own.stalled
        fallen = f"losses fell by {max(window.decades, 0.0):.1g} decades in {window.steps} steps"
        if self.current == EXACT and (stuck or (overfit and window.decades < SLOW)):
            if overfit and self.origin is not None:
                self._begin_anew()
                all_in_all = f"losses fell by {max(fallen_in_all, 0.0):.1g} decades since the start"
                return f"from the first parameters again, with {WORDS[FACTORED]}: {all_in_all}", 1.0
            more = self._more(window, numbers)
            if more and (overfit or not (due and costs[other] < costs[EXACT])):
                self.grown += 1
                return f"{GROWTH:g} times the points: {fallen}", GROWTH
        if not due or not (stuck or other == EXACT):
            return "", 1.0
        self.rival, self.stuck = window.rate, stuck
        self.budget, self.windows = window.cost, 0
        return f"trying {self._exchange()}: {fallen}", 1.0

    def _fallen(self, window: Window) -> float:
        """By how many powers of ten the losses have fallen since the run began: their level, or
        their sum if that is more (a term that began at nothing cannot fall)."""
        assert self.first is not None
        now = statistics.fmean(window.levels[-(window.steps // 2) :])
        return max(self.first[0] - now, self.first[1] - window.total)

    def _begin_anew(self) -> None:
        """KFAC, from where the run began: on few points it does not follow them as far."""
        assert self.origin is not None
        self.system.set_parameters(self.origin)
        self.methods, self.origin = self._start(), None
        self.current, self.windows = FACTORED, 0

    def _more(self, window: Window, numbers: list[int]) -> bool:
        """Whether exact steps that do not get on may take more points."""
        own, residuals = self.settings, residual_number(self.system, numbers)
        cost = own.cost(self.system, [round(GROWTH * n) for n in numbers])
        few = window.guarded or residuals < 2.0 * own.per_parameter * self.system.parameter_number
        return few and self.grown < TIMES and math.isfinite(cost)

    def _exchange(self) -> str:
        """Go on with the other method, which knows nothing of the steps since; returns its name."""
        self.origin = None
        self.current = FACTORED if self.current == EXACT else EXACT
        self.methods[self.current].forget_steps()
        return WORDS[self.current]

    def recover(self) -> str:
        tried, self.rival = self.rival is not None, None
        self.window, self.budget = Window(), 0.0
        if not self.current:
            return "nothing was changed"
        changed = self.methods[self.current].recover()
        if tried:
            self.waits[self.current] *= 2
            return f"back to {self._exchange()}"
        return changed

    def state_dict(self) -> dict[str, Any]:
        return {
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "damping": self.methods[EXACT].damping,
            "window": asdict(self.window),
            "origin": self.origin,
            "waits": dict(self.waits),
            **{name: getattr(self, name) for name in self._plain},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, method in self.methods.items():
            method.load_state_dict(state["methods"][name])
        # Of the group damping, which may be set anew where a run is resumed.
        self.methods[EXACT].damping = state["damping"]
        self.origin, self.waits = state.get("origin"), dict(state["waits"])
        window = state["window"]
        self.window = Window(**window) if "levels" in window else Window()
        for name in self._plain:
            setattr(self, name, state.get(name, getattr(self, name)))

    _plain = ("current", "rival", "stuck", "budget", "windows", "grown", "first")
