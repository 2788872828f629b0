"""The diagonal of JᵀJ as a preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pinnkfac.common.settings import Range
from pinnkfac.curvature.base import Applied, Curvature, Situation, Solver
from pinnkfac.curvature.gramian import diagonal_gramian
from pinnkfac.curvature.kronecker import floored


@dataclass(frozen=True)
class Diagonal(Curvature[None]):
    """(diag(JᵀJ) + λ)^exponent of the step's own points; Martens 2010, section 4.7, takes the
    exponent 0.75."""

    exponent: Annotated[float, Range(above=0, most=1)] = 0.75
    """power of the diagonal"""

    def at(self, situation: Situation, state: None) -> Solver:
        diagonal = diagonal_gramian(situation.linearisation)
        powers = [floored(v + situation.damping, 0.0) ** self.exponent for v in diagonal]
        return Applied(situation, lambda v: [x / d for x, d in zip(v, powers, strict=True)])
