"""python -m pinnkfac export RUN_FOLDER FILE [--grid NAME=VALUE ...] [--checkpoint last|best]"""

from __future__ import annotations

import sys
from typing import Any

from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError

TEXT = """Write the solution of a run to a file of the kind that its ending says:

  .npz  axes and fields on a grid, for numpy, with a description of names and units
  .csv  a row per point of the grid, headed by names and units
  .vtu  a mesh for ParaView (needs meshio: pip install 'pinnkfac[vtu]'); where time is an axis,
        a file per time, and a .pvd that lists them
  .pt2  the net as a program of torch.export, from coordinates to fields

The PDE file of the run is not needed, and not run."""


def main(arguments: list[str]) -> int:
    parser = Parser(
        "export",
        TEXT,
        "export outputs/heat1d/run u.npz",
        "export outputs/heat1d/run u.csv --grid x=100 t=0.5",
        "export outputs/kovasznay/run flow.vtu --grid x=200 y=100 --checkpoint best",
        "export outputs/heat1d/run u.vtu --grid x=100 t=0.0,0.1,0.5",
    )
    parser.add_argument("run", metavar="RUN_FOLDER", help="a folder that solve wrote")
    parser.add_argument("file", metavar="FILE", help="the file to write: .npz, .csv, .vtu or .pt2")
    parser.add_argument(
        "--grid",
        nargs="+",
        default=[],
        metavar="NAME=VALUE",
        help="x=100: a hundred points over the range of x; x=0.5: x is fixed at 0.5; "
        "x=0.0,0.5,1.0: these values. What is left out: with up to three coordinates, an axis "
        "over the whole range; with more, the middle of the range",
    )
    parser.add_argument(
        "--checkpoint",
        choices=["last", "best"],
        default="last",
        help="the last state of the run (default), or that of the lowest loss",
    )
    read = parser.read(arguments)
    if read is None:
        return 0
    grid = _grid(read.grid)

    import warnings

    from pinnkfac.solution import Solution

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        solution = Solution.load(read.run, read.checkpoint)
        written = solution.export(read.file, **grid)
    for warning in caught:
        if issubclass(warning.category, UserWarning):
            print(f"warning: {warning.message}", file=sys.stderr)
    fields = ", ".join(map(solution.signature.label, solution.signature.fields))
    if len(written) == 1:
        print(f"wrote {written[0]}: {fields}")
    else:
        print(f"wrote {written[0]} … {written[-2]} and {written[-1]}, which lists them: {fields}")
    return 0


def _grid(items: list[str]) -> dict[str, Any]:
    """NAME=VALUE as the arguments of ``Solution.on_grid``."""
    grid: dict[str, Any] = {}
    for item in items:
        name, equals, text = item.partition("=")
        parts = text.split(",")
        try:
            numbers = [float(part) for part in parts]
        except ValueError:
            numbers = []
        if not equals or not name or not numbers:
            raise UserError(
                f"--grid {item}: give NAME=100 (points), NAME=0.5 (fixed) or NAME=0.0,0.5,1.0 "
                "(values)"
            )
        if name in grid:
            raise UserError(f"--grid {item}: '{name}' is given twice")
        whole = len(parts) == 1 and text.strip().lstrip("+-").isdigit()
        grid[name] = int(text) if whole else numbers[0] if len(parts) == 1 else numbers
    return grid
