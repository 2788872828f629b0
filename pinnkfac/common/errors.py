"""The one exception that a user's mistake ends in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args


class UserError(Exception):
    """A mistake in a PDE file, a setting or a net: the message says what was given, what is
    allowed and what to do. The command prints it without a traceback and exits with code 2."""


class Diverged(UserError):
    """Training left the finite numbers; the loop ends with this message as its reason."""


def suggest(given: str, known: Iterable[str]) -> str:
    """One sentence that lists the known names; before it the nearest one where it is close."""
    known = [str(name) for name in known]
    near = difflib.get_close_matches(given, known, n=1)
    hint = f"Did you mean '{near[0]}'? " if near else ""
    return f"{hint}Known: {', '.join(known) if known else 'none'}."


def first_line(error: BaseException, most: int = 120) -> str:
    """The first line of what an exception says, of at most so many letters; '' for nothing."""
    return "".join(str(error).strip().splitlines()[:1])[:most]


def counted(number: int, what: str) -> str:
    """'1 point', '3 points'."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def abbreviated(names: Iterable[str], most: int = 6, first: int = 2, separator: str = ", ") -> str:
    """A list of names; of more than ``most`` the ``first`` ones, and the last."""
    shown = list(names)
    return separator.join(shown if len(shown) <= most else [*shown[:first], "…", shown[-1]])


def check_choice(setting: str, value: object, literal: Any) -> None:
    """Raise UserError where a setting is none of the strings of its ``Literal`` type."""
    known = get_args(literal)
    if value not in known:
        raise UserError(f"{setting}={value} does not exist. {suggest(str(value), known)}")
