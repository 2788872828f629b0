"""Jobs: one run each, in a process and a folder of its own, FOLDER/CASE/STEP/SEED."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pinnkfac.bench.folder import JOB, OUTPUT, locked, read, summary_of
from pinnkfac.bench.suites import Case, Suite
from pinnkfac.common.errors import UserError, suggest
from pinnkfac.common.files import as_json, write_text
from pinnkfac.common.locks import LOCK
from pinnkfac.run.interruption import Interruption

COMPLETE = ("finished", "diverged")
"""Statuses of jobs that are not run again."""
POLL = 0.2
NEVER = 1e6
"""Seconds between checkpoints: a job is never resumed, so its time is spent on training alone."""


@dataclass(frozen=True)
class Job:
    """A case, solved with one step from one seed in so many seconds."""

    case: Case
    step: str
    seed: int
    seconds: float
    overrides: tuple[str, ...]
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / self.case.name / self.step / str(self.seed)

    @property
    def settings(self) -> tuple[str, ...]:
        """All overrides of its run; those of the user come last and are none of the others."""
        return (
            f"step={self.step}",
            f"seed={self.seed}",
            f"stop.seconds={self.seconds:g}",
            f"run.error_points={self.case.error_points}",
            f"run.checkpoint={NEVER:g}",
            "run.plot=false",
            *self.case.settings,
            *self.overrides,
        )

    def __str__(self) -> str:
        return f"{self.case.name}, step {self.step}, seed {self.seed}, {self.seconds:g} s"


def jobs_of(
    suite: Suite,
    root: Path,
    steps: Sequence[str],
    seeds: Sequence[int],
    cases: Sequence[str] = (),
    seconds: float | None = None,
    overrides: Sequence[str] = (),
) -> list[Job]:
    """All jobs, case by case; without ``cases`` those of the whole suite, without ``seconds`` each
    as long as its case says. Raises UserError for an unknown case, or an override that would change
    what is compared."""
    chosen = [suite.case(name) for name in dict.fromkeys(cases)] or list(suite.cases)
    for case in chosen:
        _check_overrides(case, overrides)
    return [
        Job(case, step, seed, seconds or case.seconds, tuple(overrides), root)
        for case in chosen
        for step in dict.fromkeys(steps)
        for seed in dict.fromkeys(seeds)
    ]


def _check_overrides(case: Case, overrides: Sequence[str]) -> None:
    options = {"step": "--step", "seed": "--seed", "stop.seconds": "--seconds"}
    options |= {"run.dir": "--folder", "problem": "--case"}
    fixed = {setting.partition("=")[0] for setting in case.settings} | {"run.error_points"}
    for override in overrides:
        key = override.partition("=")[0].lstrip("+~")
        if key in options:
            raise UserError(f"bench: {override} is given with {options[key]}")
        if key in fixed or key.split(".")[0] == "pde":
            raise UserError(
                f"bench: {override} would change {case.name}, which is compared as it is: leave "
                "it out, or use 'solve'"
            )


def check_settings_of(jobs: Sequence[Job]) -> None:
    """Raises UserError where a step or a setting does not exist or cannot be, before any job."""
    from pinnkfac.config.compose import compose
    from pinnkfac.config.pde_file import find
    from pinnkfac.inspection import catalog
    from pinnkfac.run.assembly import check_settings

    steps = [option.name for option in catalog.options(catalog.groups()["steps"])]
    pde = find(jobs[0].case.pde)
    for job in {job.step: job for job in jobs if job.case == jobs[0].case}.values():
        if job.step not in steps:
            raise UserError(f"--step {job.step}: there is no such step. {suggest(job.step, steps)}")
        check_settings(compose(pde.name, pde.defaults, job.settings))


def is_complete(job: Job) -> bool:
    """Whether the job was run before; raises UserError where it was run for another time: such a
    result is not thrown away."""
    if summary_of(job.folder)["status"] not in COMPLETE or not (job.folder / JOB).is_file():
        return False
    earlier = read(job.folder / JOB).get("settings")
    if earlier != list(job.settings):
        differing = [s for s in earlier or () if s not in job.settings]
        raise UserError(
            f"{job.folder} holds a finished job with {' '.join(differing) or 'other settings'}: "
            "choose another --folder"
        )
    return True


def run_jobs(jobs: Sequence[Job], measure: str) -> str:
    """Run what was not run before, one after the other, with a line for each; returns who asked for
    an end ('Ctrl-C', 'SIGTERM'), or ''. The running job is ended then, and begun anew next time."""
    complete = [is_complete(job) for job in jobs]  # all are looked at before the first one starts
    with Interruption() as interruption:
        for number, (job, kept) in enumerate(zip(jobs, complete, strict=True), 1):
            print(f"job {number} of {len(jobs)}: {job}", flush=True)
            if not kept:
                _run(job, interruption)
            print(f"  {_told(job, measure)}{' (kept from before)' * kept}", flush=True)
            if interruption.by:
                break
    return interruption.by


def _run(job: Job, interruption: Interruption) -> None:
    job.folder.mkdir(parents=True, exist_ok=True)
    with locked(job.folder):  # an orphan of an earlier start may still be writing to it
        for path in job.folder.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != LOCK:
                path.unlink()
        task = {"case": job.case.name, "step": job.step, "seed": job.seed}
        task |= {"seconds": job.seconds, "settings": list(job.settings)}
        write_text(job.folder / JOB, as_json(task, indent=2))
    words = [sys.executable, "-m", "pinnkfac.bench.job", str(job.folder), job.case.pde]
    with open(job.folder / OUTPUT, "w", encoding="utf-8") as output:
        # In a session of its own, a Ctrl-C reaches it once, and from here.
        process = subprocess.Popen(
            [*words, *job.settings],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        told = False
        try:
            while process.poll() is None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=POLL)
                if interruption.by and not told:  # handed on once: it ends after its step
                    told = True
                    process.terminate()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    if process.returncode and not summary_of(job.folder)["status"] and not interruption.by:
        _note_death(job, process.returncode)


def _note_death(job: Job, code: int) -> None:
    from pinnkfac.run.summary import failure
    from pinnkfac.store.run_folder import RunFolder

    message = f"its process ended with exit code {code}: see {OUTPUT} in its folder"
    if code < 0:
        message = f"its process was ended by {signal.Signals(-code).name}: memory may have run out"
    with RunFolder(job.folder) as run:
        run.write_summary(failure(job.case.pde, message, job.settings))


def _told(job: Job, measure: str) -> str:
    summary = summary_of(job.folder)
    status = summary["status"]
    if summary.get("steps") is None or summary.get("seconds") is None:
        return f"{status or 'not finished'}: {summary.get('stop_reason', 'it was ended')}"
    error = summary.get(measure)
    name = measure.replace("_", " ").replace("rms", "RMS").replace("l2", "L2")
    shown = "" if error is None else f", {name} {error:.2e}"
    return f"{status}: {summary['steps']} steps in {summary['seconds']:.1f} s{shown}"
