"""Products of J, Jᵀ, JᵀJ and JJᵀ with several vectors, in as few passes over (Z, G) as they need.

One pass is what counts where blocks are computed anew for lack of memory, and a block that is in
the cache serves all vectors.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layout import flat_columns
from pinnkfac.linearisation.linearisation import Linearisation

TOGETHER = 16
"""Directions whose images in a block are formed at once: a bound on memory."""


def jvps(linearisation: Linearisation, vs: Sequence[Direction]) -> Tensor:
    """J v for several v, [direction, residual], in one pass."""
    return linearisation.cat(lambda block: _block_jvps(block, vs))


def vjps(linearisation: Linearisation, ws: Tensor) -> list[Direction]:
    """Jᵀ w for several w [direction, residual], in one pass."""
    return _summed(linearisation, len(ws), _add_vjps, linearisation.split(ws))


def gramian_products(linearisation: Linearisation, vs: Sequence[Direction]) -> list[Direction]:
    """JᵀJ v for several v, in one pass: every block is multiplied by its J and its Jᵀ at once."""

    def add(total: list[Tensor], block: Block) -> None:
        _add_vjps(total, block, _block_jvps(block, vs))

    return _summed(linearisation, len(vs), add)


def kernel_products(linearisation: Linearisation, ws: Tensor) -> Tensor:
    """JJᵀ w for several w [direction, residual], in two passes."""
    return jvps(linearisation, vjps(linearisation, ws))


def gramian_times(linearisation: Linearisation, columns: Tensor) -> Tensor:
    """JᵀJ V for V [param, k]."""
    vs = linearisation.layout.unflat_columns(columns)
    return flat_columns(gramian_products(linearisation, vs))


def _summed(
    linearisation: Linearisation, number: int, add: object, *pieces: Sequence[Tensor]
) -> list[Direction]:
    """The sums of ``number`` directions over all blocks."""
    layout = linearisation.layout
    total = linearisation.sum(
        lambda: [v for _ in range(number) for v in layout.zeros()],
        add,  # type: ignore[arg-type]
        *pieces,
    )
    entries = len(layout.shapes)
    return [total[i : i + entries] for i in range(0, len(total), entries)]


def _block_jvps(block: Block, vs: Sequence[Direction]) -> Tensor:
    """√weight · J v of one block, [direction, batch · equation]."""
    slices = (vs[i : i + TOGETHER] for i in range(0, len(vs), TOGETHER))
    return torch.cat([block.jvp(part).sum(1) for part in slices])


def _add_vjps(total: list[Tensor], block: Block, ws: Tensor) -> None:
    """Add Jᵀ w for ws [direction, batch · equation]: products of one vector at a time run at the
    machine's rate while (Z, G) stay in the cache."""
    entries = len(total) // len(ws)
    for i, w in enumerate(ws):
        block.add_vjp(w, total[i * entries : (i + 1) * entries])
