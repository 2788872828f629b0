"""From a configuration to a result: build the parts, run the loop, write the run folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from omegaconf import OmegaConf
from torch import nn

from pinnkfac.config.compose import compose
from pinnkfac.run.assembly import assemble, run_settings
from pinnkfac.run.display import Display, make_display
from pinnkfac.run.progress import Progress
from pinnkfac.run.running import Run
from pinnkfac.run.start import find_start
from pinnkfac.run.summary import failure
from pinnkfac.run.task import Given, Result, Task, begin, check_given, given_pde
from pinnkfac.run.windows import WindowedRun
from pinnkfac.store.run_folder import RunFolder


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
    if task.problem.windows:
        windowed = WindowedRun(task, display)
        first = windowed.assembled(0)

        def go(own: RunFolder | None) -> Result:
            windowed.folder = own
            return windowed.go(first)

        return _written(task, folder, go)
    if folder is not None:
        RunFolder.check_new(folder)
    parts, progress = assemble(task.config, task.problem, task.net), Progress()
    # mistakes are told by now: a start may take long
    start = None if task.net is not None else find_start(task.config, parts.system)
    if start is not None:
        display.say(start.note)
        task = replace(task, config=start.config)
        progress = Progress(
            seconds=start.seconds, notes=[start.note], doubts=start.doubts, solved=start.solved
        )
        parts = assemble(task.config, task.problem, start.net)
    return _written(task, folder, lambda own: Run(task, parts, display, own, progress).go())


def _written(
    task: Task, folder: str | Path | None, go: Callable[[RunFolder | None], Result]
) -> Result:
    """What a run in a new folder comes to, or in none."""
    if folder is None:
        return go(None)
    with RunFolder.new(folder) as own:
        begin(own, task)
        try:
            return go(own)
        except Exception as error:
            if not own.has("summary.json"):
                own.write_summary(failure(task.name, str(error), task.overrides))
            raise
