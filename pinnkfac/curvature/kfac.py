"""Kronecker-factored approximate curvature: one pair (A, B) a term and layer.

Per term with N points and a layer with rows s (arXiv:2405.15603, eqs. 10–13; arXiv:2311.00636):

    expand:  A = 1/(N S) Σ_ns z_ns z_nsᵀ,      B = 1/N Σ_ns g_ns g_nsᵀ,
    reduce:  A = 1/N Σ_n z̄_n z̄_nᵀ (mean over s),  B = 1/N Σ_n g̃_n g̃_nᵀ (sum over s),

where z carries a last entry 1 on value rows (0 on others) for the bias. The Gramian block is
approximated by weight · A ⊗ B. Beyond the paper,

    weighted:  A = Σ_s tr(B_s) A_s / √τ,  B = Σ_s tr(A_s) B_s / √τ,  τ = Σ_s tr(A_s) tr(B_s),

with the factors A_s, B_s of single rows: the Kronecker product that has the partial traces of
Σ_s A_s ⊗ B_s. Unlike expand, it does not depend on the scale of a row (u_t − ν u_xx or
u_xx − u_t/ν, metres or millimetres), and rows that do not enter the residual drop out. With B = I
for every row ('forward-only') that product is A = Σ_s A_s, the sum over rows and not their mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import check_choice
from pinnkfac.common.settings import Count, Range
from pinnkfac.curvature.kronecker import Pair
from pinnkfac.linearisation.block import Block, Layer
from pinnkfac.linearisation.system import Linearisation

Sharing = Literal["expand", "reduce", "weighted"]
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

    sharing: Sharing = "weighted"
    """how rows share a layer: weighted by their traces, or expand and reduce as published"""
    backpropagated: Backpropagated = "type-2"
    """type-2 (every equation), monte-carlo, empirical or forward-only"""
    decay: Annotated[float, Range(least=0, below=1)] = 0.8
    """of the exponential average; 0: the factors of the step alone"""
    start: Start = "bias-corrected"
    """of that average: bias-corrected, identity or zero"""
    every: Count = 1
    """steps between updates of the factors"""
    active_rows: bool = True
    """average over the rows that enter the residual only"""

    def __post_init__(self) -> None:
        check_choice("step.factors.sharing", self.sharing, Sharing)
        check_choice("step.factors.backpropagated", self.backpropagated, Backpropagated)
        check_choice("step.factors.start", self.start, Start)


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
    """Σ z zᵀ, Σ g gᵀ and what they are divided by, over the blocks of one term and layer.

    ``root_a`` and ``root_b`` [shared] multiply the rows of g and z first ('weighted').
    """

    a: Tensor
    b: Tensor
    count_a: int = 0
    batch: int = 0
    root_a: Tensor | None = None
    root_b: Tensor | None = None

    def like(self) -> _Sums:
        """Empty sums with the same weights of rows, for another thread."""
        empty = torch.zeros_like(self.a), torch.zeros_like(self.b)
        return _Sums(*empty, root_a=self.root_a, root_b=self.root_b)

    def plus(self, other: _Sums) -> None:
        self.a += other.a
        self.b += other.b
        self.count_a += other.count_a
        self.batch += other.batch


def _active(layer: Layer) -> list[int]:
    """Rows whose output enters some equation of the residual."""
    return sorted({s for active in layer.active for s in active})


def _vectors(
    block: Block, layer: Layer, kind: Backpropagated, noise: Tensor | None
) -> list[tuple[list[int], Tensor]]:
    """Backpropagated vectors [active, batch, out] with their rows, one for each sum of products."""
    if kind == "forward-only":
        return []
    if kind == "type-2":
        return [
            (list(rows), g) for rows, g in zip(layer.active, layer.gradients, strict=True) if rows
        ]
    weights = block.residual if kind == "empirical" else noise
    assert weights is not None
    rows = _active(layer)
    if not rows:
        return []
    if len(layer.gradients) == 1:
        return [(rows, layer.gradients[0] * weights[:, 0, None])]
    total = layer.gradients[0].new_zeros(len(rows), block.batch, layer.gradients[0].shape[-1])
    for e, g in enumerate(layer.gradients):
        for i, s in enumerate(layer.active[e]):
            total[rows.index(s)] += g[i] * weights[:, e, None]
    return [(rows, total)]


def _add_inputs(sums: _Sums, layer: Layer, settings: Factors) -> None:
    """Add the outer products of the inputs, with their bias entries, on the rows that count."""
    rows = _active(layer) if settings.active_rows else list(range(len(layer.inputs)))
    if not rows:
        return
    z = layer.inputs if len(rows) == len(layer.inputs) else layer.inputs[_compact(rows)]
    features, batch = z.shape[-1], z.shape[1]
    bias = {i: 1.0 for i, s in enumerate(rows) if s in layer.value_rows}
    if sums.root_b is not None:
        root = sums.root_b[rows]
        z = z * root[:, None, None]
        bias = {i: float(root[i]) for i in bias}
    has_bias = sums.a.shape[0] > features
    if settings.sharing == "reduce":
        mean = z.mean(0)
        if has_bias:
            mean = torch.cat([mean, mean.new_full((batch, 1), len(bias) / len(rows))], dim=1)
        sums.a += gram(mean)
        sums.count_a += batch
        return
    sums.a[:features, :features] += gram(z.reshape(-1, features))
    sums.count_a += batch * len(rows)
    for i, entry in bias.items() if has_bias else ():
        column = entry * z[i].sum(0)
        sums.a[:features, features] += column
        sums.a[features, :features] += column
        sums.a[features, features] += batch * entry**2


def _compact(rows: list[int]) -> slice | list[int]:
    """A slice where the rows are contiguous, so that no copy is made."""
    contiguous = rows == list(range(rows[0], rows[-1] + 1))
    return slice(rows[0], rows[-1] + 1) if contiguous else rows


def _square_norms(x: Tensor) -> Tensor:
    """Σ x² by row, for x [rows, batch, feature]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).square()


