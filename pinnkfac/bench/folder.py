"""The folder of a benchmark: whose it is, what lies in it, and one writer at a time."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from pinnkfac.bench.suites import Suite
from pinnkfac.common import locks
from pinnkfac.common.errors import UserError
from pinnkfac.common.files import Damaged, as_json, read_json, write_text

FORMAT = 1
MARK = "bench.json"
JOB, MEASURED, OUTPUT = "job.json", "measured.json", "output.txt"
"""Beside the files of a run: what a job was to do, what its process measured, what it printed."""


def is_new(root: Path, suite: Suite, overrides: Sequence[str]) -> bool:
    """Whether a folder is free for a benchmark; False where it holds the same one. Raises UserError
    where it holds something else, or jobs with other overrides."""
    if not root.exists() or (root.is_dir() and all(p.name == locks.LOCK for p in root.iterdir())):
        return True
    earlier = read_mark(root, suite)
    if earlier != list(overrides):
        before = " ".join(earlier) or "no overrides"
        raise UserError(f"{root} holds jobs with {before}: give the same, or another --folder")
    return False


def make(root: Path, suite: Suite, overrides: Sequence[str]) -> None:
    """The folder of a new benchmark; raises UserError where the disk refuses."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{root}: the folder cannot be used ({error.strerror}): choose another --folder"
        ) from error
    content = {"format": FORMAT, "suite": suite.name, "overrides": list(overrides)}
    write_text(root / MARK, as_json(content, indent=2))


def read_mark(root: Path, suite: Suite) -> list[str]:
    """The overrides of the benchmark in a folder; raises UserError where there is none, or that of
    another suite or format."""
    path = root / MARK
    if not path.is_file():
        what = "holds no benchmark" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}: give the --folder of one, or a new one")
    content = read(path)
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {content.get('format')}, not {FORMAT}: it is of another version of "
            "pinnkfac: choose another --folder"
        )
    if content.get("suite") != suite.name:
        raise UserError(
            f"{root} holds a benchmark of suite {content.get('suite')}, not {suite.name}: choose "
            "another --folder"
        )
    return [str(override) for override in content.get("overrides") or ()]


def locked(root: Path) -> AbstractContextManager[None]:
    """Within it, no other process runs jobs in the folder; raises UserError where one does."""
    return locks.locked(root, f"is running jobs in {root}: wait for it, or choose another --folder")


def read(path: Path) -> dict[str, Any]:
    """The content of a file of the benchmark; raises UserError where it is damaged."""
    try:
        return read_json(path)
    except Damaged as error:
        raise UserError(f"{path} is damaged: choose another --folder") from error


def told(path: Path) -> dict[str, Any]:
    """The content of a file that a job may have written; empty where it did not get that far."""
    try:
        return read_json(path)
    except Damaged:
        return {}


def summary_of(folder: Path) -> dict[str, Any]:
    """The summary of a job, empty where there is none; its ``status`` is '' then."""
    return {"status": "", **told(folder / "summary.json")}
