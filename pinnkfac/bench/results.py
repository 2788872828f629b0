"""What came of the jobs: one entry for each case and step, over all seeds; JSON and CSV."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pinnkfac.bench.folder import FORMAT, JOB, MEASURED, read, read_mark, summary_of, told
from pinnkfac.bench.published import Figure, best_by_source, published
from pinnkfac.bench.suites import Case, Suite
from pinnkfac.common.errors import UserError
from pinnkfac.common.files import as_json, write_csv, write_text
from pinnkfac.compare.rows import Row, row_of
from pinnkfac.store.stored_run import StoredRun, is_run

THRESHOLDS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
COUNTED = ("finished", "diverged", "failed", "unreadable")
"""Statuses of jobs that have ended by themselves; the others say nothing yet."""
SHOWN = ("status", "message", "parameters", "steps", "seconds", "rms_error")
CURVES = ("step", "seconds", "rms_error", "relative_l2_error", "loss")
MIB = 2**20


@dataclass(frozen=True)
class Outcome:
    """One job: its row, its records, and the rest of what its folder tells."""

    row: Row
    history: Sequence[Mapping[str, Any]]
    settings: tuple[str, ...]
    budget: float
    summary: Mapping[str, Any]
    measured: Mapping[str, Any]
    damages: Sequence[str] = ()
    """records that were left out, in words"""

    def error(self, measure: str) -> float | None:
        """Of the final net."""
        return self.row.rms_error if measure == "rms_error" else self.row.error

    def reached(self, measure: str, threshold: float) -> tuple[float, int] | None:
        """(seconds, steps) of the first record whose error is at most ``threshold``."""
        for record in self.history:
            if record.get(measure) is not None and record[measure] <= threshold:
                return record["seconds"], record["step"]
        return None

    @property
    def measuring(self) -> float | None:
        """The share of the seconds of training that measuring errors took."""
        number = self.measured.get("measurements")
        each = self.measured.get("seconds_a_measurement")
        if not self.row.seconds or number is None or each is None:
            return None
        return float(number * each / self.row.seconds)


@dataclass(frozen=True)
class Entry:
    """A case with a step: the outcomes of all seeds, and what stands beside them. Where there are
    several, numbers are medians; a job that failed counts as infinite."""

    case: Case
    step: str
    measure: str
    outcomes: tuple[Outcome, ...]

    @property
    def counted(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.row.status in COUNTED]

    @property
    def errors(self) -> list[float]:
        """Final errors, lowest first; of failed jobs there is none."""
        return sorted(_known(outcome.error(self.measure) for outcome in self.counted))

    @property
    def error(self) -> float | None:
        return middle([outcome.error(self.measure) for outcome in self.counted])

    @property
    def budget(self) -> float:
        return max(outcome.budget for outcome in self.outcomes)

    @property
    def goal(self) -> float | None:
        return self.case.goal(self.budget)

    @property
    def goal_met(self) -> bool | None:
        """None where there is no goal, or no job has ended."""
        return None if self.goal is None else self._below(self.goal)

    @property
    def published(self) -> list[Figure]:
        """The best published figure of each source, the one to pass first."""
        return best_by_source(self.case.name)

    @property
    def lower(self) -> list[bool | None]:
        """Whether the final error is lower than each of ``published``, best on the way."""
        return [self._below(figure.error_best) for figure in self.published]

    def _below(self, bound: float) -> bool | None:
        if not self.counted:
            return None
        return self.error is not None and self.error < bound

    def median(self, name: str) -> float | None:
        """Of ``seconds``, ``steps`` or ``parameters``, over the jobs that have it."""
        return middle(_known(getattr(outcome.row, name) for outcome in self.counted))

    def reached(self, threshold: float) -> tuple[float, float] | None:
        """Median seconds and steps to an error; None where half of the seeds do not get there."""
        reached = [outcome.reached(self.measure, threshold) for outcome in self.counted]
        seconds, steps = (middle([one and one[i] for one in reached]) for i in (0, 1))
        return None if seconds is None or steps is None else (seconds, steps)

    @property
    def peak_memory(self) -> float | None:
        """Bytes, the most of all seeds."""
        peaks = _known(outcome.measured.get("peak_memory") for outcome in self.counted)
        return max(peaks, default=None)

    @property
    def measuring(self) -> float | None:
        return middle(_known(outcome.measuring for outcome in self.counted))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def middle(values: Sequence[float | None]) -> float | None:
    """The median, where None counts as infinite; None where it is infinite, or of nothing."""
    if not values:
        return None
    median = statistics.median(math.inf if value is None else value for value in values)
    return median if math.isfinite(median) else None


@dataclass(frozen=True)
class Report:
    """All that the folder of a benchmark tells."""

    suite: Suite
    root: Path
    overrides: tuple[str, ...]
    entries: tuple[Entry, ...]

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for entry in self.entries for outcome in entry.outcomes]


def read_report(suite: Suite, root: Path) -> Report:
    """All jobs in a folder, in the order of the suite, steps and seeds in their own; raises
    UserError where it holds no benchmark of the suite, or no job."""
    overrides = read_mark(root, suite)
    entries = []
    for case in suite.cases:
        by_step: dict[str, list[Outcome]] = {}
        folders = [path.parent for path in (root / case.name).glob(f"*/[0-9]*/{JOB}")]
        for folder in sorted(folders, key=lambda path: (path.parent.name, int(path.name))):
            by_step.setdefault(folder.parent.name, []).append(_outcome(folder))
        entries += [
            Entry(case, step, suite.measure, tuple(outcomes)) for step, outcomes in by_step.items()
        ]
    if not entries:
        raise UserError(f"{root} holds no job yet: run 'bench {suite.name}' without --report first")
    return Report(suite, root, tuple(overrides), tuple(entries))


def _outcome(folder: Path) -> Outcome:
    job = read(folder / JOB)
    row = Row("", folder, "unfinished", "it was stopped, or is still going on")
    try:
        run = StoredRun.open(folder)
        history, damages = run.history, run.damages
    except UserError:  # it failed before it began, or is damaged: its row says so
        history, damages = [], []
    return Outcome(
        row_of(folder) if is_run(folder) else row,
        history,
        tuple(job.get("settings") or ()),
        float(job.get("seconds") or 0.0),
        summary_of(folder),
        told(folder / MEASURED),
        damages,
    )


def write_results(report: Report) -> list[Path]:
    """results.json, with all there is, and results.csv, with one line a case and step."""
    lines = [flat(entry) for entry in report.entries]
    rows = (list(line.values()) for line in lines)
    return [
        write_text(report.root / "results.json", as_json(as_dict(report), indent=1)),
        write_csv(report.root / "results.csv", list(lines[0]), rows),
    ]


def as_dict(report: Report) -> dict[str, Any]:
    """All that the jobs told, for JSON: no NaN, no infinity."""
    cases = list(dict.fromkeys(entry.case.name for entry in report.entries))
    return {
        "format": FORMAT,
        "suite": report.suite.name,
        "measure": report.suite.measure,
        "overrides": list(report.overrides),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "entries": [flat(entry) for entry in report.entries],
        "jobs": [_job(entry, one) for entry in report.entries for one in entry.outcomes],
        "published": {case: [asdict(figure) for figure in published(case)] for case in cases},
    }


def _job(entry: Entry, outcome: Outcome) -> dict[str, Any]:
    row = outcome.row
    told = ("threads", "device", "dtype", "versions", "machine", "written")
    return {
        "case": entry.case.name,
        "step": entry.step,
        "seed": int(row.folder.name),
        "budget": outcome.budget,
        "settings": list(outcome.settings),
        **{name: getattr(row, name) for name in SHOWN},
        "relative_l2_error": row.error,
        "peak_memory": outcome.measured.get("peak_memory"),
        "share_measuring": outcome.measuring,
        **{key: outcome.summary.get(key) for key in told},
        "history": {key: [record.get(key) for record in outcome.history] for key in CURVES},
    }


def flat(entry: Entry) -> dict[str, Any]:
    """The numbers of a case and step by name, for JSON and CSV."""
    errors, memory = entry.errors, entry.peak_memory
    content: dict[str, Any] = {
        "case": entry.case.name,
        "step": entry.step,
        "seeds": len(entry.counted),
        "unfinished": len(entry.outcomes) - len(entry.counted),
        **{name: entry.median(name) for name in ("parameters", "steps", "seconds")},
        "error": entry.error,
        "error_lowest": errors[0] if errors else None,
        "error_highest": errors[-1] if errors else None,
        "goal": entry.goal,
        "goal_met": entry.goal_met,
        "peak_memory_mib": None if memory is None else round(memory / MIB, 1),
        "share_measuring": entry.measuring,
    }
    beside = zip_longest(("published", "newer"), entry.published[:2], entry.lower[:2])
    for name, figure, lower in beside:
        content |= {
            name: figure and figure.error_best,
            f"{name}_by": figure and figure.optimizer,
            f"{name}_seconds": figure and figure.seconds,
            f"{name}_in": figure and figure.source.where,
            f"lower_than_{name}": lower,
        }
    for threshold in THRESHOLDS:
        seconds, steps = entry.reached(threshold) or (None, None)
        content |= {f"seconds_to_{threshold:.0e}": seconds, f"steps_to_{threshold:.0e}": steps}
    return content
