"""Directions in the space of all trained numbers, as lists of tensors (see ``Layout``), and their
algebra. Parameters and gradients have the same form."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Direction = list[Tensor]


def inner(a: Direction, b: Direction) -> float:
    """⟨a, b⟩."""
    return float(sum(torch.sum(x * y) for x, y in zip(a, b, strict=True)))


def combine(*pairs: tuple[float, Direction]) -> Direction:
    """Σ coefficient · direction."""
    first, *rest = pairs
    result = [first[0] * v for v in first[1]]
    for c, direction in rest:
        for total, v in zip(result, direction, strict=True):
            total.add_(v, alpha=c)
    return result


def norm(a: Direction) -> float:
    return math.sqrt(inner(a, a))


def is_finite(*tensors: Tensor) -> bool:
    """Whether all entries are numbers, by their extremes: without masks as large as they are."""
    return all(not v.numel() or torch.isfinite(torch.stack(v.aminmax())).all() for v in tensors)
