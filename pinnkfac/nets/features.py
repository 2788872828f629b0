"""Random features: fixed functions whose coefficients alone are found, by least squares."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from pinnkfac.common.settings import Count, Positive
from pinnkfac.nets.layers import FixedLinear
from pinnkfac.nets.mlp import activation

BLOCK = 64
"""Features that are drawn together: those of a smaller number are the first ones of a larger."""


@dataclass(frozen=True)
class FeatureSettings:
    """Random features behind the maps of the coordinates, beside the layers of a net."""

    number: Count = 1000
    """of features"""
    activation: str = "sin"
    """sin, tanh or another one of net.activation"""
    scale: Positive = 8.0
    """size of their first weights: the largest frequency, for coordinates in [−1, 1]"""
    rest: Positive = 1.0
    """size of what the layers add to the features, of the scale of the fields"""

    def make(self, inputs: int, outputs: int, seed: int) -> RandomFeatures:
        generator = Generator().manual_seed(seed)
        return RandomFeatures(inputs, outputs, self.number, self.activation, self.scale, generator)


class RandomFeatures(nn.Module):
    """y = C φ(W x + b) + d, with W [feature, in] and b drawn, and C, d found (0 at first).

    W is uniform in ±scale · √(3 / in), so that the slope of a feature is about ``scale``, and b
    such that the middle of each lies at a place that is uniform in the box [−1, 1]. The first
    features do not depend on their number. Source: Huang, Zhu & Siew 2006, Extreme learning
    machine, doi:10.1016/j.neucom.2005.12.126, eqs. 3 to 5; for equations Dong & Li 2021,
    arXiv:2012.02895, §2.2.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        number: int,
        activation_name: str,
        scale: float,
        generator: Generator,
    ) -> None:
        super().__init__()
        drawn = [
            2.0 * torch.rand(2, BLOCK, inputs, generator=generator, dtype=torch.float64) - 1.0
            for _ in range(math.ceil(number / BLOCK))
        ]
        directions, centres = torch.cat(drawn, dim=1)[:, :number]
        weight = scale * math.sqrt(3.0 / inputs) * directions
        self.map = FixedLinear(weight, -(weight * centres).sum(1))
        self.activation = activation(activation_name)
        self.head = nn.Linear(number, outputs, dtype=torch.float64)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.activation(self.map(x)))
