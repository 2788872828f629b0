"""The default net: a multilayer perceptron, with optional embeddings and residual connections."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.taylor.activations import Named

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sin": partial(Named, "sin"),
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "exp": partial(Named, "exp"),
}
INITIALISATIONS = ("auto", "torch", "lecun")
FEW = 3
"""Inputs in which points are dense enough for nets that are not smooth at first."""


def activation(name: str) -> nn.Module:
    """The activation of that name; raises UserError with the known names."""
    if name not in ACTIVATIONS:
        raise UserError(f"net.activation={name} is unknown. {suggest(name, ACTIVATIONS)}")
    return ACTIVATIONS[name]()


def embedded(inputs: int, embedding: Sequence[nn.Module]) -> int:
    """How many features so many coordinates are behind these modules."""
    for module in embedding:
        inputs = getattr(module, "features", inputs)
    return inputs


class Mlp(nn.Module):
    """Linear layers of the given widths with an activation between them.

    ``embedding`` modules map the coordinates first (input scaling, Fourier features, periodic
    embedding), ``output`` what the last layer gives. With ``residual``, a hidden layer of the same
    width adds its input to its output. Where there are ``features`` of the same inputs, they are
    added to ``rest`` times the last layer.
    Weights start as torch's ``nn.Linear`` does, in float64; with ``initialisation="lecun"``, those
    of hidden layers have three times that variance, 1/inputs (LeCun, Bottou, Orr & Müller 1998,
    Efficient BackProp, eq. 16). "auto" is "lecun" for at most FEW inputs, as layers that are almost
    linear at first learn waves late. Where points cannot be dense, it is "torch": nets that start
    smoother are closer to the solution between the points (measured: 20 times in 5 dimensions).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        widths: Sequence[int] = (64, 64),
        activation_name: str = "tanh",
        *,
        embedding: Sequence[nn.Module] = (),
        residual: bool = False,
        initialisation: str = "torch",
        output: nn.Module | None = None,
        features: nn.Module | None = None,
        rest: float = 1.0,
    ) -> None:
        super().__init__()
        widths = list(widths)
        if any(int(w) != w or w < 1 for w in widths):
            raise UserError(f"net.widths={widths}: every width must be a positive whole number")
        self.embedding = nn.ModuleList(embedding)
        self.residual = residual
        sizes = [embedded(inputs, embedding), *(int(w) for w in widths), outputs]
        if initialisation not in INITIALISATIONS:
            known = suggest(initialisation, INITIALISATIONS)
            raise UserError(f"net.initialisation={initialisation} is unknown. {known}")
        layers = [nn.Linear(a, b, dtype=torch.float64) for a, b in pairwise(sizes)]
        if initialisation == "lecun" or (initialisation == "auto" and inputs <= FEW):
            with torch.no_grad():
                for linear in layers[:-1]:
                    linear.weight.mul_(math.sqrt(3.0))
        self.layers = nn.ModuleList(layers)
        self.activations = nn.ModuleList(activation(activation_name) for _ in widths)
        self.output = output
        self.features = features
        self.rest = rest

    @torch.no_grad()
    def be_features(self) -> None:
        """Let the layers add nothing to the features."""
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        for module in self.embedding:
            x = module(x)
        start = x
        for linear, act in zip(self.layers, self.activations, strict=False):  # all but the last
            y = act(linear(x))
            x = x + y if self.residual and linear.in_features == linear.out_features else y
        y = self.layers[-1](x)
        if self.features is not None:
            y = self.features(start) + self.rest * y
        return y if self.output is None else self.output(y)