@torch.no_grad()
def _row_norms(make: Callable[[], Block]) -> tuple[int, list[tuple[Tensor, Tensor]]]:
    """Σ ‖z‖² (with the bias entry) and Σ ‖g‖² of every row, layer by layer, of one block."""
    block = make()
    result = []
    for layer in block.layers:
        a = _square_norms(layer.inputs)
        if layer.has_bias:
            a[list(layer.value_rows)] += block.batch
        b = torch.zeros_like(a)
        for rows, g in _vectors(block, layer, "type-2", None):
            b[rows] += _square_norms(g)
        result.append((a, b))
    return block.term, result


def _weigh_rows(linearisation: Linearisation, sums: list[list[_Sums]]) -> None:
    """Set ``root_a`` and ``root_b`` to √tr A_s and √tr B_s of every row, over all points."""
    found = linearisation.system.workers.map(_row_norms, linearisation.blocks)
    for term, norms in found:
        for own, (a, b) in zip(sums[term], norms, strict=True):
            own.root_a = a if own.root_a is None else own.root_a + a
            own.root_b = b if own.root_b is None else own.root_b + b
    for layers in sums:
        for own in layers:
            assert own.root_a is not None
            assert own.root_b is not None
            own.root_a, own.root_b = own.root_a.sqrt(), own.root_b.sqrt()


def _noise(linearisation: Linearisation, generator: Generator | None) -> list[Tensor]:
    """Standard normal weights [batch, equation] for every block, drawn in order."""
    result = []
    for shape in linearisation.sizes:
        draw = torch.randn(shape, dtype=torch.float64, generator=generator)
        result.append(draw.to(linearisation.residual))
    return result


@torch.no_grad()
def _add_block(sums: list[_Sums], block: Block, settings: Factors, noise: Tensor | None) -> None:
    for own, layer in zip(sums, block.layers, strict=True):
        own.batch += block.batch
        _add_inputs(own, layer, settings)
        for rows, g in _vectors(block, layer, settings.backpropagated, noise):
            scaled = g if own.root_a is None else g * own.root_a[rows][:, None, None]
            if settings.sharing == "reduce":
                own.b += gram(scaled.sum(0))
            else:
                own.b += gram(scaled.reshape(-1, g.shape[-1]))


