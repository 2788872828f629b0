"""The inverse of Kronecker-factored curvature, applied to directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pinnkfac.curvature.kfac import Average
from pinnkfac.curvature.kronecker import (
    DampingKind,
    EigenInverse,
    inverse,
    merge,
)
from pinnkfac.direction import Direction, combine, inner
from pinnkfac.errors import UserError, check_choice
from pinnkfac.linearise import Linearisation, System
from pinnkfac.settings import Count, Range

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
    damping: DampingKind = "exact"
    every: Count = 1
    floor: Annotated[float, Range(least=0, below=1)] = 1e-15

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


def conjugate_gradients(
    linearisation: Linearisation,
    right: Direction,
    preconditioner: Preconditioner,
    damping: float,
    iterations: int,
) -> Direction:
    """Solve (JᵀJ + λ) x = right by preconditioned conjugate gradients from 0.

    One iteration costs one product with J and one with Jᵀ; the first iterate is a multiple of
    C⁻¹·right. Stops early where a search direction has no positive curvature left.
    """
    residual = [v.clone() for v in right]
    preconditioned = preconditioner.apply(residual)
    search = preconditioned
    scale = inner(residual, preconditioned)
    total = [0.0 * v for v in right]
    for _ in range(iterations):
        image = linearisation.vjp(linearisation.jvp(search))
        image = combine((1.0, image), (damping, search))
        curvature = inner(search, image)
        if not (curvature > 0 and scale > 0):
            break
        total = combine((1.0, total), (scale / curvature, search))
        residual = combine((1.0, residual), (-scale / curvature, image))
        preconditioned = preconditioner.apply(residual)
        scale, before = inner(residual, preconditioned), scale
        search = combine((1.0, preconditioned), (scale / before, search))
    return total
