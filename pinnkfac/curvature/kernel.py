"""The kernel J Jᵀ of all residuals, without ever forming J where that is cheaper.

With the rows s, t of the shared axis, summed over layers l (z̃ and g: linearisation/layer.py),

    (J Jᵀ)_nm = √(w_n w_m) Σ_l Σ_st (z̃_ns · z̃_mt) (g_ns · g_mt),

so that a layer costs (N S)² (in + out) instead of N² · in · out for its dense rows of J. Which is
less depends on widths and rows: every layer goes the cheaper way, in tiles, within the memory of
the workload.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, product

import torch
from torch import Tensor

from pinnkfac.common.memory import check_fits, making
from pinnkfac.common.parallel import Workers, write
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.workload import Workload

POINTS = "points.scale, points.interior or points.lower"
"""What to lower where residuals are too many."""
TILE_ROWS = 512
"""Rows of a tile, points times rows of the shared axis: its products stay in the cache."""
OVERHEAD = 40.0
"""What one entry of a product of two rows costs beside its multiplications, in multiplications:
writing both products and summing theirs (measured, float64, one core)."""
FEW_POINTS = 8000
"""Pairs of points in a tile below which one sum is faster than one addition for every two rows."""
FORMING = 60.0
"""The same for one entry of a dense row of J."""


@dataclass(frozen=True)
class KernelPlan:
    """How the kernel is computed: per layer by rows (True) or by dense rows of J (False), with
    the multiplications of both ways."""

    by_rows: tuple[bool, ...]
    rows: tuple[float, ...]
    dense: tuple[float, ...]

    @property
    def multiplications(self) -> float:
        return sum(
            r if by_rows else d
            for by_rows, r, d in zip(self.by_rows, self.rows, self.dense, strict=True)
        )


def plan_kernel(
    workload: Workload, points: Sequence[int], *, products_only: bool = False
) -> KernelPlan:
    """The cheaper way for every layer, for so many points of every term; ``products_only`` counts
    nothing but matrix products."""
    overhead, forming = (0.0, 0.0) if products_only else (OVERHEAD, FORMING)
    residuals, total = workload.residuals(points), workload.adjoints(points)
    rows, dense = [], []
    for inputs, outputs, uses in workload.layers:
        adjoints = uses * total
        rows.append(adjoints**2 / 2 * (inputs + outputs + overhead))
        dense.append((residuals**2 / 2 + adjoints + forming * residuals) * inputs * outputs)
    by_rows = tuple(r <= d for r, d in zip(rows, dense, strict=True))
    return KernelPlan(by_rows, tuple(rows), tuple(dense))


def kernel(linearisation: Linearisation, plan: KernelPlan | None = None) -> Tensor:
    """J Jᵀ [residual, residual], in the order of ``linearisation.residual``.

    ``plan`` decides for every layer; None takes the cheaper way. Raises UserError where the kernel
    itself does not fit into memory.
    """
    plan = plan or plan_kernel(linearisation.workload, linearisation.points)
    return _kernel(linearisation, plan, range(len(plan.by_rows)), dense=True)


def layer_kernel(linearisation: Linearisation, layer: int) -> Tensor:
    """J_l J_lᵀ [residual, residual] with the columns J_l of one layer."""
    plan = plan_kernel(linearisation.workload, linearisation.points)
    return _kernel(linearisation, plan, [layer], dense=False)


@torch.no_grad()
def _kernel(
    linearisation: Linearisation, plan: KernelPlan, layers: Sequence[int], *, dense: bool
) -> Tensor:
    """The sum over some layers, and over the parameters outside of layers where ``dense``."""
    like = linearisation.residual
    total = len(like)
    what = f"the kernel of {total} residuals"
    check_fits(2 * like.element_size() * total**2, what, POINTS, like.device)
    with making(what, POINTS):
        result = like.new_zeros(total, total)
        by_rows = [layer for layer in layers if plan.by_rows[layer]]
        if by_rows or (dense and linearisation.layout.dense):
            _add_by_rows(result, linearisation, by_rows, dense)
        for layer in layers:
            if not plan.by_rows[layer]:
                _add_dense(result, linearisation, layer)
    return _mirrored(result)


def _mirrored(upper: Tensor) -> Tensor:
    """The symmetric matrix of which the tiles on and above the diagonal are known."""
    size = len(upper)
    for start in range(0, size, TILE_ROWS):
        stop = min(start + TILE_ROWS, size)
        corner = upper[start:stop, start:stop]
        upper[start:stop, start:stop] = torch.triu(corner) + torch.triu(corner, 1).T
        upper[stop:, start:stop] = upper[start:stop, stop:].T
    return upper


# -- by rows -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Piece:
    """One equation at some points of one block: the unit of tiles by rows.

    ``where`` are its places among all residuals.
    """

    make: Callable[[], Block]
    points: slice
    equation: int
    where: slice

    @property
    def number(self) -> int:
        return self.points.stop - self.points.start


_Pair = tuple[Sequence[_Piece], Sequence[_Piece]]


def _starts(linearisation: Linearisation) -> list[int]:
    """The place of the first residual of every block."""
    lengths = [batch * equations for batch, equations in linearisation.sizes]
    return list(accumulate(lengths, initial=0))[:-1]


def _pieces(linearisation: Linearisation) -> list[_Piece]:
    """All residuals in pieces of about TILE_ROWS rows, in the order of the residuals."""
    rows = max(rows for rows, _ in linearisation.workload.terms)
    result = []
    for make, (batch, equations), start in zip(
        linearisation.blocks, linearisation.sizes, _starts(linearisation), strict=True
    ):
        number = max(1, math.ceil(batch * rows / TILE_ROWS))
        step = math.ceil(batch / number)
        for first in range(0, batch, step):
            last = min(first + step, batch)
            for e in range(equations):
                where = slice(start + first * equations + e, start + last * equations, equations)
                result.append(_Piece(make, slice(first, last), e, where))
    return result


def _add_by_rows(
    result: Tensor, linearisation: Linearisation, layers: Sequence[int], dense: bool
) -> None:
    """Layers by rows, and dense blocks, into the tiles and their mirror images."""

    def fill(tiles: Sequence[Tensor], task: _Pair) -> None:
        left, right = task
        made_left = left[0].make()
        made_right = made_left if left is right else right[0].make()
        for (a, b), tile, image in zip(product(left, right), tiles[::2], tiles[1::2], strict=True):
            values = _tile(a, made_left, b, made_right, layers, dense)
            tile.copy_(values)
            image.copy_(values.T)

    def tiles(task: _Pair) -> list[Tensor]:
        sides = [(a.where, b.where) for a, b in product(*task)]
        return [result[place] for a, b in sides for place in ((a, b), (b, a))]

    linearisation.place()
    tasks = _tasks(_pieces(linearisation), linearisation.kept)
    write(linearisation.workers, fill, ((tiles(task), task) for task in tasks))


def _tasks(pieces: list[_Piece], kept: bool) -> Iterator[_Pair]:
    """Pairs of groups that cover every pair of pieces: single pieces, or, where blocks are
    computed anew for every task, all pieces of a block."""
    groups: list[list[_Piece]] = []
    for piece in pieces:
        if kept or not groups or groups[-1][0].make is not piece.make:
            groups.append([piece])
        else:
            groups[-1].append(piece)
    for i, left in enumerate(groups):
        for right in groups[i:]:
            yield left, right


def _tile(
    a: _Piece, left: Block, b: _Piece, right: Block, layers: Sequence[int], dense: bool
) -> Tensor:
    """The kernel between two pieces of blocks, summed over some layers."""
    total = left.residual.new_zeros(a.number, b.number)
    for number in layers:
        x, y = left.layers[number].rows(a.equation), right.layers[number].rows(b.equation)
        if len(x[1]) and len(y[1]):
            _add_products(total, [v[:, a.points] for v in x], [v[:, b.points] for v in y])
    if dense and left.dense is not None and right.dense is not None:
        total.addmm_(left.dense[a.equation, a.points], right.dense[b.equation, b.points].T)
    return total.mul_(math.sqrt(left.weight * right.weight))


def _add_products(total: Tensor, x: Sequence[Tensor], y: Sequence[Tensor]) -> None:
    """total [n, m] += Σ_st (z̃_ns · z̃_mt)(g_ns · g_mt), for (z̃, g) of n and of m points."""
    (s, n, _), (t, m, _) = x[0].shape, y[0].shape
    inputs, outputs = (u.flatten(0, 1) @ v.flatten(0, 1).T for u, v in zip(x, y, strict=True))
    if s * t == 1:
        total.addcmul_(inputs, outputs)
        return
    if n * m < FEW_POINTS:
        products = inputs.mul_(outputs).view(s, n * t * m)
        total += products.sum(0).view(n, t, m).sum(1)
        return
    inputs, outputs = inputs.view(s, n, t, m), outputs.view(s, n, t, m)
    for i in range(s):
        for j in range(t):
            total.addcmul_(inputs[i, :, j], outputs[i, :, j])


# -- by dense rows of J --------------------------------------------------------------------------
def _add_dense(result: Tensor, linearisation: Linearisation, layer: int) -> None:
    """result += J_l J_lᵀ of one layer, in slices of outputs that fit."""
    residuals = len(result)
    out, inputs = linearisation.layout.layers[layer]
    per_output = residuals * inputs * result.element_size()
    width = max(1, min(out, int(0.25 * linearisation.workload.memory // per_output)))
    buffer = result.new_empty(residuals, width * inputs)
    for start in range(0, out, width):
        outputs = slice(start, min(start + width, out))
        jacobian = buffer[:, : (outputs.stop - outputs.start) * inputs]
        fill_jacobian(jacobian, linearisation, layer, outputs)
        _add_gram(result, jacobian, linearisation.workers)


def fill_jacobian(
    jacobian: Tensor, linearisation: Linearisation, number: int, outputs: slice
) -> None:
    """Dense rows of J [residual, outputs · (in + bias)] of one layer for some outputs."""

    def fill(parts: Sequence[Tensor], make: Callable[[], Block]) -> None:
        block = make()
        layer, root = block.layers[number], math.sqrt(block.weight)
        for e in range(block.equations):
            rows = parts[0][e :: block.equations]
            z, g = layer.rows(e)
            if not len(g):
                rows.zero_()
                continue
            left = (root * g[:, :, outputs]).permute(1, 2, 0)
            entries = rows.unflatten(1, (left.shape[1], z.shape[-1]))
            torch.bmm(left, z.transpose(0, 1), out=entries)

    linearisation.place()
    parts = jacobian.split([batch * equations for batch, equations in linearisation.sizes])
    tasks = (([part], make) for part, make in zip(parts, linearisation.blocks, strict=True))
    write(linearisation.workers, fill, tasks)


def _add_gram(result: Tensor, jacobian: Tensor, workers: Workers) -> None:
    """result += jacobian jacobianᵀ, tiles on and above the diagonal."""
    size = len(result)
    step = max(TILE_ROWS, math.ceil(size / 8))

    def add(tiles: Sequence[Tensor], corner: tuple[int, int]) -> None:
        left, right = (jacobian[start : start + step] for start in corner)
        tiles[0].addmm_(left, right.T)

    corners = [(i, j) for i in range(0, size, step) for j in range(i, size, step)]
    write(workers, add, (([result[i : i + step, j : j + step]], (i, j)) for i, j in corners))
