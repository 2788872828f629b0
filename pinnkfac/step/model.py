"""The exact quadratic model of the loss, minimised over a few directions.

q(c) = bᵀc + ½ cᵀ(M + λ D)c with b_i = ⟨∇loss, d_i⟩, M_ij = ⟨J d_i, J d_j⟩, D_ij = ⟨d_i, d_j⟩
(Martens & Grosse 2015, arXiv:1503.05671, section 7, for two directions).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Minimum:
    """The minimiser c, and the reduction of the loss that the undamped model predicts there."""

    coefficients: Tensor
    predicted: float


def minimise(slopes: Tensor, products: Tensor, norms: Tensor, damping: float) -> Minimum:
    """Minimise q over c [direction] from b [direction], M and D [direction, direction].

    Directions are scaled to unit length in M + λ D first; combinations of them that the matrix
    cannot tell apart (collinear directions) are left out.
    """
    matrix = (products + damping * norms).double().cpu()
    b = slopes.double().cpu()
    scale = matrix.diagonal().clamp_min(0.0).sqrt()
    used = scale > 0
    scale = torch.where(used, scale, torch.ones_like(scale))
    values, vectors = torch.linalg.eigh(matrix / torch.outer(scale, scale))
    keep = values > 1e-12 * values[-1].clamp_min(1e-300)
    projected = vectors.T @ (-b / scale)
    inside = torch.where(keep, projected / torch.where(keep, values, torch.ones_like(values)), 0.0)
    c = torch.where(used, (vectors @ inside) / scale, torch.zeros_like(scale))
    predicted = -float(b @ c + 0.5 * c @ products.double().cpu() @ c)
    return Minimum(c, predicted)
