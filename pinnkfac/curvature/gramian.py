"""The Gramian JᵀJ: exact, as one matrix, by layer, or its diagonal (arXiv:2302.13163).

Rows of J are made in pieces and never kept. A layer here is one entry of a Direction: a Linear
layer with its bias, and last the parameters outside of layers (scales, unknown coefficients).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor

from pinnkfac.common.errors import check_choice
from pinnkfac.common.settings import Range
from pinnkfac.curvature.kfac import Start, equal
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.jacobian import inputs_with_bias, jacobian_rows, pieces, square_sum
from pinnkfac.linearisation.system import Linearisation, System

Approximation = Literal["full", "layerwise", "diagonal"]
PANEL = 256
"""Rows of a Gramian that one thread adds to at once."""


@dataclass(frozen=True)
class GramianSettings:
    """What of the Gramian is taken, and how it is averaged.

    ``approximation``: all of it ('full'), its blocks of layers ('layerwise'), its 'diagonal'.
    ``decay`` of the exponential average G ← decay·G + (1 − decay)·new, of the whole; ``start`` is
    the identity, zero, or zero with the bias of the start divided out.
    """

    approximation: Approximation = "layerwise"
    """full, layerwise or diagonal"""
    decay: Annotated[float, Range(least=0, below=1)] = 0.0
    """of the exponential average of the Gramian as a whole; 0: that of the step alone"""
    start: Start = "bias-corrected"
    """of that average: bias-corrected, identity or zero"""

    def __post_init__(self) -> None:
        check_choice("step.gramian.approximation", self.approximation, Approximation)
        check_choice("step.gramian.start", self.start, Start)


def gramian(linearisation: Linearisation) -> Tensor:
    """JᵀJ of all parameters, [param, param]."""
    return _gramians(linearisation, [linearisation.system.parameter_number])[0]


def layer_gramians(linearisation: Linearisation) -> list[Tensor]:
    """The diagonal blocks of JᵀJ, [layer's param, layer's param] each."""
    return _gramians(linearisation, _sizes(linearisation.system))


@torch.no_grad()
def diagonal_gramian(linearisation: Linearisation) -> Direction:
    """The diagonal of JᵀJ, in the form of a direction."""
    system = linearisation.system
    groups = system.workers.map(
        lambda group: _diagonals(system, group), system.workers.groups(linearisation.blocks)
    )
    total, *rest = groups
    for other in rest:
        for own, value in zip(total, other, strict=True):
            own += value
    return total


def _sizes(system: System) -> list[int]:
    return [v.numel() for v in system.get_parameters()]


@torch.no_grad()
def _gramians(linearisation: Linearisation, widths: Sequence[int]) -> list[Tensor]:
    """Diagonal blocks of JᵀJ of the given widths, which cover all parameters."""
    system = linearisation.system
    sizes = _sizes(system)
    totals = [linearisation.residual.new_zeros(n, n) for n in widths]
    starts = [0, *accumulate(widths)]
    panels = [
        (total, start, low, min(low + PANEL, len(total)))
        for total, start in zip(totals, starts, strict=False)
        for low in range(0, len(total), PANEL)
    ]

    for block in linearisation:
        for piece in pieces(block, sum(sizes)):
            rows = jacobian_rows(piece, sizes)

            def add(panel: tuple[Tensor, int, int, int], rows: Tensor = rows) -> None:
                total, start, low, high = panel
                own = rows[:, start + low : start + high]
                total[low:high, :high].addmm_(own.T, rows[:, start : start + high])

            system.workers.map(add, reversed(panels))
    for total, _, low, high in panels:
        corner = total[low:high, low:high]
        corner.copy_(corner.tril() + corner.tril(-1).T)  # symmetric to the last bit
        total[:low, low:high] = total[low:high, :low].T
    return totals


@torch.no_grad()
def _diagonals(system: System, group: Sequence[Callable[[], Block]]) -> Direction:
    total = system.zeros()
    for make in group:
        block = make()
        for own, layer in zip(total, block.layers, strict=False):
            for e, g in enumerate(layer.gradients):
                if len(g):
                    own.add_(square_sum(g, inputs_with_bias(layer, e)), alpha=block.weight)
        if block.dense is not None:
            total[-1].add_(block.dense.square().sum((0, 1)), alpha=block.weight)
    return total


class GramianAverage:
    """The exponential average of a Gramian, as ``settings`` say.

    It begins anew where the scales of equations change (balance.py). Without decay it is the
    Gramian of the last update, and no part of the state.
    """

    def __init__(self, settings: GramianSettings) -> None:
        self.settings = settings
        self.total: list[Tensor] = []
        self.updates = 0
        self.scales: list[Tensor] | None = None

    def update(self, linearisation: Linearisation) -> None:
        if not equal(linearisation.system.scales, self.scales):
            self.total, self.updates = [], 0
            self.scales = linearisation.system.scales
        decay = self.settings.decay
        if not decay:
            self.total = []  # before the next is made: it may be large
        new = self._new(linearisation)
        self.updates += 1
        if not decay:
            self.total = new
            return
        if not self.total:
            self.total = [self._first(value) for value in new]
        for own, value in zip(self.total, new, strict=True):
            own.mul_(decay).add_(value, alpha=1.0 - decay)

    @property
    def values(self) -> list[Tensor]:
        """One matrix ('full'), one a layer ('layerwise'), or a direction ('diagonal')."""
        if self.settings.decay == 0.0 or self.settings.start != "bias-corrected":
            return self.total
        return [value / (1.0 - self.settings.decay**self.updates) for value in self.total]

    def _new(self, linearisation: Linearisation) -> list[Tensor]:
        if self.settings.approximation == "full":
            return [gramian(linearisation)]
        if self.settings.approximation == "layerwise":
            return layer_gramians(linearisation)
        return diagonal_gramian(linearisation)

    def _first(self, value: Tensor) -> Tensor:
        first = torch.zeros_like(value)
        if self.settings.start == "identity":
            diagonal = self.settings.approximation == "diagonal"
            (first if diagonal else first.diagonal()).fill_(1.0)
        return first

    def state_dict(self) -> dict[str, Any]:
        names = self._state if self.settings.decay else ()
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in self._state if self.settings.decay else ():
            setattr(self, name, state[name])

    _state: ClassVar[tuple[str, ...]] = ("total", "updates", "scales")
