"""Exponential averages of tensors over steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

Start = Literal["bias-corrected", "identity", "zero"]


@dataclass(frozen=True)
class Average:
    """F ← decay·F + (1 − decay)·new of several tensors, from zero or from the identity."""

    total: list[Tensor] = field(default_factory=list)
    updates: int = 0

    def updated(
        self,
        new: Sequence[Tensor],
        decay: float,
        start: Start = "bias-corrected",
        *,
        diagonals: bool = False,
    ) -> Average:
        """With one more value of each tensor, whose memory it takes; ``diagonals``: the tensors
        are diagonals of matrices, in some shape."""
        if decay:
            for i, value in enumerate(new):
                value.mul_(1.0 - decay)
                if self.total:
                    value.add_(self.total[i], alpha=decay)
                elif start == "identity":
                    (value if diagonals else value.diagonal()).add_(decay)
        return Average(list(new), self.updates + 1)

    def values(self, decay: float, start: Start = "bias-corrected") -> list[Tensor]:
        """The averages, the bias of a start at zero divided out where that is wanted."""
        bias = self.bias(decay, start)
        return self.total if bias == 1.0 else [value / bias for value in self.total]

    def bias(self, decay: float, start: Start = "bias-corrected") -> float:
        """What ``values`` divides by."""
        return 1.0 - decay**self.updates if decay and start == "bias-corrected" else 1.0


def equal(a: Sequence[Tensor] | None, b: Sequence[Tensor] | None) -> bool:
    """Equal by value: scales that were loaded are other objects with the same numbers."""
    if a is None or b is None:
        return a is b
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
