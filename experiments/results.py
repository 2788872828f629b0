"""The record of pinnkfac: experiments/RESULTS.md, from all cases of the benchmark suites.

    python experiments/results.py [--folder outputs/bench] [--seconds S] [--seed N ...] [--report]
                                  [--out experiments/RESULTS.md] [--short] [KEY=VALUE ...]

Runs what is missing of `bench paper` and `bench problems` (two and a half hours a seed), of a case
in half an hour, and of kernel_cost.py, step_rate.py and crossing.py (another half), and writes
their tables, with what limits each miss, and their pictures beside them. What the folder holds is
not run again. --seconds is for all cases but the one in half an hour, which it leaves out; --report
runs nothing; --short takes the suite of tiny cases.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from pinnkfac import UserError
from pinnkfac.bench.pictures import write_pictures
from pinnkfac.bench.published import published, sources
from pinnkfac.bench.results import Report, read_report
from pinnkfac.bench.suites import SUITES
from pinnkfac.bench.tables import (
    main_columns,
    markdown,
    notes,
    published_columns,
    threshold_columns,
    verdicts,
)
from pinnkfac.commands.bench import is_override
from pinnkfac.commands.bench import main as bench
from pinnkfac.interruption import EXIT_CODES
from pinnkfac.sweep import in_digits

PICTURE = "error_over_seconds.png"
LIMITS: dict[str, str] = {
    "poisson5d_small": "from 2e-7 on, the loss of these 449 parameters hardly falls along a flat "
    "valley, and the error varies threefold from step to step.",
    "logfokkerplanck9d_big": "one to two thousand points, which 600 seconds of this processor "
    "afford, say little about ten dimensions: each step fits its own, and the error follows them.",
    "poisson100d_huge": "1.3 million parameters times 102 rows a point: 600 seconds of this "
    "processor are some hundred steps on a hundred points, which the net fits without learning "
    "the equation between them; and they go to the larger loss, inside, though the error follows "
    "the boundary.",
}
"""What limits a case where it misses its goal or the published error."""


@dataclass(frozen=True)
class Run:
    """A suite, or some of its cases in another time than theirs, in a folder of that name."""

    folder: str
    suite: str
    cases: tuple[str, ...] = ()
    seconds: float | None = None

    def words(self) -> list[str]:
        """What `bench` is asked for."""
        cases = ["--case", *self.cases] if self.cases else []
        seconds = [] if self.seconds is None else ["--seconds", f"{self.seconds:g}"]
        return [self.suite, *cases, *seconds]


RUNS = (Run("paper", "paper"), Run("problems", "problems"))
LONGER = (Run("longer", "paper", ("poisson5d_medium",), 1800.0),)
SHORT = (Run("smoke", "smoke"),)


@dataclass(frozen=True)
class Script:
    """A benchmark beside this one, whose words are shown as they are."""

    name: str
    title: str
    draws: bool = False
    limit: str = ""
    """What limits it where it misses a goal."""

    def section(self, folder: Path, beside: Path, short: bool, report: bool) -> list[str]:
        """What it printed and drew; it is run where ``folder`` does not hold that yet.

        Nothing where it has not run, and nothing is to be run. Raises UserError where it fails.
        """
        words = ["--short"] if short else []
        text = folder / f"{self.name}{'_short' if short else ''}.txt"
        picture = text.with_suffix(".png")
        if not (text.exists() and (picture.exists() or not self.draws)):
            if report:
                print(f"left out, as {text} is missing: {self.title}")
                return []
            print(f"running {self.name}.py {' '.join(words)}", flush=True)
            drawn = ["--out", str(picture)] if self.draws else []
            file = str(Path(__file__).with_name(f"{self.name}.py"))
            done = subprocess.run(
                [sys.executable, file, *words, *drawn], stdout=subprocess.PIPE, text=True
            )
            if done.returncode:
                raise UserError(f"{self.name}.py ended with exit code {done.returncode}")
            lines = [v for v in done.stdout.splitlines() if not v.startswith("written to ")]
            text.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = " ".join(["python", f"experiments/{self.name}.py", *words])
        printed = text.read_text(encoding="utf-8").rstrip()
        parts = [f"## {self.title}: `{command}`", f"```text\n{printed}\n```"]
        if self.draws:
            copy = beside / f"results_{picture.name}"
            shutil.copyfile(picture, copy)
            parts.append(f"![{self.title}]({copy.name})")
        if self.limit and not short:
            parts.append(f"What limits the misses: {self.limit}")
        return parts


SCRIPTS = (
    Script(
        "kernel_cost",
        "What a step costs",
        limit="the goals were a kernel by rows 15 times faster than with J, and an ENGD-W step in "
        "12 units. J Jᵀ has only 13 times the multiplications and runs at the full rate of matrix "
        "products, the kernel by rows at three quarters of it, as it also multiplies and sums the "
        "products of rows. The step makes 13.7 units of products (below), of which the kernel is "
        "more than half; three losses and the products with J in conjugate gradients are most of "
        "the others.",
    ),
    Script("step_rate", "The part of the rate of matrix products that steps reach"),
    Script("crossing", "Exact steps and KFAC over the number of points", draws=True),
)


def main() -> None:
    given = _arguments()
    out = Path(given.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    runs = SHORT if given.short else RUNS if given.seconds is not None else (*RUNS, *LONGER)
    reports = []
    for run in runs:
        folder = Path(given.folder) / run.folder
        if not given.report:
            words = [*run.words(), "--folder", str(folder)]
            words += ["--seed", *map(str, given.seed if run not in LONGER else given.seed[:1])]
            if given.seconds is not None:
                words += ["--seconds", f"{given.seconds:g}"]
            code = bench([*words, *given.overrides])
            if code in EXIT_CODES.values():  # it was stopped: the same command goes on
                raise SystemExit(code)
        elif run in LONGER and not folder.exists():
            print(f"left out, as {folder} is missing: {' '.join(run.words())}")
            continue
        reports.append((run, read_report(SUITES[run.suite], folder)))
    parts = [
        "# Results",
        "Made by `python experiments/results.py`; [docs/benchmarks.md](../docs/benchmarks.md) says "
        "what is measured. One set of defaults for all cases, but for the nets of the paper. A "
        "published error is the lowest of the best optimizer at any time; ours is that of the "
        "final net.",
        *(part for run, report in reports for part in section(run, report, out.parent)),
    ]
    for script in SCRIPTS:
        parts += script.section(Path(given.folder), out.parent, given.short, given.report)
    out.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    print(f"written to {out}")


def section(run: Run, report: Report, beside: Path) -> list[str]:
    """The tables of a suite, and its picture, which is copied beside the page.

    Of some cases in another time: what differs from the section of the suite.
    """
    overrides = f", with `{' '.join(report.overrides)}`" if report.overrides else ""
    title = f"Suite `{run.suite}`: {report.suite.text}"
    if run.seconds is not None:
        title = f"{', '.join(run.cases)} in {run.seconds:g} seconds"
    parts = [
        f"## {title}{overrides}",
        markdown(main_columns(report.entries)),
        "\n".join(f"* {line}" for line in [*verdicts(report), *seeds(report), *notes(report)]),
    ]
    missed = limits(report)
    if missed:
        parts += ["What limits the misses:", "\n".join(missed)]
    columns = threshold_columns(report.entries)
    if len(columns) > 2:
        parts += ["Seconds (steps) to an error:", markdown(columns)]
    if run.seconds is not None:
        return parts
    cases = dict.fromkeys(entry.case.name for entry in report.entries)
    best = [figure for entry in report.entries for figure in entry.published]
    if best:
        where = [f"* {s.where}: {s.hardware}; {s.text}." for s in sources(best)]
        number = sum(len(published(case)) for case in cases)
        parts += [f"The best of {number} published figures of these cases:"]
        parts += [markdown(published_columns(best)), "\n".join(where)]
    write_pictures(report)
    picture = beside / f"results_{run.folder}.png"
    shutil.copyfile(report.root / PICTURE, picture)
    return [*parts, f"![Errors over seconds]({picture.name})"]


def seeds(report: Report) -> list[str]:
    """The errors of every seed, where cases were not run with equally many."""
    if len({len(entry.counted) for entry in report.entries}) < 2:
        return []
    lines = []
    for entry in report.entries:
        if len(entry.counted) > 1:
            pairs = [(o.row.seed, o.error(entry.measure)) for o in entry.counted]
            told = [f"{in_digits(e)} with seed {s}" for s, e in pairs]
            lines.append(f"{entry.case.name}, {entry.step}: {', '.join(told)}")
    return [*lines, "the others have one seed"]


def limits(report: Report) -> list[str]:
    lines = []
    for entry in report.entries:
        missed = entry.goal_met is False or (entry.lower and entry.lower[0] is False)
        if missed and entry.case.name in LIMITS:
            lines.append(f"* {entry.case.name}: {LIMITS[entry.case.name]}")
    return lines


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--folder", default="outputs/bench")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--seed", type=int, nargs="+", default=[0])
    parser.add_argument("--out", default=str(Path(__file__).parent / "RESULTS.md"))
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--short", action="store_true")
    words = sys.argv[1:]
    given = parser.parse_args([word for word in words if not is_override(word)])
    given.overrides = [word for word in words if is_override(word)]
    return given


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
