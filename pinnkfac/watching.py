"""Records and shows how a run goes."""

from __future__ import annotations

import math
from typing import Any

from omegaconf import DictConfig

from pinnkfac.linearise import System
from pinnkfac.loop import PointSource, Progress
from pinnkfac.run_folder import RunFolder
from pinnkfac.solution import ErrorMeter, Solution


class Watcher:
    """Called by the loop after every step.

    A record is made at steps 1, 2, 4, 8 … and at least ``interval`` seconds after the last. Its
    losses are those that the step started from, its errors those that it reached.
    """

    interval = 1.0

    def __init__(
        self,
        source: PointSource,
        meter: ErrorMeter,
        folder: RunFolder | None,
        *,
        quiet: bool,
    ) -> None:
        self.source = source
        self.system: System = source.system
        self.meter = meter
        self.folder = folder
        self.quiet = quiet
        self.solution = Solution(self.system.problem, self.system.net)
        self.history: list[dict[str, Any]] = []
        self._next = 0.0

    def headline(self, name: str, config: DictConfig) -> None:
        terms = ", ".join(
            f"{t.residual.term.name} {len(p)}"
            for t, p in zip(self.system.terms, self.source.current, strict=True)
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
            "trained_loss": report.trained_loss,
            "points_exchanged": self.source.exchanged,
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
