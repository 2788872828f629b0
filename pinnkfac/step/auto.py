"""The step that chooses among steps: exact ones where they are affordable, KFAC elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from torch import Generator

from pinnkfac.common.settings import Count, NonNegative, Positive, Range
from pinnkfac.common.state import restore, state_of
from pinnkfac.curvature.cost import conjugate_gradient_step, exact_bytes, exact_step
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.objective import Objective
from pinnkfac.linearisation.workload import Workload
from pinnkfac.step.base import Batch, Report, Request, Stepper
from pinnkfac.step.damping import Damping, LevenbergMarquardt
from pinnkfac.step.gauss_newton import GaussNewtonStepper
from pinnkfac.step.lengths import Automatic
from pinnkfac.step.methods import Kfac, Spring
from pinnkfac.step.referee import (
    EXACT,
    FACTORED,
    WORDS,
    Circumstances,
    Grow,
    Referee,
    Restart,
    Standing,
    Switch,
    Window,
    level,
    total,
)
from pinnkfac.step.search import Search

TOO_LARGE = "a kernel of all residuals does not fit into memory"


@dataclass(frozen=True)
class Auto:
    """Exact steps or, as ``factored``, KFAC with conjugate gradients, by cost and progress.

    Points are thinned until exact steps are cheap, and these begin, unless they still are too dear.
    After ``patience`` steps, which cost at least a quarter of what exact ones may, the ``referee``
    judges: steps that have ``stalled`` get more points, or the other method is tried at the same
    cost, and the one that lowers the loss more for it goes on. Decisions depend on counts of
    operations, on losses, and on the memory that is free at the start, never on the clock, so that
    a run can be repeated.
    """

    exact: Spring = field(default_factory=lambda: Spring(geodesic=True, corrections=8))
    """the exact steps, set like spring; their damping is that of the group, the search that of
    both"""
    factored: Kfac = field(default_factory=lambda: Kfac(iterations=10, lengths=Automatic()))
    """KFAC with conjugate gradients, set like kfac_cg"""
    factored_damping: Damping = field(default_factory=LevenbergMarquardt)
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
    slack: Annotated[float, Range(least=1)] = 1.2
    """how much more an exact step may cost at first, as points are whole"""
    fair: Annotated[float, Range(above=0, most=1)] = 0.5
    """of the share of points that terms would keep if given points were thinned too, the least"""
    referee: Referee = field(default_factory=Referee)
    """when the methods change places"""
    features: Annotated[float, Range(least=0, below=1)] = 0.15
    """part of the work, at most, in which random features are looked for that solve the problem or
    say which activation fits it; 0: none"""

    def cost(self, workload: Workload, points: Sequence[int]) -> float:
        """Of an exact step on so many points of every term; infinite where it does not fit."""
        if exact_bytes(workload, points) > workload.memory:
            return math.inf
        return exact_step(workload, points)

    def share_of_points(
        self, workload: Workload, numbers: Callable[[float], Sequence[int]]
    ) -> float:
        """The part of the points to begin with; ``numbers(share)`` are those of every term, of
        which given ones are always all.

        No term pays for given points with more than a ``fair`` part of its own. Where exact steps
        are too dear even so, none are thinned, since KFAC, which then begins, needs no few.
        """
        first = numbers(1.0)
        alike = self._thinned(workload, lambda share: [max(1, round(share * n)) for n in first])
        share, least = self._thinned(workload, numbers), self.fair * alike
        if share >= least:
            return share
        dear = self.cost(workload, numbers(least)) > self.slack * self.multiplications
        return 1.0 if dear else least

    def _thinned(self, workload: Workload, numbers: Callable[[float], Sequence[int]]) -> float:
        """The share at which exact steps are as cheap as they should be, or points the fewest."""
        share, fewest = 1.0, max(self.fewest, workload.residuals(numbers(0.0)))
        enough = self.per_parameter * workload.parameters
        while (residuals := workload.residuals(numbers(share))) > fewest:
            if residuals <= enough and self.cost(workload, numbers(share)) <= self.multiplications:
                break
            share *= 0.95
        return share

    def start(
        self,
        objective: Objective,
        search: Search,
        damping: Damping,
        generator: Generator,
        *,
        fresh: bool = True,
    ) -> AutoStepper:
        return AutoStepper(self, objective, search, damping, generator, fresh)


@dataclass(frozen=True)
class Contest:
    """Where the contest stands (None: it has not begun), and the parameters that the run began
    from, as long as exact steps may have gone astray."""

    standing: Standing | None = None
    origin: Direction | None = None


@dataclass
class AutoStepper(Stepper):
    """Both methods in the course of a run; the one that is not used rests."""

    settings: Auto
    objective: Objective
    search: Search
    damping: Damping
    generator: Generator
    fresh: bool
    contest: Contest = field(default_factory=Contest)

    def __post_init__(self) -> None:
        self.methods = self._start()
        self.guarded = self.methods[EXACT].guarded

    def _start(self) -> dict[str, GaussNewtonStepper]:
        settings, damping = self.settings, self.settings.factored_damping
        return {
            EXACT: settings.exact.start(self.objective, self.search, self.damping, self.generator),
            FACTORED: settings.factored.start(self.objective, self.search, damping, self.generator),
        }

    def update(self, parameters: Direction, batch: Batch) -> Report:
        numbers = self.objective.numbers(batch.points)
        costs = self.costs(numbers)
        standing, note = self._entered(parameters, costs)
        cost = costs[standing.current]
        if note:
            batch = replace(batch, same_loss=False)
        self.contest = replace(self.contest, standing=standing)  # of which recover is to know
        report = replace(self.methods[standing.current].update(parameters, batch), cost=cost)
        losses = report.losses.relative
        if not all(map(math.isfinite, losses)):  # a divergence, which the loop deals with
            return replace(report, request=Request(note=note))
        referee = self.settings.referee
        window = standing.window.after(
            losses,
            cost,
            guarded=batch.unseen is not None,
            fitted=report.unseen > referee.fitted * report.reached,  # never where one is not known
        )
        first = standing.first or (level(losses), total(losses))
        self.contest = replace(self.contest, standing=replace(standing, window=window, first=first))
        if note:
            return replace(report, request=Request(note=note))
        return self._judged(report, numbers, costs)

    def costs(self, points: Sequence[int]) -> dict[str, float]:
        """Multiplications of a step of each method; infinite where it cannot be taken."""
        workload, iterations = self.objective.workload, self.settings.factored.iterations
        factored = conjugate_gradient_step(workload, points, iterations)
        return {EXACT: self.settings.cost(workload, points), FACTORED: factored}

    def _entered(self, parameters: Direction, costs: dict[str, float]) -> tuple[Standing, str]:
        """The standing with which a step begins, and what has been decided for it, in words."""
        standing = self.contest.standing
        if standing is None:
            return self._begun(parameters, costs)
        if math.isfinite(costs[standing.current]):
            return standing, ""
        # exact steps whose kernel no longer fits, since points were added
        standing = self._exchanged(replace(standing, window=Window(), trial=None).exchanged())
        return standing, f"{WORDS[standing.current]}: {TOO_LARGE}"

    def _begun(self, parameters: Direction, costs: dict[str, float]) -> tuple[Standing, str]:
        if math.isinf(costs[EXACT]):
            return Standing(FACTORED), f"{WORDS[FACTORED]}: {TOO_LARGE}"
        affordable = self.settings.slack * self.settings.multiplications
        cheap = costs[EXACT] <= max(affordable, costs[FACTORED])
        standing = Standing(EXACT if cheap else FACTORED, may_restart=cheap and self.fresh)
        if standing.may_restart:
            self.contest = Contest(standing, parameters)
        ratio = costs[EXACT] / costs[FACTORED]
        words = f"an exact step costs about {ratio:.2g} of the other kind"
        return standing, f"{WORDS[standing.current]}: {words}"

    def _judged(self, report: Report, numbers: list[int], costs: dict[str, float]) -> Report:
        """The report with what the referee decides, where a window has ended."""
        settings, standing = self.settings, self.contest.standing
        assert standing is not None
        budget = standing.trial.budget if standing.trial else 0.0
        enough = max(budget, settings.patience * settings.multiplications / 4)
        if standing.window.steps < settings.patience or standing.window.cost < enough:
            return report
        workload, more = self.objective.workload, settings.referee.growth
        circumstances = Circumstances(
            costs,
            settings.cost(workload, [round(more * n) for n in numbers]),
            workload.residuals(numbers) < 2.0 * settings.per_parameter * workload.parameters,
        )
        verdict, standing = settings.referee.judge(standing, circumstances, settings.stalled)
        origin = self.contest.origin
        self.contest = Contest(standing, origin if standing.may_restart else None)
        if isinstance(verdict, Switch):
            self._exchanged(standing)
        growth = verdict.factor if isinstance(verdict, Grow) else 1.0
        if isinstance(verdict, Restart):
            # KFAC, from where the run began: on few points it does not follow them as far
            assert origin is not None
            self.methods = self._start()
            report = replace(report, parameters=origin)
        anew = isinstance(verdict, Restart)
        return replace(report, request=Request(growth, anew, verdict.note))

    def _exchanged(self, standing: Standing) -> Standing:
        """Go on with another method, which knows nothing of the steps since."""
        self.methods[standing.current].forget_steps()
        self.contest = Contest(standing)
        return standing

    def recover(self) -> str:
        standing = self.contest.standing
        if standing is None:
            return "nothing was changed"
        tried = standing.trial is not None
        changed = self.methods[standing.current].recover()
        standing = replace(standing, window=Window(), trial=None)
        if tried:
            standing = self._exchanged(standing.doubled_wait().exchanged())
            return f"back to {WORDS[standing.current]}"
        self.contest = replace(self.contest, standing=standing)
        return changed

    def state_dict(self) -> dict[str, Any]:
        return {
            "methods": {name: method.state_dict() for name, method in self.methods.items()},
            "contest": state_of(self.contest),
        }

    def load_state_dict(self, state: dict[str, Any], damping: float | None = None) -> None:
        """``damping`` is that of the group, which exact steps have."""
        for name, method in self.methods.items():
            method.load_state_dict(state["methods"][name], damping if name == EXACT else None)
        self.contest = restore(self.contest, state["contest"], self.objective.layout.device)
