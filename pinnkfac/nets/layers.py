"""Layers beside torch's: fixed linear maps and trained scales, each with its Taylor-mode rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pinnkfac.taylor.jet import MODULES
from pinnkfac.taylor.linear import Fixed, affine_layer


class FixedLinear(nn.Module):
    """y = W x + b with W [out, in] and b [out] that are not trained."""

    weight: Tensor
    bias: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", weight.new_zeros(len(weight)) if bias is None else bias)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


MODULES[FixedLinear] = Fixed


@affine_layer
class Scale(nn.Module):
    """y = a ∘ z with a trained, one number (``features=1``) or one a feature.

    In front of an activation it is the adaptive slope of Jagtap et al. 2020, arXiv:1906.01170.
    """

    def __init__(self, features: int = 1, initial: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((features,), float(initial), dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.scale
