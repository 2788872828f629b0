"""EKFAC: Kronecker-factored eigenbases with the exact second moments along them.

A layer's block of the Gramian, Σ_n vec(J_n) vec(J_n)ᵀ with J_n = Σ_s g_ns z_nsᵀ, is approximated by
(Q_A ⊗ Q_B) diag(S) (Q_A ⊗ Q_B)ᵀ with the eigenvectors of the merged factors A, B and

    S = Σ_n (Q_Bᵀ J_n Q_A)², entry by entry, [out, in + bias],

the diagonal of the block in that basis: of all diagonals the nearest in the Frobenius norm, where
KFAC takes the products of the eigenvalues (George et al. 2018, arXiv:1806.03884).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import torch
from torch import Generator, Tensor

from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, Range
from pinnkfac.curvature.conjugate_gradients import ApproximateInverse
from pinnkfac.curvature.kfac import Average, Factors, equal
from pinnkfac.curvature.kronecker import EigenInverse, floored, inverse, merge, symmetric_eigen
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.jacobian import inputs_with_bias, square_sum
from pinnkfac.linearisation.system import Linearisation, System

Bases = list[tuple[Tensor, Tensor]]
"""(Q_A [in + bias, in + bias], Q_B [out, out]) of every layer; columns are eigenvectors."""


@dataclass(frozen=True)
class Moments:
    """How the second moments are made and averaged.

    ``every``: steps between new eigenbases. ``decay`` of the exponential average
    S ← decay·S + (1 − decay)·new, its start at zero divided out. ``floor``: the smallest of S + λ
    that is kept, relative to the largest (at least ε of the dtype; 0: none).
    """

    every: Count = 1
    """steps between new eigenbases"""
    decay: Annotated[float, Range(least=0, below=1)] = 0.0
    """of the average of second moments; 0: those of the step alone"""
    floor: Annotated[float, Range(least=0, below=1)] = 1e-15
    """smallest moment with damping that is kept, relative to the largest; 0: none"""


@torch.no_grad()
def second_moments(linearisation: Linearisation, bases: Bases) -> list[Tensor]:
    """The diagonals S [out, in + bias] of the layers' exact blocks of JᵀJ in the given bases."""
    system = linearisation.system

    def add(group: Sequence[Callable[[], Block]]) -> list[Tensor]:
        totals = [a.new_zeros(len(b), len(a)) for a, b in bases]
        for make in group:
            block = make()
            for total, layer, (base_a, base_b) in zip(totals, block.layers, bases, strict=True):
                for e, g in enumerate(layer.gradients):
                    if len(g):
                        z = inputs_with_bias(layer, e)
                        total.add_(square_sum(g @ base_b, z @ base_a), alpha=block.weight)
        return totals

    workers = system.workers
    total, *rest = workers.map(add, workers.groups(linearisation.blocks))
    for other in rest:
        for own, value in zip(total, other, strict=True):
            own += value
    return total


def carried(moments: Tensor, old: tuple[Tensor, Tensor], new: tuple[Tensor, Tensor]) -> Tensor:
    """The diagonal of (Q_A ⊗ Q_B) diag(S) (Q_A ⊗ Q_B)ᵀ in another Kronecker basis."""
    by_a, by_b = (n.T @ o for n, o in zip(new, old, strict=True))
    return by_b.square() @ moments @ by_a.square().T


class EkfacInverse(ApproximateInverse):
    """Averaged factors, eigenbases and second moments in the course of a run; the dense block is
    inverted exactly."""

    def __init__(
        self, factors: Factors, moments: Moments, system: System, generator: Generator
    ) -> None:
        self.factors = factors
        self.settings = moments
        self.system = system
        self.generator = generator
        self.restart()

    def restart(self) -> str:
        self.average = Average(self.factors)
        self.bases: Bases = []
        self.moments: list[Tensor] = []
        self.updates = 0
        self.inverses: list[EigenInverse] = []
        self.dense: EigenInverse | None = None
        return "factors and their second moments"

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        if not equal(self.system.scales, self.average.scales):
            self.moments, self.updates = [], 0
        self.average.rescale(self.system.scales)
        with making("the Kronecker factors and their eigenvectors", "net.widths"):
            if not self.average.updates or step % self.factors.every == 0:
                self.average.update(linearisation, self.generator)
            if not self.bases or step % self.settings.every == 0:
                self._renew_bases()
            self._add_moments(linearisation)
            self._invert(damping)

    def _renew_bases(self) -> None:
        weights = [t.residual.term.weight for t in self.system.terms]

        def one(layer: int) -> tuple[Tensor, Tensor]:
            a, b = merge(self.average.layer(layer, weights))
            return symmetric_eigen(a)[1], symmetric_eigen(b)[1]

        new = self.system.workers.map(one, range(len(self.system.graph.linears)))
        if self.moments and self.settings.decay:
            triples = zip(self.moments, self.bases, new, strict=True)
            self.moments = [carried(s, old, own) for s, old, own in triples]
        self.bases = new

    def _add_moments(self, linearisation: Linearisation) -> None:
        new, decay = second_moments(linearisation, self.bases), self.settings.decay
        if self.moments and decay:
            for own, value in zip(self.moments, new, strict=True):
                own.mul_(decay).add_(value, alpha=1.0 - decay)
        else:
            self.moments = [(1.0 - decay) * value for value in new]
        self.updates += 1

    def _invert(self, damping: float) -> None:
        correction = 1.0 - self.settings.decay**self.updates
        self.inverses = [
            EigenInverse(a, b, floored(s / correction + damping, self.settings.floor))
            for (a, b), s in zip(self.bases, self.moments, strict=True)
        ]
        dense = self.average.dense_block()
        # An average that starts anew keeps the last inverse until it has its next update.
        if dense is not None:
            pair = dense.new_ones(1, 1), dense
            self.dense = inverse([pair], damping, "exact", self.settings.floor)

    def apply(self, v: Direction) -> Direction:
        result = [inv.apply(part) for inv, part in zip(self.inverses, v, strict=False)]
        if self.dense is not None:
            result.append(self.dense.apply(v[-1][:, None])[:, 0])
        return result

    def state_dict(self) -> dict[str, Any]:
        return {
            "average": self.average.state_dict(),
            "dense": None if self.dense is None else self.dense.state(),
            **{name: getattr(self, name) for name in self._plain},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.dense = None if state["dense"] is None else EigenInverse(*state["dense"])
        for name in self._plain:
            setattr(self, name, state[name])

    _plain: ClassVar[tuple[str, ...]] = ("bases", "moments", "updates")


@dataclass(frozen=True)
class EigenvalueCorrected:
    """A preconditioner from Kronecker-factored eigenbases, as in the steps of EKFAC."""

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    moments: Moments = field(default_factory=Moments)
    """the second moments along their eigenbases"""

    def start(self, system: System, generator: Generator) -> ApproximateInverse:
        return EkfacInverse(self.factors, self.moments, system, generator)
