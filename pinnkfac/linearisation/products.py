"""Products of J, Jᵀ, JᵀJ and JJᵀ with several vectors, in as few passes over (Z, G) as they need.

One pass is what counts where blocks are computed anew for lack of memory, and a block that is in
the cache serves all vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pinnkfac.linearisation.block import Block, add_block_vjp, block_jvp
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import Linearisation

TOGETHER = 16
"""Directions whose images in a block are formed at once: a bound on memory."""


@torch.no_grad()
def jvps(linearisation: Linearisation, vs: Sequence[Direction]) -> Tensor:
    """J v for several v, [direction, residual], in one pass."""
    parts = linearisation.system.workers.map(
        lambda make: _block_jvps(make(), vs), linearisation.blocks
    )
    return torch.cat(parts, dim=1)


@torch.no_grad()
def vjps(linearisation: Linearisation, ws: Tensor) -> list[Direction]:
    """Jᵀ w for several w [direction, residual], in one pass."""
    lengths = [batch * equations for batch, equations in linearisation.sizes]
    pairs = list(zip(linearisation.blocks, ws.split(lengths, dim=1), strict=True))

    def group(own: Sequence[tuple[Callable[[], Block], Tensor]]) -> list[Direction]:
        totals = [linearisation.system.zeros() for _ in ws]
        for make, piece in own:
            _add_block_vjps(make(), piece, totals)
        return totals

    workers = linearisation.system.workers
    return _sum(workers.map(group, workers.groups(pairs)))


@torch.no_grad()
def gramian_products(linearisation: Linearisation, vs: Sequence[Direction]) -> list[Direction]:
    """JᵀJ v for several v, in one pass: every block is multiplied by its J and its Jᵀ at once."""

    def group(blocks: Sequence[Callable[[], Block]]) -> list[Direction]:
        totals = [linearisation.system.zeros() for _ in vs]
        for make in blocks:
            block = make()
            _add_block_vjps(block, _block_jvps(block, vs), totals)
        return totals

    workers = linearisation.system.workers
    return _sum(workers.map(group, workers.groups(linearisation.blocks)))


def kernel_products(linearisation: Linearisation, ws: Tensor) -> Tensor:
    """JJᵀ w for several w [direction, residual], in two passes."""
    return jvps(linearisation, vjps(linearisation, ws))


def _block_jvps(block: Block, vs: Sequence[Direction]) -> Tensor:
    """√weight · J v of one block, [direction, batch · equation]."""
    slices = (vs[i : i + TOGETHER] for i in range(0, len(vs), TOGETHER))
    return torch.cat([block_jvp(block, own).sum(1) for own in slices])


def _add_block_vjps(block: Block, ws: Tensor, totals: Sequence[Direction]) -> None:
    """Add Jᵀ w to each total, for ws [direction, batch · equation]: products of one vector at a
    time run at the machine's rate while (Z, G) stay in the cache."""
    for w, total in zip(ws, totals, strict=True):
        add_block_vjp(block, w.view(block.batch, block.equations), total)


def _sum(groups: Sequence[list[Direction]]) -> list[Direction]:
    totals, *rest = groups
    for other in rest:
        for total, addition in zip(totals, other, strict=True):
            for own, value in zip(total, addition, strict=True):
                own += value
    return totals


# -- several directions as the columns of a matrix -----------------------------------------------
def flat(direction: Direction) -> Tensor:
    """A direction as one vector [param]."""
    return torch.cat([v.reshape(-1) for v in direction])


def unflat(vector: Tensor, like: Direction) -> Direction:
    """A vector [param] as a direction."""
    pieces = vector.split([v.numel() for v in like])
    return [piece.view(v.shape) for piece, v in zip(pieces, like, strict=True)]


def gramian_times(linearisation: Linearisation, columns: Tensor) -> Tensor:
    """JᵀJ V for V [param, k]."""
    like = linearisation.system.zeros()
    vs = [unflat(v, like) for v in columns.T.contiguous()]
    return torch.stack([flat(v) for v in gramian_products(linearisation, vs)], dim=1)
