"""From a configuration to a result: build the parts, run the loop, write the run folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from pinnkfac.assembly import assemble, one_thread_in_torch
from pinnkfac.configuration import compose
from pinnkfac.linearise import System
from pinnkfac.loading import PdeFile, find
from pinnkfac.loop import Progress, run
from pinnkfac.problem import Problem
from pinnkfac.run_folder import RunFolder, parameters_sha256
from pinnkfac.solution import ErrorMeter, Errors, Solution
from pinnkfac.watching import Watcher


@dataclass
class Result:
    """What a solve returns.

    ``solution(points)`` evaluates the fields, ``errors`` are those against the exact solution
    (None where none is known), ``coefficients`` the trained Parameters by name, ``summary`` the
    content of summary.json, ``history`` the records of metrics.jsonl, ``folder`` where they lie
    (None where nothing was written).
    """

    problem: Problem
    solution: Solution
    errors: Errors | None
    coefficients: dict[str, float]
    stop_reason: str
    summary: dict[str, Any]
    history: list[dict[str, Any]] = field(repr=False)
    folder: Path | None


def solve(
    pde: str | Problem | Callable[..., Problem],
    *overrides: str,
    net: nn.Module | None = None,
    folder: str | Path | None = None,
) -> Result:
    """Solve a problem from Python, with the same overrides as the command.

        result = solve("poisson2d", "stop.seconds=20", "net.widths=[32,32]")

    ``pde`` is a bundled name, a file, a function that returns a Problem, or a Problem. ``net`` maps
    coordinates [batch, coord] to fields [batch, field] and takes the place of the configured one;
    it is trained in place. Files are written only where ``folder`` is given.

    Raises UserError for every mistake of the user's.
    """
    if isinstance(pde, Problem):
        problem = pde
        name, arguments = "problem", {}
        make: Callable[[dict[str, Any]], Problem] = lambda _: problem  # noqa: E731
    else:
        found = find(pde) if isinstance(pde, str) else PdeFile.of(pde)
        name, arguments, make = found.name, found.defaults, found.problem
    config = compose(name, arguments, list(overrides))
    chosen = make(OmegaConf.to_container(config.pde))  # type: ignore[arg-type]
    return solve_configured(config, chosen, name, RunFolder(folder) if folder else None, net)


def solve_configured(
    config: DictConfig,
    problem: Problem,
    name: str,
    folder: RunFolder | None,
    net: nn.Module | None = None,
) -> Result:
    """Run a composed configuration on a problem."""
    parts = assemble(config, problem, net)
    if folder is not None:
        folder.write_text("config.yaml", OmegaConf.to_yaml(config, resolve=True))
    meter = ErrorMeter(problem, int(config.run.error_points))
    watcher = Watcher(parts.source, meter, folder, quiet=config.run.quiet or folder is None)
    watcher.headline(name, config)
    with one_thread_in_torch(parts.system.device):
        progress, reason = run(
            parts.system, parts.stepper, parts.source, parts.stop, parts.balance, watcher
        )
        # Records carry the losses before a step; the summary those of the final parameters.
        final = parts.system.weighted(parts.system.losses(parts.source.current))
    errors = meter.measure(watcher.solution)
    summary = _summary(config, name, parts.system, progress, reason, errors)
    summary |= {"loss": final, "coefficients": watcher.coefficients()}
    if folder is not None:
        folder.write_checkpoint(parts.state_dict(progress))
        folder.write_summary(summary)
        if config.run.plot:
            _plot(watcher, folder, name)
    error = f", relative L2 error {errors.relative_l2:.3e}" if errors else ""
    where = f"; written to {folder.path}" if folder else ""
    watcher.show(f"stopped: {reason}")
    watcher.show(f"{name}: loss {final:.3e}{error}{where}")
    return Result(
        problem,
        watcher.solution,
        errors,
        watcher.coefficients(),
        reason,
        summary,
        watcher.history,
        folder.path if folder else None,
    )


def _plot(watcher: Watcher, folder: RunFolder, name: str) -> None:
    """Pictures of the run; a failure here costs the pictures only."""
    from pinnkfac.plots import plot_history, plot_solution

    try:
        plot_solution(watcher.solution, folder.path / "solution.png")
        plot_history(watcher.history, folder.path / "history.png", name)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"warning: a picture could not be made: {error}", file=sys.stderr)


def _summary(
    config: DictConfig,
    name: str,
    system: System,
    progress: Progress,
    reason: str,
    errors: Errors | None,
) -> dict[str, Any]:
    return {
        "pde": name,
        "step": _choice(config, "step"),
        "relative_l2_error": errors.relative_l2 if errors else None,
        "rms_error": errors.rms if errors else None,
        "relative_l2_error_by_field": errors.relative_l2_by_field if errors else None,
        "rms_error_by_field": errors.rms_by_field if errors else None,
        "seconds": progress.seconds,
        "steps": progress.step,
        "parameters": system.parameter_number,
        "parameters_sha256": parameters_sha256(system.get_parameters()),
        "stop_reason": reason,
        "seed": config.seed,
        "device": str(system.device),
        "dtype": str(system.dtype).removeprefix("torch."),
        "threads": system.workers.number,
        "versions": _versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }


def _choice(config: DictConfig, group: str) -> str:
    return str(OmegaConf.select(config, f"choices.{group}", default="custom"))


def _versions() -> dict[str, str]:
    from pinnkfac import __version__

    return {
        "pinnkfac": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
