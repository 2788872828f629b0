"""Coefficients that jump under a second derivative, of which a residual at points says nothing.

Where k jumps, k u'' = f holds at almost all points whatever u' does at the jump: the flux k u' need
not be continuous, and the solution is not unique. Written with the flux, q = k u', q' = f, it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnkfac.domain import Points, PointSet
from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.parts import Parts

PAIRS, HALVINGS, SMOOTH = 64, 40, 14
"""Segments that are searched for a jump, how often each is halved, and after how many of these a
coefficient without a jump differs no more between their ends."""
LARGE = 1e-3
"""Part of a coefficient at its largest by which it differs between the ends of such a tiny segment
where it jumps."""


@dataclass(frozen=True)
class Jump:
    """Where [coord] the coefficient of a derivative (by its multi-index) of a field jumps in a
    term, and from what to what."""

    term: str
    field: int
    alpha: tuple[int, ...]
    place: tuple[float, ...]
    values: tuple[float, float]


def find_jumps(parts: Sequence[Parts], points: Sequence[TermPoints]) -> list[Jump]:
    """The first jump in each term, found by halving segments between its points; terms at given
    points, with normals or linked points are left out."""
    return [
        jump
        for part, drawn in zip(parts, points, strict=True)
        if (jump := _in_term(part, drawn)) is not None
    ]


def _in_term(parts: Parts, drawn: TermPoints) -> Jump | None:
    points, coordinates = drawn.points, parts.term.residual.coordinates
    apart = points.values or points.links or points.normals is not None
    given = isinstance(parts.term.residual.term.where, Points)
    if apart or given or parts.term.residual.constant is not None or len(points) < 2:
        return None
    for i, name in enumerate(coordinates.names):
        # across a jump in x, it is derivatives by x whose flux is not determined
        columns = [
            j
            for j, column in enumerate(parts.columns)
            if any(sum(alpha) > 1 and alpha[i] for (_, _, alpha), _ in column.operator)
        ]
        if columns and name != coordinates.time:
            jump = _along(parts, points, i, columns)
            if jump is not None:
                return jump
    return None


def _along(parts: Parts, points: PointSet, i: int, columns: list[int]) -> Jump | None:
    """A jump on segments between points that differ in coordinate i only."""
    half = min(PAIRS, len(points) // 2)
    order = torch.randperm(len(points), generator=torch.Generator().manual_seed(0))
    low = points.coordinates[order[:half]]
    high = low.clone()
    high[:, i] = points.coordinates[order[-half:], i]
    at_low, at_high = _slopes(parts, low, columns), _slopes(parts, high, columns)
    largest = torch.maximum(at_low.abs(), at_high.abs()).amax(1, keepdim=True)
    earlier = at_low
    for halving in range(HALVINGS):
        middle = 0.5 * (low + high)
        at_middle = _slopes(parts, middle, columns)
        left = (_apart(at_low, at_middle) >= _apart(at_middle, at_high)).view(-1, 1)
        low, high = torch.where(left, low, middle), torch.where(left, middle, high)
        at_low, at_high = (
            torch.where(left[None], at_low, at_middle),
            torch.where(left[None], at_middle, at_high),
        )
        if halving == SMOOTH and not bool(_differ(at_low, at_high, largest).any()):
            return None
        if halving == HALVINGS // 2:
            earlier = (at_low - at_high).abs()
    now = (at_low - at_high).abs()
    jumps = _differ(at_low, at_high, largest)
    jumps &= now <= 2.0 * earlier  # what grows as the segment shrinks is a pole
    if not bool(jumps.any()):
        return None
    e, n, j = jumps.nonzero()[0].tolist()
    column = parts.columns[columns[j]]
    _, _, alpha = max((key for key, _ in column.operator), key=lambda key: sum(key[2]))
    values = float(at_low[e, n, j]), float(at_high[e, n, j])
    return Jump(parts.term.name, column.field, alpha, tuple(low[n].tolist()), values)


def _differ(at_low: Tensor, at_high: Tensor, largest: Tensor) -> Tensor:
    """Which coefficients differ between the ends of a segment, beside what they are at most."""
    sizes = torch.maximum(largest, torch.maximum(at_low.abs(), at_high.abs()))
    return (at_low - at_high).abs() > LARGE * sizes.clamp_min(torch.finfo(sizes.dtype).tiny)


def _slopes(parts: Parts, x: Tensor, columns: list[int]) -> Tensor:
    """a [equation, batch, column] at points x, all derivatives of the fields being 1."""
    points = TermPoints(PointSet(x), None)
    return parts.at(x.new_ones(len(x), len(parts.columns)), points).slopes[..., columns]


def _apart(one: Tensor, other: Tensor) -> Tensor:
    """[batch]."""
    return (one - other).abs().sum((0, 2)).nan_to_num(0.0)
