"""What a run says when it begins and when it has ended, and its pictures."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path

from omegaconf import OmegaConf

from pinnkfac.common.errors import UserError, counted
from pinnkfac.residual import exact_solution
from pinnkfac.run.assembly import Assembly, run_settings
from pinnkfac.run.display import Display
from pinnkfac.run.interruption import Interruption
from pinnkfac.run.progress import Ending
from pinnkfac.run.task import Result, Task
from pinnkfac.store.run_folder import RunFolder


def headline(display: Display, task: Task, parts: Assembly, more: str = "") -> None:
    config, system = task.config, parts.system
    points = ", ".join(
        f"{name} {number}" + (f" of {most}" if most > number else "")
        for name, (number, most) in parts.source.asked().items()
    )
    where = f"{config.device}"
    if system.device.type == "cpu":
        where += f" with {counted(system.workers.number, 'thread')}"
    step = OmegaConf.select(config, "choices.step")
    display.say(
        f"{task.name}: {more}{system.layout.number} parameters, step {step}, {config.dtype} on "
        f"{where}; points: {points}"
    )


def concluded(
    display: Display,
    task: Task,
    folder: RunFolder | None,
    trained: Callable[[Interruption], tuple[Result, Ending]],
) -> Result:
    """The result of what ``trained`` does until it is done or interrupted, drawn and told.

    It writes the result, too, so that all is written before signals mean again what they did.
    """
    with Interruption(display.notice) as interruption:
        try:
            result, ending = trained(interruption)
        except (Exception, KeyboardInterrupt):
            if folder is not None and folder.has("checkpoint.pt"):
                where = shown(folder.path)
                display.warn(f"the last checkpoint is kept: resume {where} goes on from it")
            raise
        finally:
            display.close()
    if folder is not None and run_settings(task.config).plot and result.refused is None:
        _draw(display, task, result, folder.path)
    _conclude(display, task, result, ending)
    if result.refused is not None:
        raise result.refused
    return result


def _conclude(display: Display, task: Task, result: Result, ending: Ending) -> None:
    say = display.say
    error = f", relative L2 error {result.errors.relative_l2:.3e}" if result.errors else ""
    say(f"stopped: {ending.reason}")
    if ending.advice:
        say(f"to try next: {ending.advice}")
    residuals = result.summary["relative_residuals"]
    worst = max(residuals, key=residuals.__getitem__)
    say(f"{task.name}: relative residual {residuals[worst]:.1e} ('{worst}'){error}")
    for warning in result.summary["warnings"]:
        display.warn(warning)
    if result.folder is not None:
        where = shown(result.folder)
        how = f"python -m pinnkfac resume {shlex.quote(where)}"
        if task.found.path is None or task.net is not None:  # in no file
            how = f"pinnkfac.resume({where!r}, pde=..., net=...) from Python"
        say(f"written to {where}" + ("" if ending.final else f"; go on with: {how}"))


def _draw(display: Display, task: Task, result: Result, folder: Path) -> None:
    """Pictures of the run; a failure here costs the pictures only."""
    from pinnkfac.plots import draw_history, draw_solution, save

    problem = task.problem
    exact = None if problem.solution is None else lambda x: exact_solution(problem, x)
    try:
        save(draw_solution(result.solution, exact), folder / "solution.png")
        save(draw_history(result.history, task.name), folder / "history.png")
    except (ValueError, OSError, RuntimeError, UserError) as error:
        display.warn(f"a picture could not be made: {error}")


def shown(path: Path) -> str:
    """A path as the user would type it here."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
