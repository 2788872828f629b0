"""python -m pinnkfac compare RUN_FOLDER..."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError

if TYPE_CHECKING:
    from pinnkfac.compare.sweep import Column, Row
    from pinnkfac.store.run_folder import StoredRun

GOALS = (1e-2, 1e-4, 1e-6)
"""Relative L2 errors; the table says how many seconds each run needed to get below them."""


@dataclass(frozen=True)
class Compared:
    """A run's row, its records, and the arguments of its PDE."""

    row: Row
    history: list[dict[str, Any]]
    arguments: dict[str, Any]


def main(arguments: list[str]) -> int:
    parser = Parser(
        "compare",
        "Compare runs in a table and in a picture of their errors over seconds and steps.\n"
        "A sweep folder stands for all its jobs.",
        "compare outputs/heat1d/first outputs/heat1d/second",
        "compare outputs/heat1d/sweep --csv table.csv",
    )
    parser.add_argument("folders", metavar="RUN_FOLDER", nargs="+")
    parser.add_argument(
        "--output",
        metavar="FILE",
        default="compare.png",
        help="the picture: .png, .pdf or .svg (default: compare.png)",
    )
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV too")
    given = parser.read(arguments)
    if given is None:
        return 0

    from pinnkfac.compare.sweep import (
        Column,
        fits,
        print_line,
        print_table,
        rows,
        unfinished,
        write_csv,
    )
    from pinnkfac.plots import draw_comparison, save
    from pinnkfac.plots.saving import FORMATS, checked_ending

    checked_ending(given.output, FORMATS)
    runs = [_compared(row) for row in rows(given.folders)]
    labels = [run.row.label for run in runs]
    common, columns = table(runs)
    if not fits([Column("run", labels, number=False), *columns]):
        numbers = [str(number) for number in range(1, len(runs) + 1)]
        for number, label in zip(numbers, labels, strict=True):
            print_line(f"run {number}: {label}")
        labels = numbers
    if common:
        print_line(f"all runs: {common}")
    print_table([Column("run", labels, number=False), *columns])
    for line in [*unfinished([run.row for run in runs], "run", labels), *notes(runs)]:
        print_line(line)
    if given.csv:
        own = {
            f"seconds_to_{goal:.0e}": [seconds_to(r.history, goal) for r in runs] for goal in GOALS
        }
        print(write_csv([run.row for run in runs], given.csv, own))
    curves = {run.row.label: run.history for run in runs if run.history}
    if not curves:
        print("note: no picture: none of the runs has a record", file=sys.stderr)
        return 0
    print(save(draw_comparison(curves), given.output))
    return 0


def _compared(row: Row) -> Compared:
    """A run with its records; a folder that holds none is a row without a curve."""
    from omegaconf import OmegaConf

    from pinnkfac.store.run_folder import StoredRun

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
        row = _as_recorded(row, run.name, run.history)
    if row.status != "finished":
        row = _as_configured(row, run)
    return Compared(row, run.history, {str(key): value for key, value in arguments.items()})


def _as_recorded(row: Row, pde: str, history: Sequence[Mapping[str, Any]]) -> Row:
    """A run without a summary, as its last record has it."""
    from pinnkfac.plots.history import series

    def last(key: str) -> float | None:
        found = series(history[-1:], key)
        return float(found[0]) if len(found) and math.isfinite(found[0]) else None

    steps = last("step")
    return replace(
        row,
        pde=pde,
        error=last("relative_l2_error"),
        rms_error=last("rms_error"),
        loss=last("loss"),
        seconds=last("seconds"),
        steps=None if steps is None else int(steps),
    )


def _as_configured(row: Row, run: StoredRun) -> Row:
    """A run with the step, the seed and the number of parameters that its configuration tells,
    where its summary does not."""
    from pinnkfac.nets.settings import stored_settings

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
    """The seconds of the first record whose relative L2 error is at most ``goal``."""
    from pinnkfac.plots.history import ERROR, series

    below = [
        float(seconds)
        for seconds, error in zip(series(history, "seconds"), series(history, ERROR), strict=True)
        if error <= goal and math.isfinite(seconds)
    ]
    return below[0] if below else None


def table(runs: Sequence[Compared]) -> tuple[str, list[Column]]:
    """What is the same for all runs, in words, and the columns of what is not.

    A goal that no run has reached has no column.
    """
    from pinnkfac.compare.sweep import Column, in_seconds, number_columns

    read = [run.row for run in runs]
    described = {
        "pde": [row.pde or "?" for row in read],
        "step": [row.step or row.overrides.get("step", "?") for row in read],
        "parameters": ["?" if row.parameters is None else str(row.parameters) for row in read],
    }
    same = {key: cells[0] for key, cells in described.items() if len(set(cells)) == 1}
    headers = {"parameters": "para-\nmeters"}
    columns = [
        Column(headers.get(key, key), cells, number=key == "parameters")
        for key, cells in described.items()
        if key not in same
    ]
    columns += number_columns(read)
    for goal in GOALS:
        reached = [seconds_to(run.history, goal) for run in runs]
        if any(value is not None for value in reached):
            columns.append(Column(f"s to\n{goal:.0e}", [in_seconds(value) for value in reached]))
    shown = [
        f"{value} parameters" if key == "parameters" else f"{key} {value}"
        for key, value in same.items()
    ]
    return ", ".join(shown), columns


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
        differing = _differing(
            [run.arguments for run in runs if run.row.pde == name and run.history]
        )
        if differing:
            result.append(f"note: the runs of {name} differ in {differing}")
    return result


def _differing(arguments: Sequence[Mapping[str, Any]]) -> str:
    """'pde.kappa (0.1, 0.25)' for every argument that has several values."""
    parts = []
    for key in dict.fromkeys(key for own in arguments for key in own):
        values = list(dict.fromkeys(str(own.get(key)) for own in arguments))
        if len(values) > 1:
            parts.append(f"pde.{key} ({', '.join(values)})")
    return ", ".join(parts)
