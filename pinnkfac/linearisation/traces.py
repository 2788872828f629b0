"""How strongly parameters move a residual: squared norms of the rows of the Jacobian."""

from __future__ import annotations

from torch import Tensor

from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.linearisation import Linearisation


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
