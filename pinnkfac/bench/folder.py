"""The folder of a benchmark: whose it is, and one writer at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pinnkfac.bench.suites import Suite
from pinnkfac.common.errors import UserError
from pinnkfac.common.files import whole

FORMAT = 1
MARK = "bench.json"
LOCK = ".lock"


def is_new(root: Path, suite: Suite, overrides: Sequence[str]) -> bool:
    """Whether a folder is free for a benchmark; False where it holds the same one.

    Raises UserError where it holds something else, or jobs with other overrides.
    """
    if not root.exists() or (root.is_dir() and all(p.name == LOCK for p in root.iterdir())):
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
    write_json(root / MARK, content)


def read_mark(root: Path, suite: Suite) -> list[str]:
    """The overrides of the benchmark in a folder.

    Raises UserError where there is none, or that of another suite or format.
    """
    path = root / MARK
    if not path.is_file():
        what = "holds no benchmark" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}: give the --folder of one, or a new one")
    content = read_json(path)
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


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Within it, no other process runs jobs in the folder; raises UserError where one does."""
    lock = FileLock(root / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"another process is running jobs in {root}: wait for it, or choose another --folder"
        ) from error
    try:
        yield
    finally:
        lock.release()


def status_of(folder: Path) -> tuple[str, dict[str, Any]]:
    """The status in a job's summary.json, '' where there is none, and the whole summary."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return str(summary["status"]), summary
    except (OSError, ValueError, KeyError, TypeError):
        return "", {}


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged: choose another --folder") from error
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> Path:
    """A file that appears whole or not at all; raises UserError where the disk refuses."""

    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8", newline="")

    return whole(path, write)
