"""The process of one job: ``python -m pinnkfac.bench.job FOLDER PDE OVERRIDE...``

With a process of its own, its peak memory is its own and its death costs no other. Beside the files
of a run it writes measured.json: peak memory, and what measuring errors costs.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pinnkfac.bench.folder import MEASURED
from pinnkfac.common.memory import keep_freed_memory
from pinnkfac.common.messages import message_of
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.run.assembly import one_thread_in_torch
from pinnkfac.run.solving import solve
from pinnkfac.run.summary import failure
from pinnkfac.store.run_folder import RunFolder
from pinnkfac.store.stored_run import StoredRun


def main(arguments: Sequence[str]) -> int:
    folder, pde, *overrides = arguments
    keep_freed_memory()
    try:
        result = solve(pde, *overrides, folder=folder)
    except Exception as error:
        message = message_of(error)
        print(f"error: {message}", file=sys.stderr)
        with RunFolder(folder) as run:
            run.write_summary(failure(pde, message, overrides))
        return 1
    measured: dict[str, Any] = {"peak_memory": peak_memory()}
    meter = ErrorMeter(result.problem, StoredRun.open(folder).config.run.error_points)
    with one_thread_in_torch(torch.device(result.summary["device"])):
        begin = time.perf_counter()
        meter.measure(result.solution)
        measured["seconds_a_measurement"] = time.perf_counter() - begin
    measured["measurements"] = len(result.history)
    with RunFolder(folder) as run:
        run.write_json(MEASURED, measured)
    return 0


def peak_memory() -> int | None:
    """Bytes of memory that this process has held at most; None where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
