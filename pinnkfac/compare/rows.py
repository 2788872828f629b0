"""Runs, and the jobs of sweeps, as rows that can be compared."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
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

    ``label`` says which of the rows it is: what was swept, or its folder. ``status`` is 'finished',
    'interrupted', 'diverged' or 'failed' as the run ended, 'unfinished' where it has no summary and
    'unreadable' where that is damaged; ``message`` says why it stopped, ``warnings`` what it was
    warned of. ``error`` is the relative L2 error.
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
    warnings: tuple[str, ...] = ()


def rows(folders: str | Path | Sequence[str | Path]) -> list[Row]:
    """The rows of sweep folders (one a job) and of run folders (one each), each once, even with a
    damaged or missing summary; raises UserError where a folder does not exist or holds no run."""
    paths = [Path(f) for f in ([folders] if isinstance(folders, str | Path) else folders)]
    read: dict[Path, Row] = {}
    for path, name in zip(paths, _short_names(paths), strict=True):
        inside = [] if is_run(existing(path)) else jobs(path)
        if not inside and not is_run(path):
            raise UserError(
                f"{path} holds no run of pinnkfac and no sweep: give the folder that solve printed"
            )
        jobs_read = [row_of(folder) for folder in inside or [path]]
        keys = list(dict.fromkeys((*asked_for(path), *swept_keys(jobs_read))))
        for row in (_with_configured(job, keys) for job in jobs_read):
            label, number = name, row.folder.name
            if inside:  # what was swept, behind the folder where there are others than this sweep
                swept = " ".join(f"{k}={row.overrides[k]}" for k in keys if k in row.overrides)
                alone = len(paths) == 1
                label = swept or number if alone else f"{name}/{number} {swept}".rstrip()
            read.setdefault(row.folder.resolve(), replace(row, label=label))
    counts = Counter(row.label for row in read.values())
    return [
        replace(row, label=f"{row.label} ({row.folder.name})") if counts[row.label] > 1 else row
        for row in read.values()
    ]


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
    try:
        loaded = OmegaConf.load(folder / "multirun.yaml")
        asked: Any = OmegaConf.to_container(loaded, resolve=False)
        words = [str(word) for word in asked["hydra"]["overrides"]["task"]]
        return [str(o.key_or_group) for o in parse(words) if o.is_sweep_override()]
    except Exception:  # it is missing, or damaged in whatever way: then it tells nothing
        return []


def _row(folder: Path, summary: Mapping[str, Any]) -> Row:
    """Raises KeyError, TypeError or ValueError for a summary that no run wrote."""
    words = (text.lstrip("+").partition("=") for text in summary.get("overrides") or ())
    return Row(
        "",
        folder,
        str(summary["status"]),
        str(summary.get("stop_reason") or ""),
        {key: value.strip("'\"") for key, _, value in words},
        str(summary.get("pde") or ""),
        str(summary.get("step") or ""),
        _number(summary, "relative_l2_error"),
        **{key: _number(summary, key) for key in ("rms_error", "loss", "seconds")},
        **{key: _number(summary, key, int) for key in ("steps", "parameters", "seed")},
        warnings=tuple(str(warning) for warning in summary.get("warnings") or ()),
    )


def _number(summary: Mapping[str, Any], key: str, kind: Callable[[Any], Any] = float) -> Any:
    value = summary.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{key} is {value!r}, which is no number")
    return kind(value) if math.isfinite(value) else None


def _with_configured(row: Row, keys: Sequence[str]) -> Row:
    """A row without a summary with the swept values that its configuration tells."""
    if row.status not in ("unfinished", "unreadable") or not keys:
        return row
    told = {}
    try:
        config = read_config(row.folder)
        for key in keys:
            value = OmegaConf.select(config, f"choices.{key}") or OmegaConf.select(config, key)
            if value is not None:
                told[key] = str(value).replace(" ", "")
    except Exception:  # it is missing, or damaged in whatever way: then it tells nothing
        return row
    return replace(row, overrides=told)


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


def reasons(read: Sequence[Row], names: Sequence[str]) -> list[tuple[list[str], str]]:
    """Why rows have not finished, as 'failed: …', with the names of all those with that reason."""
    pairs = zip(read, names, strict=True)
    return _together(
        (f"{row.status}: {shortened(row.message, 140)}" if row.message else row.status, name)
        for row, name in pairs
        if row.status != "finished"
    )


def warned(read: Sequence[Row], names: Sequence[str]) -> list[tuple[list[str], str]]:
    """What rows were warned of, as 'warned: …', with the names of all those."""
    pairs = zip(read, names, strict=True)
    return _together(
        (f"warned: {shortened(warning, 140)}", name)
        for row, name in pairs
        for warning in row.warnings
    )


def _together(told: Iterable[tuple[str, str]]) -> list[tuple[list[str], str]]:
    """Each text once, with the names of all that it was told of."""
    whose: dict[str, list[str]] = {}
    for text, name in told:
        whose.setdefault(text, []).append(name)
    return [(named, text) for text, named in whose.items()]
