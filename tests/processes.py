"""The command as a process of its own, for tests that send it signals."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 180.0
"""Seconds after which a process hangs: a loaded machine takes many times as long as a free one."""


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pinnkfac", *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Until something stands in a file that the process writes."""
    end = time.monotonic() + PATIENCE
    while not (path.exists() and path.stat().st_size):
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.01)
