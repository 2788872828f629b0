"""A run through windows of time: one after the other, each from where the one before ended.

A window is a run of its own, of the problem of that window and of a field that goes on from those
before (pinnkfac.nets.windows). They share the steps and seconds of the whole run; what one does not
need is left to the later ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Generator, Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.config.build import build
from pinnkfac.domain import Uniform
from pinnkfac.nets import PiecewiseNet, TimeWindows, WindowField, output_scaling
from pinnkfac.problem import Problem
from pinnkfac.problem.windows import time_of
from pinnkfac.residual.time_orders import time_orders
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.run.assembly import Assembly, assemble, of_this_net, placed, run_settings, stop_of
from pinnkfac.run.concluding import concluded, headline
from pinnkfac.run.display import Display
from pinnkfac.run.interruption import Interruption
from pinnkfac.run.progress import Ending, Progress, ending_of
from pinnkfac.run.running import Run
from pinnkfac.run.summary import summarise
from pinnkfac.run.task import Result, Task
from pinnkfac.run.window_outcomes import Outcomes, share
from pinnkfac.solution import Solution
from pinnkfac.store.run_folder import RunFolder, Unwritable

POINTS = 1000
"""Points of a window that the sizes of changes are measured on."""
CHANGE = 1e-3
"""Part of the change in one window that the net of the next one is made for at least."""


def windows_of(problem: Problem) -> TimeWindows:
    """The windows of a problem, with what goes on over their edges; raises UserError, naming the
    term, for a residual that is wrong."""
    time = time_of(problem.coordinates)
    assert time is not None
    names = problem.coordinates.names
    return TimeWindows(problem.windows, names.index(time), len(names), time_orders(problem))


@dataclass
class WindowedRun:
    """A task with windows on its way to a result. ``nets`` are those of the windows so far,
    ``done`` is what came out of those that have ended."""

    task: Task
    display: Display
    folder: RunFolder | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    nets: list[nn.Module] = field(default_factory=list)
    done: Outcomes = field(init=False)

    def __post_init__(self) -> None:
        task = self.task
        _check(task)
        self.windows = windows_of(task.problem)
        self.done = Outcomes(self.windows, time_of(task.problem.coordinates) or "")
        self.stop = stop_of(task.config)
        if self.stop.steps is not None and self.stop.steps < self.windows.number:
            raise UserError(
                f"stop.steps={self.stop.steps}: the windows of the problem share them: give at "
                f"least {self.windows.number}, one for each"
            )
        self.refused: Unwritable | None = None

    # -- one window ----------------------------------------------------------------------------
    def field(self, number: int) -> WindowField:
        """The field of the windows so far, with a net for every one up to that number."""
        config, windows = self.task.config, self.windows
        while len(self.nets) < number:
            problem = self.task.problem.window(len(self.nets))
            net = build(config.net, "net").make(problem.signature, int(config.seed))
            self.nets.append(placed(config, net))
        return WindowField(self.nets[:number], windows)

    def assembled(self, k: int, state: Mapping[str, Any] | None = None) -> Assembly:
        """The parts of the run of a window, with the weights of a checkpoint where there is one."""
        scales = self._scales() if k and state is None else None
        problem, field = self.task.problem.window(k, scales), self.field(k + 1)
        if state is not None:
            load(field, state)
        parts = assemble(_of_terms(self.task, problem), problem, field)
        parts.stop = share(self.stop, self.done.before(k, self.stop), self.windows.number - k)
        return parts

    def begun(self, k: int, parts: Assembly, progress: Progress | None = None) -> Run:
        """The run of a window."""
        return Run(
            replace(self.task, problem=parts.system.problem),
            parts,
            self.display,
            self.folder,
            progress or Progress(),
            self.history,
            self.done.before(k, self.stop),
            {"windows": self.done.state(k, ended=False)},
        )

    @torch.no_grad()
    def _scales(self) -> dict[str, tuple[float, float]]:
        """How much each field changes in a window, by what it did in the one before."""
        k, problem = len(self.nets) - 1, self.task.problem
        box = problem.window(k).domain.bounds
        drawn = box.interior.draw(POINTS, Uniform(), Generator().manual_seed(0)).coordinates
        field = self.field(k + 1)
        values: Tensor = field(drawn.to(next(field.parameters())))
        changes = (math.sqrt(2.0) * values.std(0)).tolist()
        last = self.done.each[-1]["scales"]
        result = {}
        for name, change in zip(problem.fields, changes, strict=True):
            known = problem.scales[name][0] if name in problem.scales else None
            result[name] = known or max(change, CHANGE * last[name]), 0.0
        return result

    # -- all of them -----------------------------------------------------------------------------
    def go(self, parts: Assembly, progress: Progress | None = None) -> Result:
        """Train window by window until all are, or one was interrupted or has diverged; the first
        one has these parts, and may have come some way."""
        headline(self.display, self.task, parts, f"{self.windows.number} windows, ")

        def trained(interruption: Interruption) -> tuple[Result, Ending]:
            first = self.begun(len(self.done.each), parts, progress)
            ending = self._trained(first, interruption)
            return self._written(ending), ending

        return concluded(self.display, self.task, self.folder, trained)

    def _trained(self, run: Run, interruption: Interruption) -> Ending:
        """Why the last window that was begun has ended."""
        while True:
            k, done = len(self.done.each), self.done
            self.run = run
            self.display.section(done.name(k))
            ending, losses = run.trained(interruption)
            scales = _scales_of(run.parts.system.net, self.task.problem.fields)
            done.add(run.progress, ending, run.told(ending, losses), run.watcher.own, scales)
            self.history = run.watcher.history
            ended, missing = ending.status == "finished", k + 1 < self.windows.number
            if run.keep is not None:
                now = {"windows": done.state(k, ended=ended)}
                run.keep.identity = {**run.keep.identity, **now}
            self.refused = run.saved(losses) or self.refused
            if ended and not missing:
                return ending_of(done.total(), self.stop) or ending
            if ended and interruption.by:
                ending = Ending("interrupted", f"{interruption.by} at the end")
            if ending.status != "finished":
                return replace(ending, reason=f"{ending.reason}, in {done.name(k)}")
            self.display.say(f"{done.name(k)}: {ending.reason}")
            run = self.begun(k + 1, self.assembled(k + 1))

    def _written(self, ending: Ending) -> Result:
        task, problem = self.task, self.task.problem
        solution = Solution(problem.signature, PiecewiseNet(self.nets, self.windows))
        number = run_settings(task.config).error_points
        errors = ErrorMeter(problem, number, times=self.done.times).measure(solution)
        own, before = self.run.progress.best, self.done.before(len(self.done.each) - 1, self.stop)
        total = replace(self.done.total(), best=replace(own, step=before.steps + own.step))
        summary = summarise(task, self.run.parts.system, total, ending, errors)
        summary |= self.done.summary(ending)
        try:
            if self.folder is not None:
                self.folder.write_summary(summary)
        except Unwritable as error:
            self.refused = error
        return Result(
            problem,
            solution,
            errors,
            {},
            ending.status,
            ending.reason,
            summary,
            self.history,
            self.folder.path if self.folder else None,
            self.refused,
        )


def _check(task: Task) -> None:
    """Raise UserError for settings that windows cannot be trained with."""
    if task.net is not None:
        raise UserError(
            f"net={type(task.net).__name__}: every window trains a net of its own, which cannot be "
            "given: leave it out, or the windows of the problem"
        )
    time = time_of(task.problem.coordinates)
    if time in (task.config.net.get("periodic") or ()):
        raise UserError(
            f"net.periodic: a field that is periodic in {time} does not go on from a window to the "
            "next one: leave it out, or the windows of the problem"
        )


def _of_terms(task: Task, problem: Problem) -> DictConfig:
    """The configuration without numbers of points of terms that are in other windows only."""
    config: DictConfig = deepcopy(task.config)
    OmegaConf.set_struct(config, False)
    numbers = config.points.get("numbers")
    here = [term.name for term in problem.terms]
    for term in task.problem.terms:
        if numbers and term.name in numbers and term.name not in here:
            del numbers[term.name]
    return config


def _scales_of(net: nn.Module, fields: Sequence[str]) -> dict[str, float]:
    """The scales of the fields of the last net."""
    output = output_scaling(net)
    scales = [1.0] * len(fields) if output is None else output.scales.tolist()
    return dict(zip(fields, scales, strict=True))


def load(field: WindowField, state: Mapping[str, Any]) -> None:
    """Put the weights of a checkpoint in place; raises UserError where they are those of another
    net."""
    with of_this_net():
        field.load_state_dict(state["net"])
