"""The loop: points → step → record, until something says stop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Generator

from pinnkfac.balance import Balance
from pinnkfac.domain import PointSet, Sampling, Uniform
from pinnkfac.errors import Diverged, UserError, suggest
from pinnkfac.linearise import System, TermPoints
from pinnkfac.step.base import Report, Stepper


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
    every: int = 0
    gap: float | None = 3.0
    check: int = 10
    interior: int = 1000
    lower: int = 200
    scale: float = 1.0
    numbers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stop:
    """When to stop: after seconds or steps, below a loss or relative L2 error, or when
    ``rejections`` steps in a row did not lower the loss."""

    seconds: float | None = 60.0
    steps: int | None = None
    loss: float = 0.0
    error: float = 0.0
    rejections: int = 30


class PointSource:
    """Draws the points of all terms of a system."""

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

    def number(self, term: Any) -> int:
        settings = self.settings
        if term.name in settings.numbers:
            return int(settings.numbers[term.name])
        full = term.where.dimension == len(self.system.problem.coordinates.names)
        number = term.points or (settings.interior if full else settings.lower)
        return max(1, round(number * settings.scale))

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
        terms = [t.residual.term for t in self.system.terms]
        sampling, generator = self.settings.sampling, self.generator
        return self.system.prepare(
            [t.where.draw(self.number(t), sampling, generator) for t in terms]
        )


@dataclass
class Progress:
    """Where a run is: counters, losses before the last step, and its report."""

    step: int = 0
    seconds: float = 0.0
    loss: float = math.inf
    trained_loss: float = math.inf
    rejected: int = 0
    report: Report | None = None


def run(
    system: System,
    stepper: Stepper,
    source: PointSource,
    stop: Stop,
    balance: Balance,
    watch: Callable[[Progress], float | None],
    progress: Progress | None = None,
) -> tuple[Progress, str]:
    """Take steps until a reason to stop; returns it in words.

    ``balance`` rescales the equations every so many steps. ``watch(progress)`` is called after
    every step (records, displays) and may return a relative error that ``stop.error`` is compared
    with.
    """
    progress = progress or Progress()
    begin = time.perf_counter() - progress.seconds
    while True:
        reason = _reason(progress, stop)
        if reason:
            return progress, reason
        before = source.current
        points = source.at(progress.step, progress.trained_loss)
        rebalanced = balance.every > 0 and progress.step % balance.every == 0
        try:
            if rebalanced:
                system.scales = balance.scales(system.linearise(points))
            report = stepper.update(points, same_loss=points is before and not rebalanced)
        except Diverged as diverged:
            return progress, str(diverged)
        progress.step += 1
        progress.report = report
        progress.loss = system.weighted(report.losses)
        progress.trained_loss = report.trained_loss
        progress.rejected = progress.rejected + 1 if report.length == 0 else 0
        progress.seconds = time.perf_counter() - begin
        error = watch(progress)
        if error is not None and error < stop.error:
            return progress, f"relative L2 error below {stop.error:g}"


def _reason(progress: Progress, stop: Stop) -> str:
    if stop.steps is not None and progress.step >= stop.steps:
        return f"{stop.steps} steps done (stop.steps)"
    if stop.seconds is not None and progress.seconds >= stop.seconds:
        return f"{stop.seconds:g} seconds passed (stop.seconds)"
    if progress.step and progress.loss <= stop.loss:
        return f"loss below {stop.loss:g} (stop.loss)"
    if progress.step and not math.isfinite(progress.loss):
        return "the loss is no longer finite: training diverged; raise damping.start or change step"
    if progress.rejected >= stop.rejections:
        return (
            f"{progress.rejected} steps in a row did not lower the loss: it is as low as this "
            "step gets on these points (try more points, points.every=1, or another step)"
        )
    return ""
