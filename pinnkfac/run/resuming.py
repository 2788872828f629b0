"""Going on with a stored run: what is carried over, and what a change makes anew."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from pinnkfac.common.errors import UserError, counted
from pinnkfac.config.options import GROUPS
from pinnkfac.config.pde_file import stored_pde
from pinnkfac.config.stored import changed, check_classes, differences
from pinnkfac.run.assembly import Assembly, Carried, assemble, run_settings
from pinnkfac.run.display import Display, make_display
from pinnkfac.run.progress import Ending, Progress, ending_of
from pinnkfac.run.running import Run
from pinnkfac.run.task import Given, Result, Task, begin, check_given, given_pde
from pinnkfac.run.windows import WindowedRun, load
from pinnkfac.store.run_folder import NODES, RunFolder
from pinnkfac.store.stored_run import StoredRun
from pinnkfac.version import __version__


def resume(
    folder: str | Path, *overrides: str, pde: Given | None = None, net: nn.Module | None = None
) -> Result:
    """Go on with the run of a folder, in the same folder.

        result = resume("outputs/heat1d/today", "stop.seconds=600")

    Without overrides the run goes on bit for bit as if it had not been stopped (on the same
    machine, with the same versions and number of threads). ``stop.seconds`` and ``stop.steps``
    count from the beginning of the run. ``pde`` and ``net`` are needed again where they were given
    from Python.

    Raises UserError for every mistake of the user's, and where nothing is left to do.
    """
    check_given(overrides, net, folder)
    StoredRun.open(folder)  # before a lock is made in what is no run
    with RunFolder(folder) as writer:
        stored = StoredRun.open(folder)
        state = stored.checkpoint() if stored.has_checkpoint() else None
        task, same = _reopened(stored, state, overrides, pde, net)
        display = make_display(quiet=run_settings(task.config).quiet)
        windowed: WindowedRun | None = None
        if task.problem.windows or (state is not None and "windows" in state):
            windowed = WindowedRun(task, display, writer)
            parts, progress = _in_windows(windowed, stored, state, same=same)
        else:
            parts, progress = assemble(task.config, task.problem, task.net), Progress()
            if state is not None:
                ended = partial(ending_of, stop=parts.stop)
                progress = _continued(stored, state, task, parts, ended, same=same, display=display)
        for damage in stored.damages:
            display.warn(damage)
        if state is None:
            display.say("the run was stopped before its first checkpoint: it starts at step 0")
        steps = progress.step + (windowed.done.total().step if windowed else 0)
        history = [r for r in stored.history if r["step"] <= steps]
        writer.set_aside("summary.json")
        begin(writer, task)
        writer.restart_metrics(history)
        if windowed is not None:
            windowed.history = history
            return windowed.go(parts, progress)
        return Run(task, parts, display, writer, progress, history).go()


def _in_windows(
    run: WindowedRun, stored: StoredRun, state: Mapping[str, Any] | None, *, same: bool
) -> tuple[Assembly, Progress]:
    """The parts of the window that a run goes on in, and how far it had come; ``run`` is told of
    those before."""
    if state is None:
        return run.assembled(0), Progress()
    held, number = state.get("windows", {"edges": ()}), run.windows.number
    if not same or list(held["edges"]) != list(run.windows.edges):
        raise UserError(
            f"{stored.path}: the problem or its windows have changed, and windows that were "
            "trained cannot change any more: start a new run"
        )
    k, last = held["number"], held["number"] + 1 == number
    run.done.each = held["done"]
    if held["ended"] and not last:
        load(run.field(k + 1), state)
        run.display.say(f"resumed {run.task.name} after window {k + 1} of {number}")
        return run.assembled(k + 1), Progress()
    run.done.each = held["done"][:k]
    parts = run.assembled(k, state)

    def ended(progress: Progress) -> Ending | None:
        ending = ending_of(progress, parts.stop)
        if ending is None or not last:  # later windows are left to do
            return None
        before = run.done.before(k, run.stop)
        step, seconds = before.steps + progress.step, before.seconds + progress.seconds
        return ending_of(Progress(step=step, seconds=seconds), run.stop) or ending

    return parts, _continued(stored, state, run.task, parts, ended, same=same, display=run.display)


def _reopened(
    stored: StoredRun,
    state: Mapping[str, Any] | None,
    overrides: tuple[str, ...],
    pde: Given | None,
    net: nn.Module | None,
) -> tuple[Task, bool]:
    """The task of a stored run with some overrides, and whether its problem is still the one that
    its checkpoint belongs to."""
    files = [o.partition("=")[2].strip("'\"") for o in overrides if o.startswith("problem=")]
    rest = tuple(o for o in overrides if not o.startswith("problem="))
    if pde is not None or files:
        source = given_pde(files[-1] if pde is None else pde)
    else:
        source = stored_pde(stored)
    if stored.problem.get("net") and net is None:
        raise UserError(
            f"{stored.path}: the run had a net of its own ({stored.problem['net']}): go on from "
            "Python with pinnkfac.resume(folder, net=...)"
        )
    earlier = tuple(stored.problem.get("overrides", ()))
    last = {o.partition("=")[0]: o for o in (*earlier, *rest)}
    config = changed(stored.config, source.defaults, rest, earlier)
    check_classes(config, rest, stored.path)
    if config.net != stored.config.net:
        raise UserError(
            "net: the weights of a run are those of its net, which cannot change when it is "
            "resumed: start a new run"
        )
    arguments = OmegaConf.to_container(config.pde)
    problem = source.problem(arguments)  # type: ignore[arg-type]
    task = Task(config, problem, source, tuple(last.values()), net)
    if state is None:
        return task, True
    # A problem without a file that is given again is taken for the one that it was.
    same_code = source.sha256 == state.get("sha256") and source.name == state.get("name")
    return task, same_code and _config_of(state).pde == config.pde


def _config_of(state: Mapping[str, Any]) -> DictConfig:
    config = OmegaConf.create(state.get("config"))
    if not isinstance(config, DictConfig) or any(name not in config for name in NODES):
        raise UserError("the checkpoint does not fit: it does not say what it belongs to")
    return config


def _check_left(
    path: Path, progress: Progress, ended: Callable[[Progress], Ending | None], *, same: bool
) -> None:
    """Raise UserError where nothing is left that a run could do."""
    if progress.solved and not same:
        raise UserError(
            f"{path}: its net begins with random features that solved the problem as it was, and "
            "can add next to nothing to them: start a new run"
        )
    if (ending := ended(progress)) is not None:
        other = ": start a new run for other settings" if ending.final else ": set another limit"
        more = f"; {ending.advice}" if ending.advice else other
        raise UserError(f"{path}: nothing is left to do, {ending.reason}{more}")


def _continued(
    stored: StoredRun,
    state: Mapping[str, Any],
    task: Task,
    parts: Assembly,
    ended: Callable[[Progress], Ending | None],
    *,
    same: bool,
    display: Display,
) -> Progress:
    """Put a checkpoint in place, and say what was carried over; ``ended`` says whether nothing is
    left to do."""
    old, new = _config_of(state), task.config
    precise = old.dtype == new.dtype and old.published_rows == new.published_rows
    carried = Carried(
        step=same and precise and old.step == new.step,
        damping=old.damping == new.damping,
        points=same and precise and old.points == new.points,
        horizon=same,
        generators=old.seed == new.seed,
        scales=same and old.balance == new.balance,
    )
    progress = parts.load_state_dict(state, carried)
    # a step that takes another share of the points draws them anew
    drawn_anew = bool(state["points"]["points"]) and not parts.source.current
    carried = replace(carried, points=carried.points and not drawn_anew)
    changes = differences(old, new, task.overrides)
    if not same:
        changes.insert(0, f"the problem {task.name} has changed")
    if not same or any(old[group] != new[group] for group in GROUPS):
        progress.rejected = progress.attempts = 0
    _check_left(stored.path, progress, ended, same=same)
    names = {
        **dict.fromkeys(("net", "coefficients", "counters"), True),
        "state of the step": carried.step,
        "damping": carried.damping and carried.step,
        "points": carried.points,
        "generators": carried.generators,
        "scales of the equations": carried.scales,
    }
    kept, anew = ([n for n, is_kept in names.items() if is_kept is k] for k in (True, False))
    display.say(
        f"resumed {task.name} at step {progress.step} after {progress.seconds:.1f} s: "
        f"{_list(kept)} carried over" + (f"; {_list(anew)} anew" if anew else "")
    )
    for change in changes:
        display.say(f"  {change}")
    _warn_of_rounding(stored, state, parts, display)
    progress.resumed.append(f"at step {progress.step}: {'; '.join(changes) or 'no change'}")
    return progress


def _warn_of_rounding(
    stored: StoredRun, state: Mapping[str, Any], parts: Assembly, display: Display
) -> None:
    """Say what keeps the digits from being those of a run that was not stopped."""
    threads = parts.system.workers.number
    if state.get("threads") != threads:
        display.warn(
            f"the run had {counted(int(state.get('threads') or 0), 'thread')}, now {threads}: sums "
            "are rounded differently, so it does not go on bit for bit"
        )
    if stored.problem.get("pinnkfac") != __version__:
        display.warn(
            f"the run is of pinnkfac {stored.problem.get('pinnkfac')}, this is {__version__}: it "
            "may not go on bit for bit"
        )


def _list(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
