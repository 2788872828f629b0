"""The command lines of all commands but ``solve`` and ``resume``, whose words are Hydra's."""

from __future__ import annotations

import argparse
from typing import NoReturn

from pinnkfac.common.errors import UserError


class Parser(argparse.ArgumentParser):
    """argparse with an example in its help, and a mistake that ends in one line: a UserError.

    parser = Parser("plot", "Draw the pictures of a run.", "plot outputs/heat1d/run --animate")
    """

    def __init__(self, command: str, text: str, *examples: str) -> None:
        lines = "\n".join(f"  python -m pinnkfac {example}" for example in examples)
        super().__init__(
            prog=f"python -m pinnkfac {command}",
            description=text,
            epilog=f"{'example' if len(examples) == 1 else 'examples'}:\n{lines}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.command = command

    def add_pde(self) -> None:
        """``pde`` and the ``overrides`` of its configuration."""
        self.add_argument("pde", metavar="PDE", help="FILE.py, FILE.py:function or NAME")
        settings = "settings, as for solve"
        self.add_argument("overrides", metavar="KEY=VALUE", nargs="*", help=settings)

    def add_checkpoint(self) -> None:
        which = "the last state of the run (default), or that of the lowest loss"
        self.add_argument("--checkpoint", choices=("last", "best"), default="last", help=which)

    def error(self, message: str) -> NoReturn:
        raise UserError(
            f"{self.command}: {message}. 'python -m pinnkfac {self.command} --help' shows its use"
        )
