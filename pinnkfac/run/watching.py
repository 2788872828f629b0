"""Records how a run goes, and hands the records on to metrics.jsonl and the display."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import InitVar, dataclass
from typing import Any

from pinnkfac.linearisation.residuals import ResidualMeter
from pinnkfac.linearisation.system import System
from pinnkfac.points.source import PointSource
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.run.assembly import one_thread_in_torch
from pinnkfac.run.display import Display, Pace
from pinnkfac.run.progress import Ending, Progress, Stop
from pinnkfac.run.verdict import warnings_of
from pinnkfac.solution import Solution
from pinnkfac.store.run_folder import RunFolder, Unwritable


@dataclass(frozen=True)
class Before:
    """Where a window begins in a run: its number from 1 (0: the run has no windows), the steps and
    seconds of those before it, and how many are left for it and the later ones (None: as many as
    for itself)."""

    window: int = 0
    steps: int = 0
    seconds: float = 0.0
    left: Stop | None = None


@dataclass
class Watcher:
    """Called by the loop after every step.

    A record is made at steps 1, 2, 4, 8 … and at least ``interval`` seconds after the last. Its
    losses are those that the step started from, its errors those that it reached. ``progress`` and
    ``history`` are those of a run that is resumed; steps and seconds of records are counted from
    the beginning of the run, also where this is a later window of it.
    """

    interval = 1.0
    share = 20.0
    """Records are so many times further apart than they take: measuring errors is training time."""

    system: System
    source: PointSource
    meter: ErrorMeter
    stop: Stop
    folder: RunFolder | None
    display: Display
    progress: InitVar[Progress]
    history: list[dict[str, Any]]
    before: Before = Before()

    def __post_init__(self, progress: Progress) -> None:
        self.residuals = ResidualMeter(self.system)
        self.solution = Solution(self.system.problem.signature, self.system.net)
        self.history = list(self.history)
        own = self.own
        seconds = own[-1]["seconds"] - self.before.seconds if own else 0.0
        self._next = seconds + self.interval if own else 0.0
        self._last: float | None = None
        self._seconds_a_step = 0.0
        self._recovered = len(progress.recovered)
        self._noted = len(progress.notes)
        self._refused = False

    def __call__(self, progress: Progress) -> float | None:
        self._time(progress)
        for what in progress.recovered[self._recovered :]:
            self.display.warn(f"training diverged: {what}")
        self._recovered = len(progress.recovered)
        for what in progress.notes[self._noted :]:
            self.display.say(what)
        self._noted = len(progress.notes)
        power_of_two = progress.step & (progress.step - 1) == 0
        if not power_of_two and progress.seconds < self._next:
            return None
        begin = time.monotonic()
        error = self.record(progress)
        taken = time.monotonic() - begin
        self._next = progress.seconds + max(self.interval, self.share * taken)
        return error

    @property
    def own(self) -> list[dict[str, Any]]:
        """The records of this window."""
        window = self.before.window
        return [record for record in self.history if record.get("window", 0) == window]

    def finish(self, progress: Progress, ending: Ending) -> None:
        """Record the last step too, unless it was undone."""
        recorded = self.history[-1]["step"] - self.before.steps if self.own else 0
        undone = progress.report is None or ending.status == "diverged"
        if progress.step > recorded and not undone:
            self.record(progress)

    def _time(self, progress: Progress) -> None:
        """A running mean over about ten steps."""
        if self._last is not None:
            taken = progress.seconds - self._last
            mean = self._seconds_a_step
            self._seconds_a_step = taken if mean == 0.0 else mean + 0.1 * (taken - mean)
        self._last = progress.seconds

    def pace(self, progress: Progress) -> Pace:
        """How fast the run goes and how long it has to go, by stop.seconds and stop.steps."""
        mean = self._seconds_a_step or progress.seconds / max(1, progress.step)
        stop = self.before.left or self.stop
        left = []
        if stop.seconds is not None:
            left.append(stop.seconds - progress.seconds)
        if stop.steps is not None:
            left.append((stop.steps - progress.step) * mean)
        return Pace(mean, min(left) if left and min(left) > 0 else None)

    def record(self, progress: Progress) -> float | None:
        """Make a record now; returns the relative L2 error where it is known."""
        errors = self.meter.measure(self.solution)
        report = progress.report
        assert report is not None
        names = [term.name for term in self.system.terms]
        pace = self.pace(progress)
        record: dict[str, Any] = {
            "step": self.before.steps + progress.step,
            "seconds": round(self.before.seconds + progress.seconds, 4),
            **({"window": self.before.window} if self.before.window else {}),
            "loss": progress.loss,
            "losses": dict(zip(names, report.losses.written, strict=True)),
            "relative_residuals": self.residuals.measure(),
            "relative_l2_error": errors.relative_l2 if errors else None,
            "rms_error": errors.rms if errors else None,
            "length": report.length,
            "direction_norm": _known(report.direction_norm),
            "damping": _known(report.damping),
            "ratio": _known(report.ratio),
            "trials": report.trials,
            "trained_loss": report.trained_loss,
            "points": self.source.numbers(),
            "points_exchanged": self.source.exchange.exchanged,
            "seconds_a_step": round(pace.step, 6),
        }
        if len(self.system.coefficients):
            record["coefficients"] = self.coefficients()
        self.history.append(record)
        if self.folder is not None:
            self._write(self.folder, record)
        self.display.show(record, pace)
        return errors.relative_l2 if errors else None

    def told(self, coefficients: Mapping[str, float]) -> dict[str, Any]:
        """What the relative residuals of the terms are at the end, and what they warn of."""
        meter, problem = self.residuals, self.system.problem
        with one_thread_in_torch(self.system.device):
            residuals, given = meter.measure(), meter.on_given_points()
            jumps, systematic = meter.jumps(), meter.systematic()
        warnings = warnings_of(problem, self.own, residuals, given, coefficients, jumps, systematic)
        return {"relative_residuals": residuals, "warnings": warnings}

    def _write(self, folder: RunFolder, record: dict[str, Any]) -> None:
        """A disk that refuses costs records, not the run."""
        try:
            folder.append_metrics(record)
            self._refused = False
        except Unwritable as error:
            if not self._refused:
                self.display.warn(f"{error}; the run goes on without this record")
            self._refused = True

    def coefficients(self) -> dict[str, float]:
        """Unknown coefficients of an inverse problem, by name."""
        parameters = self.system.problem.parameters
        return {p.name: float(v) for p, v in zip(parameters, self.system.coefficients, strict=True)}


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
