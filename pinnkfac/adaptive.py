"""Points where the residual is large, chosen among candidates: with weights, or as RAD."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, ClassVar

import torch
from torch import Generator, Tensor

from pinnkfac.domain import PointSet
from pinnkfac.domain.sampling import subset
from pinnkfac.settings import NonNegative, Range

ROUNDS = 50
"""After which no more probabilities reach 1, or hardly any."""


class Selection:
    """How points are chosen among ``factor`` times as many candidates. A new one is a new
    dataclass here.

    ``faithful``: weighted means over the chosen points are those over the region, whatever the
    residual is.
    """

    faithful: ClassVar[bool]
    factor: int

    def choose(
        self, candidates: PointSet, residual: Tensor, number: int, generator: Generator
    ) -> PointSet:
        """``number`` candidates (all, where there are fewer), by their residuals [batch, equation],
        each with the scale that it is trained with, and times the root of their weights."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImportanceSampling(Selection):
    """Points are more where the residual is large, and count less there by as much.

    Of ``factor`` times as many candidates, number i is taken with the probability

        π_i = min(1, c q_i),   q_i = (1 − share) |r_i|^power / mean |r|^power + share,

    with c such that they sum to the number of points, and has the weight
    number / (candidates · π_i), times the one that it was drawn with. |r| is the norm over the
    equations of a term, its root mean square over some neighbours. Of candidates in the order of a
    curve that fills space, those are taken where the sum of the π passes u, u + 1, …, with a random
    u, so that points are as even as the density allows (systematic sampling; Stevens & Olsen 2004,
    doi:10.1198/016214504000000250). So the loss stays an unbiased estimate of the mean over the
    region (Horvitz & Thompson 1952, doi:10.1080/01621459.1952.10483446), while steps see where a
    front or a layer is, which few uniform points hit; no weight is much above 1/``share``.
    Importance sampling for PINNs: Nabian, Gladstone & Meidani 2021, arXiv:2104.12325.
    """

    faithful: ClassVar[bool] = True
    factor: Annotated[int, Range(least=2)] = 10
    power: NonNegative = 1.0
    share: Annotated[float, Range(above=0, most=1)] = 0.5

    def choose(
        self, candidates: PointSet, residual: Tensor, number: int, generator: Generator
    ) -> PointSet:
        if number >= len(candidates):
            return candidates
        own = candidates.weights
        plain = residual if own is None else residual / own.to(residual).sqrt()[:, None]
        order = z_order(candidates.coordinates)
        probability = torch.empty(len(order), dtype=torch.float64)
        probability[order] = self.probabilities(self._smooth(plain[order]), number)
        sums = probability[order].cumsum(0)
        marks = torch.rand(1, dtype=torch.float64, generator=generator) + torch.arange(number)
        rows = order[torch.searchsorted(sums, marks * (sums[-1] / number))]
        weights = number / (len(candidates) * probability[rows])
        chosen = candidates[rows]
        return replace(chosen, weights=weights if own is None else weights.to(own) * own[rows])

    def _smooth(self, residual: Tensor) -> Tensor:
        """The root mean square over as many neighbours on the curve as one point is taken from,
        [batch, 1]: zeros between the waves of a residual are no reason for fewer points."""
        squares = residual.detach().to("cpu", torch.float64).square().sum(dim=1)
        sums = torch.cat([squares.new_zeros(1), squares.cumsum(0)])
        at, reach = torch.arange(len(squares)), self.factor // 2
        low, high = (at - reach).clamp_min(0), (at + reach + 1).clamp_max(len(squares))
        return ((sums[high] - sums[low]).clamp_min(0.0) / (high - low)).sqrt()[:, None]

    def probabilities(self, residual: Tensor, number: int) -> Tensor:
        """π [batch] from the residuals [batch, equation] of all candidates."""
        q = (1.0 - self.share) * _relative(residual, self.power) + self.share
        probability = (number / len(q)) * q
        for _ in range(ROUNDS):  # what exceeds 1 is shared among the others
            sure = probability >= 1.0
            rest = float(probability[~sure].sum())
            missing = number - int(sure.sum()) - rest
            if missing <= 1e-12 * number or rest == 0.0:
                break
            probability = torch.where(sure, 1.0, probability * (1.0 + missing / rest))
        return probability.clamp_max(1.0)


@dataclass(frozen=True)
class ResidualAdaptive(Selection):
    """Residual-based adaptive distribution: new points lie where the residual is large.

    Of ``factor`` times as many candidates, points are kept without replacement with probabilities
    in proportion to

        |r|^power / mean |r|^power + constant;

    |r| is the norm over the equations of a term, each with the scale that it is trained with. A
    ``share`` of the points is taken anywhere, so that nothing is left uncovered. The loss is the
    mean over these points, as published: an estimate of the integral of r² with more weight where
    the residual was large, not of the integral itself. Source: RAD of Wu, Zhu, Tan, Kartha & Lu
    2023, arXiv:2207.10289, eq. 2 (with share 0).
    """

    faithful: ClassVar[bool] = False
    factor: Annotated[int, Range(least=2)] = 10
    power: NonNegative = 1.0
    constant: NonNegative = 1.0
    share: Annotated[float, Range(least=0, most=1)] = 0.2

    def choose(
        self, candidates: PointSet, residual: Tensor, number: int, generator: Generator
    ) -> PointSet:
        weights = self.weights(residual)
        anywhere = subset(torch.ones_like(weights), round(self.share * number), generator)
        weights[anywhere] = 0.0
        rows = subset(weights, number - len(anywhere), generator)
        return candidates[torch.cat([rows, anywhere])]

    def weights(self, residual: Tensor) -> Tensor:
        """What the probability to be kept is proportional to, [batch], from the residuals at the
        candidates, [batch, equation]; all equal where these are not finite, or all 0."""
        return _relative(residual, self.power) + self.constant


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
