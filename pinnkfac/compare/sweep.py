"""The jobs of a sweep, or several runs, as rows: read, shown as a table, written as CSV."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import whole
from pinnkfac.plots import draw_sweep, save
from pinnkfac.plots.sweep import swept_keys
from pinnkfac.store.run_folder import jobs

DONE = "finished"
MARKS_OF_A_RUN = ("summary.json", "problem.json", "config.yaml")


@dataclass(frozen=True)
class Row:
    """One run, as its summary.json tells it; what it does not tell is None or ''.

    ``label`` says which of the rows it is: what was swept, or its folder. ``overrides`` are those
    of the command line. ``status`` is 'finished', 'interrupted', 'diverged' or 'failed' as the run
    ended, 'unfinished' where it has no summary and 'unreadable' where that is damaged; ``message``
    says why it stopped. ``step`` is the name of the step. ``error`` is the relative L2 error.
    """

    label: str
    folder: Path
    status: str
    message: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)
    pde: str = ""
    step: str = ""
    error: float | None = None
    rms_error: float | None = None
    loss: float | None = None
    seconds: float | None = None
    steps: int | None = None
    parameters: int | None = None
    seed: int | None = None


# -- reading ---------------------------------------------------------------------------------------
def rows(folders: str | Path | Sequence[str | Path]) -> list[Row]:
    """The rows of sweep folders (one a job) and of run folders (one each), each folder once.

    Raises UserError where a folder does not exist or holds no run; a damaged or missing summary is
    a row of its own kind, so that it does not hide the others.
    """
    given = [folders] if isinstance(folders, str | Path) else list(folders)
    paths = [Path(folder) for folder in given]
    found: dict[Path, Row] = {}
    for path, name in zip(paths, _short_names(paths), strict=True):
        inside = _jobs_of(path)
        read = [_read(folder) for folder in inside or [path]]
        keys = list(dict.fromkeys((*_asked_for(path), *swept_keys(read))))
        for row in read:
            row = _with_configured(row, keys)
            label = _job_label(row, keys, name, alone=len(paths) == 1) if inside else name
            found.setdefault(row.folder.resolve(), replace(row, label=label))
    return _told_apart(list(found.values()))


def _asked_for(folder: Path) -> list[str]:
    """The keys that a sweep was to vary: some have one value yet where it was interrupted."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return []
    from omegaconf import OmegaConf

    from pinnkfac.config.compose import parse

    try:
        asked: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        words = [str(word) for word in asked["hydra"]["overrides"]["task"]]
        return [str(o.key_or_group) for o in parse(words) if o.is_sweep_override()]
    except Exception:  # whatever a damaged file may cause: then it tells nothing
        return []


def _job_label(row: Row, keys: Sequence[str], sweep: str, *, alone: bool) -> str:
    """What was swept; behind the folder where there are others than this sweep."""
    swept = " ".join(f"{key}={row.overrides[key]}" for key in keys if key in row.overrides)
    if alone:
        return swept or row.folder.name
    return f"{sweep}/{row.folder.name} {swept}".rstrip()


def _jobs_of(path: Path) -> list[Path]:
    """The jobs of a sweep folder, none for the folder of a run."""
    if not path.is_dir():
        raise UserError(f"{path}: there is no such folder; give the one that solve printed")
    if any((path / name).exists() for name in MARKS_OF_A_RUN):
        return []
    found = jobs(path)
    if not found:
        raise UserError(
            f"{path} holds no run of pinnkfac and no sweep: give the folder that solve printed"
        )
    return found


