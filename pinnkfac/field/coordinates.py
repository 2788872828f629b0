"""Names of coordinates, and multi-indices of derivatives."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from pinnkfac.common.errors import UserError, suggest

MultiIndex = tuple[int, ...]
Key = tuple[int, str, MultiIndex]
"""(field, place, multi-index); the place is '' for the point itself, else the name of a link."""
LinearPart = tuple[tuple[Key, float], ...]


@dataclass(frozen=True)
class Coordinates:
    """The names of the coordinates, which of them is time, and how names combine.

    ``vector`` is the common stem of coordinates x1 … xd (then ``at.x`` is the vector), or ''.
    """

    names: tuple[str, ...]
    time: str | None = None

    @property
    def space(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name != self.time)

    @property
    def vector(self) -> str:
        stems = {name.rstrip("0123456789") for name in self.space}
        if len(stems) != 1 or any(name in stems for name in self.names):
            return ""
        return stems.pop()

    def index(self, name: str) -> int:
        if name not in self.names:
            raise UserError(f"unknown coordinate '{name}'. {suggest(name, self.names)}")
        return self.names.index(name)

    def parse(self, text: str) -> list[str] | None:
        """Split 'xx' or 'x1x2' into coordinate names; None where that is impossible."""
        if not text:
            return []
        for name in sorted(self.names, key=len, reverse=True):
            if text.startswith(name):
                rest = self.parse(text[len(name) :])
                if rest is not None:
                    return [name, *rest]
        return None


def multi_indices(order: int, dimension: int) -> list[MultiIndex]:
    """All multi-indices of the given order, lexicographic."""
    positions = itertools.combinations_with_replacement(range(dimension), order)
    return [tuple(map(chosen.count, range(dimension))) for chosen in positions]


def factorial(alpha: MultiIndex) -> int:
    """α! = Π α_i!"""
    return math.prod(math.factorial(a) for a in alpha)
