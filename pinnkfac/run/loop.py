"""The loop: points → step → record, until something says stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pinnkfac.common.errors import Diverged, counted
from pinnkfac.common.settings import NonNegative, Positive, Range
from pinnkfac.linearisation.balance import Balance
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import System
from pinnkfac.points.source import PointSource
from pinnkfac.step.base import Batch, Report, Stepper

RECOVERIES = 3
"""How often a run that diverges goes back to its best state until it finds a better one."""


BLOWN_UP = 1e6
"""A loss of that many times the one at the start is a divergence, though it is finite."""
CLEARLY = 0.9
"""Part of the best loss below which a loss is better for certain, and not by other points."""
NOTHING = 1e-8
"""A start that is better than this is taken for this one."""
JUDGE_AGAIN = 10
"""Steps after which new points are worth an evaluation of the best state on them."""
ADVICE = "raise damping.start, lower the learning rate, or choose another step"


@dataclass(frozen=True)
class Stop:
    """When to stop: after seconds or steps, below a loss or relative L2 error, or when
    ``rejections`` steps in a row did not lower the loss."""

    seconds: Positive | None = 60.0
    """of training, in all resumptions together; null: no limit"""
    steps: Annotated[int, Range(least=1)] | None = None
    """in all resumptions together; null: no limit"""
    loss: NonNegative = 0.0
    """of the terms as written"""
    error: NonNegative = 0.0
    """relative L2 error, where a solution is known"""
    rejections: Annotated[int, Range(least=1)] = 30
    """steps in a row that did not lower the loss"""


@dataclass(frozen=True)
class Ending:
    """Why a run stopped, and what to try next."""

    status: Literal["finished", "interrupted", "diverged"]
    reason: str
    advice: str = ""


@dataclass
class Best:
    """The parameters of the lowest loss so far (of the terms as written), and after how many steps.

    ``judged`` is the step whose points the loss is of: losses on other points do not compare.
    """

    loss: float = math.inf
    step: int = 0
    judged: int = 0
    parameters: Direction = field(default_factory=list)


@dataclass
class Progress:
    """Where a run is: counters, losses before the last step, its report, and the best state.

    ``reached`` is the trained loss after the last step, where the step has evaluated it; ``drawn``
    counts draws of points up to it.

    ``attempts`` counts the divergences since a clearly better state was found. ``recovered`` says
    in words what was tried after each divergence, ``resumed`` what was changed each time the run
    was resumed, ``notes`` what the step has decided by itself.
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = math.inf
    trained_loss: float = math.inf
    reached: float = math.inf
    drawn: int = 0
    first_loss: float = math.inf
    rejected: int = 0
    attempts: int = 0
    recovered: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    report: Report | None = None

    def state_dict(self) -> dict[str, Any]:
        plain = {k: v for k, v in vars(self).items() if k not in ("report", "best")}
        return {**plain, "best": vars(self.best)}

    @staticmethod
    def from_state(state: dict[str, Any]) -> Progress:
        return Progress(**{**state, "best": Best(**state["best"])})


def run(
    system: System,
    stepper: Stepper,
    source: PointSource,
    stop: Stop,
    balance: Balance,
    watch: Callable[[Progress], float | None],
    progress: Progress | None = None,
    interrupted: Callable[[], str] = str,
) -> tuple[Progress, Ending]:
    """Take steps until there is a reason to stop.

    ``balance`` rescales the equations every so many steps. ``watch(progress)`` is called after
    every step (records, displays, saves) and may return a relative error that ``stop.error`` is
    compared with. ``interrupted()`` names who asked for an end, or is ''. Where the loss leaves
    the finite numbers, the run goes on from its best state, more carefully, and ends with that
    state where this does not help.
    """
    progress = progress or Progress()
    begin = time.perf_counter() - progress.seconds
    ending = ending_of(progress, stop)
    while ending is None:
        start = system.get_parameters()
        try:
            report = _step(system, stepper, source, balance, progress, start)
        except Diverged as diverged:
            system.set_parameters(start)
            ending = _recover(system, stepper, progress, str(diverged))
            continue
        system.set_parameters(report.parameters)
        request = report.request
        progress.report = report
        progress.loss = system.weighted(report.losses)
        if progress.loss < progress.best.loss:
            if progress.loss < CLEARLY * progress.best.loss:
                progress.attempts = 0
            progress.best = Best(progress.loss, progress.step, progress.step, start)
        progress.step += 1
        progress.trained_loss = report.trained_loss
        known = math.isfinite(report.reached)
        progress.reached = report.reached if known else report.trained_loss
        if request.growth > 1.0:
            source.grow(request.growth)
        if request.anew:  # what was reached before is none of this net's
            progress.best = Best(math.inf, progress.step, progress.step, report.parameters)
            progress.reached, progress.attempts = math.inf, 0
        if request.note:
            progress.notes.append(f"step {progress.step}: {request.note}")
        rejected = report.length == 0 and not request.anew
        progress.rejected = progress.rejected + 1 if rejected else 0
        progress.seconds = time.perf_counter() - begin
        error = watch(progress)
        if error is not None and error < stop.error:
            return progress, Ending("finished", f"relative L2 error below {stop.error:g}")
        by = interrupted()
        ending = ending_of(progress, stop)
        if by and ending is None:
            ending = Ending("interrupted", f"{by} after {counted(progress.step, 'step')}")
    return progress, ending


