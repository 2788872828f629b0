"""The form of all trained numbers: one tensor a linear layer, and one vector of all others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pinnkfac.linearisation.direction import Direction


@dataclass(frozen=True)
class Layout:
    """Shapes of the entries of a Direction, with their dtype and device.

    ``layers`` are [out, in + bias] of every linear layer; ``dense`` is how many other trained
    numbers there are (scales in the net, unknown coefficients), the last entry where not 0.
    """

    layers: tuple[tuple[int, int], ...]
    dense: int
    dtype: torch.dtype
    device: torch.device

    @cached_property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        return (*self.layers, (self.dense,)) if self.dense else self.layers

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """How many numbers every entry has."""
        return tuple(torch.Size(shape).numel() for shape in self.shapes)

    @property
    def number(self) -> int:
        """Of all trained numbers."""
        return sum(self.sizes)

    def zeros(self) -> Direction:
        return [torch.zeros(s, dtype=self.dtype, device=self.device) for s in self.shapes]

    def unflat(self, vector: Tensor) -> Direction:
        """A vector [param] as a direction."""
        pieces = vector.split(list(self.sizes))
        return [piece.view(shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def unflat_columns(self, columns: Tensor) -> list[Direction]:
        """The columns of a matrix [param, k] as directions."""
        return [self.unflat(v) for v in columns.T.contiguous()]


def flat(direction: Direction) -> Tensor:
    """A direction as one vector [param]."""
    return torch.cat([v.reshape(-1) for v in direction])


def flat_columns(directions: Sequence[Direction]) -> Tensor:
    """Directions as the columns of a matrix [param, k]."""
    return torch.stack([flat(v) for v in directions], dim=1)
