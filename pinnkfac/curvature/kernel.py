"""The kernel J Jᵀ of all residuals, without ever forming J where that is cheaper.

With the rows s, t of the shared axis, summed over layers l (design of the linearisation: block.py),

    (J Jᵀ)_nm = √(w_n w_m) Σ_l Σ_st (z_ns · z_mt + 1_{s, t are value rows}) (g_ns · g_mt),

so that a layer costs (N S)² (in + out) instead of N² · in · out for its dense rows of J. Which is
less depends on widths and rows: every layer goes the cheaper way, in tiles, within the memory of
the system.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnkfac.common.memory import check_fits, making
from pinnkfac.linearisation.block import Block, Layer
from pinnkfac.linearisation.system import Linearisation, System

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
class Plan:
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


@dataclass(frozen=True)
class _Piece:
    """One equation at some points of one block: the unit of tiles by rows.

    ``where`` are its places among all residuals.
    """

    make: Callable[[], Block]
    points: slice
    equation: int
    where: slice


def plan_kernel(system: System, numbers: Sequence[int], *, products_only: bool = False) -> Plan:
    """The cheaper way for every layer, for so many points of every term; ``products_only`` counts
    nothing but matrix products."""
    overhead, forming = (0.0, 0.0) if products_only else (OVERHEAD, FORMING)
    shapes = [(t.rows, t.residual.equations) for t in system.terms]
    residuals = sum(n * e for n, (_, e) in zip(numbers, shapes, strict=True))
    total = sum(n * e * rows for n, (rows, e) in zip(numbers, shapes, strict=True))
    rows, dense = [], []
    for layer, uses in zip(system.graph.linears, system.graph.uses, strict=True):
        inputs, outputs, own = layer.in_features, layer.out_features, uses * total
        rows.append(own**2 / 2 * (inputs + outputs + overhead))
        per_row = inputs * outputs
        dense.append((residuals**2 / 2 + own + forming * residuals) * per_row)
    by_rows = tuple(r <= d for r, d in zip(rows, dense, strict=True))
    return Plan(by_rows, tuple(rows), tuple(dense))


def points_by_term(linearisation: Linearisation) -> list[int]:
    """How many points every term has."""
    numbers = [0] * len(linearisation.system.terms)
    for term, (batch, _) in zip(linearisation.terms, linearisation.sizes, strict=True):
        numbers[term] += batch
    return numbers


@torch.no_grad()
def kernel(linearisation: Linearisation, plan: Plan | None = None) -> Tensor:
    """J Jᵀ [residual, residual], in the order of ``linearisation.residual``.

    ``plan`` decides for every layer; None takes the cheaper way. Raises UserError where the kernel
    itself does not fit into memory.
    """
    plan = plan or plan_kernel(linearisation.system, points_by_term(linearisation))
    total = len(linearisation.residual)
    settings = "points.scale, points.interior or points.lower"
    size = torch.finfo(linearisation.residual.dtype).bits // 8
    check_fits(2 * size * total**2, f"the kernel of {total} residuals", settings)
    with making(f"the kernel of {total} residuals", settings):
        result = linearisation.residual.new_zeros(total, total)
        _add_by_rows(result, linearisation, plan)
        for number, by_rows in enumerate(plan.by_rows):
            if not by_rows:
                _add_dense(result, linearisation, number)
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
def _pieces(linearisation: Linearisation, rows: int) -> list[_Piece]:
    """All residuals in pieces of about TILE_ROWS rows, in the order of the residuals."""
    result = []
    start = 0
    for make, (batch, equations) in zip(linearisation.blocks, linearisation.sizes, strict=True):
        number = max(1, math.ceil(batch * rows / TILE_ROWS))
        step = math.ceil(batch / number)
        for first in range(0, batch, step):
            last = min(first + step, batch)
            for e in range(equations):
                where = slice(start + first * equations + e, start + last * equations, equations)
                result.append(_Piece(make, slice(first, last), e, where))
        start += batch * equations
    return result


def _add_by_rows(result: Tensor, linearisation: Linearisation, plan: Plan) -> None:
    """Layers by rows, and biases and dense blocks of all layers, into the upper tiles."""
    system = linearisation.system
    pieces = _pieces(linearisation, max(term.rows for term in system.terms))

    def add(task: tuple[Sequence[_Piece], Sequence[_Piece]]) -> None:
        left, right = task
        made_left = left[0].make()
        made_right = made_left if left is right else right[0].make()
        for a in left:
            for b in right:
                values = _tile(a, made_left, b, made_right, plan.by_rows)
                result[a.where, b.where] = values
                result[b.where, a.where] = values.T

    system.workers.map(add, _tasks(pieces, linearisation.kept))


def _tasks(pieces: list[_Piece], kept: bool) -> Iterator[tuple[Sequence[_Piece], Sequence[_Piece]]]:
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


def _tile(a: _Piece, left: Block, b: _Piece, right: Block, by_rows: tuple[bool, ...]) -> Tensor:
    """The kernel between two pieces of blocks, without the layers that are computed densely."""
    shape = (a.points.stop - a.points.start, b.points.stop - b.points.start)
    total = left.residual.new_zeros(shape)
    for number, own in enumerate(by_rows):
        x, y = _rows_of(left.layers[number], a), _rows_of(right.layers[number], b)
        if x is None or y is None:
            continue
        if own:
            _add_products(total, x, y)
        if left.layers[number].has_bias and x.value is not None and y.value is not None:
            total.addmm_(x.value, y.value.T)
    if left.dense is not None and right.dense is not None:
        total.addmm_(left.dense[a.equation, a.points], right.dense[b.equation, b.points].T)
    return total.mul_(math.sqrt(left.weight * right.weight))


@dataclass(frozen=True)
class _Rows:
    """(Z, G) of one layer at the points of a piece: z [active, batch, in], g [active, batch, out],
    and Σ g over the value rows, [batch, out]."""

    z: Tensor
    g: Tensor
    value: Tensor | None


def _rows_of(layer: Layer, piece: _Piece) -> _Rows | None:
    g = layer.gradients[piece.equation][:, piece.points]
    if not len(g):
        return None
    z = layer.inputs_of(piece.equation)[:, piece.points]
    bias = layer.bias_rows(piece.equation)
    value = None if not bias else g[bias[0]] if len(bias) == 1 else g[bias].sum(0)
    return _Rows(z, g, value)


def _add_products(total: Tensor, x: _Rows, y: _Rows) -> None:
    """total [n, m] += Σ_st (z_ns · z_mt)(g_ns · g_mt)."""
    s, n, _ = x.z.shape
    t, m, _ = y.z.shape
    inputs = _flat(x.z) @ _flat(y.z).T
    outputs = _flat(x.g) @ _flat(y.g).T
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


def _flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.shape[-1])


# -- by dense rows of J --------------------------------------------------------------------------
def _add_dense(result: Tensor, linearisation: Linearisation, number: int) -> None:
    """result += J_l J_lᵀ of one layer without its bias, in slices of outputs that fit."""
    system = linearisation.system
    layer = system.graph.linears[number]
    residuals = len(result)
    per_output = residuals * layer.in_features * result.element_size()
    width = max(1, min(layer.out_features, int(0.25 * system.memory // per_output)))
    buffer = result.new_empty(residuals, width * layer.in_features)
    for start in range(0, layer.out_features, width):
        outputs = slice(start, min(start + width, layer.out_features))
        jacobian = buffer[:, : (outputs.stop - outputs.start) * layer.in_features]
        fill_jacobian(jacobian, linearisation, number, outputs)
        _add_gram(result, jacobian, system)


def fill_jacobian(
    jacobian: Tensor, linearisation: Linearisation, number: int, outputs: slice
) -> None:
    """Dense rows of J [residual, outputs · in] of one layer for some outputs, without the bias."""
    system = linearisation.system
    starts, start = [], 0
    for batch, equations in linearisation.sizes:
        starts.append(start)
        start += batch * equations

    def fill(task: tuple[int, Callable[[], Block]]) -> None:
        begin, make = task
        block = make()
        layer = block.layers[number]
        root = math.sqrt(block.weight)
        for e, g in enumerate(layer.gradients):
            stop = begin + block.batch * block.equations
            own = jacobian[begin + e : stop : block.equations]
            if not len(g):
                own.zero_()
                continue
            z = layer.inputs_of(e)
            left = (root * g[:, :, outputs]).permute(1, 2, 0)
            entries = own.unflatten(1, (left.shape[1], z.shape[-1]))
            torch.bmm(left, z.transpose(0, 1), out=entries)

    system.workers.map(fill, zip(starts, linearisation.blocks, strict=True))


def _add_gram(result: Tensor, jacobian: Tensor, system: System) -> None:
    """result += jacobian jacobianᵀ, tiles on and above the diagonal."""
    size = len(result)
    step = max(TILE_ROWS, math.ceil(size / 8))

    def add(corner: tuple[int, int]) -> None:
        i, j = corner
        tile = result[i : i + step, j : j + step]
        tile.addmm_(jacobian[i : i + step], jacobian[j : j + step].T)

    corners = [(i, j) for i in range(0, size, step) for j in range(i, size, step)]
    system.workers.map(add, corners)
