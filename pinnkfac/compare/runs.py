"""Runs side by side: their rows with their records, as columns, and what to know of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from omegaconf import OmegaConf

from pinnkfac.common.errors import UserError
from pinnkfac.compare.rows import Row
from pinnkfac.compare.sweep import number_columns
from pinnkfac.compare.tables import Column, in_seconds
from pinnkfac.nets.settings import stored_settings
from pinnkfac.plots.history import ERROR, series
from pinnkfac.store.stored_run import StoredRun

GOALS = (1e-2, 1e-4, 1e-6)
"""Relative L2 errors; the table says how many seconds each run needed to get below them."""


@dataclass(frozen=True)
class Compared:
    """A run's row, its records, and the arguments of its PDE."""

    row: Row
    history: list[dict[str, Any]]
    arguments: dict[str, Any]


def compared(row: Row) -> Compared:
    """A run with its records; a folder that holds none is a row without a curve, which is said."""
    try:
        run = StoredRun.open(row.folder)
        arguments = OmegaConf.to_container(run.config.get("pde") or OmegaConf.create({}))
    except UserError as error:
        if row.status != "failed":  # then there is nothing but its summary
            print(f"note: {error}", file=sys.stderr)
        return Compared(row, [], {})
    assert isinstance(arguments, dict)
    for damage in run.damages:
        print(f"warning: {damage}", file=sys.stderr)
    if row.status == "unfinished":
        row = _as_recorded(row, run)
    if row.status != "finished":
        row = _as_configured(row, run)
    return Compared(row, run.history, {str(key): value for key, value in arguments.items()})


def _as_recorded(row: Row, run: StoredRun) -> Row:
    """A run without a summary, as its last record has it."""

    def last(key: str) -> float | None:
        values = series(run.history[-1:], key)
        return float(values[0]) if len(values) and math.isfinite(values[0]) else None

    steps = last("step")
    return replace(
        row,
        pde=run.name,
        error=last(ERROR),
        rms_error=last("rms_error"),
        loss=last("loss"),
        seconds=last("seconds"),
        steps=None if steps is None else int(steps),
    )


def _as_configured(row: Row, run: StoredRun) -> Row:
    """A run with the step, the seed and the number of parameters that its configuration tells,
    where its summary does not."""
    choice, seed = run.config.choices.get("step"), run.config.get("seed")
    parameters = row.parameters
    if parameters is None and run.problem.get("net") is None:  # the net is the configured one
        try:
            net = stored_settings(run.config.net).make(run.signature, 0)
            parameters = sum(p.numel() for p in net.parameters()) + len(run.signature.parameters)
        except Exception:  # whatever a damaged file may cause: then it tells nothing
            parameters = None
    return replace(
        row,
        step=row.step or str(choice or ""),
        seed=seed if row.seed is None and isinstance(seed, int) else row.seed,
        parameters=parameters,
    )


def seconds_to(history: Sequence[Mapping[str, Any]], goal: float) -> float | None:
    """The seconds of the first record whose relative L2 error is at most ``goal``; that of a window
    of time is not one of the run's."""
    whole = [record for record in history if "window" not in record]
    pairs = zip(series(whole, "seconds"), series(whole, ERROR), strict=True)
    below = (float(s) for s, error in pairs if error <= goal and math.isfinite(s))
    return next(below, None)


def columns(runs: Sequence[Compared]) -> tuple[str, list[Column]]:
    """What is the same for all runs, in words, and the columns of what is not; none for a goal that
    no run has reached."""
    read = [run.row for run in runs]
    described = {
        "pde": [row.pde or "?" for row in read],
        "step": [row.step or row.overrides.get("step", "?") for row in read],
        "para-\nmeters": ["?" if row.parameters is None else str(row.parameters) for row in read],
    }
    same, result = [], []
    for name, cells in described.items():
        count = name.startswith("para")
        if len(set(cells)) > 1:
            result.append(Column(name, cells, number=count))
        else:
            same.append(f"{cells[0]} parameters" if count else f"{name} {cells[0]}")
    result += number_columns(read)
    for goal in GOALS:
        reached = [seconds_to(run.history, goal) for run in runs]
        if any(value is not None for value in reached):
            result.append(Column(f"s to\n{goal:.0e}", [in_seconds(value) for value in reached]))
    return ", ".join(same), result


def notes(runs: Sequence[Compared]) -> list[str]:
    """What makes numbers of runs hard to compare: other problems, or other arguments of one."""
    result = []
    names = list(dict.fromkeys(run.row.pde for run in runs if run.row.pde))
    if len(names) > 1:
        result.append(
            f"note: the runs solve different problems ({', '.join(names)}): their errors are of "
            "different functions"
        )
    for name in names:
        arguments = [run.arguments for run in runs if run.row.pde == name and run.history]
        keys = dict.fromkeys(key for each in arguments for key in each)
        values = {key: dict.fromkeys(str(each.get(key)) for each in arguments) for key in keys}
        parts = [f"pde.{key} ({', '.join(v)})" for key, v in values.items() if len(v) > 1]
        if parts:
            result.append(f"note: the runs of {name} differ in {', '.join(parts)}")
    return result
