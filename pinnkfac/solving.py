"""From a configuration to a result: build the parts, run the loop, write the run folder."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Generator, nn

from pinnkfac.configuration import build, compose
from pinnkfac.errors import UserError, suggest
from pinnkfac.linearise import System
from pinnkfac.loading import PdeFile, find
from pinnkfac.loop import PointSource, Progress, Stop, run
from pinnkfac.memory import keep_freed_memory
from pinnkfac.nets import FourierFeatures, InputScaling, Mlp, PeriodicEmbedding
from pinnkfac.problem import Problem
from pinnkfac.residual import check_finite
from pinnkfac.run_folder import RunFolder, parameters_sha256
from pinnkfac.solution import ErrorMeter, Errors, Solution
from pinnkfac.step.base import Step


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
    pde: str | Problem | Callable[..., Problem], *overrides: str, folder: str | Path | None = None
) -> Result:
    """Solve a problem from Python, with the same overrides as the command.

        result = solve("poisson2d", "stop.seconds=20", "net.widths=[32,32]")

    ``pde`` is a bundled name, a file, a function that returns a Problem, or a Problem. Files are
    written only where ``folder`` is given. Raises UserError for every mistake of the user's.
    """
    if isinstance(pde, Problem):
        problem = pde
        name, arguments = "problem", {}
        make: Callable[[dict[str, Any]], Problem] = lambda _: problem  # noqa: E731
    else:
        found = find(pde) if isinstance(pde, str) else PdeFile(Path("."), pde.__name__, pde)
        name, arguments, make = found.name, found.defaults, found.problem
    config = compose(name, arguments, list(overrides))
    chosen = make(OmegaConf.to_container(config.pde))  # type: ignore[arg-type]
    return solve_configured(config, chosen, name, RunFolder(folder) if folder else None)


def solve_configured(
    config: DictConfig, problem: Problem, name: str, folder: RunFolder | None
) -> Result:
    """Run a composed configuration on a problem."""
    dtype, device = _dtype(config.dtype), _device(config.device)
    workers = _workers(config.threads, device)
    keep_freed_memory()
    net = make_net(problem, config.net, int(config.seed)).to(device=device, dtype=dtype)
    system = System(
        problem,
        net,
        published_rows=config.published_rows,
        memory=config.memory * 2**30,
        workers=workers,
    )
    generators = _generators(int(config.seed))
    source = PointSource(system, build(config.points), generators["points"])
    step: Step = build(config.step)
    stepper = step.start(system, build(config.search), build(config.damping), generators["step"])
    first = source.at(0)
    for term, points, residual in zip(system.terms, first, system.residuals(first), strict=True):
        names = problem.coordinates.names
        check_finite(term.residual.term.name, residual, points.points.coordinates, names)
    meter = ErrorMeter(problem, int(config.run.error_points))
    if folder is not None:
        folder.write_text("config.yaml", OmegaConf.to_yaml(config, resolve=True))
    watcher = Watcher(system, meter, folder, quiet=config.run.quiet or folder is None)
    watcher.headline(name, config, source)
    stop, balance = _stop(config.stop), build(config.balance)
    progress, reason = run(system, stepper, source, stop, balance, watcher)
    state = {
        "net": net.state_dict(),
        "coefficients": system.coefficients,
        "scales": system.scales,
        "stepper": stepper.state_dict(),
        "points": source.state_dict(),
        "generators": {k: g.get_state() for k, g in generators.items()},
        "progress": {k: v for k, v in vars(progress).items() if k != "report"},
    }
    return _finish(config, name, watcher, progress, reason, state)


def _stop(config: DictConfig) -> Stop:
    return Stop(**OmegaConf.to_container(config))  # type: ignore[arg-type]


def _generators(seed: int) -> dict[str, Generator]:
    """Independent streams, so that a change to one part does not move the others."""
    return {
        name: Generator().manual_seed(1_000_003 * seed + number)
        for number, name in enumerate(("points", "step"))
    }


def make_net(problem: Problem, config: DictConfig, seed: int) -> nn.Module:
    """The configured net with weights drawn from ``seed``, in float64 on the CPU.

    Raises UserError for widths that are not positive whole numbers or an unknown activation.
    """
    # nn.Linear draws from torch's global generator: seed it here, and leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mlp(
            len(problem.coordinates.names),
            len(problem.fields),
            list(config.widths),
            config.activation,
            embedding=_embedding(problem, config),
            residual=config.residual,
        )


def _embedding(problem: Problem, config: DictConfig) -> list[nn.Module]:
    """Maps in front of the net: scaling to [−1, 1], periodic coordinates, Fourier features."""
    names, domain = problem.coordinates.names, problem.domain
    for name in config.periodic:
        if name not in names:
            raise UserError(f"net.periodic: unknown coordinate '{name}'. {suggest(name, names)}")
    result: list[nn.Module] = []
    features = len(names)
    lengths = [b - a for a, b in zip(domain.low, domain.high, strict=True)]
    if config.input_scaling:
        result.append(InputScaling(domain.low, domain.high))
        lengths = [2.0] * len(names)
    if config.periodic:
        periods = [
            length if n in config.periodic else None
            for n, length in zip(names, lengths, strict=True)
        ]
        periodic = PeriodicEmbedding(periods, int(config.harmonics))
        features = periodic.features
        result.append(periodic)
    if config.fourier_features:
        number, scale = int(config.fourier_features), float(config.fourier_scale)
        result.append(FourierFeatures(features, number, scale))
    return result


def _dtype(name: str) -> torch.dtype:
    known = {"float64": torch.float64, "float32": torch.float32}
    if name not in known:
        raise UserError(f"dtype={name}: choose float64 (accurate) or float32")
    return known[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0]
        raise UserError(
            f"device={name} cannot be used ({line}): choose cpu, or cuda on a machine with a "
            "CUDA build of torch"
        ) from error
    return device


def _workers(threads: int | None, device: torch.device) -> int:
    """Threads for chunks of points; torch itself then works on one thread in each of them."""
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads}: at least 1, or null for all")
    if device.type != "cpu":
        return 1
    torch.set_num_threads(1)
    return threads or available_cores()


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1


class Watcher:
    """Records and shows how a run goes; called by the loop after every step.

    A record is written at steps 1, 2, 4, 8 … and at least ``interval`` seconds after the last.
    """

    interval = 1.0

    def __init__(
        self,
        system: System,
        meter: ErrorMeter,
        folder: RunFolder | None,
        *,
        quiet: bool,
    ) -> None:
        self.system = system
        self.meter = meter
        self.folder = folder
        self.quiet = quiet
        self.solution = Solution(system.problem, system.net)
        self.history: list[dict[str, Any]] = []
        self._next = 0.0

    def headline(self, name: str, config: DictConfig, source: PointSource) -> None:
        terms = ", ".join(
            f"{t.residual.term.name} {len(p)}"
            for t, p in zip(self.system.terms, source.current, strict=True)
        )
        self.show(
            f"{name}: {self.system.parameter_number} parameters, {config.dtype} on "
            f"{config.device}; points: {terms}"
        )

    def show(self, line: str) -> None:
        if not self.quiet:
            print(line, flush=True)

    def __call__(self, progress: Progress) -> float | None:
        power_of_two = progress.step & (progress.step - 1) == 0
        if not power_of_two and progress.seconds < self._next:
            return None
        self._next = progress.seconds + self.interval
        return self.record(progress)

    def record(self, progress: Progress) -> float | None:
        errors = self.meter.measure(self.solution)
        report = progress.report
        assert report is not None
        names = [t.residual.term.name for t in self.system.terms]
        record = {
            "step": progress.step,
            "seconds": round(progress.seconds, 4),
            "loss": progress.loss,
            "losses": dict(zip(names, report.losses, strict=True)),
            "relative_l2_error": errors.relative_l2 if errors else None,
            "rms_error": errors.rms if errors else None,
            "length": report.length,
            "damping": report.damping,
            "ratio": report.ratio,
            "trials": report.trials,
        }
        if len(self.system.coefficients):
            record["coefficients"] = self.coefficients()
        self.history.append(record)
        if self.folder is not None:
            self.folder.append_metrics(record)
        parts = [f"step {progress.step:6d}", f"{progress.seconds:7.1f} s"]
        parts.append(f"loss {progress.loss:.3e}")
        if errors:
            parts.append(f"relative L2 error {errors.relative_l2:.3e}")
        if not math.isnan(report.damping):
            parts.append(f"damping {report.damping:.1e}")
        parts.append(f"length {report.length:.2g}")
        parts += [f"{k} {v:.6g}" for k, v in self.coefficients().items()]
        self.show("  ".join(parts))
        return errors.relative_l2 if errors else None

    def coefficients(self) -> dict[str, float]:
        parameters = self.system.problem.parameters
        return {p.name: float(v) for p, v in zip(parameters, self.system.coefficients, strict=True)}


def _finish(
    config: DictConfig,
    name: str,
    watcher: Watcher,
    progress: Progress,
    reason: str,
    state: dict[str, Any],
) -> Result:
    system, folder = watcher.system, watcher.folder
    errors = watcher.meter.measure(watcher.solution)
    values = system.get_parameters()
    summary: dict[str, Any] = {
        "pde": name,
        "step": _choice(config, "step"),
        "relative_l2_error": errors.relative_l2 if errors else None,
        "rms_error": errors.rms if errors else None,
        "relative_l2_error_by_field": errors.relative_l2_by_field if errors else None,
        "rms_error_by_field": errors.rms_by_field if errors else None,
        "loss": progress.loss,
        "seconds": progress.seconds,
        "steps": progress.step,
        "parameters": system.parameter_number,
        "parameters_sha256": parameters_sha256(values),
        "coefficients": watcher.coefficients(),
        "stop_reason": reason,
        "seed": config.seed,
        "device": str(system.device),
        "dtype": str(system.dtype).removeprefix("torch."),
        "threads": system.workers.number,
        "versions": _versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }
    if folder is not None:
        folder.write_checkpoint(state)
        if config.run.plot:
            from pinnkfac.plots import plot_history, plot_solution

            plot_solution(watcher.solution, folder.path / "solution.png")
            plot_history(watcher.history, folder.path / "history.png", name)
        folder.write_summary(summary)
    error = f", relative L2 error {errors.relative_l2:.3e}" if errors else ""
    watcher.show(f"stopped: {reason}")
    where = f"; written to {folder.path}" if folder else ""
    watcher.show(f"{name}: loss {progress.loss:.3e}{error}{where}")
    return Result(
        system.problem,
        watcher.solution,
        errors,
        watcher.coefficients(),
        reason,
        summary,
        watcher.history,
        folder.path if folder else None,
    )


def _choice(config: DictConfig, group: str) -> str:
    return str(OmegaConf.select(config, f"choices.{group}", default="custom"))


def _versions() -> dict[str, str]:
    from pinnkfac import __version__

    return {
        "pinnkfac": __version__,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }
