"""Dense rows of the Jacobian from (Z, G), for what cannot do without them.

A row of a layer is Σ_s g_s (z_s, 1_{s is a value row})ᵀ, [out, in + bias]: its memory is that of
the layer's parameters, so rows are made in pieces of a block.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pinnkfac.linearisation.block import Block, Layer

FEW = 3
"""Up to so many active rows, sums over pairs of rows cost less than rows of the Jacobian."""
PIECE = 2**23
"""Numbers in the rows of the Jacobian that are made at once."""
CACHED = 2**18
"""The same where a row is squared and summed on the spot: such a piece stays in the cache."""


def inputs_with_bias(layer: Layer, equation: int) -> Tensor:
    """Inputs on the active rows of an equation, with the bias entry last.

    [active, batch, in + bias]; without a bias these are the inputs themselves, not a copy.
    """
    if not layer.active[equation]:
        return layer.inputs.new_zeros(0, layer.inputs.shape[1], _features(layer))
    z = layer.inputs_of(equation)
    if not layer.has_bias:
        return z
    entry = z.new_zeros(*z.shape[:2], 1)
    entry[layer.bias_rows(equation)] = 1.0
    return torch.cat([z, entry], dim=2)


@torch.no_grad()
def layer_jacobian(layer: Layer, equation: int, scale: float = 1.0) -> Tensor:
    """scale · ∂ residual / ∂[W | b] of one equation, [batch, out, in + bias], by one product."""
    g = layer.gradients[equation]
    if not len(g):
        return g.new_zeros(g.shape[1], g.shape[2], _features(layer))
    z = inputs_with_bias(layer, equation)
    if scale != 1.0:
        g = g * scale
    return torch.bmm(g.permute(1, 2, 0), z.transpose(0, 1))


def _features(layer: Layer) -> int:
    return layer.inputs.shape[-1] + int(layer.has_bias)


@torch.no_grad()
def jacobian_rows(block: Block, sizes: Sequence[int]) -> Tensor:
    """√weight · ∂ residual / ∂ parameters, [batch · equation, param].

    ``sizes`` are the numbers of parameters of the entries of a Direction; rows have the order of
    ``Linearisation.residual``.
    """
    root = math.sqrt(block.weight)
    rows = block.residual.new_empty(block.batch, block.equations, sum(sizes))
    columns = rows.split(list(sizes), dim=2)
    for layer, own in zip(block.layers, columns, strict=False):
        for e in range(block.equations):
            own[:, e] = layer_jacobian(layer, e, root).flatten(1)
    if len(columns) > len(block.layers):
        if block.dense is None:
            columns[-1].zero_()
        else:
            torch.mul(block.dense.transpose(0, 1), root, out=columns[-1])
    return rows.flatten(0, 1)


def pieces(block: Block, numbers: int) -> Iterator[Block]:
    """The block in pieces of points, as views, for rows of ``numbers`` parameters: at most
    ``PIECE`` numbers each."""
    size = max(1, PIECE // max(1, numbers * block.equations))
    for start in range(0, block.batch, size):
        own = slice(start, start + size)
        layers = [
            replace(
                layer,
                inputs=layer.inputs[:, own],
                gradients=[g[:, own] for g in layer.gradients],
            )
            for layer in block.layers
        ]
        dense = None if block.dense is None else block.dense[:, own]
        yield replace(block, residual=block.residual[own], layers=layers, dense=dense)


@torch.no_grad()
def square_sum(g: Tensor, z: Tensor) -> Tensor:
    """Σ_n (Σ_s g_ns z_nsᵀ)² entry by entry, [out, in], for g [active, batch, out] and
    z [active, batch, in]: the diagonal of a layer's block of JᵀJ.

    With few rows Σ_st (g_ns ∘ g_nt)(z_ns ∘ z_nt)ᵀ, which forms no row of J.
    """
    active, batch, out = g.shape
    total = g.new_zeros(out, z.shape[-1])
    if active <= FEW:
        for s in range(active):
            left = (g[: s + 1] * g[s]).view(-1, out)
            left[: s * batch] *= 2.0  # pairs s ≠ t count twice
            total.addmm_(left.T, (z[: s + 1] * z[s]).view(-1, z.shape[-1]))
        return total.clamp_min_(0.0)
    size = max(1, CACHED // total.numel())
    for start in range(0, batch, size):
        own = slice(start, start + size)
        rows = torch.bmm(g[:, own].permute(1, 2, 0), z[:, own].transpose(0, 1))
        total += rows.square_().sum(0)
    return total
