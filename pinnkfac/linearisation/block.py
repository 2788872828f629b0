"""The linearisation of one term at some of its points: (Z, G) of all layers, their products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layer import Layer
from pinnkfac.linearisation.layout import Layout

PIECE = 2**23
"""Numbers in the rows of the Jacobian that are made at once."""


@dataclass(frozen=True)
class Block:
    """The linearisation of one term at some of its points.

    ``weight`` is the term's weight over its number of points: the loss is Σ weight/2 · residual².
    ``residual`` [batch, equation], its derivatives and ``dense`` [equation, batch, param] (or
    None) carry the scales of the equations.
    """

    term: int
    weight: float
    residual: Tensor
    layers: tuple[Layer, ...]
    dense: Tensor | None

    @property
    def batch(self) -> int:
        return self.residual.shape[0]

    @property
    def equations(self) -> int:
        return self.residual.shape[1]

    @torch.no_grad()
    def jvp(self, directions: Sequence[Direction]) -> Tensor:
        """√weight · J v by layer for several directions, [direction, layer, batch · equation]."""
        shape = (len(directions), len(directions[0]), self.batch, self.equations)
        result = self.residual.new_zeros(shape)
        for number, layer in enumerate(self.layers):
            layer.jvp([v[number] for v in directions], result[:, number])
        if self.dense is not None:
            dense = torch.stack([v[-1] for v in directions])
            result[:, -1] = torch.einsum("ebp,kp->kbe", self.dense, dense)
        return math.sqrt(self.weight) * result.flatten(2)

    @torch.no_grad()
    def add_vjp(self, w: Tensor, total: Sequence[Tensor]) -> None:
        """Add Jᵀ w of the block to ``total``, for w [batch · equation] with √weight left out."""
        scaled = math.sqrt(self.weight) * w.view(self.batch, self.equations)
        for layer, part in zip(self.layers, total, strict=False):
            layer.vjp(scaled, part)
        if self.dense is not None:
            total[-1].add_(torch.einsum("ebp,be->p", self.dense, scaled))

    @torch.no_grad()
    def jacobian(self, layout: Layout) -> Tensor:
        """√weight · ∂ residual / ∂ parameters, [batch · equation, param], in the order of
        ``Linearisation.residual``."""
        root = math.sqrt(self.weight)
        rows = self.residual.new_empty(self.batch, self.equations, layout.number)
        columns = rows.split(list(layout.sizes), dim=2)
        for layer, part in zip(self.layers, columns, strict=False):
            for e in range(self.equations):
                part[:, e] = layer.jacobian(e, root).flatten(1)
        if layout.dense:
            if self.dense is None:
                columns[-1].zero_()
            else:
                torch.mul(self.dense.transpose(0, 1), root, out=columns[-1])
        return rows.flatten(0, 1)

    def pieces(self, numbers: int) -> Iterator[Block]:
        """The block in pieces of points, as views, for rows of ``numbers`` parameters: at most
        ``PIECE`` numbers each."""
        size = max(1, PIECE // max(1, numbers * self.equations))
        for start in range(0, self.batch, size):
            yield self.at(slice(start, start + size))

    def at(self, points: slice) -> Block:
        """The block at some of its points, as views."""
        layers = tuple(layer.at(points) for layer in self.layers)
        dense = None if self.dense is None else self.dense[:, points]
        return Block(self.term, self.weight, self.residual[points], layers, dense)
