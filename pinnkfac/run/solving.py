"""From a configuration to a result: build the parts, run the loop, write the run folder."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from pinnkfac.common.errors import UserError, counted
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import PdeFile, find
from pinnkfac.linearisation.linearisation import TermLosses
from pinnkfac.problem import Problem
from pinnkfac.residual import exact_solution
from pinnkfac.run.accuracy import ErrorMeter, Errors
from pinnkfac.run.assembly import Assembly, assemble, one_thread_in_torch, run_settings
from pinnkfac.run.checkpoints import Checkpoints
from pinnkfac.run.display import Display, make_display
from pinnkfac.run.interruption import Interruption
from pinnkfac.run.loop import run, settled
from pinnkfac.run.progress import Ending, Progress
from pinnkfac.run.start import find_start
from pinnkfac.run.summary import failure, summarise
from pinnkfac.run.watching import Watcher
from pinnkfac.solution import Solution
from pinnkfac.store.run_folder import RunFolder, Unwritable

Given = str | Problem | Callable[..., Problem]


@dataclass
class Result:
    """What a solve returns.

    ``solution`` evaluates the fields and their derivatives, ``errors`` are those against the exact
    solution (None where none is known), ``coefficients`` the trained Parameters by name,
    ``status`` is 'finished', 'interrupted' or 'diverged', ``summary`` the content of summary.json,
    ``history`` the records of metrics.jsonl, ``folder`` where they lie (None where nothing was
    written).
    """

    problem: Problem
    solution: Solution
    errors: Errors | None
    coefficients: dict[str, float]
    status: str
    stop_reason: str
    summary: dict[str, Any]
    history: list[dict[str, Any]] = field(repr=False)
    folder: Path | None
    refused: Unwritable | None = field(default=None, repr=False)
    """What kept the last files from being written."""


@dataclass(frozen=True)
class Task:
    """What is solved: a configuration, a problem and where it is from, and what the user set."""

    config: DictConfig
    problem: Problem
    found: PdeFile
    overrides: tuple[str, ...]
    net: nn.Module | None = None

    @property
    def name(self) -> str:
        return self.found.name


def solve(
    pde: Given,
    *overrides: str,
    net: nn.Module | None = None,
    folder: str | Path | None = None,
) -> Result:
    """Solve a problem from Python, with the same overrides as the command.

        result = solve("poisson2d", "stop.seconds=20", "net.widths=[32,32]")

    ``pde`` is a bundled name, a file, a function that returns a Problem, or a Problem. ``net`` maps
    coordinates [batch, coord] to fields [batch, field] and takes the place of the configured one;
    it is trained in place. Files are written only where ``folder`` (or ``run.dir=``) is given.
    Ctrl-C ends the run after its step, and the result is that of then.

    Raises UserError for every mistake of the user's.
    """
    check_given(overrides, net, folder)
    found = given_pde(pde)
    config = compose(found.name, found.defaults, overrides)
    problem = found.problem(OmegaConf.to_container(config.pde))  # type: ignore[arg-type]
    task = Task(config, problem, found, overrides, net)
    return solve_task(task, folder or run_settings(config).dir)


def solve_task(task: Task, folder: str | Path | None, display: Display | None = None) -> Result:
    """Solve from the beginning; raises UserError."""
    settings = run_settings(task.config)
    display = display or make_display(quiet=settings.quiet or folder is None)
    net, progress = task.net, Progress()
    start = None if net is not None else find_start(task.config, task.problem)
    if start is not None:
        display.say(start.note)
        task, net = replace(task, config=start.config), start.net
        progress = Progress(seconds=start.seconds, notes=[start.note], solved=start.solved)
    parts = assemble(task.config, task.problem, net)
    if folder is None:
        return Run(task, parts, display, progress=progress).go()
    with RunFolder.new(folder) as own:
        begin(own, task)
        try:
            return Run(task, parts, display, own, progress).go()
        except Exception as error:
            if not own.has("summary.json"):
                own.write_summary(failure(task.name, str(error), task.overrides))
            raise


def check_given(overrides: Sequence[Any], net: Any, folder: Any) -> None:
    """Raise UserError where an argument from Python is of another type than it has to be."""
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(
                f"the override {override!r} is {type(override).__name__}: give each as a string of "
                'its own, KEY=VALUE, such as "stop.steps=100"'
            )
    if net is not None and not isinstance(net, nn.Module):
        raise UserError(
            f"net={net!r} is {_kind(net)}: give a torch.nn.Module that maps coordinates "
            "[batch, coord] to fields [batch, field]; the configured net is set by overrides, such "
            'as "net.widths=[32,32]"'
        )
    if folder is not None and not isinstance(folder, str | Path):
        raise UserError(f"folder={folder!r} is {_kind(folder)}: give the path of a folder")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def given_pde(pde: Given) -> PdeFile:
    if isinstance(pde, Problem):
        problem = pde
        return PdeFile(None, "problem", lambda: problem)
    return find(pde) if isinstance(pde, str) else PdeFile.of(pde)


def identity(task: Task) -> dict[str, Any]:
    """What a checkpoint belongs to: the configuration and the problem."""
    return {
        "config": OmegaConf.to_container(task.config, resolve=True),
        "name": task.name,
        "sha256": task.found.sha256,
    }


def begin(folder: RunFolder, task: Task) -> None:
    """Write what a run begins with."""
    terms = [
        {"name": t.name, "where": str(t.where), "weight": t.weight} for t in task.problem.terms
    ]
    net = None if task.net is None else type(task.net).__name__
    folder.write_config(task.config)
    folder.write_problem(  # the file that makes a folder that of a run
        task.name,
        task.found.path,
        task.problem.signature,
        terms,
        sha256=task.found.sha256,
        net=net,
        overrides=task.overrides,
    )


@dataclass
class Run:
    """One task on its way to a result: its parts, where it is written (None: nowhere) and shown,
    and how far it has come."""

    task: Task
    parts: Assembly
    display: Display
    folder: RunFolder | None = None
    progress: Progress = field(default_factory=Progress)
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts, settings = self.parts, run_settings(self.task.config)
        meter = ErrorMeter(self.task.problem, settings.error_points)
        self.plot = settings.plot
        self.watcher = Watcher(
            parts.system,
            parts.source,
            meter,
            parts.stop,
            self.folder,
            self.display,
            self.progress,
            self.history,
        )
        self.keep: Checkpoints | None = None
        if self.folder is not None:
            belongs, every = identity(self.task), settings.checkpoint
            self.keep = Checkpoints(self.folder, parts, belongs, every, self.display.warn)

    def go(self) -> Result:
        """Take steps until there is a reason to stop, and write what came out.

        The first signal to stop ends the run after its step; all that is written of it is written
        before the signals mean again what they did.
        """
        self._headline()
        with Interruption(self.display.notice) as interruption:
            try:
                ending, losses = self._trained(interruption)
                result = self._written(ending, losses)
            except (Exception, KeyboardInterrupt):
                if self.folder is not None and self.folder.has("checkpoint.pt"):
                    where = _shown(self.folder.path)
                    self.display.warn(
                        f"the last checkpoint is kept: resume {where} goes on from it"
                    )
                raise
            finally:
                self.display.close()
        if self.folder is not None and self.plot and result.refused is None:
            self._draw(result.solution, self.folder)
        self._conclude(result, ending)
        if result.refused is not None:
            raise result.refused
        return result

    def _trained(self, interruption: Interruption) -> tuple[Ending, TermLosses]:
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
            return settled(parts.system, parts.stepper, parts.source, self.progress, ending)

    def _watch(self, progress: Progress) -> float | None:
        error = self.watcher(progress)
        if self.keep is not None:
            self.keep(progress)
        return error

    def _written(self, ending: Ending, losses: TermLosses) -> Result:
        """The result, after its files were written: the checkpoint first, as nothing can replace
        it."""
        task, system, progress = self.task, self.parts.system, self.progress
        names = [term.name for term in task.problem.terms]
        loss = system.weighted(losses.written)
        refused: Unwritable | None = None
        try:
            if self.keep is not None:
                self.keep.write(progress)
                self.keep.finish(progress, losses)
        except Unwritable as error:
            refused = error
        self.watcher.finish(progress, ending)
        coefficients = self.watcher.coefficients()
        solution = Solution(task.problem.signature, system.net, coefficients)
        errors = self.watcher.meter.measure(solution)
        summary = summarise(task.config, task.name, system, progress, ending, errors)
        summary |= {
            "overrides": list(task.overrides),
            **({"net": type(task.net).__name__} if task.net is not None else {}),
            **self.watcher.told(coefficients),
            "loss": loss,
            "losses": dict(zip(names, losses.written, strict=True)),
            "coefficients": coefficients,
        }
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

    def _headline(self) -> None:
        config, system = self.task.config, self.parts.system
        points = ", ".join(
            f"{name} {number}" + (f" of {most}" if most > number else "")
            for name, (number, most) in self.parts.source.asked().items()
        )
        where = f"{config.device}"
        if system.device.type == "cpu":
            where += f" with {counted(system.workers.number, 'thread')}"
        step = OmegaConf.select(config, "choices.step")
        self.display.say(
            f"{self.task.name}: {system.layout.number} parameters, step {step}, {config.dtype} on "
            f"{where}; points: {points}"
        )

    def _conclude(self, result: Result, ending: Ending) -> None:
        task, say = self.task, self.display.say
        error = f", relative L2 error {result.errors.relative_l2:.3e}" if result.errors else ""
        say(f"stopped: {ending.reason}")
        if ending.advice:
            say(f"to try next: {ending.advice}")
        residuals = result.summary["relative_residuals"]
        worst = max(residuals, key=residuals.__getitem__)
        say(f"{task.name}: relative residual {residuals[worst]:.1e} ('{worst}'){error}")
        for warning in result.summary["warnings"]:
            self.display.warn(warning)
        if result.folder is not None:
            where = _shown(result.folder)
            how = f"python -m pinnkfac resume {shlex.quote(where)}"
            if task.found.path is None or task.net is not None:  # in no file
                how = f"pinnkfac.resume({where!r}, pde=..., net=...) from Python"
            say(f"written to {where}; go on with: {how}")

    def _draw(self, solution: Solution, folder: RunFolder) -> None:
        """Pictures of the run; a failure here costs the pictures only."""
        from pinnkfac.plots import draw_history, draw_solution, save

        problem = self.task.problem
        exact = None if problem.solution is None else lambda x: exact_solution(problem, x)
        try:
            save(draw_solution(solution, exact), folder.path / "solution.png")
            save(draw_history(self.watcher.history, self.task.name), folder.path / "history.png")
        except (ValueError, OSError, RuntimeError, UserError) as error:
            self.display.warn(f"a picture could not be made: {error}")


def _shown(path: Path) -> str:
    """A path as the user would type it here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