def _step(
    system: System,
    stepper: Stepper,
    source: PointSource,
    balance: Balance,
    progress: Progress,
    parameters: Direction,
) -> Report:
    """One step; raises Diverged where a loss is not finite, or has blown up."""
    points = source.at(progress.step, progress.reached)
    renewed, progress.drawn = source.drawn != progress.drawn, source.drawn
    best = progress.best
    if renewed and best.parameters and progress.step - best.judged >= JUDGE_AGAIN:
        losses = system.evaluate(points, best.parameters)
        best.loss, best.judged = losses.written, progress.step
        system.set_parameters(parameters)
    rebalanced = balance.every > 0 and progress.step % balance.every == 0
    if rebalanced:
        source.balance(balance.scales(system.linearise(points, parameters)))
        points = source.current
    unseen = source.unseen() if stepper.guarded else None
    same = not renewed and not rebalanced
    report = stepper.update(parameters, Batch(points, unseen, same))
    if not math.isfinite(report.trained_loss) or not all(map(math.isfinite, report.losses)):
        raise Diverged("the loss is no longer finite")
    source.cost = report.cost
    loss = system.weighted(report.losses)
    if not math.isfinite(progress.first_loss):
        progress.first_loss = loss
    if _blown_up(loss, progress):
        raise Diverged(f"the loss is {loss:.1e} after {progress.first_loss:.1e} at the start")
    if renewed:
        source.allocate(report.losses)
    if unseen is not None and math.isfinite(report.unseen):
        source.judge(progress.step, unseen, report.reached, report.unseen)
    return report


def _blown_up(loss: float, progress: Progress) -> bool:
    return not loss <= BLOWN_UP * max(progress.first_loss, NOTHING)


def settled(
    system: System, stepper: Stepper, source: PointSource, progress: Progress, ending: Ending
) -> tuple[Ending, list[float]]:
    """The losses after the last step; where it went astray, back to the best state, and an Ending
    that says so."""
    losses = system.losses(source.ready(progress.step))
    if progress.best.parameters and _blown_up(system.weighted(losses), progress):
        system.set_parameters(progress.best.parameters)
        stepper.recover()
        where = counted(progress.best.step, "step")
        reason = f"{ending.reason}; the last step diverged, the net is that after {where}"
        ending = Ending("diverged", reason, ADVICE)
        losses = system.losses(source.current)
    return ending, losses


def _recover(system: System, stepper: Stepper, progress: Progress, what: str) -> Ending | None:
    """Back to the best state, with a more careful step; an Ending where that was tried enough."""
    best = progress.best
    if not best.parameters:
        return Ending("diverged", f"{what} in the first step", "check the PDE, or lower its scale")
    system.set_parameters(best.parameters)
    changed = stepper.recover()
    progress.attempts += 1
    step, where = progress.step + 1, counted(best.step, "step")
    if progress.attempts > RECOVERIES:
        return Ending(
            "diverged",
            f"{what} in step {step}: training diverged; {RECOVERIES} more careful attempts did not "
            f"help; the net is that of the best state, after {where}",
            ADVICE,
        )
    progress.recovered.append(f"step {step} undone, back to the state after {where}; {changed}")
    return None


def ending_of(progress: Progress, stop: Stop) -> Ending | None:
    """The reason to stop that lies in the counters, if there is one."""
    if stop.steps is not None and progress.step >= stop.steps:
        return Ending(
            "finished",
            f"{counted(stop.steps, 'step')} done (stop.steps)",
            f"more steps: stop.steps={2 * stop.steps}",
        )
    if stop.seconds is not None and progress.seconds >= stop.seconds:
        return Ending(
            "finished",
            f"{stop.seconds:g} seconds passed (stop.seconds)",
            f"more time: stop.seconds={2 * stop.seconds:g}",
        )
    if progress.step and progress.loss <= stop.loss:
        return Ending("finished", f"loss below {stop.loss:g} (stop.loss)")
    if progress.rejected >= stop.rejections:
        return Ending(
            "finished",
            f"{progress.rejected} steps in a row did not lower the loss (stop.rejections): it is "
            "as low as this step gets on these points",
            "more points (points.scale=2; for step=auto, step.multiplications or "
            "step.per_parameter), new ones in every step (points.every=1), or another step",
        )
    return None
