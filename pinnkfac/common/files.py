"""Folders that travel with the package; files that appear whole or not at all; JSON and CSV."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinnkfac.common.errors import UserError, first_line

PACKAGE = Path(__file__).resolve().parent.parent


def resource(name: str) -> Path:
    """A folder that travels with the package: inside it (wheel) or beside it (checkout)."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


class Damaged(UserError):
    """A file does not hold what its name says; ``reason`` says why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Call ``write(aside)`` on a file beside ``path`` and rename it; returns ``path``.

    Raises UserError where the disk refuses.
    """
    aside = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        try:
            write(aside)
            with open(aside, "rb") as file:  # on the disk before it takes the name
                os.fsync(file.fileno())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        reason = getattr(error, "strerror", None) or first_line(error)
        if not path.parent.is_dir():
            reason = f"there is no folder {path.parent}"
        raise UserError(
            f"{path} cannot be written ({reason}): choose another file, or make room"
        ) from error
    return path


def write_text(path: Path, text: str) -> Path:
    """A text file; raises UserError where the disk refuses."""
    return whole(path, lambda aside: aside.write_bytes(text.encode()))


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """A header and rows, with nothing for None; raises UserError where the disk refuses."""

    def write(aside: Path) -> None:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)

    return whole(path, write)


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON with the end of its last line; NaN and infinity, which it has not, become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return value


def read_json(path: Path) -> dict[str, Any]:
    """Names and values from a file of JSON; raises Damaged where it is none, or cannot be read."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        line = first_line(error)
        raise Damaged(
            f"{path} is damaged ({type(error).__name__}: {line}): it cannot be read", line
        ) from error
    if not isinstance(value, dict):
        reason = f"it holds {type(value).__name__}, not names and values"
        raise Damaged(f"{path} is damaged: {reason}", reason)
    return value
