"""The inverse of Kronecker-factored curvature, applied to directions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pinnkfac.curvature.kfac import Average
from pinnkfac.curvature.kronecker import (
    DampingKind,
    EigenInverse,
    floored,
    inverse,
    merge,
    symmetric_eigen,
)
from pinnkfac.direction import Direction, combine, inner
from pinnkfac.errors import UserError
from pinnkfac.linearise import Linearisation, System


@dataclass(frozen=True)
class InverseSettings:
    """How factors of several terms become one inverse.

    ``terms``: 'merged' makes one trace-weighted Kronecker product of all terms; 'sum' inverts the
    sum of at most two, as published. ``damping`` is 'exact' (merged only), 'same' or
    'trace-norm'. ``every``: steps between inversions. ``floor``: relative eigenvalue floor, at
    least ε of the dtype (0: none).
    """

    terms: Literal["merged", "sum"] = "merged"
    damping: DampingKind = "exact"
    every: int = 1
    floor: float = 1e-15


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

    def apply(self, v: Direction) -> Direction:
        """C⁻¹ v."""
        result = [inv.apply(part) for inv, part in zip(self._inverses, v, strict=False)]
        dense = self.average.dense_block()
        if dense is not None:
            values, vectors = symmetric_eigen(dense)
            damped = floored(values.clamp_min(0.0) + self.damping, self.settings.floor)
            result.append(vectors @ ((vectors.T @ v[-1]) / damped))
        return result

    def state_dict(self) -> dict[str, Any]:
        return {"damping": self.damping, "inverses": [i.state() for i in self._inverses]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.damping = state["damping"]
        self._inverses = [EigenInverse(*tensors) for tensors in state["inverses"]]


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
