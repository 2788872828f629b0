"""The rows of arXiv:2405.15603, for comparison with it: more than are needed."""

from __future__ import annotations

from collections.abc import Sequence

from pinnkfac.field import LinearPart
from pinnkfac.taylor.plan import Part, Plan, RowBuilder, assemble, parts_at, unit


def published_plan(slots: Sequence[LinearPart], dimension: int, place: str = "") -> Plan:
    """The value, every first derivative (time too) where there is a higher one, and one row of pure
    higher order a slot and field."""
    builder = RowBuilder(dimension)
    parts = parts_at(slots, place)
    if any(sum(alpha) > 1 for slot in parts for part in slot.values() for alpha in part):
        for i in range(dimension):
            builder.monomial(unit(i, dimension))
    return assemble(builder, parts, _first_derivatives_apart)


def _first_derivatives_apart(part: Part) -> list[Part]:
    first = [{alpha: c} for alpha, c in part.items() if sum(alpha) == 1]
    return [*first, {alpha: c for alpha, c in part.items() if sum(alpha) > 1}]
