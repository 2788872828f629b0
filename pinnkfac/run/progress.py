"""Where a run is, and what follows from that: pure functions of counters and losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pinnkfac.common.errors import counted
from pinnkfac.common.settings import NonNegative, Positive, Range
from pinnkfac.common.state import Fixed, restore, state_of
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.objective import Losses
from pinnkfac.step.base import Report

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
    """Why a run stopped, and what to try next; ``final``: nothing is left that a run could do."""

    status: Literal["finished", "interrupted", "diverged"]
    reason: str
    advice: str = ""
    final: bool = False


@dataclass
class Best:
    """The parameters of the lowest loss so far (relative, see Losses), after how many steps, and
    that loss of the terms as ``written``; ``judged`` is the step whose points the loss is of:
    losses on other points do not compare."""

    loss: float = math.inf
    step: int = 0
    judged: int = 0
    written: float = math.inf
    parameters: Direction = field(default_factory=list)


@dataclass
class Progress:
    """Where a run is: counters, losses before the last step, its report, and the best state.

    ``loss`` is that of the terms as written, ``first_loss`` the relative one at the start,
    ``reached`` the trained one after the last step, where that was evaluated. ``drawn`` counts
    draws of points, ``attempts`` the divergences since a clearly better state was found. In words,
    ``recovered`` says what was tried after each divergence, ``resumed`` what was changed each time
    the run was resumed, ``notes`` what the step has decided, ``doubts`` what a user must be warned
    of. ``solved`` says that the run began with a solution to rounding, ``part`` how much of its
    domain points reach (points/horizon.py).
    """

    step: int = 0
    seconds: float = 0.0
    loss: float = math.inf
    trained_loss: float = math.inf
    reached: float = math.inf
    solved: bool = False
    part: float = 1.0
    drawn: int = 0
    first_loss: float = math.inf
    rejected: int = 0
    attempts: int = 0
    recovered: list[str] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    best: Best = field(default_factory=Best)
    report: Fixed[Report | None] = None

    def onto(self, drawn: int, loss_at: Callable[[Direction], Losses]) -> Progress:
        """Before a step on the points of draw number ``drawn``, where ``loss_at`` parameters says
        the losses: now and then, new points judge the best state too."""
        best = self.best
        old = self.step - best.judged >= JUDGE_AGAIN
        if drawn != self.drawn and best.parameters and old:
            now = loss_at(best.parameters)
            best = replace(best, loss=now.relative, written=now.written, judged=self.step)
        return replace(self, drawn=drawn, best=best)

    def divergence(self, report: Report, loss: float) -> str:
        """How a step began from a state of that relative loss which a run cannot go on from, in
        words; '': it did not."""
        if not all(map(math.isfinite, (report.trained_loss, *report.losses.written))):
            return "the loss is no longer finite"
        if math.isfinite(self.first_loss) and self.blown_up(loss):
            return f"the loss is {loss:.1e} after {self.first_loss:.1e} at the start"
        return ""

    def blown_up(self, loss: float) -> bool:
        return not loss <= BLOWN_UP * max(self.first_loss, NOTHING)

    def after(
        self, report: Report, written: float, loss: float, start: Direction, seconds: float
    ) -> Progress:
        """After a step from the parameters ``start``, of that loss as written, and relative."""
        step, request = self.step + 1, report.request
        best, attempts = self.best, self.attempts
        if loss < best.loss:
            attempts = 0 if loss < CLEARLY * best.loss else attempts
            best = Best(loss, self.step, self.step, written, start)
        reached = report.reached if math.isfinite(report.reached) else report.trained_loss
        if request.anew:  # what was reached before is none of this net's
            best = Best(step=step, judged=step, parameters=report.parameters)
            reached, attempts = math.inf, 0
        rejected = report.length == 0 and not request.anew
        return replace(
            self,
            step=step,
            seconds=seconds,
            loss=written,
            trained_loss=report.trained_loss,
            reached=reached,
            first_loss=self.first_loss if math.isfinite(self.first_loss) else loss,
            rejected=self.rejected + 1 if rejected else 0,
            attempts=attempts,
            notes=[*self.notes, *([f"step {step}: {request.note}"] if request.note else [])],
            best=best,
            report=report,
        )

    def further(self, part: float) -> Progress:
        """With points that reach more of the domain: nothing is known of the losses there."""
        assert self.report is not None
        best = Best(step=self.step, judged=self.step, parameters=self.report.parameters)
        note = f"step {self.step}: points reach {part:.0%} of the way"
        notes = [*self.notes, note]
        return replace(self, part=part, best=best, reached=math.inf, rejected=0, notes=notes)

    def undone(self, what: str, changed: str) -> tuple[Progress, Ending | None]:
        """Back at the best state after a divergence, with ``what`` it was and what was ``changed``
        in words; an Ending where that was tried enough."""
        attempts, step = self.attempts + 1, self.step + 1
        where = counted(self.best.step, "step")
        if attempts > RECOVERIES:
            reason = (
                f"{what} in step {step}: training diverged; {RECOVERIES} more careful attempts did "
                f"not help; the net is that of the best state, after {where}"
            )
            return replace(self, attempts=attempts), Ending("diverged", reason, ADVICE)
        words = f"step {step} undone, back to the state after {where}; {changed}"
        return replace(self, attempts=attempts, recovered=[*self.recovered, words]), None

    def state_dict(self) -> dict[str, Any]:
        return state_of(self)

    @staticmethod
    def from_state(state: dict[str, Any]) -> Progress:
        """Raises ValueError for a state that lacks a counter."""
        progress = Progress()
        if missing := state_of(progress).keys() - state.keys():
            raise ValueError(f"there is no {', '.join(sorted(missing))}")
        return restore(progress, state)


def ending_of(
    progress: Progress, stop: Stop, error: float | None = None, by: str = ""
) -> Ending | None:
    """The reason to stop, if there is one: the relative ``error`` that was reached, the counters,
    or who asked for it."""
    if error is not None and error < stop.error:
        return Ending("finished", f"relative L2 error below {stop.error:g}")
    if progress.step and progress.solved:
        reason = "random features solve the problem to rounding"
        return Ending("finished", reason, final=True)
    if stop.steps is not None and progress.step >= stop.steps:
        return Ending(
            "finished",
            f"{counted(stop.steps, 'step')} done (stop.steps)",
            f"more steps: stop.steps={2 * stop.steps}",
        )
    # the start alone may have taken them: a result has a step at least
    if stop.seconds is not None and progress.step and progress.seconds >= stop.seconds:
        return Ending(
            "finished",
            f"{stop.seconds:g} seconds passed (stop.seconds)",
            f"more time: stop.seconds={2 * stop.seconds:g}",
        )
    if progress.step and progress.part == 1.0 and progress.loss <= stop.loss:
        return Ending("finished", f"loss below {stop.loss:g} (stop.loss)")
    if progress.part == 1.0 and progress.rejected >= stop.rejections:
        return Ending(
            "finished",
            f"{progress.rejected} steps in a row did not lower the loss (stop.rejections): it is "
            "as low as this step gets on these points",
            "more points (points.scale=2; for step=auto, step.multiplications or "
            "step.per_parameter), new ones in every step (points.every=1), or another step",
        )
    if by:
        return Ending("interrupted", f"{by} after {counted(progress.step, 'step')}")
    return None
