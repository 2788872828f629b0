"""The residual with its derivatives by all that is trained, and products with them.

One forward pass and one backward pass per equation yield all (Z, G) of layer.py; every product
with the Jacobian is then a matrix product a layer, and nothing is ever differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.parallel import Workers
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layout import Layout
from pinnkfac.linearisation.workload import Workload


@dataclass(frozen=True)
class Head:
    """What is known of a block without its derivatives; ``residual`` is [batch, equation]."""

    term: int
    weight: float
    residual: Tensor


class Linearisation:
    """The residual r and products with its Jacobian J, weighted so that the gradient is Jᵀr.

    Residual-space vectors are flat, over blocks, points and equations in that order. ``blocks``
    are functions that return them: ``kept``, or computed anew at each call, which needs the net to
    be where it was: ``place()`` sees to that. ``weights`` and ``losses``, as written, are those of
    the terms, ``terms`` the numbers of the blocks' terms, ``loss`` is the trained one (None:
    ½‖r‖²), ``scales`` are the factors [equation] on the residuals of each term (None: all 1).
    """

    def __init__(
        self,
        layout: Layout,
        workload: Workload,
        weights: Sequence[float],
        blocks: Sequence[Callable[[], Block]],
        heads: Sequence[Head],
        *,
        losses: Sequence[float],
        loss: float | None = None,
        workers: Workers,
        scales: list[Tensor] | None = None,
        place: Callable[[], None] | None = None,
    ) -> None:
        self.layout = layout
        self.workload = workload
        self.weights = list(weights)
        self.blocks = list(blocks)
        self.workers = workers
        self.scales = scales
        self._place = place
        self.terms = [head.term for head in heads]
        self.sizes = [head.residual.shape for head in heads]
        """[batch, equation] of every block."""
        self.losses = list(losses)
        self.residual = torch.cat([math.sqrt(h.weight) * h.residual.reshape(-1) for h in heads])
        self.loss = float(0.5 * self.residual.square().sum()) if loss is None else loss

    @property
    def kept(self) -> bool:
        return self._place is None

    def place(self) -> None:
        """Move the net to where it was linearised, as far as blocks need it."""
        if self._place is not None:
            self._place()

    @property
    def points(self) -> list[int]:
        """How many points every term has."""
        numbers = [0] * len(self.weights)
        for term, (batch, _) in zip(self.terms, self.sizes, strict=True):
            numbers[term] += batch
        return numbers

    def __iter__(self) -> Iterator[Block]:
        self.place()
        return (make() for make in self.blocks)

    # -- what all else is made of ------------------------------------------------------------------
    @torch.no_grad()
    def sum(
        self, zeros: Callable[[], list[Tensor]], add: Callable[..., None], *pieces: Sequence[Tensor]
    ) -> list[Tensor]:
        """A sum over all blocks: ``add(total, block, …)`` adds the part of one block to a total
        that began as ``zeros()``, with the block's entry of each of the ``pieces``."""

        def group(items: Sequence[Sequence[Any]]) -> list[Tensor]:
            total = zeros()
            for make, *parts in items:
                add(total, make(), *parts)
            return total

        self.place()
        return self.workers.sum(group, list(zip(self.blocks, *pieces, strict=True)))

    @torch.no_grad()
    def cat(self, function: Callable[[Block], Tensor]) -> Tensor:
        """``function(block)`` […, batch · equation] of all blocks, […, residual]."""
        self.place()
        return self.workers.cat(lambda make: function(make()), self.blocks, dim=-1)

    def split(self, w: Tensor) -> list[Tensor]:
        """The parts of the blocks of w […, residual]."""
        return list(w.split([math.prod(size) for size in self.sizes], dim=-1))

    def jvp(self, v: Direction) -> Tensor:
        """J v, flat."""
        return self.jvp_by_layer(v)[0].sum(0)

    def jvp_by_layer(self, *directions: Direction) -> list[Tensor]:
        """For every direction v the contributions of its entries to J v, [len(v), residuals];
        they sum to J v. Several directions share one pass over Z and G."""
        return list(self.cat(lambda block: block.jvp(directions)).unbind(0))

    def vjp(self, w: Tensor) -> Direction:
        """Jᵀ w for a flat w."""
        return self.sum(
            self.layout.zeros, lambda total, block, part: block.add_vjp(part, total), self.split(w)
        )

    def gradient(self) -> Direction:
        """∇ loss = Jᵀ r."""
        return self.vjp(self.residual)
