"""Kronecker-factored approximate curvature: one pair (A, B) a term and layer.

Per term with N points and a layer with rows s (arXiv:2405.15603, eqs. 10–13; arXiv:2311.00636):

    expand:  A = 1/(N S) Σ_ns z̃_ns z̃_nsᵀ,     B = 1/N Σ_ns g_ns g_nsᵀ,
    reduce:  A = 1/N Σ_n z̄_n z̄_nᵀ (mean over s),  B = 1/N Σ_n ḡ_n ḡ_nᵀ (sum over s),

with the inputs z̃ and their bias entry of linearisation/layer.py. The Gramian block is approximated
by weight · A ⊗ B. Beyond the paper,

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
from typing import Annotated, Literal

import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import check_choice
from pinnkfac.common.settings import Count, Range
from pinnkfac.curvature.averaging import Average, Start, equal
from pinnkfac.curvature.base import Situation
from pinnkfac.curvature.kronecker import EigenInverse, Pair, inverse
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.layer import Layer
from pinnkfac.linearisation.linearisation import Linearisation

Sharing = Literal["expand", "reduce", "weighted"]
Backpropagated = Literal["type-2", "monte-carlo", "empirical", "forward-only"]


@dataclass(frozen=True)
class Factors:
    """How Kronecker factors are made and averaged: F ← decay·F + (1 − decay)·new."""

    sharing: Sharing = "weighted"
    """how rows share a layer: weighted by their traces, or expand and reduce as published"""
    backpropagated: Backpropagated = "type-2"
    """type-2: every equation; monte-carlo: a random combination of them; empirical: their sum
    weighted by the residuals; forward-only: none, B = I"""
    decay: Annotated[float, Range(least=0, below=1)] = 0.8
    """of the exponential average; 0: the factors of the step alone"""
    start: Start = "bias-corrected"
    """of that average: the identity, zero, or bias-corrected, zero with its bias divided out"""
    every: Count = 1
    """steps between updates of the factors"""
    active_rows: bool = True
    """average over the rows that enter the residual only"""

    def __post_init__(self) -> None:
        check_choice("step.factors.sharing", self.sharing, Sharing)
        check_choice("step.factors.backpropagated", self.backpropagated, Backpropagated)
        check_choice("step.factors.start", self.start, Start)


# -- which rows are a sample, and of what ----------------------------------------------------------
@dataclass(frozen=True)
class Samples:
    """How inputs and derivatives [row, batch, feature] become samples [sample, feature], and the
    number, for so many rows and points, that the sum over inputs is divided by.

    ``weighs_rows``: a sample weighs as much as the trace of the other factor of its row.
    """

    inputs: Callable[[Tensor], Tensor]
    outputs: Callable[[Tensor], Tensor]
    number: Callable[[int, int], int]
    weighs_rows: bool = False


def every_row(x: Tensor) -> Tensor:
    return x.flatten(0, 1)


SHARING = {
    "expand": Samples(every_row, every_row, lambda rows, batch: batch * rows),
    "reduce": Samples(lambda z: z.mean(0), lambda g: g.sum(0), lambda rows, batch: batch),
    "weighted": Samples(every_row, every_row, lambda rows, batch: batch, weighs_rows=True),
}

Vectors = list[tuple[Sequence[int], Tensor]]
"""Backpropagated vectors [row, batch, out] with their rows, one for each sum of products."""


def every_equation(layer: Layer) -> Vectors:
    return [(layer.active[e], g) for e, _, g in layer.equations()]


def combined(layer: Layer, weights: Tensor) -> Vectors:
    """The sum over equations with weights [batch, equation]."""
    rows = layer.all_active
    if not rows:
        return []
    if len(layer.gradients) == 1:
        return [(rows, layer.gradients[0] * weights[:, 0, None])]
    total = layer.gradients[0].new_zeros(len(rows), *layer.gradients[0].shape[1:])
    for e, g in enumerate(layer.gradients):
        for i, s in enumerate(layer.active[e]):
            total[rows.index(s)] += g[i] * weights[:, e, None]
    return [(rows, total)]


BACKPROPAGATED: dict[str, Callable[[Layer, Block, Tensor], Vectors]] = {
    "type-2": lambda layer, block, noise: every_equation(layer),
    "monte-carlo": lambda layer, block, noise: combined(layer, noise),
    "empirical": lambda layer, block, noise: combined(layer, block.residual),
    "forward-only": lambda layer, block, noise: [],
}
"""By layer, block, and standard normal noise [batch, equation]."""


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


def row_weights(linearisation: Linearisation) -> list[tuple[Tensor, Tensor]]:
    """√(N tr A_s) and √(N tr B_s) of all rows s, [shared] each, by term and layer."""
    like, workload = linearisation.residual, linearisation.workload

    def zeros() -> list[Tensor]:
        return [
            like.new_zeros(rows * uses)
            for rows, _ in workload.terms
            for _, _, uses in workload.layers
            for _ in "AB"
        ]

    def add(total: list[Tensor], block: Block) -> None:
        first = 2 * block.term * len(block.layers)
        for i, layer in enumerate(block.layers):
            total[first + 2 * i] += _square_norms(layer.inputs)
            for rows, g in every_equation(layer):
                total[first + 2 * i + 1][list(rows)] += _square_norms(g)

    roots = [v.sqrt() for v in linearisation.sum(zeros, add)]
    return list(zip(roots[::2], roots[1::2], strict=True))


def _square_norms(x: Tensor) -> Tensor:
    """Σ x² by row, for x [rows, batch, feature]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).square()


