"""python -m pinnkfac show PDE [KEY=VALUE ...] [--full]"""

from __future__ import annotations

from pinnkfac.commands.command_line import Parser
from pinnkfac.inspection.text import say, width


def main(arguments: list[str]) -> int:
    parser = Parser(
        "show",
        "Show a PDE as it is understood: its equations, the slots and rows that they need, the\n"
        "points of each term, the net, and the choices of a run. Nothing is trained.",
        "show heat1d pde.kappa=0.1",
        "show my_pde.py net.widths=[32,32] step=kfac --full",
    )
    parser.add_pde()
    parser.add_argument("--full", action="store_true", help="abbreviate nothing")
    # Options may stand anywhere, also between the overrides.
    options = parser.parse_args(sorted(arguments, key=lambda word: not word.startswith("-")))

    from pinnkfac.inspection.configured import configured
    from pinnkfac.inspection.description import describe

    say(describe(configured(options.pde, options.overrides), width(), full=options.full))
    return 0
