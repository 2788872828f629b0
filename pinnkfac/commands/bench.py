"""python -m pinnkfac bench SUITE"""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pinnkfac.bench.suites import SUITES, Suite, suite_of
from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError
from pinnkfac.run.interruption import EXIT_CODES


def main(arguments: list[str]) -> int:
    overrides = [word for word in arguments if is_override(word)]
    options = _parser().parse_args([word for word in arguments if not is_override(word)])
    suite = suite_of(options.suite)
    if options.overrides:
        raise UserError(
            f"bench: {options.overrides[0]} is no setting: write KEY=VALUE, or --case NAME"
        )
    root = Path(options.folder or f"outputs/bench/{suite.name}")
    if not options.report:
        return _run(suite, root, options, overrides)
    chosen = (options.case, options.step, options.seed, options.seconds)
    if overrides or any(value is not None for value in chosen):
        raise UserError("bench: --report is of all jobs in the folder: give --folder only")
    from pinnkfac.bench.folder import read_mark

    read_mark(root, suite)  # before what is slow to import
    return _finish(suite, root)


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
    add = parser.add_argument
    several: dict[str, Any] = {"nargs": "+", "action": "extend"}
    settings = "settings of all runs, such as threads=2"
    add("overrides", metavar="OVERRIDE", nargs="*", default=[], help=settings)
    add("--case", metavar="NAME", **several, help="these cases (default: all)")
    add("--step", metavar="NAME", **several, help="steps (default: that of solve)")
    add("--seed", metavar="N", **several, type=int, help="seeds (default: 0)")
    seconds = "of training for each job (default: by case)"
    add("--seconds", metavar="S", type=float, help=seconds)
    add("--folder", metavar="DIR", help="(default: outputs/bench/SUITE)")
    report = "make tables and pictures from the folder, run nothing"
    add("--report", action="store_true", help=report)
    return parser


def is_override(word: str) -> bool:
    """KEY=VALUE: taken out first, as argparse would give it to an option before it."""
    return "=" in word and not word.startswith("-")


def _run(suite: Suite, root: Path, options: Namespace, overrides: Sequence[str]) -> int:
    from pinnkfac.bench.folder import is_new, locked, make
    from pinnkfac.bench.running import check_settings_of, jobs_of, run_jobs
    from pinnkfac.inspection.catalog import default_of

    if options.seconds is not None and not 0 < options.seconds < math.inf:
        raise UserError(f"--seconds {options.seconds:g}: give seconds of training above 0")
    seeds, steps = options.seed or [0], options.step or [default_of("step")]
    for seed in seeds:
        if seed < 0:
            raise UserError(f"--seed {seed}: give integers from 0")
    jobs = jobs_of(suite, root, steps, seeds, options.case or (), options.seconds, overrides)
    new = is_new(root, suite, overrides)
    check_settings_of(jobs)
    if new:
        make(root, suite, overrides)
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
