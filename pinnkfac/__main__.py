"""python -m pinnkfac COMMAND: dispatch only; torch is imported by the commands that need it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

COMMANDS = {
    "solve": "solve a PDE: solve FILE.py|NAME [overrides] [-m]",
    "list": "list bundled PDEs and the options of every configuration group",
}


def usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    return (
        "usage: python -m pinnkfac COMMAND ...\n\ncommands:\n"
        + "\n".join(lines)
        + "\n\nexample: python -m pinnkfac solve poisson2d stop.seconds=20\n"
        "help on one command: python -m pinnkfac COMMAND --help"
    )


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns its exit code (0 done, 1 failed, 2 wrong input)."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]
    from pinnkfac.errors import UserError, suggest

    if name == "--version":
        from pinnkfac import __version__

        print(f"pinnkfac {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command '{name}'. {suggest(name, COMMANDS)}", file=sys.stderr)
        return 2
    command: Callable[[list[str]], int] = import_module(f"pinnkfac.commands.{name}").main
    try:
        return command(rest)
    except UserError as error:
        if "debug=true" in rest:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
