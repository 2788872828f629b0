"""python -m pinnkfac bench SUITE"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from pathlib import Path

from pinnkfac.bench.suites import SUITES, Suite, suite_of
from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError
from pinnkfac.run.interruption import EXIT_CODES


def main(arguments: list[str]) -> int:
    parser = _parser()
    overrides = [word for word in arguments if is_override(word)]
    given = parser.read([word for word in arguments if not is_override(word)])
    if given is None:
        return 0
    suite = suite_of(given.suite)
    if given.overrides:
        raise UserError(
            f"bench: {given.overrides[0]} is no setting: write KEY=VALUE, or --case NAME"
        )
    given.overrides = overrides
    root = Path(given.folder or f"outputs/bench/{suite.name}")
    if given.report:
        return _report(suite, root, given)
    return _run(suite, root, given)


def _parser() -> Parser:
    suites = "\n".join(f"  {s.name:<9} {len(s.cases):>2} cases: {s.text}" for s in SUITES.values())
    parser = Parser(
        "bench",
        "Solve all cases of a suite, each in the same time, and compare the errors with published\n"
        "ones: tables, pictures and results.json. The same command again goes on where it was\n"
        f"stopped; jobs that have finished are not run again.\n\nsuites:\n{suites}",
        "bench smoke",
        "bench paper --case poisson2d_small heat1d_small --step kfac adam --seed 0 1 2",
        "bench paper --report",
    )
    parser.add_argument("suite", metavar="SUITE", help=", ".join(SUITES))
    parser.add_argument(
        "overrides",
        metavar="OVERRIDE",
        nargs="*",
        default=[],
        help="settings of all runs, such as threads=2",
    )
    parser.add_argument(
        "--case", metavar="NAME", nargs="+", action="extend", help="these cases (default: all)"
    )
    parser.add_argument(
        "--step", metavar="NAME", nargs="+", action="extend", help="steps (default: that of solve)"
    )
    parser.add_argument(
        "--seed", metavar="N", nargs="+", action="extend", type=int, help="seeds (default: 0)"
    )
    parser.add_argument(
        "--seconds", metavar="S", type=float, help="of training for each job (default: by case)"
    )
    parser.add_argument("--folder", metavar="DIR", help="(default: outputs/bench/SUITE)")
    parser.add_argument(
        "--report",
        action="store_true",
        help="make tables and pictures from the folder, run nothing",
    )
    return parser


def is_override(word: str) -> bool:
    """KEY=VALUE: taken out first, as argparse would give it to an option before it."""
    return "=" in word and not word.startswith("-")


def _report(suite: Suite, root: Path, given: Namespace) -> int:
    chosen = [given.case, given.step, given.seed, given.seconds, given.overrides]
    if any(value not in (None, []) for value in chosen):
        raise UserError("bench: --report is of all jobs in the folder: give --folder only")
    from pinnkfac.bench.folder import read_mark

    read_mark(root, suite)  # before what is slow to import
    return _finish(suite, root)


def _run(suite: Suite, root: Path, given: Namespace) -> int:
    from pinnkfac.bench.folder import is_new, locked, make
    from pinnkfac.bench.running import check_settings_of, check_step, jobs_of, run_jobs
    from pinnkfac.inspection.catalog import default_of

    if given.seconds is not None and not 0 < given.seconds < math.inf:
        raise UserError(f"--seconds {given.seconds:g}: give seconds of training above 0")
    for seed in given.seed or ():
        if seed < 0:
            raise UserError(f"--seed {seed}: give integers from 0")
    steps = given.step or [default_of("step")]
    for step in steps:
        check_step(step)
    jobs = jobs_of(
        suite, root, steps, given.seed or [0], given.case or (), given.seconds, given.overrides
    )
    new = is_new(root, suite, given.overrides)
    check_settings_of(jobs)
    if new:
        make(root, suite, given.overrides)
    with locked(root):
        stopped = run_jobs(jobs, suite.measure)
    code = _finish(suite, root)
    if stopped:
        print(f"error: {stopped}: the same command goes on with the other jobs", file=sys.stderr)
    return EXIT_CODES[stopped] if stopped else code


def _finish(suite: Suite, root: Path) -> int:
    """Tables, files and pictures of all jobs in the folder; 1 where some did not finish."""
    from pinnkfac.bench.pictures import write_pictures
    from pinnkfac.bench.results import read_report, write_results
    from pinnkfac.bench.tables import show, write_markdown

    report = read_report(suite, root)
    print()
    show(report)
    for path in [*write_results(report), *write_pictures(report), write_markdown(report)]:
        print(f"written to {path}")
    return 0 if all(one.row.status == "finished" for one in report.outcomes) else 1
