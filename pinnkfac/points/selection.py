"""Points where the residual is large, chosen among candidates: with weights, or as RAD."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor

from pinnkfac.common.settings import NonNegative, Range
from pinnkfac.domain import PointSet
from pinnkfac.domain.sampling import DENSE, subset

PART, SOME = 0.2, 10.0
"""Of the cost of a step, that the residuals at candidates may cost; and that cost in evaluations of
the residuals, where the step does not say what it is."""


class Selection:
    """How points are chosen among ``factor`` times as many candidates. A new one is a new
    dataclass here. ``faithful``: weighted means over the points are those over the region."""

    faithful: ClassVar[bool]
    factor: int

    def candidates(self, dimension: int) -> int:
        """For each point on a region of that dimension; 1: it is taken as it is drawn."""
        return self.factor if dimension else 1

    def choose(
        self, candidates: PointSet, residual: Tensor, number: int, generator: Generator
    ) -> PointSet:
        """``number`` candidates (all, where there are fewer), by their trained residuals
        [batch, equation]."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImportanceSampling(Selection):
    """Points are more where the residual is large, and count less there by as much.

    Of ``factor`` times as many candidates, number i is taken n_i times in the mean,

        n_i ∝ q_i = (1 − share) |r_i|^power / mean |r|^power + share,

    with the sum number, the one of points, and has the weight number / (candidates · n_i), times
    the one that it was drawn with. |r| is the norm over the equations of a term, its root mean
    square over some neighbours. In the order of a curve that fills space, those are taken where the
    sum of the n passes u, u + 1, …, with a random u, so that points are as even as the density
    allows (systematic sampling; Stevens & Olsen 2004, doi:10.1198/016214504000000250), and each is
    moved at random within the part of the region that the candidate stands for; where the region
    does not say how, no n_i is above 1. So the loss stays an estimate of the mean over the region
    (Horvitz & Thompson 1952, doi:10.1080/01621459.1952.10483446), while steps see where a front or
    a layer is. On regions of more than DENSE dimensions, points are taken as they are drawn.
    Importance sampling for PINNs: Nabian, Gladstone & Meidani 2021, arXiv:2104.12325.
    """

    faithful: ClassVar[bool] = True
    factor: Annotated[int, Range(least=2)] = 10
    """candidates for a point, where they are cheap beside a step"""
    power: NonNegative = 1.0
    """of the residual, in the probability to be taken"""
    share: Annotated[float, Range(above=0, most=1)] = 0.5
    """of the density that does not depend on the residual"""

    def candidates(self, dimension: int) -> int:
        return self.factor if 0 < dimension <= DENSE else 1

    def choose(
        self, candidates: PointSet, residual: Tensor, number: int, generator: Generator
    ) -> PointSet:
        if number >= len(candidates):
            return candidates
        drawn = candidates.weights
        plain = residual if drawn is None else residual / drawn.to(residual).sqrt()[:, None]
        order = z_order(candidates.coordinates)
        reach = len(candidates) // number // 2
        expected = self.numbers(smooth(plain[order], reach), number)
        if not candidates.movable:
            expected = at_most_once(expected)
        sums = expected.cumsum(0)
        marks = torch.rand(1, dtype=torch.float64, generator=generator) + torch.arange(number)
        taken = torch.searchsorted(sums, marks * (sums[-1] / number)).clamp_max(len(order) - 1)
        rows = order[taken]
        weights = number / (len(candidates) * expected[taken])
        if drawn is not None:
            weights = weights.to(drawn) * drawn[rows]
        return replace(candidates.spread(rows, generator), weights=weights)

    def numbers(self, residual: Tensor, number: int) -> Tensor:
        """n [batch] from the residuals [batch, equation] of all candidates."""
        q = (1.0 - self.share) * _relative(residual, self.power) + self.share
        return (number / q.sum()) * q


