"""Layers beside torch's: fixed linear maps and trained scales, each with its Taylor-mode rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pinnkfac.taylor.jet import MODULES, Adjoint, Adjoints, Jet, Sink
from pinnkfac.taylor.linear import Fixed, Linearly
from pinnkfac.taylor.plan import Plan


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


class Scale(nn.Module):
    """y = a ∘ z with a trained, one number (``features=1``) or one a feature.

    In front of an activation it is the adaptive slope of Jagtap et al. 2020, arXiv:1906.01170.
    """

    def __init__(self, features: int = 1, initial: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((features,), float(initial), dtype=torch.float64))

    def forward(self, z: Tensor) -> Tensor:
        return z * self.scale


class ScaleRule(Linearly):
    """∂y/∂a is z on every row."""

    def __init__(self, module: Scale) -> None:
        scale = module.scale
        super().__init__(lambda z: z * scale, None, lambda g: (g * scale,))
        self.trained = (scale,) if scale.requires_grad else ()

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        y, features = super().forward(inputs, plan, keep)
        return y, (features, inputs[0])

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints:
        features, z = kept
        for scale in self.trained:
            total = torch.zeros_like(adjoint.tensor[0])
            for g, s in zip(adjoint.tensor, adjoint.rows, strict=True):
                total += g * z.row(s)
            sink.dense(scale, total.reshape(len(total), -1, scale.numel()).sum(1))
        return super().backward(adjoint, features, sink, wanted)


MODULES[Scale] = ScaleRule
