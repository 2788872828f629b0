"""Kronecker-factored approximate curvature: one pair (A, B) a term and layer.

Per term with N points and a layer with rows s (arXiv:2405.15603, eqs. 10–13; arXiv:2311.00636):

    expand:  A = 1/(N S) Σ_ns z_ns z_nsᵀ,      B = 1/N Σ_ns g_ns g_nsᵀ,
    reduce:  A = 1/N Σ_n z̄_n z̄_nᵀ (mean over s),  B = 1/N Σ_n g̃_n g̃_nᵀ (sum over s),

where z carries a last entry 1 on value rows (0 on others) for the bias. The Gramian block is
approximated by weight · A ⊗ B.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Generator, Tensor

from pinnkfac.curvature.kronecker import Pair
from pinnkfac.linearise import Block, Layer, Linearisation

Sharing = Literal["expand", "reduce"]
Backpropagated = Literal["type-2", "monte-carlo", "empirical", "forward-only"]
Start = Literal["bias-corrected", "identity", "zero"]


@dataclass(frozen=True)
class Factors:
    """How Kronecker factors are made and averaged.

    ``backpropagated`` vectors: every equation ('type-2'), one standard normal combination
    ('monte-carlo'), the residual-weighted sum ('empirical'), or none, B = I ('forward-only').
    ``decay`` of the exponential average F ← decay·F + (1 − decay)·new; ``start`` is the identity,
    zero, or zero with the bias of the start divided out. ``every``: steps between updates.
    ``active_rows`` averages A over the rows whose output enters the residual only.
    """

    sharing: Sharing = "expand"
    backpropagated: Backpropagated = "type-2"
    decay: float = 0.95
    start: Start = "bias-corrected"
    every: int = 1
    active_rows: bool = True


def gram(x: Tensor) -> Tensor:
    """xᵀ x for x [rows, features], without computing the upper half twice where that pays."""
    features = x.shape[1]
    if features < 128:
        return x.T @ x
    half = features // 2
    left, right = x[:, :half], x[:, half:]
    result = x.new_empty(features, features)
    result[:half, :half] = gram(left)
    result[half:, half:] = gram(right)
    result[half:, :half] = right.T @ left
    result[:half, half:] = result[half:, :half].T
    return result


@dataclass
class _Sums:
    """Σ z zᵀ, Σ g gᵀ and what they are divided by, over the blocks of one term and layer."""

    a: Tensor
    b: Tensor
    count_a: int = 0
    batch: int = 0


def _vectors(
    block: Block, layer: Layer, kind: Backpropagated, noise: Tensor | None
) -> list[Tensor]:
    """Backpropagated vectors [active, batch, out], one tensor for each outer product to sum."""
    if kind == "type-2":
        return [g for g in layer.gradients if len(g)]
    weights = block.residual if kind == "empirical" else noise
    assert weights is not None
    rows = sorted({s for active in layer.active for s in active})
    if not rows:
        return []
    if len(layer.gradients) == 1:
        return [layer.gradients[0] * weights[:, 0, None]]
    total = layer.gradients[0].new_zeros(len(rows), block.batch, layer.gradients[0].shape[-1])
    for e, g in enumerate(layer.gradients):
        for i, s in enumerate(layer.active[e]):
            total[rows.index(s)] += g[i] * weights[:, e, None]
    return [total]


def _inputs(layer: Layer, active_rows: bool) -> tuple[Tensor, list[int]]:
    """Inputs [rows, batch, in] that A is averaged over, and which of the rows carry the bias."""
    if not active_rows:
        return layer.inputs, list(layer.value_rows)
    rows = sorted({s for active in layer.active for s in active})
    if len(rows) == layer.inputs.shape[0]:
        return layer.inputs, list(layer.value_rows)
    contiguous = rows and rows == list(range(rows[0], rows[-1] + 1))
    z = layer.inputs[rows[0] : rows[-1] + 1] if contiguous else layer.inputs[rows]
    return z, [i for i, s in enumerate(rows) if s in layer.value_rows]


def _add_inputs(sums: _Sums, z: Tensor, value_rows: list[int], settings: Factors) -> None:
    rows, batch, features = z.shape
    a = sums.a
    bias = a.shape[0] > features
    if settings.sharing == "reduce":
        mean = z.mean(0)
        if bias:
            mean = torch.cat([mean, mean.new_full((batch, 1), len(value_rows) / rows)], dim=1)
        a += gram(mean)
        sums.count_a += batch
        return
    a[:features, :features] += gram(z.reshape(-1, features))
    if bias:
        for i in value_rows:
            column = z[i].sum(0)
            a[:features, features] += column
            a[features, :features] += column
        a[features, features] += batch * len(value_rows)
    sums.count_a += batch * rows


@torch.no_grad()
def factors(
    linearisation: Linearisation, settings: Factors, generator: Generator | None = None
) -> list[list[Pair]]:
    """The pairs (A, B) of every term and layer, ``result[term][layer]``."""
    system = linearisation.system
    sums = [[_empty(v) for v in system.zeros()[: len(system.graph.linears)]] for _ in system.terms]
    for block in linearisation:
        noise = None
        if settings.backpropagated == "monte-carlo":
            noise = torch.randn(
                block.batch, block.equations, dtype=torch.float64, generator=generator
            ).to(block.residual)
        for number, layer in enumerate(block.layers):
            own = sums[block.term][number]
            own.batch += block.batch
            z, value_rows = _inputs(layer, settings.active_rows)
            if len(z):
                _add_inputs(own, z, value_rows, settings)
            if settings.backpropagated == "forward-only":
                continue
            for g in _vectors(block, layer, settings.backpropagated, noise):
                vectors = g.sum(0) if settings.sharing == "reduce" else g.reshape(-1, g.shape[-1])
                own.b += gram(vectors)
    return [[_finish(s, settings) for s in layers] for layers in sums]


def _empty(v: Tensor) -> _Sums:
    out, inputs = v.shape
    return _Sums(v.new_zeros(inputs, inputs), v.new_zeros(out, out))


def _finish(sums: _Sums, settings: Factors) -> Pair:
    a = sums.a / max(sums.count_a, 1)
    if settings.backpropagated == "forward-only":
        return a, torch.eye(len(sums.b), dtype=a.dtype, device=a.device)
    return a, sums.b / sums.batch


@torch.no_grad()
def dense_gramian(linearisation: Linearisation) -> Tensor:
    """The exact Gramian block [param, param] of the parameters outside Linear layers."""
    size = linearisation.system.dense_size
    total = torch.zeros(size, size, dtype=linearisation.residual.dtype)
    total = total.to(linearisation.residual.device)
    for block in linearisation:
        if block.dense is not None:
            total += block.weight * gram(block.dense.reshape(-1, size))
    return total


@dataclass
class Average:
    """Exponential averages of factors, one pair a term and layer, and of the dense block."""

    settings: Factors
    pairs: list[list[Pair]] = field(default_factory=list)
    dense: Tensor | None = None
    updates: int = 0

    def update(self, linearisation: Linearisation, generator: Generator | None = None) -> None:
        new = factors(linearisation, self.settings, generator)
        if not self.pairs:
            self.pairs = [[self._first(pair) for pair in layers] for layers in new]
        decay = self.settings.decay
        for old_layers, new_layers in zip(self.pairs, new, strict=True):
            for old, fresh in zip(old_layers, new_layers, strict=True):
                for total, value in zip(old, fresh, strict=True):
                    total.mul_(decay).add_(value, alpha=1.0 - decay)
        if linearisation.system.dense_size:
            value = dense_gramian(linearisation)
            if self.dense is None:
                self.dense = torch.zeros_like(value)
            self.dense.mul_(decay).add_(value, alpha=1.0 - decay)
        self.updates += 1

    def _first(self, pair: Pair) -> Pair:
        if self.settings.start == "identity":
            a, b = (torch.eye(len(m), dtype=m.dtype, device=m.device) for m in pair)
            return a, b
        a, b = (torch.zeros_like(m) for m in pair)
        return a, b

    @property
    def correction(self) -> float:
        """What averages that started at zero are divided by."""
        return 1.0 - self.settings.decay**self.updates

    def layer(self, layer: int, weights: list[float]) -> list[Pair]:
        """The pairs of one layer over terms, B multiplied by the term's weight."""
        c = self.correction if self.settings.start == "bias-corrected" else 1.0
        return [
            (layers[layer][0] / c, layers[layer][1] * (weight / c))
            for layers, weight in zip(self.pairs, weights, strict=True)
        ]

    def dense_block(self) -> Tensor | None:
        return None if self.dense is None else self.dense / self.correction

    def state_dict(self) -> dict[str, object]:
        return {"pairs": self.pairs, "dense": self.dense, "updates": self.updates}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.pairs = state["pairs"]  # type: ignore[assignment]
        self.dense = state["dense"]  # type: ignore[assignment]
        self.updates = state["updates"]  # type: ignore[assignment]