@torch.no_grad()
def factors(
    linearisation: Linearisation, settings: Factors, generator: Generator | None = None
) -> list[list[Pair]]:
    """The pairs (A, B) of every term and layer, ``result[term][layer]``."""
    system = linearisation.system
    sums = [[_empty(v) for v in system.zeros()[: len(system.graph.linears)]] for _ in system.terms]
    if settings.sharing == "weighted" and settings.backpropagated != "forward-only":
        _weigh_rows(linearisation, sums)
    noise = _noise(linearisation, generator) if settings.backpropagated == "monte-carlo" else None
    workers = system.workers
    numbered = list(enumerate(linearisation.blocks))
    groups = workers.groups(numbered)
    copies = [sums, *([[s.like() for s in layers] for layers in sums] for _ in groups[1:])]

    def add(task: tuple[list[list[_Sums]], Sequence[tuple[int, Callable[[], Block]]]]) -> None:
        own, group = task
        for number, make in group:
            block = make()
            _add_block(own[block.term], block, settings, None if noise is None else noise[number])

    workers.map(add, list(zip(copies, groups, strict=True)))
    for other in copies[1:]:
        for own_layers, layers in zip(sums, other, strict=True):
            for own, value in zip(own_layers, layers, strict=True):
                own.plus(value)
    return [[_finish(s, settings) for s in layers] for layers in sums]


def _empty(v: Tensor) -> _Sums:
    out, inputs = v.shape
    return _Sums(v.new_zeros(inputs, inputs), v.new_zeros(out, out))


def _finish(sums: _Sums, settings: Factors) -> Pair:
    if sums.root_a is not None and sums.root_b is not None:
        tau = float((sums.root_a * sums.root_b).square().sum())
        scale = 1.0 / (sums.batch * math.sqrt(tau)) if tau > 0 else 0.0
        pair = sums.a * scale, sums.b * scale
    else:
        summed = settings.sharing == "weighted"  # over rows that all weigh the same
        pair = sums.a / (sums.batch if summed else max(sums.count_a, 1)), sums.b / sums.batch
    if settings.backpropagated == "forward-only":
        return pair[0], torch.eye(len(sums.b), dtype=sums.b.dtype, device=sums.b.device)
    return pair


@torch.no_grad()
def dense_gramian(linearisation: Linearisation) -> Tensor:
    """The exact Gramian block [param, param] of the parameters outside Linear layers."""
    size = linearisation.system.dense_size
    total = linearisation.residual.new_zeros(size, size)
    for block in linearisation:
        if block.dense is not None:
            total += block.weight * gram(block.dense.reshape(-1, size))
    return total


def equal(a: list[Tensor] | None, b: list[Tensor] | None) -> bool:
    """Equal by value: scales that were loaded are other objects with the same numbers."""
    if a is None or b is None:
        return a is b
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@dataclass
class Average:
    """Exponential averages of factors, one pair a term and layer, and of the dense block."""

    settings: Factors
    pairs: list[list[Pair]] = field(default_factory=list)
    dense: Tensor | None = None
    updates: int = 0
    dense_updates: int = 0
    scales: list[Tensor] | None = None

    def rescale(self, scales: list[Tensor] | None) -> None:
        """Carry the averages over to new scales of the equations (see balance.py).

        Factors B of a term are multiplied by the mean of s_new²/s_old² over its equations; the
        dense block, a sum over terms, starts anew.
        """
        if equal(scales, self.scales):
            return
        for number, layers in enumerate(self.pairs):
            new = 1.0 if scales is None else scales[number].square()
            old = 1.0 if self.scales is None else self.scales[number].square()
            ratio = float(torch.as_tensor(new / old).mean())
            for _, b in layers:
                b.mul_(ratio)
        self.dense, self.dense_updates = None, 0
        self.scales = scales

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
            self.dense_updates += 1
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
        if self.dense is None:
            return None
        return self.dense / (1.0 - self.settings.decay**self.dense_updates)

    def state_dict(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self._state}

    def load_state_dict(self, state: dict[str, object]) -> None:
        for name in self._state:
            setattr(self, name, state[name])

    _state: ClassVar[tuple[str, ...]] = ("pairs", "dense", "updates", "dense_updates", "scales")
