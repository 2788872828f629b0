"""Memory: keeping what was freed, and saying what did not fit."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from pinnkfac.common.errors import UserError

if TYPE_CHECKING:  # commands that need no torch start without it
    import torch

GIB = 2**30


def keep_freed_memory() -> None:
    """Let the C library keep freed memory for the next allocation.

    By default glibc gives arrays of more than 32 MiB back to the system and takes them anew, page
    by page, in every step. No effect with other C libraries.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    trim_threshold, mmap_threshold = -1, -3
    mallopt(mmap_threshold, 2**30)
    mallopt(trim_threshold, 2**31 - 1)  # the largest that C takes: more counts as 0


def available(device: torch.device | None = None) -> float:
    """Bytes that a device could still give, or the system; infinite where it does not say."""
    if device is not None and device.type == "cuda":
        from torch.cuda import mem_get_info, memory_allocated, memory_reserved

        # what torch has taken and does not use, it gives again
        return float(mem_get_info(device)[0] + memory_reserved(device) - memory_allocated(device))
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    return float("inf")


def check_fits(number: float, what: str, setting: str, device: torch.device | None = None) -> None:
    """Raise UserError where ``what`` of that many bytes is more than a device could give."""
    free = available(device)
    if number > free:
        raise UserError(
            f"{what} would take {number / GIB:.3g} GiB, but {free / GIB:.3g} GiB are free: "
            f"lower {setting}"
        )


@contextmanager
def making(what: str, setting: str) -> Iterator[None]:
    """Within it, a lack of memory is a UserError that names the array and what to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_shortage(error):
            raise
        asked = _asked(str(error))
        raise UserError(f"there is not enough memory for {what}{asked}: lower {setting}") from error


def is_shortage(error: BaseException) -> bool:
    """Whether an exception of numpy, torch or Python says that memory has run out."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("can't allocate memory" in text or "out of memory" in text or "bad_alloc" in text)
    )


def _asked(text: str) -> str:
    match = re.search(r"allocate (\d+) bytes", text)
    if match:
        return f" ({int(match.group(1)) / GIB:.3g} GiB at once)"
    match = re.search(r"(?:allocate|Tried to allocate) ([\d.]+ [KMGT]iB)", text)
    return f" ({match.group(1)} at once)" if match else ""
