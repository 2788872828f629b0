"""Ctrl-C and SIGTERM: the first one ends a run after its step, the second one at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

EXIT_CODES = {"Ctrl-C": 130, "SIGTERM": 143}
"""By convention of the shell, 128 and the number of the signal."""


class Interruption:
    """Within ``with Interruption() as interruption``, ``interruption.by`` names the signal that
    asked for an end, or is ''.

    Only the main thread of a process gets signals; in another one nothing changes.
    """

    def __init__(self) -> None:
        self.by = ""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.by:
            raise KeyboardInterrupt
        self.by = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        line = f"\n{self.by}: stopping after this step; once more to stop at once, unsaved\n"
        sys.stderr.write(line)
