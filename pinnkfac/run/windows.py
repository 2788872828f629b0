"""A run through windows of time: one after the other, each from where the one before ended.

A window is a run of its own, of the problem of that window and of a field that goes on from those
before (pinnkfac.nets.windows). They share the steps and seconds of the whole run; what one does not
need is left to the later ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Generator, Tensor, nn

from pinnkfac.common.errors import UserError, counted, first_line
from pinnkfac.config.build import build
from pinnkfac.domain import Uniform
from pinnkfac.nets import OutputScaling, PiecewiseNet, TimeWindows, WindowField
from pinnkfac.problem import Problem
from pinnkfac.problem.windows import time_of
from pinnkfac.residual.time_orders import time_orders
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.run.assembly import Assembly, assemble, run_settings, stop_of
from pinnkfac.run.concluding import conclude, draw, headline, say_kept
from pinnkfac.run.display import Display
from pinnkfac.run.interruption import Interruption
from pinnkfac.run.progress import Ending, Progress, Stop, ending_of
from pinnkfac.run.running import Run
from pinnkfac.run.summary import summarise
from pinnkfac.run.task import Result, Task
from pinnkfac.run.watching import Before
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
    ``done`` what came out of each that has ended, as plain values."""

    task: Task
    display: Display
    folder: RunFolder | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    nets: list[nn.Module] = field(default_factory=list)
    done: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        task = self.task
        _check(task)
        self.windows = windows_of(task.problem)
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
            self.nets.append(net.to(torch.device(config.device), getattr(torch, config.dtype)))
        return WindowField(self.nets[:number], windows)

    def assembled(self, k: int, state: Mapping[str, Any] | None = None) -> Assembly:
        """The parts of the run of a window, with the weights of a checkpoint where there is one."""
        scales = self._scales() if k and state is None else None
        problem, field = self.task.problem.window(k, scales), self.field(k + 1)
        if state is not None:
            load(field, state)
        parts = assemble(_of_terms(self.task, problem), problem, field)
        parts.stop = share(self.stop, self.before(k), self.windows.number - k)
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
            self.before(k),
            {"windows": self.told(k, ended=False)},
        )

    def before(self, k: int) -> Before:
        """What was done before a window, and what is left from there on."""
        steps = sum(done["steps"] for done in self.done[:k])
        seconds = sum(done["seconds"] for done in self.done[:k])
        return Before(k + 1, steps, seconds, _left(self.stop, steps, seconds))

    def told(self, k: int, *, ended: bool) -> dict[str, Any]:
        """What a checkpoint has to hold of the windows, beside the net."""
        edges, orders = list(self.windows.edges), list(self.windows.orders)
        return {
            "edges": edges,
            "orders": orders,
            "number": k,
            "ended": ended,
            "done": deepcopy(self.done),
        }

    @torch.no_grad()
    def _scales(self) -> dict[str, tuple[float, float]]:
        """How much each field changes in a window, by what it did in the one before."""
        k, problem = len(self.nets) - 1, self.task.problem
        box = problem.window(k).domain.bounds
        drawn = box.interior.draw(POINTS, Uniform(), Generator().manual_seed(0)).coordinates
        field = self.field(k + 1)
        values: Tensor = field(drawn.to(next(field.parameters())))
        changes = (math.sqrt(2.0) * values.std(0)).tolist()
        last = self.done[-1]["scales"]
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
        with Interruption(self.display.notice) as interruption:
            try:
                first = self.begun(len(self.done), parts, progress)
                ending = self._trained(first, interruption)
                result = self._written(ending)
            except (Exception, KeyboardInterrupt):
                if self.folder is not None and self.folder.has("checkpoint.pt"):
                    say_kept(self.display, self.folder.path)
                raise
            finally:
                self.display.close()
        if self.folder is not None and run_settings(self.task.config).plot and not self.refused:
            draw(self.display, self.task, result, self.folder.path)
        conclude(self.display, self.task, result, ending)
        if result.refused is not None:
            raise result.refused
        return result

    def _trained(self, run: Run, interruption: Interruption) -> Ending:
        """Why the last window that was begun has ended."""
        while True:
            k = len(self.done)
            self.run = run
            self.display.section(self._name(k))
            ending, losses = run.trained(interruption)
            self.done.append(self._outcome(k, run, ending, run.told(ending, losses)))
            self.history = run.watcher.history
            missing = k + 1 < self.windows.number
            if ending.status == "finished" and missing and interruption.by:
                ending = Ending("interrupted", f"{interruption.by} at the end")
            if run.keep is not None:
                ended = ending.status == "finished" or self.done[k]["status"] == "finished"
                run.keep.identity = {
                    **run.keep.identity,
                    "windows": self.told(k, ended=ended) | {"done": self.done[: k + ended]},
                }
            self.refused = run.saved(losses) or self.refused
            if ending.status != "finished":
                reason = f"{ending.reason}, in {self._name(k)}"
                return replace(ending, reason=reason)
            if not missing:
                return ending_of(self._total(), self.stop) or ending
            self.display.say(f"{self._name(k)}: {ending.reason}")
            run = self.begun(k + 1, self.assembled(k + 1))

    def _name(self, k: int) -> str:
        low, high = self.windows.edges[k : k + 2]
        time = time_of(self.task.problem.coordinates)
        return f"window {k + 1} of {self.windows.number}, {time} from {low:g} to {high:g}"

    def _outcome(self, k: int, run: Run, ending: Ending, told: dict[str, Any]) -> dict[str, Any]:
        """What came out of a window."""
        low, high = self.windows.edges[k : k + 2]
        values = run.watcher.own[-1] if run.watcher.own else {}
        return {
            "from": low,
            "to": high,
            "status": ending.status,
            "stop_reason": ending.reason,
            "steps": run.progress.step,
            "seconds": run.progress.seconds,
            "relative_l2_error": values.get("relative_l2_error"),
            **{name: told[name] for name in ("loss", "losses", "relative_residuals", "warnings")},
            "recovered": run.progress.recovered,
            "notes": run.progress.notes,
            "resumed": run.progress.resumed,
            "scales": _scales_of(run.parts.system.net, self.task.problem.fields),
        }

    def _total(self) -> Progress:
        """Steps, seconds and words of all windows."""
        done, before = self.done, self.before(len(self.done) - 1)
        best = self.run.progress.best
        return Progress(
            step=sum(one["steps"] for one in done),
            seconds=sum(one["seconds"] for one in done),
            recovered=self._each("recovered"),
            notes=self._each("notes"),
            resumed=self._each("resumed"),
            best=replace(best, step=before.steps + best.step),
        )

    def _each(self, key: str) -> list[str]:
        """Sentences of all windows."""
        return [f"{self._name(k)}: {what}" for k, one in enumerate(self.done) for what in one[key]]

    def _written(self, ending: Ending) -> Result:
        task, problem = self.task, self.task.problem
        solution = Solution(problem.signature, PiecewiseNet(self.nets, self.windows))
        trained = replace(self.windows, edges=self.windows.edges[: len(self.done) + 1])
        errors = ErrorMeter(
            problem, run_settings(task.config).error_points, times=trained.edges
        ).measure(solution)
        shown = ("scales", "recovered", "notes", "resumed")
        summary = summarise(task, self.run.parts.system, self._total(), ending, errors) | {
            "relative_residuals": _worst(one["relative_residuals"] for one in self.done),
            "warnings": [*self._missing(ending), *self._each("warnings")],
            "loss": max(one["loss"] for one in self.done),
            "losses": _worst(one["losses"] for one in self.done),
            "coefficients": {},
            "windows": [{k: v for k, v in one.items() if k not in shown} for one in self.done],
        }
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

    def _missing(self, ending: Ending) -> list[str]:
        """What is to be said of windows that were not trained."""
        missing = self.windows.number - len(self.done)
        if not missing:
            return []
        end = self.windows.edges[len(self.done)]
        time = time_of(self.task.problem.coordinates)
        more = ", resume goes on with them" if ending.status == "interrupted" else ""
        return [
            f"{missing} of {counted(self.windows.number, 'window')} not trained{more}: the "
            f"solution ends at {time} = {end:g} and is NaN after it, errors are those before it"
        ]


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


