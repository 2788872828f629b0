"""Settings: what their types allow, and how a mistake is named."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Count, Fraction, NonNegative, Number, Positive, Range, check


@dataclass(frozen=True)
class Example:
    positive: Positive = 1.0
    none_or: Positive | None = None
    count: Count = 1
    number: Number = 0
    fraction: Fraction = 0.5
    size: NonNegative = 0.0
    flag: bool = True
    word: str = "a"
    kind: Literal["left", "right"] = "left"
    widths: Sequence[Count] = (1,)
    numbers: Mapping[str, Count] | None = None
    between: Annotated[float, Range(least=1, most=2)] = 1.0
    anything: Any = None


@pytest.mark.parametrize(
    "values",
    [
        {"positive": 3, "none_or": None, "count": 7, "number": 0, "fraction": 0.1},
        {"none_or": 0.5, "size": 0, "flag": False, "word": "", "kind": "right"},
        {"widths": [3, 4], "numbers": {"a": 1}, "between": 2},
        {"widths": (), "numbers": {}, "anything": object()},
    ],
)
def test_what_the_types_allow_passes(values):
    check("x", Example, values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"positive": 0}, "x.positive=0: give a number above 0"),
        ({"positive": -1.0}, "above 0"),
        ({"positive": float("inf")}, "above 0"),
        ({"positive": "many"}, "x.positive=many: give a number above 0"),
        ({"positive": True}, "x.positive=True: give a number"),
        ({"positive": None}, "x.positive=null: give a number"),
        ({"positive": float("nan")}, "give a number"),
        ({"none_or": "a"}, "give a number above 0 or null"),
        ({"none_or": 0}, "above 0"),
        ({"count": 0}, "a whole number at least 1"),
        ({"count": 1.5}, "x.count=1.5: give a whole number at least 1"),
        ({"number": -1}, "at least 0"),
        ({"fraction": 1.0}, "above 0 and below 1"),
        ({"size": -1e-9}, "at least 0"),
        ({"flag": 1}, "true or false"),
        ({"flag": "yes"}, "true or false"),
        ({"word": 3}, "give a word"),
        ({"kind": "lft"}, "Did you mean 'left'? Known: left, right."),
        ({"widths": 3}, "give a list"),
        ({"widths": "32"}, "give a list"),
        ({"widths": [1, 0]}, "in the list, give a whole number at least 1"),
        ({"numbers": [1]}, "a mapping"),
        ({"numbers": {"a": 0}}, "at least 1"),
        ({"between": 2.5}, "at least 1 and at most 2"),
        ({"psitive": 1}, "'x.psitive' does not exist. Did you mean 'positive'? Known: positive"),
    ],
)
def test_what_they_do_not_is_named_with_what_is_allowed(values, message):
    with pytest.raises(UserError) as found:
        check("x", Example, values)
    assert message in str(found.value)


def test_settings_at_the_root_have_no_prefix():
    with pytest.raises(UserError, match=r"^count=0: "):
        check("", Example, {"count": 0})