def factors(
    linearisation: Linearisation, settings: Factors, generator: Generator | None = None
) -> list[list[Pair]]:
    """The pairs (A, B) of every term and layer, ``result[term][layer]``."""
    sharing, vectors = SHARING[settings.sharing], BACKPROPAGATED[settings.backpropagated]
    like, layers = linearisation.residual, linearisation.layout.layers
    one_sided = settings.backpropagated == "forward-only"
    weights = row_weights(linearisation) if sharing.weighs_rows and not one_sided else None
    pairs = len(layers) * len(linearisation.weights)
    points, sizes = linearisation.points, linearisation.sizes
    noise = [torch.empty(0)] * len(linearisation.blocks)
    if settings.backpropagated == "monte-carlo":
        draws = (torch.randn(s, dtype=torch.float64, generator=generator) for s in sizes)
        noise = [draw.to(like) for draw in draws]

    def zeros() -> list[Tensor]:
        sides = [
            like.new_zeros(n, n) for _ in points for out, inputs in layers for n in (inputs, out)
        ]
        return [*sides, *(like.new_zeros(()) for _ in range(pairs))]

    def add(total: list[Tensor], block: Block, draw: Tensor) -> None:
        first = block.term * len(layers)
        for i, layer in enumerate(block.layers, first):
            rows = layer.all_active if settings.active_rows else range(len(layer.inputs))
            z = layer.inputs_on(rows)
            if len(rows):
                by_a = z if weights is None else z * weights[i][1][list(rows), None, None]
                total[2 * i] += gram(sharing.inputs(by_a))
                total[2 * pairs + i] += sharing.number(len(rows), block.batch)
            for active, g in vectors(layer, block, draw):
                by_b = g if weights is None else g * weights[i][0][list(active), None, None]
                total[2 * i + 1] += gram(sharing.outputs(by_b))

    sides = linearisation.sum(zeros, add, noise)
    result = []
    for i in range(pairs):
        a, b = sides[2 * i] / max(float(sides[2 * pairs + i]), 1.0), sides[2 * i + 1]
        b = torch.eye(len(b)).to(b) if one_sided else b / points[i // len(layers)]
        if weights is not None:
            tau = math.sqrt(float((weights[i][0] * weights[i][1]).square().sum()))
            a, b = (v / tau if tau > 0 else 0.0 * v for v in (a, b))
        result.append((a, b))
    return [result[i : i + len(layers)] for i in range(0, pairs, len(layers))]


def dense_gramian(linearisation: Linearisation) -> Tensor:
    """The exact Gramian block [param, param] of the parameters outside linear layers."""
    size = linearisation.layout.dense

    def add(total: list[Tensor], block: Block) -> None:
        if block.dense is not None:
            total[0].add_(gram(block.dense.flatten(0, 1)), alpha=block.weight)

    return linearisation.sum(lambda: [linearisation.residual.new_zeros(size, size)], add)[0]


@dataclass(frozen=True)
class FactorAverage:
    """Averages of A, B of every term and layer, one behind the other, and of the dense block, with
    the scales of the equations that they are for."""

    factors: Average = field(default_factory=Average)
    dense: Average = field(default_factory=Average)
    scales: list[Tensor] | None = None

    def rescaled(self, scales: list[Tensor] | None) -> FactorAverage:
        """Carried over to new scales of the equations (see balance.py).

        Factors B of a term are multiplied by the mean of s_new²/s_old² over its equations; the
        dense block, a sum over terms, starts anew.
        """
        if equal(scales, self.scales):
            return self
        terms = len(scales or self.scales or ())
        total = list(self.factors.total)
        each = len(total) // terms
        for i in range(1, len(total), 2):
            new, old = (1.0 if s is None else s[i // each].square() for s in (scales, self.scales))
            total[i] = total[i] * float(torch.as_tensor(new / old).mean())
        return FactorAverage(Average(total, self.factors.updates), Average(), scales)

    def at(self, situation: Situation, settings: Factors) -> FactorAverage:
        """With the linearisation of a step, where its turn has come."""
        linearisation = situation.linearisation
        average = self.rescaled(linearisation.scales)
        if average.factors.updates and situation.step % settings.every:
            return average
        pairs = factors(linearisation, settings, situation.generator)
        new = [side for layers in pairs for pair in layers for side in pair]
        dense = average.dense
        if linearisation.layout.dense:
            dense = dense.updated([dense_gramian(linearisation)], settings.decay)
        now = average.factors.updated(new, settings.decay, settings.start)
        return FactorAverage(now, dense, linearisation.scales)

    def pairs(self, weights: Sequence[float], settings: Factors) -> list[list[Pair]]:
        """(A, B) of every layer and term, ``result[layer][term]``, B times the term's weight."""
        sides = self.factors.values(settings.decay, settings.start)
        layers = len(sides) // (2 * len(weights))
        both = list(zip(sides[::2], sides[1::2], strict=True))
        return [
            [(a, b * weight) for (a, b), weight in zip(both[layer::layers], weights, strict=True)]
            for layer in range(layers)
        ]

    def dense_inverse(
        self, settings: Factors, damping: float, floor: float, last: EigenInverse | None
    ) -> EigenInverse | None:
        """Of the dense block; an average that starts anew keeps the last one until its next
        update."""
        values = self.dense.values(settings.decay)
        if not values:
            return last
        return inverse([(values[0].new_ones(1, 1), values[0])], damping, "exact", floor)
