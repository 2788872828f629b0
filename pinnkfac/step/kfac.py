"""KFAC and KFAC*: steps preconditioned by Kronecker-factored curvature (arXiv:2405.15603)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from torch import Generator

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Number, Range
from pinnkfac.curvature.conjugate_gradients import conjugate_gradients
from pinnkfac.curvature.kfac import Factors
from pinnkfac.curvature.preconditioner import InverseSettings, KfacInverse
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import Linearisation, System
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Automatic, Descent, GaussNewtonStepper
from pinnkfac.step.search import Search


@dataclass(frozen=True)
class Kfac:
    """δ = −C⁻¹∇loss with C from Kronecker factors; then momentum and step length.

    With ``lengths=None`` the direction is δ + momentum · (last direction) and the search decides
    how far to go (KFAC); with ``Automatic`` the quadratic model decides (KFAC*), and the search
    only checks. ``iterations`` > 0 refines δ by that many conjugate-gradient iterations on the
    exact damped Gramian, preconditioned by C.
    """

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    inverse: InverseSettings = field(default_factory=InverseSettings)
    """how they become an inverse"""
    momentum: Annotated[float, Range(least=0, below=1)] = 0.0
    """fixed momentum; needs step.lengths=null"""
    iterations: Number = 0
    """conjugate-gradient iterations on the exact Gramian, preconditioned by the factors; each costs
    two products with the Jacobian"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        if self.momentum and self.lengths is not None:
            raise UserError(
                f"step.momentum={self.momentum} has no effect where step.lengths chooses it: set "
                "step.lengths=null for a fixed momentum, or step.momentum=0"
            )

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonStepper:
        descent = KfacDescent(self, system, generator)
        return GaussNewtonStepper(
            system, descent, search, damping, momentum=self.momentum, lengths=self.lengths
        )


class KfacDescent(KfacInverse, Descent):
    """Averaged Kronecker factors, and conjugate gradients preconditioned by them."""

    def __init__(self, settings: Kfac, system: System, generator: Generator) -> None:
        super().__init__(settings.factors, settings.inverse, system, generator)
        self.iterations = settings.iterations

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        downhill = [-v for v in gradient]
        if self.iterations == 0:
            return self.apply(downhill)
        return conjugate_gradients(linearisation, downhill, self, damping, self.iterations)
