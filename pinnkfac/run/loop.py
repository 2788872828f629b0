"""The loop: points → step → record, until something says stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from pinnkfac.common.errors import Diverged, counted
from pinnkfac.linearisation.balance import Balance
from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.linearisation import TermLosses
from pinnkfac.linearisation.objective import Losses
from pinnkfac.linearisation.system import System
from pinnkfac.points.source import PointSource
from pinnkfac.run.progress import ADVICE, Ending, Progress, Stop, ending_of
from pinnkfac.step.base import Batch, Stepper


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

    ``watch(progress)`` is called after every step and may return a relative error that
    ``stop.error`` is compared with. ``interrupted()`` names who asked for an end, or is ''. Where
    the loss leaves the finite numbers, the run goes on from its best state, more carefully, and
    ends with that state where this does not help.
    """
    progress = replace(progress or Progress(), part=source.horizon.part)
    error: float | None = None
    by = ""
    begin = time.perf_counter() - progress.seconds
    while (ending := ending_of(progress, stop, error, by)) is None:
        start = system.get_parameters()
        points = source.at(progress.step, progress.reached)
        renewed = source.exchange.drawn != progress.drawn
        progress = progress.onto(source.exchange.drawn, partial(_losses_at, system, points))
        try:
            rebalanced = balance.every > 0 and progress.step % balance.every == 0
            if rebalanced:
                measured = system.linearise(system.in_units(points), start)
                points = source.balanced(balance.scales(measured))
            unseen = source.unseen() if stepper.guarded else None
            report = stepper.update(start, Batch(points, unseen, not (renewed or rebalanced)))
            written = system.weighted(report.losses.written)
            loss = system.weighted(report.losses.relative)
            if what := progress.divergence(report, loss):
                raise Diverged(what)
        except Diverged as diverged:
            system.set_parameters(start)
            source.undone()
            progress, ending = _recovered(system, stepper, progress, str(diverged))
            if ending is not None:
                break
            continue
        system.set_parameters(report.parameters)
        source.after(progress.step, report, unseen, renewed=renewed)
        progress = progress.after(report, written, loss, start, time.perf_counter() - begin)
        if source.horizon.part != progress.part:
            progress = progress.further(source.horizon.part)
        error, by = watch(progress), interrupted()
    return progress, ending


def _losses_at(system: System, points: list[TermPoints], parameters: Direction) -> Losses:
    """The losses with other parameters, which do not stay."""
    now = system.get_parameters()
    losses = system.evaluate(points, parameters)
    system.set_parameters(now)
    return losses


def _recovered(
    system: System, stepper: Stepper, progress: Progress, what: str
) -> tuple[Progress, Ending | None]:
    """Back to the best state, with a more careful step; an Ending where that was tried enough."""
    if not progress.best.parameters:
        advice = "check the PDE, or lower its scale"
        return progress, Ending("diverged", f"{what} in the first step", advice)
    system.set_parameters(progress.best.parameters)
    return progress.undone(what, stepper.recover())


def settled(
    system: System, stepper: Stepper, source: PointSource, progress: Progress, ending: Ending
) -> tuple[Ending, TermLosses]:
    """The losses after the last step; where it went astray, back to the best state, and an Ending
    that says so."""
    losses = system.losses(source.ready(progress.step))
    if progress.best.parameters and progress.blown_up(system.weighted(losses.relative)):
        system.set_parameters(progress.best.parameters)
        stepper.recover()
        where = counted(progress.best.step, "step")
        reason = f"{ending.reason}; the last step diverged, the net is that after {where}"
        ending = Ending("diverged", reason, ADVICE)
        losses = system.losses(source.current)
    return ending, losses
