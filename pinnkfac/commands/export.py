"""python -m pinnkfac export RUN_FOLDER FILE [--grid NAME=VALUE ...] [--checkpoint last|best]"""

from __future__ import annotations

import sys
import warnings
from textwrap import fill
from typing import Any

from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError
from pinnkfac.export.formats import listed, texts


def main(arguments: list[str]) -> int:
    formats = [
        fill(
            text[0].lower() + text[1:].rstrip("."),
            96,
            initial_indent=f"  {ending}  ",
            subsequent_indent=" " * 8,
        )
        for ending, text in texts().items()
    ]
    parser = Parser(
        "export",
        "Write the solution of a run to a file of the kind that its ending says:\n\n"
        + "\n".join(formats)
        + "\n\nThe PDE file of the run is not needed, and not run.",
        "export outputs/heat1d/run u.npz",
        "export outputs/heat1d/run u.csv --grid x=100 t=0.5",
        "export outputs/kovasznay/run flow.vtu --grid x=200 y=100 --checkpoint best",
        "export outputs/heat1d/run u.vtu --grid x=100 t=0.0,0.1,0.5",
    )
    parser.add_argument("run", metavar="RUN_FOLDER", help="a folder that solve wrote")
    parser.add_argument("file", metavar="FILE", help=f"the file to write: {listed()}")
    axes = (
        "x=100: a hundred points over the range of x; x=0.5: x is fixed at 0.5; "
        "x=0.0,0.5,1.0: these values. What is left out: with up to three coordinates, an axis "
        "over the whole range; with more, the middle of the range"
    )
    parser.add_argument("--grid", nargs="+", default=[], metavar="NAME=VALUE", help=axes)
    parser.add_checkpoint()
    options = parser.parse_args(arguments)
    grid = _grid(options.grid)

    from pinnkfac.solution import Solution

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        solution = Solution.load(options.run, options.checkpoint)
        written = solution.export(options.file, **grid)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"warning: {warning.message}", file=sys.stderr)
    fields = ", ".join(map(solution.signature.label, solution.signature.fields))
    several = "" if len(written) == 1 else f" … {written[-2]} and {written[-1]}, which lists them"
    print(f"wrote {written[0]}{several}: {fields}")
    return 0


def _grid(items: list[str]) -> dict[str, Any]:
    """NAME=VALUE as the arguments of ``Solution.on_grid``."""
    grid: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        try:
            numbers = [float(part) for part in text.split(",")]
        except ValueError:
            numbers = []
        if not equals or not name or not numbers:
            raise UserError(
                f"--grid {item}: give NAME=100 (points), NAME=0.5 (fixed) or NAME=0.0,0.5,1.0 "
                "(values)"
            )
        if name in grid:
            raise UserError(f"--grid {item}: '{name}' is given twice")
        whole = text.strip().lstrip("+-").isdigit()
        grid[name] = int(text) if whole else numbers[0] if len(numbers) == 1 else numbers
    return grid
