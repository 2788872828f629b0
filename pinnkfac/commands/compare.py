"""python -m pinnkfac compare RUN_FOLDER..."""

from __future__ import annotations

import sys

from pinnkfac.commands.command_line import Parser


def main(arguments: list[str]) -> int:
    parser = Parser(
        "compare",
        "Compare runs in a table and in a picture of their errors over seconds and steps.\n"
        "A sweep folder stands for all its jobs.",
        "compare outputs/heat1d/first outputs/heat1d/second",
        "compare outputs/heat1d/sweep --csv table.csv",
    )
    parser.add_argument("folders", metavar="RUN_FOLDER", nargs="+")
    picture = "the picture: .png, .pdf or .svg (default: compare.png)"
    parser.add_argument("--output", metavar="FILE", default="compare.png", help=picture)
    parser.add_argument("--csv", metavar="FILE", help="write the table as CSV too")
    options = parser.parse_args(arguments)

    from pinnkfac.compare.rows import rows
    from pinnkfac.compare.runs import GOALS, columns, compared, notes, seconds_to
    from pinnkfac.compare.sweep import unfinished, write_rows
    from pinnkfac.compare.tables import Column, fits, print_line, print_table
    from pinnkfac.plots import draw_comparison, save
    from pinnkfac.plots.saving import FORMATS, checked_ending

    checked_ending(options.output, FORMATS)
    runs = [compared(row) for row in rows(options.folders)]
    read = [run.row for run in runs]
    labels = [row.label for row in read]
    same, cells = columns(runs)
    if not fits([Column("run", labels, number=False), *cells]):
        for number, label in enumerate(labels, 1):
            print_line(f"run {number}: {label}")
        labels = [str(number) for number in range(1, len(runs) + 1)]
    if same:
        print_line(f"all runs: {same}")
    print_table([Column("run", labels, number=False), *cells])
    for line in [*unfinished(read, "run", labels), *notes(runs)]:
        print_line(line)
    if options.csv:
        seconds = {f"seconds_to_{g:.0e}": [seconds_to(r.history, g) for r in runs] for g in GOALS}
        print(write_rows(read, options.csv, seconds))
    curves = {run.row.label: run.history for run in runs if run.history}
    if not curves:
        print("note: no picture: none of the runs has a record", file=sys.stderr)
        return 0
    print(save(draw_comparison(curves), options.output))
    return 0
