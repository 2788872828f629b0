"""How large the fields of a solution will be: by the values that conditions ask for, else by the
balance of the parts of equations.

Multiplying a field, an equation or a coordinate by a unit multiplies all that is computed here by
the same, so that a run does not depend on units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.parts import Affine, Parts, size

ROUNDING = 2 / 3
"""Power of a dtype's precision that is the part of a value below which a spread of values is
none."""
SAME = 1 / 2
"""… by which a slope may differ between two states where an equation is linear."""
ITERATIONS, CLOSE = 60, 0.01
"""How often scales in equations that are not linear are improved, and the part that is enough."""


@dataclass(frozen=True)
class FieldScale:
    """A field is offset + scale · (a function of order one)."""

    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Sample:
    """A term at some points, with the derivatives m [batch, monomial] of fields of amplitude 1."""

    parts: Parts
    points: TermPoints
    shapes: Tensor

    def state(self, scales: Sequence[float], offsets: Sequence[float]) -> Tensor:
        """m where the fields are offset + scale · net."""
        columns = [scales[field] * self.shapes[:, j] for j, field in enumerate(self.fields)]
        state = torch.stack(columns, dim=1)
        for j, column in enumerate(self.parts.columns):
            if column.value:
                state[:, j] += offsets[column.field]
        return state

    @property
    def fields(self) -> list[int]:
        return self.parts.fields()

    def at(self, scales: Sequence[float], offsets: Sequence[float]) -> Affine:
        return self.parts.at(self.state(scales, offsets), self.points)


def _part(power: float, dtype: torch.dtype) -> float:
    return float(torch.finfo(dtype).eps ** power)


def field_scales(
    net: nn.Module, parts: Sequence[Parts], points: Sequence[TermPoints]
) -> list[FieldScale]:
    """The scales of all fields, for a net with first weights.

    Conditions that are linear in the values of fields say what these are: a field has the middle
    of their range as its offset, where that is far from 0, and the rest of it as its scale. A
    source makes a field at least as large as it has to be for its largest part in that equation to
    equal it; and where nothing else is known of a field, it is as large as balances the fields that
    it stands beside.
    """
    with torch.no_grad():
        values = net(torch.cat([drawn.points.coordinates for drawn in points]))
    amplitudes = (math.sqrt(2.0) * values.std(0)).clamp_min(torch.finfo(values.dtype).tiny)
    samples = [
        Sample(p, drawn, p.monomials(drawn) / amplitudes[p.fields()])
        for p, drawn in zip(parts, points, strict=True)
    ]
    offsets, spreads = _by_values(values.shape[1], samples)
    scales = _by_balance(samples, offsets, spreads)
    return [FieldScale(s or 1.0, o) for s, o in zip(scales, offsets, strict=True)]


# -- values -------------------------------------------------------------------------------------
def _by_values(number: int, samples: Sequence[Sample]) -> tuple[list[float], list[float]]:
    """Offsets, and scales (0: not known), from conditions on the fields themselves: a field that
    is tied to those that are known follows them."""
    conditions = [c for sample in samples for c in _conditions(number, sample)]
    ranges: dict[int, tuple[float, float]] = {}
    while True:
        found: dict[int, list[Tensor]] = {}
        for slopes, rest in conditions:
            free = [k for k in slopes if k not in ranges]
            if len(free) == 1:
                others = sum((slopes[k] * _middle(*ranges[k]) for k in slopes if k in ranges), rest)
                values = -others / slopes[free[0]]
                found.setdefault(free[0], []).append(values[values.isfinite()])
        found = {k: v for k, v in found.items() if sum(map(len, v))}
        if not found:
            break
        for k, v in found.items():
            together = torch.cat(v)
            ranges[k] = float(together.min()), float(together.max())
    offsets = [_middle(*ranges.get(k, (0.0, 0.0))) for k in range(number)]
    rounding = _part(ROUNDING, samples[0].shapes.dtype)
    return offsets, [_spread(*ranges.get(k, (0.0, 0.0)), rounding) for k in range(number)]


def _middle(low: float, high: float) -> float:
    return 0.0 if _near_zero(low, high) else 0.5 * (low + high)


def _near_zero(low: float, high: float) -> bool:
    """Whether 0 lies in a range, or not further from it than it is wide."""
    return 2.0 * low <= high and low <= 2.0 * high


def _spread(low: float, high: float, rounding: float) -> float:
    if _near_zero(low, high):
        return max(-low, high)
    spread = 0.5 * (high - low)
    return spread if spread > rounding * max(abs(low), abs(high)) else 0.0


def _conditions(number: int, sample: Sample) -> list[tuple[dict[int, Tensor], Tensor]]:
    """Equations Σ_k slope_k u_k + rest = 0 on values alone: the slopes [batch] of the fields that
    they are about, and the rest [batch]."""
    zeros, ones = [0.0] * number, [1.0] * number
    here, there = sample.at(zeros, zeros), sample.at(ones, ones)
    same = _part(SAME, sample.shapes.dtype)
    result = []
    for e, slopes in enumerate(here.slopes):
        change = size(there.slopes[e] - slopes, dim=0)
        linear = bool((change <= same * size(slopes, dim=0)).all())
        if linear and _only_values(sample, slopes):
            about = _entering(slopes)
            result.append(({sample.fields[j]: slopes[:, j] for j in about}, here.rest[e]))
    return result


def _entering(slopes: Tensor) -> list[int]:
    """The monomials that an equation with these slopes [batch, monomial] is about."""
    entering: list[int] = (size(slopes, dim=0) > 0).nonzero().flatten().tolist()
    return entering


def _only_values(sample: Sample, slopes: Tensor) -> bool:
    entering = _entering(slopes)
    return bool(entering) and all(sample.parts.columns[j].value for j in entering)


# -- balance ------------------------------------------------------------------------------------
def _by_balance(
    samples: Sequence[Sample], offsets: Sequence[float], spreads: Sequence[float]
) -> list[float]:
    """Scales (0: nothing says it), of which ``spreads`` are those by values.

    At first sources alone count, then the fields that are known by then, until none is added.
    """
    scales = [0.0] * len(spreads)
    while True:
        known = list(scales)
        added = _balancing(samples, offsets, known)
        if not any(known):
            scales = [max(s, added.get(k, 0.0)) for k, s in enumerate(spreads)]
        else:
            scales = [s or added.get(k, 0.0) for k, s in enumerate(known)]
        if scales == known:
            return scales


def _balancing(
    samples: Sequence[Sample], offsets: Sequence[float], known: Sequence[float]
) -> dict[int, float]:
    """By field without a scale, the one at which its largest part in some equation is as large as
    the rest and the parts of all fields that have one.

    Parts of equations that are not linear depend on the scales that are sought: these are iterated,
    in their logarithms, from those at which such parts are none.
    """
    others = [_beside(sample, offsets, known) for sample in samples]
    scales = list(known)
    for iteration in range(ITERATIONS):
        result: dict[int, float] = {}
        for sample, beside in zip(samples, others, strict=True):
            slopes = sample.at(scales, offsets).slopes
            for e, other in enumerate(beside):
                for k, largest in _largest(sample, slopes[e]).items():
                    if largest > 0.0 and known[k] == 0.0:
                        result[k] = max(result.get(k, 0.0), other / largest)
        changes = {k: _mean(scales[k], v) if iteration else v for k, v in result.items()}
        settled = all(abs(v - scales[k]) <= CLOSE * scales[k] for k, v in changes.items())
        scales = [changes.get(k, s) for k, s in enumerate(scales)]
        if settled:
            break
    return {k: scales[k] for k in changes}


def _mean(one: float, other: float) -> float:
    """The geometric one."""
    return math.sqrt(one) * math.sqrt(other)


def _largest(sample: Sample, slopes: Tensor) -> dict[int, float]:
    """By field, the size of its largest part for a scale of 1 in an equation with these slopes; no
    equation on values alone has any: that is a condition."""
    result: dict[int, float] = {}
    if not _only_values(sample, slopes):
        for k, v in zip(sample.fields, size(slopes * sample.shapes, dim=0).tolist(), strict=True):
            result[k] = max(result.get(k, 0.0), v)
    return result


def _beside(sample: Sample, offsets: Sequence[float], known: Sequence[float]) -> list[float]:
    """By equation, the larger of its size where all fields are their offsets, and of the parts of
    fields with known scales."""
    zeros = [0.0] * len(known)
    at_offsets, state = sample.at(zeros, offsets), sample.at(known, offsets)
    rounding = _part(ROUNDING, sample.shapes.dtype)
    result = []
    for e in range(len(at_offsets.value)):
        parts = [size(at_offsets.rest[e])]
        for j, column in enumerate(sample.parts.columns):
            if column.value:
                parts.append(size(at_offsets.slopes[e, :, j] * offsets[column.field]))
        source = float(size(at_offsets.value[e]))
        source = source if source > rounding * max(map(float, parts)) else 0.0
        fields = _largest(sample, state.slopes[e])
        result.append(max([source, *(known[k] * v for k, v in fields.items())]))
    return result
