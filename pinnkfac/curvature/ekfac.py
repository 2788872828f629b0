"""EKFAC: Kronecker-factored eigenbases with the exact second moments along them.

A layer's block of the Gramian, Σ_n vec(J_n) vec(J_n)ᵀ with J_n = Σ_s g_ns z̃_nsᵀ, is approximated by
(Q_A ⊗ Q_B) diag(S) (Q_A ⊗ Q_B)ᵀ with the eigenvectors of the merged factors A, B and

    S = Σ_n (Q_Bᵀ J_n Q_A)², entry by entry, [out, in + bias],

the diagonal of the block in that basis: of all diagonals the nearest in the Frobenius norm, where
KFAC takes the products of the eigenvalues (George et al. 2018, arXiv:1806.03884).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Tensor

from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, Range
from pinnkfac.curvature.averaging import Average, equal
from pinnkfac.curvature.base import Applied, Curvature, Situation, Solver
from pinnkfac.curvature.factors import FactorAverage, Factors
from pinnkfac.curvature.kfac import Inverses
from pinnkfac.curvature.kronecker import EigenInverse, Pair, floored, merge, symmetric_eigen
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.objective import Objective

Basis = tuple[Tensor, Tensor]
"""(Q_A [in + bias, in + bias], Q_B [out, out]) of a layer; columns are eigenvectors."""


@dataclass(frozen=True)
class Moments:
    """How the second moments are made and averaged: S ← decay·S + (1 − decay)·new."""

    every: Count = 1
    """steps between new eigenbases"""
    decay: Annotated[float, Range(least=0, below=1)] = 0.0
    """of the average of second moments; 0: those of the step alone"""
    floor: Annotated[float, Range(least=0, below=1)] = 1e-15
    """smallest moment with damping that is kept, relative to the largest, at least ε of the dtype;
    0: none"""


def second_moments(linearisation: Linearisation, bases: list[Basis]) -> list[Tensor]:
    """The diagonals S [out, in + bias] of the layers' exact blocks of JᵀJ in the given bases."""

    def add(total: list[Tensor], block: Block) -> None:
        for part, layer, basis in zip(total, block.layers, bases, strict=True):
            layer.add_squares(part, block.weight, basis)

    return linearisation.sum(lambda: [a.new_zeros(len(b), len(a)) for a, b in bases], add)


def eigenbases(pairs: list[Pair]) -> Basis:
    """Those of the merged factors of all terms."""
    a, b = merge(pairs)
    return symmetric_eigen(a)[1], symmetric_eigen(b)[1]


def carried(moments: Tensor, old: Basis, new: Basis) -> Tensor:
    """The diagonal of (Q_A ⊗ Q_B) diag(S) (Q_A ⊗ Q_B)ᵀ in another Kronecker basis."""
    by_a, by_b = (n.T @ o for n, o in zip(new, old, strict=True))
    return by_b.square() @ moments @ by_a.square().T


@dataclass(frozen=True)
class EkfacState:
    """Averaged factors, eigenbases, second moments along them, and the last inverse of the dense
    block."""

    average: FactorAverage = field(default_factory=FactorAverage)
    bases: list[Basis] = field(default_factory=list)
    moments: Average = field(default_factory=Average)
    dense: EigenInverse | None = None


@dataclass(frozen=True)
class EigenvalueCorrected(Curvature[EkfacState]):
    """C from Kronecker-factored eigenbases and second moments; the dense block is inverted
    exactly."""

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    moments: Moments = field(default_factory=Moments)
    """the second moments along their eigenbases"""

    kept = "factors and their second moments"

    def start(self, objective: Objective) -> EkfacState:
        return EkfacState()

    def at(self, situation: Situation, state: EkfacState) -> Solver:
        linearisation, settings, damping = situation.linearisation, self.moments, situation.damping
        moments, bases = state.moments, state.bases
        if not equal(linearisation.scales, state.average.scales):
            moments = Average()
        with making("the Kronecker factors and their eigenvectors", "net.widths"):
            average = state.average.at(situation, self.factors)
            if not bases or situation.step % settings.every == 0:
                pairs = average.pairs(linearisation.weights, self.factors)
                bases = linearisation.workers.map(eigenbases, pairs)
                if settings.decay and moments.total:
                    triples = zip(moments.total, state.bases, bases, strict=True)
                    moments = Average([carried(*triple) for triple in triples], moments.updates)
            moments = moments.updated(second_moments(linearisation, bases), settings.decay)
            layers = [
                EigenInverse(a, b, floored(s + damping, settings.floor))
                for (a, b), s in zip(bases, moments.values(settings.decay), strict=True)
            ]
            dense = average.dense_inverse(self.factors, damping, settings.floor, state.dense)
        if not settings.decay:
            moments = Average()  # the next ones are of the next step alone
        after = EkfacState(average, bases, moments, dense)
        return Applied(situation, Inverses(layers, dense).apply, after)
