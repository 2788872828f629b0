"""python -m pinnkfac plot RUN_FOLDER"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from pinnkfac.store.stored_run import StoredRun

ANIMATIONS = ("gif", "mp4")


def main(arguments: list[str]) -> int:
    parser = Parser(
        "plot",
        "Draw the pictures of a run from its folder: the solution beside the exact one and the\n"
        "error, and how training went. A sweep folder: the errors over what was swept.\n"
        "The PDE file that the folder names is imported, for its exact solution; nothing else in\n"
        "the folder is run.",
        "plot outputs/heat1d/run --format pdf --output figures",
        "plot outputs/heat1d/run --animate",
    )
    parser.add_argument("folder", metavar="RUN_FOLDER", help="the folder that solve printed")
    parser.add_argument("--output", metavar="FOLDER", help="where to write (default: RUN_FOLDER)")
    parser.add_argument("--format", choices=("png", "pdf", "svg"), default="png")
    animation = "write an animation over time too (default: gif; mp4 needs ffmpeg)"
    parser.add_argument("--animate", nargs="?", const="gif", choices=ANIMATIONS, help=animation)
    parser.add_checkpoint()
    options = parser.parse_args(_with_kind(arguments))

    from pinnkfac.store.stored_run import StoredRun, jobs

    folder = Path(options.folder)
    output = Path(options.output or folder)
    try:
        if folder.is_dir():
            output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output {output} cannot be made ({error.strerror}): choose another folder"
        ) from error
    if jobs(folder) and not (folder / "problem.json").exists():
        if options.animate:
            raise UserError(f"{folder} is a sweep: give one of its runs to animate")
        from pinnkfac.compare.rows import rows
        from pinnkfac.plots import draw_sweep, save

        print(save(draw_sweep(rows(folder)), output / f"sweep.{options.format}"))
    else:
        _plot_run(StoredRun.open(folder), output, options)
    return 0


def _with_kind(arguments: Sequence[str]) -> list[str]:
    """``--animate RUN_FOLDER`` with the kind that was left out: argparse would read the folder."""
    words = list(arguments)
    for i, word in enumerate(words[:-1]):
        if word == "--animate" and words[i + 1] not in ANIMATIONS and Path(words[i + 1]).is_dir():
            words[i] = f"--animate={ANIMATIONS[0]}"
    return words


def _plot_run(run: StoredRun, output: Path, options: Namespace) -> None:
    from pinnkfac.plots import animate, check_animation, draw_history, draw_solution, save
    from pinnkfac.solution import Solution

    animation = output / f"solution.{options.animate}" if options.animate else None
    if animation:
        check_animation(run.signature, animation)
    for damage in run.damages:
        print(f"warning: {damage}", file=sys.stderr)
    # First: it needs no net, and is there even where the net cannot be read.
    print(save(draw_history(run.history, run.name), output / f"history.{options.format}"))
    solution, exact = Solution.load(run, options.checkpoint), _exact(run)
    print(save(draw_solution(solution, exact), output / f"solution.{options.format}"))
    if animation:
        print(animate(solution, animation, exact))


def _exact(run: StoredRun) -> Callable[[Tensor], Tensor] | None:
    """The exact solution that the PDE file of a run states; None where it states none or is gone,
    which is said."""
    from pinnkfac.config.pde_file import stored_pde, stored_problem
    from pinnkfac.residual import exact_solution

    note = partial(print, "note:", file=sys.stderr)
    try:
        problem = stored_problem(run)
        changed = stored_pde(run).sha256 != run.problem.get("sha256")
    except UserError as error:
        note(f"drawn without the exact solution: {error}")
        return None
    then, now = run.signature, problem.signature
    if problem.solution is None:
        return None
    if (then.fields, then.coordinates) != (now.fields, now.coordinates):
        note(
            "drawn without the exact solution: the PDE file has other fields or coordinates than "
            "when the run began"
        )
        return None
    if changed:
        note("the PDE file has changed since the run began: the exact solution is the new one")
    return partial(exact_solution, problem)
