"""python -m pinnkfac COMMAND: dispatch only; torch is imported by the commands that need it."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from importlib import import_module

from pinnkfac.export.formats import listed

COMMANDS = {
    "solve": "solve a PDE: solve FILE.py|NAME [overrides] [-m]",
    "resume": "go on with a run: resume RUN_FOLDER [overrides]",
    "list": "list bundled PDEs, nets, steps, searches and their settings",
    "show": "show a PDE as it is understood: equations, slots, rows, points, net",
    "check": "check a PDE file before it is solved",
    "new": "write a commented PDE file to start from",
    "plot": "draw the pictures of a run, or an animation",
    "compare": "compare runs in a table and a picture",
    "bench": "solve a suite of problems, beside published results",
    "export": f"write a solution to {listed()}",
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
    from pinnkfac.common.errors import UserError, suggest
    from pinnkfac.run.interruption import EXIT_CODES, Stopped

    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a sign that it lacks does not end a run
            stream.reconfigure(errors="replace")

    if name == "--version":
        from pinnkfac.version import __version__

        print(f"pinnkfac {__version__}")
        return 0
    if name not in COMMANDS:
        print(f"error: unknown command '{name}'. {suggest(name, COMMANDS)}", file=sys.stderr)
        return 2
    command: Callable[[list[str]], int] = import_module(f"pinnkfac.commands.{name}").main
    try:
        return command(rest)
    except SystemExit as end:
        if end.code:
            raise
        return 0  # --help
    except Stopped as stopped:
        print(f"error: {stopped} has ended the sweep; its jobs are saved", file=sys.stderr)
        return EXIT_CODES[str(stopped)]
    except KeyboardInterrupt:
        print("error: stopped at once", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has gone, as in 'list | head'
        sys.stdout = None  # type: ignore[assignment]
        return 0
    except Exception as error:
        if "debug=true" in rest:
            raise
        from pinnkfac.common.messages import message_of

        print(f"error: {message_of(error)}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    raise SystemExit(main())
