"""Runs, and the jobs of sweeps, as rows that can be compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from pinnkfac.common.errors import UserError, first_line
from pinnkfac.common.files import Damaged
from pinnkfac.compare.tables import shortened
from pinnkfac.config.compose import parse
from pinnkfac.plots.sweep import swept_keys
from pinnkfac.store.stored_run import existing, is_run, jobs, read_config, read_summary


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


def rows(folders: str | Path | Sequence[str | Path]) -> list[Row]:
    """The rows of sweep folders (one a job) and of run folders (one each), each folder once.

    Raises UserError where a folder does not exist or holds no run; a damaged or missing summary is
    a row of its own kind, so that it does not hide the others.
    """
    each = [folders] if isinstance(folders, str | Path) else folders
    paths = [Path(folder) for folder in each]
    read: dict[Path, Row] = {}
    for path, name in zip(paths, _short_names(paths), strict=True):
        inside = _jobs_of(path)
        jobs_read = [row_of(folder) for folder in inside or [path]]
        keys = list(dict.fromkeys((*asked_for(path), *swept_keys(jobs_read))))
        for row in jobs_read:
            row = _with_configured(row, keys)
            label = _job_label(row, keys, name, alone=len(paths) == 1) if inside else name
            read.setdefault(row.folder.resolve(), replace(row, label=label))
    return _told_apart(list(read.values()))


def row_of(folder: Path) -> Row:
    """The row of a folder without its label, whatever is in it."""
    try:
        summary = read_summary(folder)
        if summary is None:
            return Row("", folder, "unfinished", "the run did not end, or is still going on")
        return _row(folder, summary)
    except Damaged as error:
        reason = error.reason
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
    return Row("", folder, "unreadable", f"summary.json is damaged: {reason}")


def asked_for(folder: Path) -> list[str]:
    """The keys that a sweep was to vary: some have one value yet where it was interrupted."""
    path = folder / "multirun.yaml"
    if not path.is_file():
        return []
    try:
        asked: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        words = [str(word) for word in asked["hydra"]["overrides"]["task"]]
        return [str(o.key_or_group) for o in parse(words) if o.is_sweep_override()]
    except Exception:  # whatever a damaged file may cause: then it tells nothing
        return []


def _jobs_of(path: Path) -> list[Path]:
    """The jobs of a sweep folder, none for the folder of a run."""
    if is_run(existing(path)):
        return []
    inside = jobs(path)
    if not inside:
        raise UserError(
            f"{path} holds no run of pinnkfac and no sweep: give the folder that solve printed"
        )
    return inside


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
    if row.status not in ("unfinished", "unreadable") or not keys:
        return row
    try:
        config = read_config(row.folder)
        told = {
            key: OmegaConf.select(config, f"choices.{key}") or OmegaConf.select(config, key)
            for key in keys
        }
    except Exception:  # it is missing, or damaged in whatever way: then it tells nothing
        return row
    texts = {key: str(value).replace(" ", "") for key, value in told.items() if value is not None}
    return replace(row, overrides=texts)


def _job_label(row: Row, keys: Sequence[str], sweep: str, *, alone: bool) -> str:
    """What was swept; behind the folder where there are others than this sweep."""
    swept = " ".join(f"{key}={row.overrides[key]}" for key in keys if key in row.overrides)
    if alone:
        return swept or row.folder.name
    return f"{sweep}/{row.folder.name} {swept}".rstrip()


def _short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of paths that tell them apart; a job is shown behind its sweep."""
    parts = [path.resolve().parts for path in paths]
    shortest = 2 if any(p[-1].isdigit() for p in parts) else 1
    names: list[str] = []
    for length in range(shortest, max(map(len, parts), default=0) + 1):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names


def _told_apart(read: Sequence[Row]) -> list[Row]:
    """Rows whose labels are the same get their folders' names behind them."""
    number = Counter(row.label for row in read)
    labels = [f"{r.label} ({r.folder.name})" if number[r.label] > 1 else r.label for r in read]
    return [replace(row, label=label) for row, label in zip(read, labels, strict=True)]


def reasons(read: Sequence[Row], names: Sequence[str]) -> list[tuple[list[str], str]]:
    """Why rows have not finished, as 'failed: …', with the names of all those with that reason."""
    whose: dict[str, list[str]] = {}
    for row, name in zip(read, names, strict=True):
        if row.status != "finished":
            message = f": {shortened(row.message, 140)}" if row.message else ""
            whose.setdefault(f"{row.status}{message}", []).append(name)
    return [(named, reason) for reason, named in whose.items()]
