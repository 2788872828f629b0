"""The end of a sweep: the table over its jobs, sweep.csv and sweep.png."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from pinnkfac.common.files import write_csv
from pinnkfac.compare.rows import Row, asked_for, reasons, rows
from pinnkfac.compare.tables import Column, in_digits, in_seconds, print_line, print_table
from pinnkfac.plots import draw_sweep, save
from pinnkfac.plots.sweep import swept_keys


def finish_sweep(folder: str | Path) -> list[Row]:
    """Print the table of a sweep, write sweep.csv and sweep.png into its folder, and return the
    rows; raises UserError where the folder holds no job or the disk refuses."""
    read = rows(folder)
    show(read, asked=asked_for(Path(folder)))
    print(f"written to {write_rows(read, Path(folder) / 'sweep.csv')}")
    print(f"written to {save(draw_sweep(read), Path(folder) / 'sweep.png')}")
    return read


def show(read: Sequence[Row], console: Console | None = None, asked: Sequence[str] = ()) -> None:
    """The table of a sweep: what was swept (``asked`` even where no two jobs differ by it), status,
    error, loss, seconds and steps of each job, and, once a message, why jobs did not finish."""
    keys = list(dict.fromkeys((*asked, *swept_keys(read))))
    swept = [
        Column(key.replace(".", ".\n"), [row.overrides.get(key, "?") for row in read], number=False)
        for key in keys
    ]
    numbers = [row.folder.name for row in read]
    status = Column("status", [row.status for row in read], number=False)
    print_table([Column("job", numbers), *swept, status, *number_columns(read)], console)
    for line in unfinished(read, "job", numbers):
        print_line(line, console)


def number_columns(read: Sequence[Row]) -> list[Column]:
    """Error, loss, seconds and steps; the error only where one is known."""
    columns = [
        Column("error", [in_digits(row.error) for row in read]),
        Column("loss", [in_digits(row.loss) for row in read]),
        Column("seconds", [in_seconds(row.seconds) for row in read]),
        Column("steps", ["-" if row.steps is None else str(row.steps) for row in read]),
    ]
    return columns if any(row.error is not None for row in read) else columns[1:]


def unfinished(read: Sequence[Row], what: str, names: Sequence[str]) -> list[str]:
    """'jobs 1, 3 failed: …' for every reason why a row has not finished."""
    return [
        f"{what}{'s' if len(whose) > 1 else ''} {', '.join(whose)} {reason}"
        for whose, reason in reasons(read, names)
    ]


def write_rows(
    read: Sequence[Row],
    path: str | Path,
    more: Mapping[str, Sequence[float | None]] | None = None,
) -> Path:
    """All that rows hold as CSV, one line each: label, folder, overrides, then the other columns,
    and ``more``; raises UserError where the disk refuses."""
    more = more or {}
    keys = list(dict.fromkeys(key for row in read for key in row.overrides))
    # step=kfac or seed=1 is the override and what the summary says of it: one column.
    names = ["label", "folder", *keys, *(f.name for f in fields(Row))]
    columns = [name for name in dict.fromkeys(names) if name != "overrides"]
    lines = (
        [
            *(row.overrides.get(name, getattr(row, name, None)) for name in columns),
            *(column[number] for column in more.values()),
        ]
        for number, row in enumerate(read)
    )
    return write_csv(Path(path), [*columns, *more], lines)
