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


def check(key: str, settings: type, values: Mapping[str, Any]) -> None:
    """Compare values with the fields of a settings dataclass; ``key`` is where they are set.

    Raises UserError, naming the setting, for an unknown name, a wrong type or a number out of
    range.
    """
    if not dataclasses.is_dataclass(settings):
        return
    prefix = f"{key}." if key else ""
    hints = get_type_hints(settings, include_extras=True)
    names = [f.name for f in dataclasses.fields(settings) if f.init]
    for name, value in values.items():
        if name not in names:
            raise UserError(f"the setting '{prefix}{name}' does not exist. {suggest(name, names)}")
        each = {name: value}
        if isinstance(value, Mapping) and get_origin(hints[name]) is not None:
            each = {f"{name}.{k}": {k: v} for k, v in value.items()}
        for part, own in each.items():
            problem = _mismatch(own, hints[name])
            if problem:
                shown = own if part == name else next(iter(own.values()))
                raise UserError(f"{prefix}{part}={_shown(shown)}: {problem}")


def _shown(value: Any) -> str:
    return "null" if value is None else str(value)


def _mismatch(value: Any, hint: Any) -> str:
    """What is wrong with a value of this type, in words; '' where nothing is."""
    if hint is Any:
        return ""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        found = _mismatch(value, arguments[0])
        ranges = [a for a in arguments[1:] if isinstance(a, Range)]
        if not found and any(value not in r for r in ranges):
            return f"give {_article(arguments[0])} {' and '.join(map(str, ranges))}"
        return found and f"{found}{''.join(f' {r}' for r in ranges)}"
    if origin in (Union, types.UnionType):
        each = [_mismatch(value, option) for option in arguments]
        if "" in each:
            return ""
        return " or ".join(m if i == 0 else m.removeprefix("give ") for i, m in enumerate(each))
    if origin is Literal:
        return "" if value in arguments else suggest(str(value), arguments)
    if hint is type(None):
        return "" if value is None else "give null"
    if hint is bool:
        return "" if isinstance(value, bool) else "give true or false"
    if hint is int:
        return "" if isinstance(value, int) and not isinstance(value, bool) else _give(int)
    if hint is float:
        good = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if good and not math.isnan(value) else _give(float)
    if hint is str:
        return "" if isinstance(value, str) else "give a word"
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            return "give a mapping, {name: value}"
        return next((m for v in value.values() if (m := _mismatch(v, arguments[1]))), "")
    if origin is not None and issubclass(origin, Sequence):
        if isinstance(value, str) or not isinstance(value, Sequence):
            return "give a list, [value, value]"
        return next((f"in the list, {m}" for v in value if (m := _mismatch(v, arguments[0]))), "")
    if isinstance(hint, type) and not getattr(hint, "_is_protocol", False):
        return "" if isinstance(value, hint) else f"give a {hint.__name__}"
    return ""


def _article(kind: Any) -> str:
    return "a whole number" if kind is int else "a number"


def _give(kind: Any) -> str:
    return f"give {_article(kind)}"
