"""One run on its way: its parts, the loop, and what is written and said at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pinnkfac.linearisation.linearisation import TermLosses
from pinnkfac.nets import Mlp
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.run.assembly import Assembly, one_thread_in_torch, run_settings
from pinnkfac.run.checkpoints import Checkpoints
from pinnkfac.run.concluding import concluded, headline
from pinnkfac.run.display import Display
from pinnkfac.run.interruption import Interruption
from pinnkfac.run.loop import run, settled
from pinnkfac.run.progress import Ending, Progress
from pinnkfac.run.summary import summarise
from pinnkfac.run.task import Result, Task, identity
from pinnkfac.run.watching import Before, Watcher
from pinnkfac.solution import Solution
from pinnkfac.store.run_folder import RunFolder, Unwritable


@dataclass
class Run:
    """One task on its way to a result: its parts, where it is written (None: nowhere) and shown,
    and how far it has come; ``before`` is what windows before this one did, ``beside`` what its
    checkpoints hold of them."""

    task: Task
    parts: Assembly
    display: Display
    folder: RunFolder | None = None
    progress: Progress = field(default_factory=Progress)
    history: list[dict[str, Any]] = field(default_factory=list)
    before: Before = field(default_factory=Before)
    beside: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        parts, settings = self.parts, run_settings(self.task.config)
        meter = ErrorMeter(self.task.problem, settings.error_points)
        self.watcher = Watcher(
            parts.system,
            parts.source,
            meter,
            parts.stop,
            self.folder,
            self.display,
            self.progress,
            self.history,
            self.before,
        )
        self.keep: Checkpoints | None = None
        if self.folder is not None:
            belongs, every = {**identity(self.task), **self.beside}, settings.checkpoint
            self.keep = Checkpoints(self.folder, parts, belongs, every, self.display.warn)

    def go(self) -> Result:
        """Take steps until there is a reason to stop, and write what came out.

        The first signal to stop ends the run after its step; all that is written of it is written
        before the signals mean again what they did.
        """
        headline(self.display, self.task, self.parts)

        def trained(interruption: Interruption) -> tuple[Result, Ending]:
            ending, losses = self.trained(interruption)
            return self._written(ending, losses), ending

        return concluded(self.display, self.task, self.folder, trained)

    def trained(self, interruption: Interruption) -> tuple[Ending, TermLosses]:
        """Why steps ended, and the losses after the last one; records carry those before a step."""
        parts = self.parts
        with one_thread_in_torch(parts.system.device):
            self.progress, ending = run(
                parts.system,
                parts.stepper,
                parts.source,
                parts.stop,
                parts.balance,
                self._watch,
                self.progress,
                lambda: interruption.by,
            )
            ending, losses = settled(
                parts.system, parts.stepper, parts.source, self.progress, ending
            )
            return self._at_best(ending, losses)

    def _at_best(self, ending: Ending, losses: TermLosses) -> tuple[Ending, TermLosses]:
        """Back to the features that the net began with, where they leave less than it does: steps
        see a loss at some points, which is not all that counts near rounding."""
        parts, net = self.parts, self.parts.system.net
        if not isinstance(net, Mlp) or net.features is None:
            return ending, losses
        if max(self.watcher.residuals.measure().values()) <= net.rest:
            return ending, losses
        net.be_features()
        reason = f"{ending.reason}; steps bettered nothing, the net is that of the start"
        return replace(ending, reason=reason), parts.system.losses(parts.source.current)

    def _watch(self, progress: Progress) -> float | None:
        error = self.watcher(progress)
        if self.keep is not None:
            self.keep(progress)
        return error

    def saved(self, losses: TermLosses) -> Unwritable | None:
        """Write the last checkpoints; returns what kept them from being written."""
        try:
            if self.keep is not None:
                self.keep.write(self.progress)
                self.keep.finish(self.progress, losses)
        except Unwritable as error:
            return error
        return None

    def told(self, ending: Ending, losses: TermLosses) -> dict[str, Any]:
        """What there is to say of the state at the end: residuals, warnings, losses,
        coefficients."""
        self.watcher.finish(self.progress, ending)
        coefficients = self.watcher.coefficients()
        names = [term.name for term in self.task.problem.terms]
        told = self.watcher.told(coefficients)
        return {
            **told,
            "warnings": [*self.progress.doubts, *told["warnings"]],
            "loss": self.parts.system.weighted(losses.written),
            "losses": dict(zip(names, losses.written, strict=True)),
            "coefficients": coefficients,
        }

    def _written(self, ending: Ending, losses: TermLosses) -> Result:
        """The result, after its files were written: the checkpoint first, as nothing can replace
        it."""
        task, system = self.task, self.parts.system
        refused = self.saved(losses)
        told = self.told(ending, losses)
        coefficients: dict[str, float] = told["coefficients"]
        solution = Solution(task.problem.signature, system.net, coefficients)
        errors = self.watcher.meter.measure(solution)
        summary = summarise(task, system, self.progress, ending, errors) | told
        try:
            if self.folder is not None:
                self.folder.write_summary(summary)
        except Unwritable as error:
            refused = error
        return Result(
            task.problem,
            solution,
            errors,
            coefficients,
            ending.status,
            ending.reason,
            summary,
            self.watcher.history,
            self.folder.path if self.folder else None,
            refused,
        )
