"""KFAC: Kronecker factors of all terms as one inverse a layer (arXiv:2405.15603)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from pinnkfac.common.errors import UserError, check_choice
from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, Range
from pinnkfac.curvature.base import Applied, Curvature, Situation, Solver
from pinnkfac.curvature.factors import FactorAverage, Factors
from pinnkfac.curvature.kronecker import DampingKind, EigenInverse, Pair, inverse, merge
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.objective import Objective

Terms = Literal["merged", "sum"]


@dataclass(frozen=True)
class InverseSettings:
    """How factors of several terms become one inverse."""

    terms: Terms = "merged"
    """merged: one trace-weighted Kronecker product of all terms; sum: the sum of those of at most
    two, as published"""
    damping: DampingKind = "exact"
    """exact (merged only), same or trace-norm"""
    every: Count = 1
    """steps between inversions"""
    floor: Annotated[float, Range(least=0, below=1)] = 1e-15
    """smallest eigenvalue that is kept, relative to the largest, at least ε of the dtype; 0:
    none"""

    def __post_init__(self) -> None:
        check_choice("step.inverse.terms", self.terms, Terms)
        check_choice("step.inverse.damping", self.damping, DampingKind)


@dataclass(frozen=True)
class Inverses:
    """C⁻¹, layer by layer, and that of the dense block, where there is one."""

    layers: list[EigenInverse] = field(default_factory=list)
    dense: EigenInverse | None = None

    def apply(self, v: Direction) -> Direction:
        result = [inverse.apply(part) for inverse, part in zip(self.layers, v, strict=False)]
        if self.dense is not None:
            result.append(self.dense.apply(v[-1][:, None])[:, 0])
        return result


@dataclass(frozen=True)
class KfacState:
    average: FactorAverage = field(default_factory=FactorAverage)
    inverses: Inverses = field(default_factory=Inverses)


@dataclass(frozen=True)
class KroneckerFactors(Curvature[KfacState]):
    """C from averaged Kronecker factors; the dense block is inverted exactly."""

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    inverse: InverseSettings = field(default_factory=InverseSettings)
    """how they become an inverse"""

    kept = "factors"

    def start(self, objective: Objective) -> KfacState:
        if self.inverse.terms == "sum" and len(objective.terms) > 2:
            names = ", ".join(term.name for term in objective.terms)
            raise UserError(
                f"step.inverse.terms=sum inverts at most two terms, but there are "
                f"{len(objective.terms)} ({names}): use step.inverse.terms=merged"
            )
        return KfacState()

    def at(self, situation: Situation, state: KfacState) -> Solver:
        with making("the Kronecker factors and their eigenvectors", "net.widths"):
            average, inverses = state.average.at(situation, self.factors), state.inverses
            if not inverses.layers or situation.step % self.inverse.every == 0:
                inverses = self._inverted(situation, average, inverses)
        return Applied(situation, inverses.apply, KfacState(average, inverses))

    def _inverted(self, situation: Situation, average: FactorAverage, last: Inverses) -> Inverses:
        settings, linearisation = self.inverse, situation.linearisation

        def one(pairs: list[Pair]) -> EigenInverse:
            merged = [merge(pairs)] if settings.terms == "merged" else pairs
            return inverse(merged, situation.damping, settings.damping, settings.floor)

        pairs = average.pairs(linearisation.weights, self.factors)
        return Inverses(
            linearisation.workers.map(one, pairs),
            average.dense_inverse(self.factors, situation.damping, settings.floor, last.dense),
        )
