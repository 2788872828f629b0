"""CG-FAC: conjugate gradients on Kronecker products whose factors are never formed.

Per layer V ↦ Σ_t w_t B_t V A_t + λ V over the terms t, with the factors of KFAC (kfac.py) left as
products of Z and G (Chen 2021, arXiv:2101.00218):

    B V A = 1/(N · N S) · Gᵀ(G V) Zᵀ Z,    Z [N·S, in + bias], G [N·S, out],

so that neither A nor B nor an inverse is ever made, however wide the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from pinnkfac.linearisation.block import Block, Layer
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.jacobian import inputs_with_bias
from pinnkfac.linearisation.system import Linearisation

Sharing = Literal["expand", "reduce", "rows"]
Group = Sequence[tuple[int, Callable[[], Block]]]
"""Blocks with the numbers of their terms."""


class KroneckerOperator:
    """V ↦ Σ_t w_t Σ_groups B V A by layer, from two passes over (Z, G).

    ``sharing`` 'expand' and 'reduce' as in kfac.py, over rows that enter the residual; 'rows' is
    Σ_s B_s V A_s with the factors of single rows s, a sum that has no cheap inverse.
    """

    def __init__(self, linearisation: Linearisation, sharing: Sharing) -> None:
        self.system = linearisation.system
        self.sharing = sharing
        self.blocks = list(zip(linearisation.terms, linearisation.blocks, strict=True))
        self.points = [0] * len(self.system.terms)
        for term, (batch, _) in zip(linearisation.terms, linearisation.sizes, strict=True):
            self.points[term] += batch

    @torch.no_grad()
    def __call__(self, vs: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The products for the layers' V [out, in + bias]; None where None is given."""
        workers = self.system.workers
        groups = workers.groups(self.blocks)
        lefts: dict[tuple[int, int], Tensor] = {}
        for found in workers.map(lambda group: self._left(group, vs), groups):
            for key, part in found.items():
                lefts[key] = lefts[key] + part if key in lefts else part
        total, *rest = workers.map(lambda group: self._right(group, vs, lefts), groups)
        for other in rest:
            for own, value in zip(total, other, strict=True):
                if own is not None and value is not None:
                    own += value
        return total

    def _left(self, group: Group, vs: Sequence[Tensor | None]) -> dict[tuple[int, int], Tensor]:
        """Σ Gᵀ(G V) by term and layer, [row, out, in + bias] with one row but for 'rows'."""
        result: dict[tuple[int, int], Tensor] = {}
        for term, make in group:
            for number, layer in enumerate(make().layers):
                v, rows = vs[number], _active(layer)
                if v is None or not rows:
                    continue
                length = len(rows) if self.sharing == "rows" else 1
                total = result.setdefault((term, number), v.new_zeros(length, *v.shape))
                for at, g in self._gradients(layer, rows):
                    total[at].addmm_(g.T, g @ v)
        return result

    def _gradients(self, layer: Layer, rows: list[int]) -> list[tuple[int, Tensor]]:
        """G [·, out] of all equations, with the entry of ``_left`` that each adds to."""
        result = []
        for active, g in zip(layer.active, layer.gradients, strict=True):
            if not active:
                continue
            if self.sharing == "expand":
                result.append((0, g.reshape(-1, g.shape[-1])))
            elif self.sharing == "reduce":
                result.append((0, g.sum(0)))
            else:
                result += [(rows.index(s), g[i]) for i, s in enumerate(active)]
        return result

    def _right(
        self,
        group: Group,
        vs: Sequence[Tensor | None],
        lefts: dict[tuple[int, int], Tensor],
    ) -> list[Tensor | None]:
        """Σ (T Zᵀ) Z by layer with T of ``_left``, scaled by the weights and numbers of points."""
        result = [None if v is None else torch.zeros_like(v) for v in vs]
        for term, make in group:
            block = make()
            for number, layer in enumerate(block.layers):
                total, left = result[number], lefts.get((term, number))
                if total is None or left is None:
                    continue
                z = _inputs(layer)
                scale = block.weight / self.points[term]
                if self.sharing == "expand":
                    z, scale = z.reshape(1, -1, z.shape[-1]), scale / len(z)
                elif self.sharing == "reduce":
                    z = z.mean(0, keepdim=True)
                for own, t in zip(z, left, strict=True):
                    total.addmm_((own @ t.T).T, own, alpha=scale)
        return result


def _active(layer: Layer) -> list[int]:
    """Rows whose output enters some equation of the residual."""
    return sorted({s for active in layer.active for s in active})


def _inputs(layer: Layer) -> Tensor:
    """Inputs on the rows of ``_active`` with the bias entry last, [active, batch, in + bias]."""
    rows = tuple(_active(layer))
    if rows in layer.active:
        return inputs_with_bias(layer, layer.active.index(rows))
    merged = Layer(layer.inputs, layer.value_rows, layer.has_bias, [rows], [])
    return inputs_with_bias(merged, 0)


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
