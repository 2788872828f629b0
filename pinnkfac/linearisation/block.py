"""The linearisation of one term at some of its points: (Z, G) of every layer, and their products.

For a linear layer y = W z + b the derivative of one equation's residual at one point is
Σ_s g_s (z_s, 1_{s is a value row})ᵀ, with its inputs z [shared, batch, in] and the derivatives g
[shared, batch, out] of the residual by its outputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnkfac.linearisation.direction import Direction


@dataclass
class Layer:
    """Inputs and output derivatives of one Linear layer at the points of one block.

    ``inputs`` [shared, batch, in]; ``value_rows`` are the rows on which the bias acts;
    ``gradients[e]`` [active, batch, out] are derivatives of equation e by the rows
    ``active[e]`` of the output; the other rows don't enter that equation.
    """

    inputs: Tensor
    value_rows: tuple[int, ...]
    has_bias: bool
    active: list[tuple[int, ...]]
    gradients: list[Tensor]

    def inputs_of(self, equation: int) -> Tensor:
        """Inputs on the active rows of an equation, [active, batch, in]."""
        rows = self.active[equation]
        if len(rows) == self.inputs.shape[0]:
            return self.inputs
        if rows == tuple(range(rows[0], rows[-1] + 1)):
            return self.inputs[rows[0] : rows[-1] + 1]
        return self.inputs[list(rows)]

    def bias_rows(self, equation: int) -> list[int]:
        """Positions of value rows among the active rows of an equation."""
        return [i for i, s in enumerate(self.active[equation]) if s in self.value_rows]


@dataclass
class Block:
    """The linearisation of one term at some of its points.

    ``weight`` is the term's weight over its number of points: the loss is Σ weight/2 · residual².
    ``residual`` [batch, equation], its derivatives and ``dense`` [equation, batch, param] (or
    None) carry the system's scales.
    """

    term: int
    weight: float
    residual: Tensor
    layers: list[Layer]
    dense: Tensor | None

    @property
    def batch(self) -> int:
        return self.residual.shape[0]

    @property
    def equations(self) -> int:
        return self.residual.shape[1]


@torch.no_grad()
def block_jvp(block: Block, directions: Sequence[Direction]) -> Tensor:
    """√weight · J v by layer for several directions, [direction, layer, batch · equation]."""
    layers = len(directions[0])
    shape = (len(directions), layers, block.batch, block.equations)
    result = block.residual.new_zeros(shape)
    for number, layer in enumerate(block.layers):
        _layer_jvp(layer, [v[number] for v in directions], result[:, number])
    if block.dense is not None:
        dense = torch.stack([v[-1] for v in directions])
        result[:, -1] = torch.einsum("ebp,kp->kbe", block.dense, dense)
    return math.sqrt(block.weight) * result.flatten(2)


@torch.no_grad()
def add_block_vjp(block: Block, w: Tensor, total: Direction) -> None:
    """Add Jᵀ w of the block to ``total``, for w [batch, equation] with √weight left out."""
    scaled = math.sqrt(block.weight) * w
    for number, layer in enumerate(block.layers):
        _layer_vjp(layer, scaled, total[number])
    if block.dense is not None:
        total[-1] += torch.einsum("ebp,be->p", block.dense, scaled)


def _layer_jvp(layer: Layer, vs: Sequence[Tensor], out: Tensor) -> None:
    """out[direction, batch, equation] = Σ_s ⟨g_s, V (z_s, 1_s)⟩, all directions in one product."""
    inputs = layer.inputs.shape[-1]
    weights = torch.cat([v[:, :inputs] for v in vs])
    for e, g in enumerate(layer.gradients):
        if not len(g):
            continue
        z = layer.inputs_of(e)
        product = (z.reshape(-1, inputs) @ weights.T).view(*g.shape[:2], len(vs), g.shape[-1])
        if layer.has_bias:
            biases = torch.stack([v[:, inputs] for v in vs])
            for i in layer.bias_rows(e):
                product[i] += biases
        out[:, :, e] = product.mul_(g[:, :, None]).sum(0).sum(-1).T


def _layer_vjp(layer: Layer, w: Tensor, total: Tensor) -> None:
    """total [out, in + 1] += Σ_n w_n Σ_s g_s (z_s, 1_s)ᵀ."""
    inputs = layer.inputs.shape[-1]
    for e, g in enumerate(layer.gradients):
        if not len(g):
            continue
        scaled = g * w[:, e, None]
        z = layer.inputs_of(e)
        total[:, :inputs].addmm_(scaled.reshape(-1, g.shape[-1]).T, z.reshape(-1, inputs))
        if total.shape[1] > inputs:
            for i in layer.bias_rows(e):
                total[:, inputs] += scaled[i].sum(0)
