"""EKFAC: steps preconditioned by Kronecker-factored eigenbases with exact second moments."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Generator

from pinnkfac.common.settings import Number
from pinnkfac.curvature.conjugate_gradients import conjugate_gradients
from pinnkfac.curvature.ekfac import EkfacInverse, Moments
from pinnkfac.curvature.kfac import Factors
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import Linearisation, System
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Automatic, Descent, GaussNewtonStepper
from pinnkfac.step.search import Search


@dataclass(frozen=True)
class Ekfac:
    """δ = −C⁻¹∇loss with C from eigenbases and second moments (George et al. 2018,
    arXiv:1806.03884); then the step length.

    ``iterations`` > 0 refines δ by that many conjugate-gradient iterations on the exact damped
    Gramian, preconditioned by C. With ``lengths=None`` the search decides how far to go along δ;
    with ``Automatic`` the quadratic model decides, and the search only checks.
    """

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    moments: Moments = field(default_factory=Moments)
    """the second moments along their eigenbases"""
    iterations: Number = 0
    """conjugate-gradient iterations on the exact Gramian, preconditioned by the factors; each costs
    two products with the Jacobian"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonStepper:
        descent = EkfacDescent(self, system, generator)
        return GaussNewtonStepper(system, descent, search, damping, lengths=self.lengths)


class EkfacDescent(EkfacInverse, Descent):
    """Eigenbases and second moments, and conjugate gradients preconditioned by them."""

    def __init__(self, settings: Ekfac, system: System, generator: Generator) -> None:
        super().__init__(settings.factors, settings.moments, system, generator)
        self.iterations = settings.iterations

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        downhill = [-v for v in gradient]
        if self.iterations == 0:
            return self.apply(downhill)
        return conjugate_gradients(linearisation, downhill, self, damping, self.iterations)
