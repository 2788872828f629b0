"""Folders that travel with the package, and files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from pinnkfac.common.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent


def resource(name: str) -> Path:
    """A folder that travels with the package: inside it (wheel) or beside it (checkout)."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def whole(path: Path, write: Callable[[Path], None]) -> Path:
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
        reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0][:120]
        if not path.parent.is_dir():
            reason = f"there is no folder {path.parent}"
        raise UserError(
            f"{path} cannot be written ({reason}): choose another file, or make room"
        ) from error
    return path