@dataclass(frozen=True)
class ResidualAdaptive(Selection):
    """Residual-based adaptive distribution: new points lie where the residual is large.

    Candidates are kept without replacement with probabilities in proportion to

        |r|^power / mean |r|^power + constant;

    |r| is the norm over the equations of a term. A ``share`` of the points is taken anywhere, so
    that nothing is left uncovered. The loss is the mean over these points, as published, not an
    estimate of the integral of r². Source: RAD of Wu, Zhu, Tan, Kartha & Lu 2023, arXiv:2207.10289,
    eq. 2 (with share 0).
    """

    faithful: ClassVar[bool] = False
    factor: Annotated[int, Range(least=2)] = 10
    """candidates for a point"""
    power: NonNegative = 1.0
    """of the residual, in the probability to be kept"""
    constant: NonNegative = 1.0
    """what is added to it, in units of the mean"""
    share: Annotated[float, Range(least=0, most=1)] = 0.2
    """of the points that is taken anywhere"""

    def choose(
        self, candidates: PointSet, residual: Tensor, number: int, generator: Generator
    ) -> PointSet:
        weights = self.weights(residual)
        anywhere = subset(torch.ones_like(weights), round(self.share * number), generator)
        weights[anywhere] = 0.0
        rows = subset(weights, number - len(anywhere), generator)
        return candidates[torch.cat([rows, anywhere])]

    def weights(self, residual: Tensor) -> Tensor:
        """What the probability to be kept is proportional to, [batch], from the residuals
        [batch, equation]; all equal where these are not finite, or all 0."""
        return _relative(residual, self.power) + self.constant


def affordable(selection: Selection, dimensions: Sequence[int], evaluations: float) -> list[int]:
    """How many candidates there are for a point of every term, on regions of these dimensions: with
    weights, fewer where their residuals would cost more than a part of a step, which is so many
    ``evaluations`` of the residuals (NaN: it does not say)."""
    wanted = [selection.candidates(dimension) for dimension in dimensions]
    if not selection.faithful:
        return wanted
    most = PART * (SOME if math.isnan(evaluations) else evaluations)
    return [max(1, int(min(most, factor))) for factor in wanted]


def at_most_once(numbers: Tensor) -> Tensor:
    """n [batch] with the same sum, those above 1 lowered to it, the others larger by a factor."""
    free = torch.ones_like(numbers, dtype=torch.bool)
    total, result = numbers.sum(), numbers
    while bool((result > 1.0).any()):
        free &= result < 1.0
        factor = (total - (~free).sum()) / numbers[free].sum()
        result = torch.where(free, factor * numbers, 1.0)
    return result


def smooth(residual: Tensor, reach: int) -> Tensor:
    """The root mean square over ``reach`` neighbours to each side, [batch, 1]: zeros between the
    waves of a residual are no reason for fewer points."""
    squares = residual.detach().to("cpu", torch.float64).square().sum(dim=1)
    sums = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
    at = torch.arange(len(squares))
    low, high = (at - reach).clamp_min(0), (at + reach + 1).clamp_max(len(squares))
    return ((sums[high] - sums[low]).clamp_min(0.0) / (high - low)).sqrt()[:, None]


def z_order(coordinates: Tensor) -> Tensor:
    """The order of points [batch, coord] along Morton's curve through the box around them."""
    x = coordinates.detach().to("cpu", torch.float64)
    low, high = x.amin(dim=0), x.amax(dim=0)
    x = x[:, high > low]
    bits = max(1, min(16, 62 // max(1, x.shape[1])))
    cells = ((x - low[high > low]) / (high - low)[high > low] * (2**bits - 1)).long()
    key = torch.zeros(len(x), dtype=torch.int64)
    for bit in reversed(range(bits)):
        for column in range(min(x.shape[1], 62)):
            key = 2 * key + (cells[:, column] >> bit & 1)
    return torch.argsort(key, stable=True)


def _relative(residual: Tensor, power: float) -> Tensor:
    """|r|^power / mean |r|^power, [batch]; 1 where they are not all finite, or all 0."""
    size = residual.detach().to("cpu", torch.float64).norm(dim=1)
    largest = float(size.max())
    if not 0.0 < largest < math.inf:
        return torch.ones_like(size)
    powers = (size / largest) ** power  # divided first: powers of small residuals vanish
    return powers / powers.mean()
