"""One process at a time in a folder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from pinnkfac.common.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(folder: Path, advice: str) -> Iterator[None]:
    """Within it, the lock of a folder is held; it ends with its process too.

    Raises UserError, whose end is ``advice``, where another process holds it.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise UserError(f"another process {advice}") from error
    try:
        yield
    finally:
        lock.release()
