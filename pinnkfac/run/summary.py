"""What summary.json says about a run that ended: errors, timings, versions, machine, reason."""

from __future__ import annotations

import hashlib
import platform
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy
import torch
from omegaconf import OmegaConf
from torch import Tensor

from pinnkfac.linearisation.system import System
from pinnkfac.run.accuracy import Errors
from pinnkfac.run.assembly import available_cores
from pinnkfac.run.progress import Ending, Progress
from pinnkfac.run.task import Task
from pinnkfac.version import __version__

ERRORS = ("relative_l2", "rms", "maximum")


def summarise(
    task: Task, system: System, progress: Progress, ending: Ending, errors: Errors | None
) -> dict[str, Any]:
    """The summary of a run, but for what its last evaluation yields (losses, coefficients)."""
    config = task.config
    return {
        "pde": task.name,
        "status": ending.status,
        "stop_reason": ending.reason,
        "advice": ending.advice or None,
        **{f"{name}_error": getattr(errors, name, None) for name in ERRORS},
        **{f"{name}_error_by_field": getattr(errors, f"{name}_by_field", None) for name in ERRORS},
        "steps": progress.step,
        "seconds": progress.seconds,
        "seconds_a_step": progress.seconds / max(1, progress.step),
        "best": {"step": progress.best.step, "loss": progress.best.written},
        "recovered": progress.recovered,
        "notes": progress.notes,
        "resumed": progress.resumed,
        "parameters": system.layout.number,
        "parameters_sha256": parameters_sha256(system.get_parameters()),
        **{
            group: OmegaConf.select(config, f"choices.{group}")
            for group in ("step", "search", "damping", "net", "points", "balance")
        },
        "seed": config.seed,
        "device": str(system.device),
        "dtype": str(system.dtype).removeprefix("torch."),
        "threads": system.workers.number,
        "versions": versions(),
        "machine": machine(system.device),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "overrides": list(task.overrides),
        **({"net": type(task.net).__name__} if task.net is not None else {}),
    }


def failure(name: str, message: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The summary of a job that ended with a mistake before it could run."""
    return {
        "pde": name,
        "status": "failed",
        "stop_reason": message,
        "overrides": list(overrides),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def parameters_sha256(values: list[Tensor]) -> str:
    """SHA-256 over the bytes of all trained numbers, in order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    return {
        "pinnkfac": __version__,
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "python": sys.version.split()[0],
    }


def machine(device: torch.device) -> dict[str, Any]:
    """What timings depend on; nothing that names the machine or its owner."""
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {
        "system": f"{platform.system()} {platform.release()}",
        "architecture": platform.machine(),
        "processor": _processor(),
        "cores": available_cores(),
        **gpu,
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
