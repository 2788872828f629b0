"""The exact quadratic model of the loss, minimised over a few directions.

q(c) = bᵀc + ½ cᵀ(M + λ D)c with b_i = ⟨∇loss, d_i⟩, M_ij = ⟨J d_i, J d_j⟩, D_ij = ⟨d_i, d_j⟩
(Martens & Grosse 2015, arXiv:1503.05671, section 7, for two directions).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.linearisation import Linearisation


def minimise(
    slopes: Tensor, products: Tensor, norms: Tensor, damping: float
) -> tuple[Tensor, float]:
    """The minimiser c [direction] of q for b [direction], M and D [direction, direction], and the
    reduction of the loss that the undamped model predicts there.

    Directions are scaled to unit length in M + λ D first; combinations of them that the matrix
    cannot tell apart at the precision of ``products`` (collinear directions) are left out.
    """
    precision = max(1e-12, 10 * len(slopes) * torch.finfo(products.dtype).eps)
    matrix = (products + damping * norms).double().cpu()
    b = slopes.double().cpu()
    scale = matrix.diagonal().clamp_min(0.0).sqrt()
    used = scale > 0
    scale = torch.where(used, scale, torch.ones_like(scale))
    values, vectors = torch.linalg.eigh(matrix / torch.outer(scale, scale))
    keep = values > precision * values[-1].clamp_min(1e-300)
    projected = vectors.T @ (-b / scale)
    inside = torch.where(keep, projected / torch.where(keep, values, torch.ones_like(values)), 0.0)
    c = torch.where(used, (vectors @ inside) / scale, torch.zeros_like(scale))
    predicted = -float(b @ c + 0.5 * c @ products.double().cpu() @ c)
    return c, predicted


def best_combination(
    linearisation: Linearisation,
    gradient: Direction,
    sources: list[Direction],
    damping: float,
    *,
    by_layer: bool,
) -> tuple[Direction, float]:
    """The combination of directions that minimises the damped model, and its predicted reduction.

    With ``by_layer`` every layer of every direction has a coefficient of its own. Where the loss
    or a direction is not finite, the combination is zero and the prediction NaN.
    """
    layers = len(gradient)
    images, slopes = [], []
    for source, image in zip(sources, linearisation.jvp_by_layer(*sources), strict=True):
        slope = torch.stack([(g * v).sum() for g, v in zip(gradient, source, strict=True)])
        images.append(image if by_layer else image.sum(0, keepdim=True))
        slopes.append(slope if by_layer else slope.sum(0, keepdim=True))
    rows = []
    for a in sources:
        dots = [torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]) for b in sources]
        rows.append(torch.cat([torch.diag(d) if by_layer else d.sum().view(1, 1) for d in dots], 1))
    image, slope, norms = torch.cat(images), torch.cat(slopes), torch.cat(rows)
    products = image @ image.T
    if not bool(torch.isfinite(products).all() and torch.isfinite(slope).all()):
        return [torch.zeros_like(v) for v in gradient], math.nan
    minimiser, predicted = minimise(slope, products, norms, damping)
    c = minimiser.to(gradient[0]).view(len(sources), -1).expand(-1, layers)
    direction = [torch.zeros_like(v) for v in gradient]
    for i, source in enumerate(sources):
        for layer, v in enumerate(source):
            direction[layer] += c[i, layer] * v
    return direction, predicted
