"""KFAC and KFAC*: steps preconditioned by Kronecker-factored curvature (arXiv:2405.15603)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Generator

from pinnkfac.curvature.kfac import Average, Factors
from pinnkfac.curvature.preconditioner import InverseSettings, Preconditioner, conjugate_gradients
from pinnkfac.direction import Direction
from pinnkfac.errors import UserError
from pinnkfac.linearise import Linearisation, System
from pinnkfac.memory import making
from pinnkfac.settings import Number, Range
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
    inverse: InverseSettings = field(default_factory=InverseSettings)
    momentum: Annotated[float, Range(least=0, below=1)] = 0.0
    iterations: Number = 0
    lengths: Automatic | None = None

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


class KfacDescent(Descent):
    """Averaged Kronecker factors, and conjugate gradients preconditioned by them."""

    def __init__(self, settings: Kfac, system: System, generator: Generator) -> None:
        self.settings = settings
        self.system = system
        self.generator = generator
        self.restart()

    def restart(self) -> str:
        self.average = Average(self.settings.factors)
        self.preconditioner = Preconditioner(self.settings.inverse, self.system, self.average)
        return "factors"

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        self.average.rescale(self.system.scales)
        with making("the Kronecker factors and their eigenvectors", "net.widths"):
            if not self.average.updates or step % self.settings.factors.every == 0:
                self.average.update(linearisation, self.generator)
            self.preconditioner.update(damping, step)

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        downhill = [-v for v in gradient]
        if self.settings.iterations == 0:
            return self.preconditioner.apply(downhill)
        return conjugate_gradients(
            linearisation, downhill, self.preconditioner, damping, self.settings.iterations
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "average": self.average.state_dict(),
            "preconditioner": self.preconditioner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        self.preconditioner.load_state_dict(state["preconditioner"])
