"""The diagonal of JᵀJ as a preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torch import Generator

from pinnkfac.common.settings import Range
from pinnkfac.curvature.conjugate_gradients import ApproximateInverse
from pinnkfac.curvature.gramian import diagonal_gramian
from pinnkfac.curvature.kronecker import floored
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import Linearisation, System


@dataclass(frozen=True)
class Diagonal:
    """P = (diag(JᵀJ) + λ)^exponent; Martens 2010, section 4.7, takes the exponent 0.75."""

    exponent: Annotated[float, Range(above=0, most=1)] = 0.75
    """power of the diagonal"""

    def start(self, system: System, generator: Generator) -> ApproximateInverse:
        return DiagonalInverse(self.exponent)


class DiagonalInverse(ApproximateInverse):
    """The diagonal of the step's own Gramian."""

    def __init__(self, exponent: float) -> None:
        self.exponent = exponent
        self.diagonal: Direction = []

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        diagonal = diagonal_gramian(linearisation)
        self.diagonal = [floored(v + damping, 0.0) ** self.exponent for v in diagonal]

    def apply(self, v: Direction) -> Direction:
        return [x / d for x, d in zip(v, self.diagonal, strict=True)]
