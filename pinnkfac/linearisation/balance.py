"""Weights that keep terms in balance while their sensitivity changes in the course of training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from torch import Tensor

from pinnkfac.common.errors import Diverged
from pinnkfac.common.settings import Number, Range
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.linearisation import Linearisation


@dataclass(frozen=True)
class Balance:
    """Scale every equation by the inverse of its sensitivity to the parameters.

    Equation e of a term is multiplied by s_e, s_e² = max_f T_f / T_e with T the mean over points
    of ‖∂r_e/∂θ‖², the mean diagonal of its tangent kernel. The most sensitive equation, usually the
    one of highest order, keeps the scale 1. Where equations have sizes, T is that of equations in
    units of these, and so is s. Source: Wang, Yu & Perdikaris 2022, arXiv:2007.14527, eq. 6.5 (with
    the largest trace in place of the sum).
    """

    every: Number = 20
    """steps between updates; 0: terms stay as written"""
    most: Annotated[float, Range(least=1)] = 1e8
    """largest weight"""

    def scales(self, linearisation: Linearisation) -> list[Tensor]:
        """s for every term, [equation]."""
        dtype = linearisation.residual.dtype
        norms = [n.double() for n in mean_square_norms(linearisation)]
        if linearisation.scales is not None:
            pairs = zip(norms, linearisation.scales, strict=True)
            norms = [n / scale.double().square() for n, scale in pairs]
        sizes = [size.double() for size in linearisation.equation_sizes or []]
        sizes = sizes or [n.new_ones(()) for n in norms]
        norms = [n / size.square() for n, size in zip(norms, sizes, strict=True)]
        largest = max(float(n.max()) for n in norms)
        if not math.isfinite(largest):
            raise Diverged(
                "the derivatives of the residual are no longer finite: training diverged"
            )
        weights = [
            (largest / n.clamp_min(largest / self.most)).sqrt() if largest > 0 else 0 * n + 1
            for n in norms
        ]
        return [(w / size).to(dtype) for w, size in zip(weights, sizes, strict=True)]


def mean_square_norms(linearisation: Linearisation) -> list[Tensor]:
    """mean over points of ‖∂r_e/∂θ‖² for every term, [equation]; weights are left out.

    No row of J is ever formed: see ``Layer.square_norms``.
    """
    like = linearisation.residual

    def zeros() -> list[Tensor]:
        return [like.new_zeros(equations) for _, equations in linearisation.workload.terms]

    def add(total: list[Tensor], block: Block) -> None:
        for layer in block.layers:
            total[block.term] += layer.square_norms()
        if block.dense is not None:
            total[block.term] += block.dense.square().sum((1, 2))

    sums = linearisation.sum(zeros, add)
    return [t / n for t, n in zip(sums, linearisation.points, strict=True)]
