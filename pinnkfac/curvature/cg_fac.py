"""CG-FAC: conjugate gradients on Kronecker products whose factors are never formed.

Per layer V ↦ Σ_t w_t B_t V A_t + λ V over the terms t, with the factors of KFAC (factors.py) as
products of Z and G (Chen 2021, arXiv:2101.00218):

    B V A = 1/(N · N S) · Gᵀ(G V) Zᵀ Z,    Z [N·S, in + bias], G [N·S, out],

so that neither A nor B nor an inverse is ever made, however wide the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from pinnkfac.common.errors import Diverged, check_choice
from pinnkfac.common.settings import Count, NonNegative
from pinnkfac.curvature.base import Applied, Curvature, Situation, Solver
from pinnkfac.curvature.factors import SHARING, dense_gramian, every_equation
from pinnkfac.curvature.solve import solve_damped
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.direction import Direction, is_finite
from pinnkfac.linearisation.layer import Layer
from pinnkfac.linearisation.linearisation import Linearisation

RowSharing = Literal["expand", "reduce", "rows"]


class KroneckerOperator:
    """V ↦ Σ_t w_t Σ_products B V A by layer, from two passes over (Z, G), over the rows that enter
    the residual. ``sharing``: as in factors.py, or a product of the factors of every row, a sum
    that has no cheap inverse."""

    def __init__(self, linearisation: Linearisation, sharing: RowSharing) -> None:
        self.linearisation = linearisation
        self.samples = SHARING.get(sharing)
        """None: every row is a product of its own."""

    def __call__(self, vs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The products for the layers' V [out, in + bias]; None where None is given."""
        wanted = [i for i, v in enumerate(vs) if v is not None]
        matrices = [v for v in vs if v is not None]
        lefts = self._lefts(wanted, matrices)
        points = self.linearisation.points

        def add(total: list[Tensor], block: Block) -> None:
            for i, number in enumerate(wanted):
                layer = block.layers[number]
                z = layer.inputs_on(layer.all_active)
                if len(z):
                    inputs, rows = self._inputs(z)
                    scale = block.weight / (points[block.term] * rows)
                    for x, left in zip(inputs, lefts[block.term][i], strict=False):
                        total[i].addmm_((x @ left.T).T, x, alpha=scale)

        totals = iter(self.linearisation.sum(lambda: [torch.zeros_like(v) for v in matrices], add))
        return [None if v is None else next(totals) for v in vs]

    def _inputs(self, z: Tensor) -> tuple[Tensor, int]:
        """Z [product, sample, in + bias] from the active rows, and how many are one sample."""
        if self.samples is None:
            return z, 1
        return self.samples.inputs(z)[None], self.samples.number(len(z), 1)

    def _outputs(self, layer: Layer) -> list[tuple[int, Tensor]]:
        """G [sample, out] of all equations, with the product that each belongs to."""
        if self.samples is not None:
            return [(0, self.samples.outputs(g)) for _, _, g in layer.equations()]
        rows = layer.all_active
        pairs = every_equation(layer)
        return [(rows.index(s), g[i]) for active, g in pairs for i, s in enumerate(active)]

    def _lefts(self, wanted: Sequence[int], vs: Sequence[Tensor]) -> list[list[Tensor]]:
        """Σ Gᵀ(G V) by term and wanted layer, [product, out, in + bias]."""
        workload = self.linearisation.workload
        shapes = [
            (rows * workload.layers[number][2] if self.samples is None else 1, *v.shape)
            for rows, _ in workload.terms
            for number, v in zip(wanted, vs, strict=True)
        ]

        def add(total: list[Tensor], block: Block) -> None:
            for i, (number, v) in enumerate(zip(wanted, vs, strict=True)):
                part = total[block.term * len(wanted) + i]
                for product, g in self._outputs(block.layers[number]):
                    part[product].addmm_(g.T, g @ v)

        like = self.linearisation.residual
        totals = self.linearisation.sum(lambda: [like.new_zeros(s) for s in shapes], add)
        return [totals[i : i + len(wanted)] for i in range(0, len(totals), max(1, len(wanted)))]


def conjugate_gradients_by_layer(
    product: Callable[[Sequence[Tensor | None]], Sequence[Tensor | None]],
    right: Direction,
    damping: float,
    iterations: int,
    tolerance: float,
) -> Direction:
    """Solve (C_l + λ) X_l = right_l for every layer l on its own, from 0, side by side.

    A layer stops where ‖r‖² < tolerance · ‖r_0‖². Where its method breaks down (no positive
    curvature along a search direction, a residual that has grown in the end, or no finite number),
    its solution is ``right`` itself: the step goes along the gradient.
    """
    solution = [torch.zeros_like(b) for b in right]
    residual = [b.clone() for b in right]
    search: list[Tensor | None] = [b.clone() for b in right]
    first = [float(b.square().sum()) for b in right]
    square = list(first)
    broken = [not math.isfinite(s) for s in first]
    for number, s in enumerate(first):
        if s == 0.0 or broken[number]:
            search[number] = None
    for _ in range(iterations):
        if all(p is None for p in search):
            break
        for number, (p, image) in enumerate(zip(search, product(search), strict=True)):
            if p is None or image is None:
                continue
            image = image.add(p, alpha=damping)
            curvature = float((p * image).sum())
            if not 0.0 < curvature < math.inf:
                broken[number], search[number] = True, None
                continue
            length = square[number] / curvature
            solution[number].add_(p, alpha=length)
            residual[number].sub_(image, alpha=length)
            before, square[number] = square[number], float(residual[number].square().sum())
            done = square[number] < tolerance * first[number] or square[number] == 0.0
            ratio = square[number] / before
            search[number] = None if done else residual[number].add(p, alpha=ratio)
    return [
        b.clone() if bad or not s <= s_0 else x
        for b, x, bad, s, s_0 in zip(right, solution, broken, square, first, strict=True)
    ]


@dataclass(frozen=True)
class MatrixFree(Curvature[None]):
    """Kronecker products of a step's points, solved with by at most ``iterations`` of conjugate
    gradients a layer (see ``conjugate_gradients_by_layer``); nothing is kept between steps."""

    sharing: RowSharing = "expand"
    iterations: Count = 10
    tolerance: NonNegative = 0.01

    def __post_init__(self) -> None:
        check_choice("step.sharing", self.sharing, RowSharing)

    def at(self, situation: Situation, state: None) -> Solver:
        return Applied(situation, partial(self._solved, situation.linearisation, situation.damping))

    def _solved(self, linearisation: Linearisation, damping: float, v: Direction) -> Direction:
        """Raises Diverged where v is not finite."""
        if not is_finite(*v):
            raise Diverged("the gradient is NaN or infinite: training diverged")
        product = KroneckerOperator(linearisation, self.sharing)
        layers = len(linearisation.layout.layers)
        result = conjugate_gradients_by_layer(
            product, v[:layers], damping, self.iterations, self.tolerance
        )
        if len(v) > layers:
            result.append(solve_damped(dense_gramian(linearisation), v[-1], damping))
        return result
