"""The inverse of Kronecker-factored curvature, applied to directions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from torch import Generator

from pinnkfac.common.errors import UserError, check_choice
from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, Range
from pinnkfac.curvature.conjugate_gradients import ApproximateInverse
from pinnkfac.curvature.kfac import Average, Factors
from pinnkfac.curvature.kronecker import (
    DampingKind,
    EigenInverse,
    inverse,
    merge,
)
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import Linearisation, System

Terms = Literal["merged", "sum"]


@dataclass(frozen=True)
class InverseSettings:
    """How factors of several terms become one inverse.

    ``terms``: 'merged' makes one trace-weighted Kronecker product of all terms; 'sum' inverts the
    sum of at most two, as published. ``damping`` is 'exact' (merged only), 'same' or
    'trace-norm'. ``every``: steps between inversions. ``floor``: relative eigenvalue floor, at
    least ε of the dtype (0: none).
    """

    terms: Terms = "merged"
    """merged: one Kronecker product for all terms; sum: the sum of those of at most two, as
    published"""
    damping: DampingKind = "exact"
    """exact (merged only), same or trace-norm"""
    every: Count = 1
    """steps between inversions"""
    floor: Annotated[float, Range(least=0, below=1)] = 1e-15
    """smallest eigenvalue that is kept, relative to the largest; 0: none"""

    def __post_init__(self) -> None:
        check_choice("step.inverse.terms", self.terms, Terms)
        check_choice("step.inverse.damping", self.damping, DampingKind)


class Preconditioner:
    """C⁻¹, layer by layer, from averaged factors; the dense block is inverted exactly."""

    def __init__(self, settings: InverseSettings, system: System, average: Average) -> None:
        if settings.terms == "sum" and len(system.terms) > 2:
            names = ", ".join(t.residual.term.name for t in system.terms)
            raise UserError(
                f"step.inverse.terms=sum inverts at most two terms, but there are "
                f"{len(system.terms)} ({names}): use step.inverse.terms=merged"
            )
        self.settings = settings
        self.system = system
        self.average = average
        self.damping = 0.0
        self._inverses: list[EigenInverse] = []
        self._dense: EigenInverse | None = None

    def update(self, damping: float, step: int) -> None:
        """Invert the averages with a new damping, where it is time to."""
        if self._inverses and step % self.settings.every:
            return
        self.damping = damping
        weights = [t.residual.term.weight for t in self.system.terms]
        own = self.settings

        def one(layer: int) -> EigenInverse:
            pairs = self.average.layer(layer, weights)
            if own.terms == "merged":
                pairs = [merge(pairs)]
            return inverse(pairs, damping, own.damping, own.floor)

        layers = range(len(self.system.graph.linears))
        self._inverses = self.system.workers.map(one, layers)
        dense = self.average.dense_block()
        # An average that starts anew keeps the last inverse until it has its next update.
        if dense is not None:
            self._dense = inverse([(dense.new_ones(1, 1), dense)], damping, "exact", own.floor)

    def apply(self, v: Direction) -> Direction:
        """C⁻¹ v."""
        result = [inv.apply(part) for inv, part in zip(self._inverses, v, strict=False)]
        if self._dense is not None:
            result.append(self._dense.apply(v[-1][:, None])[:, 0])
        return result

    def state_dict(self) -> dict[str, Any]:
        return {
            "damping": self.damping,
            "inverses": [i.state() for i in self._inverses],
            "dense": None if self._dense is None else self._dense.state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.damping = state["damping"]
        self._inverses = [EigenInverse(*tensors) for tensors in state["inverses"]]
        self._dense = None if state["dense"] is None else EigenInverse(*state["dense"])


class KfacInverse(ApproximateInverse):
    """Averaged Kronecker factors and their inverse in the course of a run."""

    def __init__(
        self, factors: Factors, inverse: InverseSettings, system: System, generator: Generator
    ) -> None:
        self.factors = factors
        self.inverse = inverse
        self.system = system
        self.generator = generator
        self.restart()

    def restart(self) -> str:
        self.average = Average(self.factors)
        self.preconditioner = Preconditioner(self.inverse, self.system, self.average)
        return "factors"

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        self.average.rescale(self.system.scales)
        with making("the Kronecker factors and their eigenvectors", "net.widths"):
            if not self.average.updates or step % self.factors.every == 0:
                self.average.update(linearisation, self.generator)
            self.preconditioner.update(damping, step)

    def apply(self, v: Direction) -> Direction:
        return self.preconditioner.apply(v)

    def state_dict(self) -> dict[str, Any]:
        return {
            "average": self.average.state_dict(),
            "preconditioner": self.preconditioner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.preconditioner.load_state_dict(state["preconditioner"])


@dataclass(frozen=True)
class KroneckerFactors:
    """P from Kronecker factors, as in the steps of KFAC."""

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    inverse: InverseSettings = field(default_factory=InverseSettings)
    """how they become an inverse"""

    def start(self, system: System, generator: Generator) -> ApproximateInverse:
        return KfacInverse(self.factors, self.inverse, system, generator)
