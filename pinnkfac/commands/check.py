"""python -m pinnkfac check PDE [KEY=VALUE ...]"""

from __future__ import annotations

import sys

from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import counted
from pinnkfac.inspection.text import paragraph, say, width


def main(arguments: list[str]) -> int:
    parser = Parser(
        "check",
        "Check a PDE file before it is solved: terms, points, derivatives, and whether the exact\n"
        "solution (if there is one) satisfies every term. Exit code 0: all is well, 1: not.",
        "check my_pde.py",
        "check heat1d pde.kappa=0.1",
    )
    parser.add_pde()
    options = parser.parse_args(arguments)

    from pinnkfac.inspection.checks import examine
    from pinnkfac.inspection.finding import Verdict

    columns = width() if sys.stdout.isatty() else sys.maxsize  # a line per finding for grep
    counts = dict.fromkeys(Verdict, 0)
    for finding in examine(options.pde, options.overrides):
        counts[finding.verdict] += 1
        say(paragraph(str(finding), columns, "", "  "))
    hints = f", {counted(counts[Verdict.HINT], 'hint')}" if counts[Verdict.HINT] else ""
    if counts[Verdict.FAILED]:
        say([f"{counted(counts[Verdict.FAILED], 'check')} failed{hints}"])
        return 1
    say([f"all {counted(counts[Verdict.PASSED], 'check')} passed{hints}"])
    return 0
