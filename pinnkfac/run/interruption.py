"""Ctrl-C, SIGTERM and SIGHUP: the first one ends a run after its step, the second one at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any

EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 143, "SIGHUP": 129}
"""By convention of the shell, 128 and the number of the signal."""
SIGNALS = {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}


class Stopped(KeyboardInterrupt):
    """A signal has ended a sweep after a job that was saved; the argument names the signal."""


class Interruption:
    """Within ``with Interruption() as interruption``, ``interruption.by`` names the signal that
    asked for an end, or is ''; the user is told by ``notice(line)``, in the middle of a step. Only
    the main thread of a process gets signals; in another one nothing changes."""

    def __init__(self, notice: Callable[[str], None] | None = None) -> None:
        self.by = ""
        self.notice = notice or write_at_once
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for name in SIGNALS:
                number = getattr(signal, name, None)  # not every system has all of them
                # One that is ignored, as nohup does, stays ignored.
                if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.by:
            raise KeyboardInterrupt
        self.by = SIGNALS[signal.Signals(number).name]
        self.notice(f"{self.by}: stopping after this step; once more to stop at once, unsaved")


def write_at_once(line: str) -> None:
    """A line on stderr, past all buffers: what a handler of signals may do."""
    with suppress(OSError):  # stderr itself may be closed, or in the middle of a write
        os.write(2, f"\n{line}\n".encode())
