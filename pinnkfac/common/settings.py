"""Settings: what their values may be, said in the type of a dataclass field.

A setting is a field of a small frozen dataclass. ``lower: Positive = 0.5`` says that it is a
number above 0; ``check`` compares values with such types before the object is made, and names the
setting as the configuration does.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pinnkfac.common.errors import UserError, suggest


@dataclass(frozen=True)
class Range:
    """Numbers that are allowed: ``least`` ≤ value ≤ ``most``, ``above`` < value < ``below``."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        parts = [
            f"{words} {bound:g}"
            for words, bound in (
                ("at least", self.least),
                ("above", self.above),
                ("at most", self.most),
                ("below", self.below),
            )
            if math.isfinite(bound)
        ]
        return " and ".join(parts) or "any finite number"


Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Fraction = Annotated[float, Range(above=0, below=1)]
Count = Annotated[int, Range(least=1)]
Number = Annotated[int, Range(least=0)]
"""A number of things, with 0 for none."""


KINDS = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    str: "a word",
    type(None): "null",
}


def check(key: str, settings: Any, values: Mapping[str, Any]) -> None:
    """Compare values with the fields of a settings dataclass; ``key`` is where they are set.

    Raises UserError, naming the setting, for an unknown name, a wrong type or a number out of
    range.
    """
    prefix = f"{key}." if key else ""
    hints = get_type_hints(settings, include_extras=True)
    names = [f.name for f in dataclasses.fields(settings) if f.init]
    for name, value in values.items():
        if name not in names:
            raise UserError(f"the setting '{prefix}{name}' does not exist. {suggest(name, names)}")
        parts = {name: value}
        if isinstance(value, Mapping) and get_origin(hints[name]) is not None:
            parts = {f"{name}.{inner}": {inner: v} for inner, v in value.items()}
        for part, of_part in parts.items():
            problem = _mismatch(of_part, hints[name])
            if problem:
                shown = of_part if part == name else next(iter(of_part.values()))
                raise UserError(f"{prefix}{part}={'null' if shown is None else shown}: {problem}")


def check_order(group: str, settings: object, low: str, high: str) -> None:
    """Raise UserError where the setting ``low`` is above the setting ``high``."""
    one, other = getattr(settings, low), getattr(settings, high)
    if not one <= other:
        raise UserError(f"{group}.{low}={one} must not exceed {group}.{high}={other}")


def _mismatch(value: Any, hint: Any) -> str:
    """What is wrong with a value of this type, in words; '' where nothing is."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        problem = _mismatch(value, arguments[0])
        ranges = [a for a in arguments[1:] if isinstance(a, Range)]
        if not problem and any(value not in r for r in ranges):
            problem = f"give {KINDS[arguments[0]]}"
        return problem and " ".join((problem, " and ".join(map(str, ranges)))).rstrip()
    if origin in (Union, types.UnionType):
        each = [_mismatch(value, option) for option in arguments]
        others = [problem.removeprefix("give ") for problem in each[1:]]
        return "" if "" in each else " or ".join([each[0], *others])
    if origin is Literal:
        return "" if value in arguments else suggest(str(value), arguments)
    if hint is Any:
        return ""
    if hint in KINDS:
        return "" if _is_a(value, hint) else f"give {KINDS[hint]}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return "give a mapping, {name: value}"
        return next((m for v in value.values() if (m := _mismatch(v, arguments[1]))), "")
    if isinstance(origin, type) and issubclass(origin, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return "give a list, [value, value]"
        return next((f"in the list, {m}" for v in value if (m := _mismatch(v, arguments[0]))), "")
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        return "" if isinstance(value, hint) else f"give a {hint.__name__}"
    return ""


def _is_a(value: Any, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and not math.isnan(value)
    return isinstance(value, kind)
