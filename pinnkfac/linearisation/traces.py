"""How strongly parameters move a residual: squared norms of the rows of the Jacobian."""

from __future__ import annotations

import torch
from torch import Tensor

from pinnkfac.linearisation.block import Block, Layer
from pinnkfac.linearisation.system import Linearisation


def mean_square_norms(linearisation: Linearisation) -> list[Tensor]:
    """mean over points of ‖∂r_e/∂θ‖² for every term, [equation]; weights are left out.

    Per layer ‖Σ_s g_s z_sᵀ‖² = Σ_st (z_s·z_t)(g_s·g_t), so that no row of J is ever formed.
    """
    system = linearisation.system
    parts = system.workers.map(lambda make: _sums(make()), linearisation.blocks)
    totals: list[Tensor | None] = [None] * len(system.terms)
    counts = [0] * len(system.terms)
    for term, batch, sums in parts:
        known = totals[term]
        totals[term] = sums if known is None else known + sums
        counts[term] += batch
    return [t / n for t, n in zip(totals, counts, strict=True) if t is not None]


@torch.no_grad()
def _sums(block: Block) -> tuple[int, int, Tensor]:
    total = block.residual.new_zeros(block.equations)
    for layer in block.layers:
        for e, g in enumerate(layer.gradients):
            if len(g):
                total[e] += _layer_square_norm(layer, e)
    if block.dense is not None:
        total += block.dense.square().sum((1, 2))
    return block.term, block.batch, total


def _layer_square_norm(layer: Layer, equation: int) -> Tensor:
    z = layer.inputs_of(equation).transpose(0, 1)
    g = layer.gradients[equation].transpose(0, 1)
    inputs = z @ z.transpose(1, 2)  # [batch, active, active]
    bias = layer.bias_rows(equation) if layer.has_bias else []
    for i in bias:
        for j in bias:
            inputs[:, i, j] += 1.0
    return (inputs * (g @ g.transpose(1, 2))).sum()