def _read(folder: Path) -> Row:
    path = folder / "summary.json"
    if not path.exists():
        return Row("", folder, "unfinished", "the run did not end, or is still going on")
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        return _row(folder, summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        line = (str(error).splitlines() or [""])[0]
        return Row("", folder, "unreadable", f"summary.json is damaged: {line}")


def _row(folder: Path, summary: Mapping[str, Any]) -> Row:
    """Raises KeyError, TypeError or ValueError for a summary that no run wrote."""
    return Row(
        "",
        folder,
        str(summary["status"]),
        str(summary.get("stop_reason") or ""),
        dict(_override(text) for text in summary.get("overrides") or ()),
        str(summary.get("pde") or ""),
        str(summary.get("step") or ""),
        _number(summary, "relative_l2_error"),
        _number(summary, "rms_error"),
        _number(summary, "loss"),
        _number(summary, "seconds"),
        _count(summary, "steps"),
        _count(summary, "parameters"),
        _count(summary, "seed"),
    )


def _override(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.lstrip("+"), value.strip("'\"")


def _number(summary: Mapping[str, Any], key: str) -> float | None:
    value = summary.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} is {value!r}, which is no number")
    return float(value) if math.isfinite(value) else None


def _count(summary: Mapping[str, Any], key: str) -> int | None:
    value = _number(summary, key)
    return None if value is None else int(value)


def _with_configured(row: Row, keys: Sequence[str]) -> Row:
    """A row without a summary with the swept values that its configuration tells."""
    path = row.folder / "config.yaml"
    if row.status not in ("unfinished", "unreadable") or not keys or not path.is_file():
        return row
    from omegaconf import OmegaConf

    try:
        config = OmegaConf.load(path)
        told = {
            key: OmegaConf.select(config, f"choices.{key}") or OmegaConf.select(config, key)
            for key in keys
        }
    except Exception:  # whatever a damaged file may cause: then it tells nothing
        return row
    texts = {key: str(value).replace(" ", "") for key, value in told.items() if value is not None}
    return replace(row, overrides=texts)


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart; a job is shown behind its sweep."""
    parts = [path.resolve().parts for path in paths]
    longest = max((len(p) for p in parts), default=1)
    shortest = 2 if any(p[-1].isdigit() for p in parts if p) else 1
    for length in range(shortest, max(shortest, longest) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names if paths else []


def _told_apart(read: Sequence[Row]) -> list[Row]:
    """Rows whose labels are the same get their folders' names behind them."""
    labels = [row.label for row in read]
    return [
        replace(row, label=f"{row.label} ({row.folder.name})")
        if labels.count(row.label) > 1
        else row
        for row in read
    ]


# -- writing ---------------------------------------------------------------------------------------
def write_csv(
    read: Sequence[Row],
    path: str | Path,
    more: Mapping[str, Sequence[float | None]] | None = None,
) -> Path:
    """All that rows hold, one line each: label, folder, overrides, then the other columns.

    ``more`` are further columns. Raises UserError where the disk refuses.
    """
    own = [f.name for f in fields(Row) if f.name not in ("label", "folder", "overrides")]
    keys = list(dict.fromkeys(key for row in read for key in row.overrides))
    # step=kfac or seed=1 is the override and what the summary says of it: one column.
    columns = ["label", "folder", *keys, *(name for name in own if name not in keys)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*columns, *(more or ())])
    for number, row in enumerate(read):
        values = [row.overrides.get(name, getattr(row, name, None)) for name in columns]
        values += [column[number] for column in (more or {}).values()]
        writer.writerow(["" if value is None else value for value in values])
    return whole(Path(path), lambda aside: _write(aside, text.getvalue()))


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="")


# -- showing ---------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Column:
    """A column of a table: numbers, or texts that are folded where room is short."""

    header: str
    cells: Sequence[str]
    number: bool = True


def show(
    read: Sequence[Row], console: Console | None = None, asked_for: Sequence[str] = ()
) -> None:
    """The table of a sweep: what was swept, status, error, loss, seconds and steps of each job.

    ``asked_for`` are keys that have a column even where no two jobs differ by them. Below the table
    stands why jobs did not finish, once for all jobs with the same message.
    """
    keys = list(dict.fromkeys((*asked_for, *swept_keys(read))))
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
    reasons: dict[tuple[str, str], list[str]] = {}
    for row, name in zip(read, names, strict=True):
        if row.status != DONE:
            reasons.setdefault((row.status, row.message), []).append(name)
    return [
        f"{what}{'s' if len(whose) > 1 else ''} {', '.join(whose)} {status}"
        + (f": {shortened(message, 140)}" if message else "")
        for (status, message), whose in reasons.items()
    ]


def in_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def in_seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def shortened(text: str, length: int) -> str:
    """The first words of a text, with … where some are left out."""
    words = " ".join(text.split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def print_table(columns: Sequence[Column], console: Console | None = None) -> None:
    """A table in the width of the console; in a file or pipe, wider where it does not fit."""
    own = console or Console()
    table = _table(columns, gap=1)
    if _width(table) > own.width:
        table = _table(columns, gap=0)
    if console is None and not own.is_terminal:
        own = Console(width=max(own.width, _width(table)))
    own.print(table)


def fits(columns: Sequence[Column]) -> bool:
    """Whether the table fits the terminal, or 80 columns where there is none."""
    return _width(_table(columns, gap=0)) <= Console().width


def _width(table: Table) -> int:
    """The width of a table in which nothing is folded."""
    return Console(width=10_000).measure(table).maximum


def _table(columns: Sequence[Column], gap: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, gap),
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
        header_style="",
    )
    for column in columns:
        table.add_column(
            column.header,
            justify="right" if column.number else "left",
            no_wrap=column.number,
            overflow="fold",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        # As plain text: [32,32] is no markup.
        table.add_row(*map(Text, cells))
    return table


def print_line(text: str, console: Console | None = None) -> None:
    """A line of plain text, folded to the width of the console."""
    (console or Console()).print(Text(text))


def finish_sweep(folder: str | Path) -> list[Row]:
    """Print the table of a sweep and write sweep.csv and sweep.png into its folder.

    Returns the rows. Raises UserError where the folder holds no job or the disk refuses.
    """
    read = rows(folder)
    show(read, asked_for=_asked_for(Path(folder)))
    print(f"written to {write_csv(read, Path(folder) / 'sweep.csv')}")
    print(f"written to {save(draw_sweep(read), Path(folder) / 'sweep.png')}")
    return read
