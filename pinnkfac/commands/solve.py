"""python -m pinnkfac solve FILE.py|NAME [overrides] [-m]"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pinnkfac.common.errors import UserError, counted, suggest
from pinnkfac.run.interruption import Stopped

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from pinnkfac.config.pde_file import PdeFile
    from pinnkfac.run.solving import Result

HELP = """usage: python -m pinnkfac solve FILE.py|NAME [KEY=VALUE ...] [-m]

Solve the PDE of a file (FILE.py, or FILE.py:function) or a bundled one (NAME, see 'list').
KEY=VALUE overrides the configuration; pde.NAME=VALUE sets an argument of the PDE's function.
-m runs all combinations of comma-separated values, and ends with a table over them.
--cfg job prints the configuration. Ctrl-C stops after the step and saves; 'resume' goes on.

examples:
  python -m pinnkfac solve poisson2d stop.seconds=20
  python -m pinnkfac solve heat1d pde.kappa=0.1 step=kfac_star net.widths=[32,32]
  python -m pinnkfac solve poisson2d -m step=kfac,adam seed=0,1"""

FLAGS = ("-m", "--multirun", "-c", "--cfg", "--resolve", "-p", "--package", "-i", "--info")
OPTIONS = ("-m", "--multirun", "--cfg", "--help")
"""Those that a user may need; the others are Hydra's own."""
PRINTS = ("-c", "--cfg", "-i", "--info")
"""Flags that show the configuration and start nothing."""
EXIT_CODES = {"finished": 0, "diverged": 1}


def main(arguments: list[str]) -> int:
    if any(a in ("-h", "--help") for a in arguments):
        print(HELP)
        return 0
    given, overrides, flags = _sorted_words(arguments)
    named = [o for o in overrides if _is_folder(o)]  # a path is no value in Hydra's grammar
    overrides = [o for o in overrides if not _is_folder(o)]

    from pinnkfac.common.memory import keep_freed_memory
    from pinnkfac.config.compose import check_sweep, parse, quoted, register
    from pinnkfac.config.pde_file import find
    from pinnkfac.run.assembly import check_settings
    from pinnkfac.store.run_folder import jobs, remove_if_empty

    found = find(given)
    register(found.defaults)
    keep_freed_memory()
    sweep = any(flag in ("-m", "--multirun") for flag in flags)
    swept = [o for o in parse(overrides) if o.is_sweep_override()]
    if swept and not sweep:
        raise UserError(
            f"{swept[0].input_line} has several values: add -m to run them all, or quote a comma"
        )
    check_sweep(overrides, check_settings)
    if any(flag in PRINTS for flag in flags):
        shown = [flag for flag in flags if flag not in ("-m", "--multirun")]
        _call_hydra(lambda _: None, [*overrides, f"problem={quoted(given)}"], shown)
        return 0
    folder, own = _folder(found.name, named)
    if sweep and Path(folder, "problem.json").exists():
        raise UserError(f"run.dir={folder} holds a run: choose another folder for a sweep")
    if sweep and jobs(folder):
        held = counted(len(jobs(folder)), "job")
        raise UserError(f"run.dir={folder} holds {held} of a sweep already: choose another folder")
    words = [*overrides, f"run.dir={quoted(folder)}", f"problem={quoted(given)}"]
    keys = [str(o.key_or_group) for o in swept]
    results: list[Result | str] = []
    mistakes: list[Exception] = []

    def job(config: DictConfig) -> None:
        try:
            results.append(_job(config, found, keys))
        except Exception as error:  # Hydra would print lines of its own about it
            mistakes.append(error)

    try:
        _call_hydra(job, words, flags)
    except OSError as error:
        raise UserError(
            f"run.dir={folder}: the folder cannot be used ({error.strerror}): choose another"
        ) from error
    finally:
        if own:  # another start may be about to write to a folder that the user named
            remove_if_empty(folder)
        failed = sweep and Path(folder).is_dir() and not _finish_sweep(folder)
    if mistakes:
        raise mistakes[0]
    return 1 if failed else max((exit_code(result) for result in results), default=0)


def _call_hydra(
    job: Callable[[DictConfig], None], words: Sequence[str], flags: Sequence[str]
) -> None:
    """Let Hydra compose the configuration, of every job of a sweep, and call ``job`` with it."""
    import hydra

    from pinnkfac.config import options
    from pinnkfac.config.compose import CONFIG_NAME, explained, opened

    # Hydra reads the command line itself, and would print a traceback of its own.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    saved, sys.argv = sys.argv, [sys.argv[0], *opened(words), *flags]
    start = hydra.main(
        config_path=str(options.folder()), config_name=CONFIG_NAME, version_base="1.3"
    )
    try:
        with explained(words):
            start(job)()
    finally:
        sys.argv = saved


