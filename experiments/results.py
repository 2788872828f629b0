"""The record of pinnkfac: experiments/RESULTS.md, from all cases of the benchmark suites.

    python experiments/results.py [--folder outputs/bench] [--seconds S] [--seed N ...] [--report]
                                  [--out experiments/RESULTS.md] [--short] [KEY=VALUE ...]

Runs what is missing of `bench paper` and `bench problems` (two and a half hours a seed), of a case
in half an hour, and of kernel_cost.py, step_rate.py and crossing.py (a quarter), and writes their
tables, with what limits each goal that is missed, and their pictures beside them. What the folder
holds is not run again. With --seconds, for all cases, the one in half an hour is left out; --short
takes the suite of tiny cases; either writes RESULTS.md into the folder, if not told otherwise.
--report runs nothing.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from pinnkfac import UserError
from pinnkfac.bench.folder import is_new
from pinnkfac.bench.pictures import draw
from pinnkfac.bench.published import published, sources
from pinnkfac.bench.results import Report, read_report
from pinnkfac.bench.suites import SUITES
from pinnkfac.bench.tables import (
    MEASURES,
    main_columns,
    markdown,
    notes,
    published_columns,
    threshold_columns,
    verdicts,
)
from pinnkfac.commands.bench import is_override
from pinnkfac.commands.bench import main as bench
from pinnkfac.common.files import write_text
from pinnkfac.compare.tables import in_digits
from pinnkfac.plots import save
from pinnkfac.run.interruption import EXIT_CODES

PAGE = Path(__file__).parent / "RESULTS.md"
LIMITS: dict[str, str] = {
    "poisson5d_small": "from 2e-7 on, the loss of these 449 parameters hardly falls along a flat "
    "valley, and the error varies threefold from step to step.",
    "logfokkerplanck9d_big": "one to two thousand points, which 600 seconds of this processor "
    "afford, say little about ten dimensions: each step fits its own, and the error follows them.",
    "poisson100d_huge": "with 1.3 million parameters and 102 rows for each point inside, 600 "
    "seconds of this processor are 122 steps, on 18 to 85 points inside and 179 to 10 on the "
    "boundary: few for a function of a hundred coordinates. More of them go to the larger loss, "
    "inside, though the error follows the boundary too (with 20 + 2000 that stay as many, it is "
    "0.9 after 14 steps).",
}
"""What limits a case where it misses its goal, or the published error to pass, in its time."""


@dataclass(frozen=True)
class Run:
    """A suite, or some of its cases in another time than theirs, in a folder of that name."""

    folder: str
    suite: str
    cases: tuple[str, ...] = ()
    seconds: float | None = None

    @property
    def words(self) -> list[str]:
        """What `bench` is asked for."""
        cases = ["--case", *self.cases] if self.cases else []
        seconds = [] if self.seconds is None else ["--seconds", f"{self.seconds:g}"]
        return [self.suite, *cases, *seconds]

    @property
    def whole(self) -> bool:
        return not self.cases

    def bench(self, given: argparse.Namespace) -> int:
        """Run what is missing, of some cases with the first seed only; the exit code."""
        seeds = given.seed if self.whole else given.seed[:1]
        words = [*self.words, "--folder", str(given.folder / self.folder)]
        words += ["--seed", *map(str, seeds), *given.overrides]
        if given.seconds is not None:
            words += ["--seconds", f"{given.seconds:g}"]
        return bench(words)


SUITE_RUNS = (Run("paper", "paper"), Run("problems", "problems"))
LONGER = Run("longer", "paper", ("poisson5d_medium",), 1800.0)
SHORT = Run("smoke", "smoke")


@dataclass(frozen=True)
class Script:
    """A benchmark beside this one, whose words are shown as they are."""

    name: str
    title: str
    about: str
    draws: bool = False
    limit: str = ""
    """What limits it where it misses a goal."""

    def files(self, given: argparse.Namespace) -> list[Path]:
        """What it printed, and what it drew."""
        text = given.folder / f"{self.name}{'_short' if given.short else ''}.txt"
        return [text, text.with_suffix(".png")] if self.draws else [text]

    def run(self, given: argparse.Namespace) -> int:
        """Run it where a file is missing; the exit code."""
        text, *pictures = self.files(given)
        if all(file.exists() for file in (text, *pictures)):
            return 0
        words = ["--short"] if given.short else []
        print(" ".join(["running", f"{self.name}.py", *words]), flush=True)
        drawn = ["--out", str(pictures[0])] if pictures else []
        file = str(Path(__file__).with_name(f"{self.name}.py"))
        done = subprocess.run(
            [sys.executable, file, *words, *drawn], stdout=subprocess.PIPE, text=True
        )
        if done.returncode:
            print(f"{self.name}.py ended with exit code {done.returncode}", file=sys.stderr)
            return 1
        lines = [line for line in done.stdout.splitlines() if not line.startswith("written to ")]
        write_text(text, "\n".join(lines) + "\n")
        return 0

    def section(self, given: argparse.Namespace) -> list[str]:
        """What it printed and drew; nothing where it has not run."""
        text, *pictures = files = self.files(given)
        missing = [str(file) for file in files if not file.exists()]
        if missing:
            print(f"left out, as {missing[0]} is missing: {self.title}")
            return []
        words = ["python", f"experiments/{self.name}.py", *(["--short"] if given.short else [])]
        printed = text.read_text(encoding="utf-8").rstrip()
        parts = [f"## {self.title}: `{' '.join(words)}`", self.about, f"```text\n{printed}\n```"]
        for picture in pictures:
            copy = given.out.parent / f"results_{picture.name}"
            shutil.copyfile(picture, copy)
            parts.append(f"![{self.title}]({copy.name})")
        if self.limit and not given.short:
            parts.append(f"What limits the misses: {self.limit}")
        return parts


SCRIPTS = (
    Script(
        "kernel_cost",
        "What a step costs",
        "On one thread, in seconds of the processor. A unit is one float64 product of two matrices "
        "of 1024 × 1024. The ratios of the cost model are 1 where it is right.",
        limit="the goals were a kernel by rows 15 times faster than with J, and an ENGD-W step in "
        "12 units. J Jᵀ has 14.5 times the multiplications and runs at the full rate of matrix "
        "products, the kernel by rows at three quarters of it, as the products of rows have to be "
        "multiplied and summed. A step of that size makes 13.7 units of products (spring, big, "
        "below), more than half of them in the kernel; three losses and the products with J of "
        "conjugate gradients are most of the others.",
    ),
    Script(
        "step_rate",
        "The part of the rate of matrix products that steps reach",
        "Steps on poisson2d (900 + 120 points) with the nets small (64), medium (64-64-48-48) and "
        "big (256-256-128-128), on one thread, in time of the processor; units as above.",
    ),
    Script(
        "crossing",
        "Exact steps and KFAC over the number of points",
        "The time to a relative L2 error of 1e-2 on poisson2d, on one thread, in seconds of the "
        "processor. ENGD-W and KFAC take all points in every step; auto thins what would be too "
        "dear for exact steps, so that its time grows no more from some thousand points on. It "
        "begins with exact steps, which pay at lower errors than this one.",
        draws=True,
    ),
)


def main() -> int:
    given = _arguments()
    runs = [SHORT] if given.short else [*SUITE_RUNS, *([LONGER] if given.seconds is None else [])]
    code = 0
    if not given.report:
        for run in runs:  # before hours of work: a folder of other overrides is refused
            is_new(given.folder / run.folder, SUITES[run.suite], given.overrides)
        for run in runs:
            ended = run.bench(given)
            if ended in EXIT_CODES.values():  # it was stopped: the same command goes on
                return ended
            code = max(code, ended)
    found = [run for run in runs if (given.folder / run.folder).exists()]
    if not found:
        raise UserError(f"--folder {given.folder}: there is no benchmark in it, run it first")
    for run in runs:
        if run not in found:
            print(f"left out, as {given.folder / run.folder} is missing: {' '.join(run.words)}")
    reports = [(run, read_report(SUITES[run.suite], given.folder / run.folder)) for run in found]
    if not given.report:
        for script in SCRIPTS:
            code = max(code, script.run(given))
    write_page(given, reports)
    return code


def write_page(given: argparse.Namespace, reports: list[tuple[Run, Report]]) -> None:
    words = ["--short"] * given.short + list(reports[0][1].overrides)
    parts = [
        "# Results",
        f"Made by `{' '.join(['python', 'experiments/results.py', *words])}`; "
        "[docs/benchmarks.md](../docs/benchmarks.md) says what is measured. One set of defaults "
        "for all cases, but for the nets of the paper and their first weights. A published error "
        "is the lowest of the best optimizer at any time, first of the paper that a suite is of, "
        "then of newer ones; ours is that of the final net.",
        *(part for run, report in reports for part in section(run, report, given.out.parent)),
        *(part for script in SCRIPTS for part in script.section(given)),
    ]
    write_text(given.out, "\n\n".join(parts) + "\n")
    print(f"written to {given.out}")


def section(run: Run, report: Report, beside: Path) -> list[str]:
    """The tables of a suite, and its picture, which is drawn beside the page.

    Of some cases in another time: what differs from the section of the suite.
    """
    overrides = f", with `{' '.join(report.overrides)}`" if report.overrides else ""
    title = f"Suite `{run.suite}`: {report.suite.text}"
    if not run.whole:
        title = f"{', '.join(run.cases)} in {run.seconds:g} seconds"
    told = [
        f"error: {MEASURES[report.suite.measure]}",
        *verdicts(report),
        *seeds(report),
        *notes(report),
    ]
    parts = [
        f"## {title}{overrides}",
        markdown(main_columns(report.entries)),
        "\n".join(f"* {line}" for line in told),
    ]
    missed = limits(report)
    if missed:
        parts += ["What limits the misses:", "\n".join(f"* {line}" for line in missed)]
    columns = threshold_columns(report.entries)
    if len(columns) > 2:
        parts += ["Seconds (steps) to an error:", markdown(columns)]
    if not run.whole:
        return parts
    cases = dict.fromkeys(entry.case.name for entry in report.entries)
    best = [figure for entry in report.entries for figure in entry.published]
    if best:
        where = [f"* {s.where}: {s.hardware}; {s.text}." for s in sources(best)]
        number = sum(len(published(case)) for case in cases)
        parts += [f"The best of {number} published figures of these cases:"]
        parts += [markdown(published_columns(best)), "\n".join(where)]
    picture = save(draw(report, "seconds"), beside / f"results_{run.folder}.png")
    return [*parts, f"![Errors over seconds]({picture.name})"]


def seeds(report: Report) -> list[str]:
    """Where cases were not run with equally many seeds: all their errors, and what the first seed
    alone would tell."""
    if len({len(entry.counted) for entry in report.entries}) < 2:
        return []
    lines = []
    for entry in report.entries:
        if len(entry.counted) > 1:
            pairs = [(o.row.folder.name, o.error(entry.measure)) for o in entry.counted]
            told = [f"{'failed' if e is None else in_digits(e)} with seed {s}" for s, e in pairs]
            lines.append(f"{entry.step} on {entry.case.name}: {', '.join(told)}")
    if lines:
        first = [replace(entry, outcomes=tuple(entry.counted[:1])) for entry in report.entries]
        met = [entry.goal_met for entry in first if entry.goal_met is not None]
        lines.append(
            "the others have one seed at most; with the first seed alone, the goal is met on "
            f"{sum(met)} of {len(met)} cases"
        )
    return lines


def limits(report: Report) -> list[str]:
    """What limits the cases that miss something in their own time."""
    lines = []
    for entry in report.entries:
        missed = entry.goal_met is False or (entry.lower and entry.lower[0] is False)
        if missed and entry.case.name in LIMITS and entry.budget == entry.case.seconds:
            lines.append(f"{entry.case.name}: {LIMITS[entry.case.name]}")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", type=Path, default=Path("outputs/bench"))
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--short", action="store_true")
    words = sys.argv[1:]
    given = parser.parse_args([word for word in words if not is_override(word)])
    given.overrides = [word for word in words if is_override(word)]
    if given.report and (given.seconds or given.seed or given.overrides):
        raise UserError("--report is of all jobs in the folder: give --folder, --out, --short only")
    given.seed = given.seed or [0]
    if given.out is None:
        given.out = given.folder / "RESULTS.md" if given.short or given.seconds else PAGE
    if given.out.is_dir():
        raise UserError(f"--out {given.out}: that is a folder: give the name of a file")
    try:
        given.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {given.out}: its folder can't be made: {error.strerror}") from None
    return given


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        print("stopped: the same command goes on", file=sys.stderr)
        raise SystemExit(EXIT_CODES["Ctrl-C"]) from None
