"""Gauss-Newton-CG, or Hessian-free: steps by truncated conjugate gradients on the exact Gramian.

Martens 2010 (ICML, 'Deep learning via Hessian-free optimization') and Martens & Sutskever 2012
('Training deep and recurrent networks with Hessian-free optimization'): CG starts from a part of
its last solution, stops where the quadratic model hardly falls any more, and the loss itself
chooses among its iterates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from torch import Generator

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Count, NonNegative, Range
from pinnkfac.curvature.conjugate_gradients import (
    Preconditioning,
    best_of,
    damped_gramian,
    iterates,
    truncated,
)
from pinnkfac.curvature.preconditioner import KroneckerFactors
from pinnkfac.linearisation.direction import Direction, combine
from pinnkfac.linearisation.system import Linearisation, System, TermPoints
from pinnkfac.step.base import Report
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Automatic, Descent, GaussNewtonStepper
from pinnkfac.step.search import Search

REACH = 2
FEWEST = 10
"""With backtracking, CG makes at most ``REACH`` times the iterations of the iterate that the last
step took (and at least ``FEWEST``): far beyond it, iterates are too long for the loss anyway."""


@dataclass(frozen=True)
class GaussNewtonCg:
    """δ ≈ −(JᵀJ + λ)⁻¹∇loss by at most ``iterations`` of preconditioned CG.

    CG starts from ``decay`` times its last solution (0: from 0) and stops where it has stalled for
    ``progress`` (see ``has_stalled``; 0: never). With ``backtracking`` the loss is evaluated at
    stored iterates, from half to twice as far as the last step went, and the best is δ.
    ``Automatic`` lengths by layer, and momentum, come from the quadratic model; ``lengths=None``
    lets the search decide how far to go along δ, as published.
    """

    preconditioner: Preconditioning = field(default_factory=KroneckerFactors)
    """one of the options of preconditioner"""
    iterations: Count = 20
    """the most conjugate-gradient iterations in a step"""
    progress: NonNegative = 5e-4
    """stop where the quadratic model falls by less than this part an iteration; 0: never"""
    decay: Annotated[float, Range(least=0, most=1)] = 0.95
    """start from this part of the last solution; 0: from 0"""
    backtracking: bool = True
    """evaluate the loss at stored iterates, half to twice as far as the last step went, and take
    the best"""
    lengths: Automatic | None = field(default_factory=Automatic)
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        if not hasattr(self.preconditioner, "start"):
            raise UserError(
                f"step.preconditioner={self.preconditioner} is none: choose one of the options of "
                "preconditioner, as 'list preconditioner' shows them"
            )

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonCgStepper:
        descent = CgDescent(self, system, generator)
        return GaussNewtonCgStepper(system, descent, search, damping, lengths=self.lengths)


class CgDescent(Descent):
    """A preconditioner, the last solution of CG and the number of the iterate that was taken.

    ``loss(δ)`` is the loss at θ + δ.
    """

    def __init__(self, settings: GaussNewtonCg, system: System, generator: Generator) -> None:
        self.settings = settings
        self.preconditioner = settings.preconditioner.start(system, generator)
        self.solution: Direction | None = None
        self.taken_from: int | None = None
        self.loss: Callable[[Direction], float] | None = None

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        self.preconditioner.prepare(linearisation, damping, step)

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        own = self.settings
        product = damped_gramian(linearisation, damping)
        start = None
        if own.decay and self.solution is not None:
            start = [own.decay * v for v in self.solution]
        run = iterates(product, [-v for v in gradient], self.preconditioner.apply, start)
        fewest, most = self._window()
        kept = truncated(run, most, own.progress)
        self.solution = kept[-1].solution
        if not own.backtracking or self.loss is None:
            return self.solution
        best = best_of([i for i in kept if i.number >= fewest] or kept[-1:], self.loss)
        self.taken_from = best.number
        return best.solution

    def _window(self) -> tuple[int, int]:
        """The numbers of the first iterate whose loss is evaluated and of the last one made."""
        most = self.settings.iterations
        if not self.settings.backtracking or self.taken_from is None:
            return 0, most
        return self.taken_from // REACH, min(most, max(FEWEST, REACH * self.taken_from))

    def restart(self) -> str:
        self.solution, self.taken_from = None, None
        return self.preconditioner.restart()

    def state_dict(self) -> dict[str, Any]:
        return {
            "solution": self.solution,
            "taken_from": self.taken_from,
            "preconditioner": self.preconditioner.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.solution, self.taken_from = state["solution"], state["taken_from"]
        self.preconditioner.load_state_dict(state["preconditioner"])


class GaussNewtonCgStepper(GaussNewtonStepper):
    """Shows its descent the loss on the points of the step."""

    descent: CgDescent

    def update(
        self,
        points: Sequence[TermPoints],
        *,
        same_loss: bool = True,
        unseen: Sequence[TermPoints] | None = None,
    ) -> Report:
        start = self.system.get_parameters()

        def loss(direction: Direction) -> float:
            try:
                self.system.set_parameters(combine((1.0, start), (1.0, direction)))
                return self.system.loss(points)
            finally:
                self.system.set_parameters(start)

        self.descent.loss = loss
        return super().update(points, same_loss=same_loss, unseen=unseen)