def _sorted_words(arguments: Sequence[str]) -> tuple[str, list[str], list[str]]:
    """The PDE, the overrides and Hydra's flags; raises UserError for anything else."""
    overrides, flags, names = [], [], []
    words = iter(arguments)
    for word in words:
        if Path(word.partition(":")[0]).is_file():
            names.append(word)
        elif word.startswith("-"):
            if word.partition("=")[0] not in FLAGS:
                raise UserError(
                    f"solve: {word} is no option. {suggest(word, OPTIONS)} Settings have no "
                    "dashes: KEY=VALUE"
                )
            flags.append(word)
            if word in ("-c", "--cfg", "-p", "--package"):
                flags.append(next(words, ""))
            if word in ("-c", "--cfg") and flags[-1] not in ("job", "hydra", "all"):
                raise UserError(f"solve: --cfg {flags[-1]}: choose job, hydra or all")
        elif "=" in word or word.startswith("~"):
            _check_key(word)
            overrides.append(word)
        else:
            names.append(word)
    if len(names) != 1:
        what = "no PDE was named" if not names else f"{len(names)} PDEs were named ({names})"
        raise UserError(f"{what}: give one FILE.py or NAME, as in 'solve poisson2d'")
    return names[0], overrides, flags


def _check_key(word: str) -> None:
    """Raise UserError for an override of what is no setting but a group of them."""
    key = word.lstrip("+~").partition("=")[0]
    if key == "problem":
        raise UserError(
            f"{word} is not set like this: name the PDE itself, as in 'solve poisson2d'"
        )
    if key in ("stop", "run", "pde", "hydra", ""):
        raise UserError(f"{word}: this is no setting; set one of a group, such as stop.seconds=20")
    if word.startswith("~") and "." not in key:
        raise UserError(f"{word}: this cannot be taken out; give it another value")


def _folder(name: str, overrides: Sequence[str]) -> tuple[str, bool]:
    """The folder that the command line names, or (then True) a new one that no other start gets."""
    given = [o.partition("=")[2] for o in overrides if _is_folder(o)]
    if given and given[-1] not in ("", "null"):
        text = given[-1]
        if text[0] in "'\"" and text[-1] == text[0] and len(text) > 1:
            text = text[1:-1]
        if "${" in text:
            raise UserError(f"run.dir={text}: write the folder itself, without ${{...}}")
        return str(Path(text).expanduser()), False
    base = Path("outputs") / name / time.strftime("%Y-%m-%d_%H-%M-%S")
    try:
        base.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = base if number == 1 else base.with_name(f"{base.name}_{number}")
            try:
                path.mkdir()
            except FileExistsError:
                continue
            return str(path), True
    except OSError as error:
        raise UserError(
            f"{base} cannot be made ({error.strerror}): choose a folder with run.dir=..."
        ) from error
    raise UserError(f"{base} and a thousand like it exist: choose a folder with run.dir=...")


def _is_folder(override: str) -> bool:
    return override.lstrip("+").partition("=")[0] == "run.dir"


def exit_code(result: Result | str) -> int:
    """0 for a run that finished; a sweep ends with 1 for any job that did not."""
    from pinnkfac.run.interruption import EXIT_CODES as by_signal

    if isinstance(result, str):
        return 1
    if result.status == "interrupted":
        return by_signal[result.stop_reason.partition(" ")[0]]
    return EXIT_CODES[result.status]


def _job(config: DictConfig, found: PdeFile, swept: Sequence[str]) -> Result | str:
    """One run; returns the message of a failed job of a sweep, so that the others go on."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from pinnkfac.config.compose import finish
    from pinnkfac.run.solving import Task, solve_task

    hydra_config = HydraConfig.get()
    sweep = hydra_config.mode == RunMode.MULTIRUN
    folder = Path(hydra_config.runtime.output_dir)
    given = [o.lstrip("+") for o in hydra_config.overrides.task]
    overrides = tuple(o for o in given if o.partition("=")[0] not in ("problem", "run.dir"))
    if sweep:
        own = " ".join(o for o in overrides if o.partition("=")[0] in swept)
        print(f"\njob {hydra_config.job.num}: {own}", flush=True)
    try:
        problem = found.problem(OmegaConf.to_container(config.pde))  # type: ignore[arg-type]
        task = Task(finish(config), problem, found, overrides)
        result = solve_task(task, folder)
    except Exception as error:
        if not sweep or config.debug:
            raise
        return _failed(folder, found.name, error, overrides)
    if sweep and result.status == "interrupted":
        raise Stopped(result.stop_reason.partition(" ")[0])
    return result


def _failed(folder: Path, name: str, error: Exception, overrides: Sequence[str]) -> str:
    """A row of the sweep's table for a job that failed."""
    from pinnkfac.__main__ import message_of
    from pinnkfac.run.summary import failure
    from pinnkfac.store.run_folder import RunFolder

    message = message_of(error)
    print(f"error: {message}", file=sys.stderr)
    try:
        with RunFolder(folder) as own:
            if not own.has("problem.json"):  # that of another run is not ours
                own.write_summary(failure(name, message, overrides))
    except UserError as unwritten:
        print(f"error: {unwritten}", file=sys.stderr)
    return message


def _finish_sweep(folder: str) -> bool:
    """The table over all jobs (a failure here costs the table only); whether all finished."""
    from pinnkfac.compare.sweep import finish_sweep

    try:
        return all(row.status == "finished" for row in finish_sweep(folder))
    except (UserError, OSError, ValueError) as error:
        print(f"warning: the table of the sweep could not be made: {error}", file=sys.stderr)
        return False