def _left(stop: Stop, steps: int, seconds: float) -> Stop:
    """What is left after some steps and seconds: at least one step."""
    return replace(
        stop,
        steps=None if stop.steps is None else max(1, stop.steps - steps),
        seconds=None if stop.seconds is None else max(1e-6, stop.seconds - seconds),
    )


def share(stop: Stop, before: Before, windows: int) -> Stop:
    """What a window may take of what is left for that many."""
    left = _left(stop, before.steps, before.seconds)
    return replace(
        left,
        steps=None if left.steps is None else math.ceil(left.steps / windows),
        seconds=None if left.seconds is None else left.seconds / windows,
    )


def _worst(each: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest number of every name."""
    result: dict[str, float] = {}
    for numbers in each:
        for name, value in numbers.items():
            result[name] = max(value, result.get(name, value))
    return result


def _scales_of(net: nn.Module, fields: Sequence[str]) -> dict[str, float]:
    """The scales of the fields of the last net."""
    outputs = [module for module in net.modules() if isinstance(module, OutputScaling)]
    scales = outputs[-1].weight.diagonal().tolist() if outputs else [1.0] * len(fields)
    return dict(zip(fields, scales, strict=True))


def load(field: WindowField, state: Mapping[str, Any]) -> None:
    """Put the weights of a checkpoint in place; raises UserError where they are those of another
    net."""
    try:
        field.load_state_dict(state["net"])
    except Exception as error:  # whatever a foreign state may cause
        raise UserError(
            "the checkpoint does not fit this configuration: it is of another net or problem "
            f"({type(error).__name__}: {first_line(error)})"
        ) from error
