"""ENGD-W and SPRING: exact energy natural gradient steps through the kernel of the residuals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import NonNegative, Number, Positive, Range
from pinnkfac.curvature.least_squares import DampedLeastSquares, Dual, Primal
from pinnkfac.linearisation.direction import Direction, combine, norm
from pinnkfac.linearisation.system import Linearisation, System
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Descent, GaussNewtonStepper
from pinnkfac.step.search import Search

NEAR = 1e-7
"""Dampings near a solution, in units of the mean diagonal entry of J Jᵀ: far from one, steps that
lower the loss as far as it goes lead to where it is low without a solution."""
LOST, GAINED = 0.5, 1.2
"""Factors on the decay after a plateau of the loss on unseen points, and after each new low."""


@dataclass(frozen=True)
class Published:
    """The step length of arXiv:2505.12149, instead of a line search.

    The step is min(``learning_rate``, √``norm_constraint`` / ‖φ‖) · φ, and φ itself, not the step
    taken, is what the next one remembers; ``bias_correction`` divides φ_k by √(1 − μ^2k).
    """

    learning_rate: Positive = 0.05
    """the longest step, in units of the direction"""
    norm_constraint: Positive = 1e-3
    """the largest square of a step's norm"""
    bias_correction: bool = True
    """divide the direction of step k by √(1 − decay^2k)"""


@dataclass(frozen=True)
class Spring:
    """δ = μ φ + Jᵀ (J Jᵀ + λ)⁻¹ (−r − μ J φ) with φ the last step.

    ``decay`` is μ; with μ = 0 this is ENGD-W (arXiv:2505.12149, eq. 5), with μ > 0 SPRING
    (Goldshlager, Abrahamsen & Lin 2024, arXiv:2401.10190, eq. 25): among all steps that fit the
    linearised residual, the one closest to μ φ. After a step whose accepted length is below
    ``least_length``, or that was rejected, φ = 0: momentum helps where the residual is almost
    linear along a step, and hurts where it is not. μ is halved, and φ = 0, where the loss on
    unseen points has reached no new low for some steps, and grows again with each new low. With
    fewer parameters than residuals φ = 0 too, as there is no choice among steps (but for
    ``published``). ``relative``: λ counts in units of the mean
    diagonal entry of J Jᵀ. ``geodesic`` bends the step by the second derivative of the residual
    along δ (Transtrum & Sethna 2012, arXiv:1201.5885, eq. 9), and near a solution at most
    ``corrections`` further solves with the same factor keep it where the residual follows its
    linear model (see ``CurvedPath``). With fewer parameters than residuals, the same step is
    computed from JᵀJ.

    Raises UserError for either beside ``published``.
    """

    decay: Annotated[float, Range(least=0, below=1)] = 0.9
    """part of the last step that the next one goes on with; 0: ENGD-W"""
    least_length: NonNegative = 0.05
    """a shorter step is not gone on with"""
    relative: bool = True
    """damping in units of the mean diagonal entry of the kernel, so that one value fits all
    problems"""
    geodesic: bool = False
    """bend the step by the second derivative of the residual along it: one more evaluation and
    solve"""
    corrections: Number = 0
    """how often the end of a long step near a solution is led back to the linear model, each time
    by one evaluation and solve"""
    published: Published | None = None
    """the step length of arXiv:2505.12149 instead of a search; null: a search"""

    def __post_init__(self) -> None:
        for name, value in (("geodesic", self.geodesic), ("corrections", self.corrections)):
            if value and self.published is not None:
                raise UserError(
                    f"step.{name}={str(value).lower()} needs a line search: set step.published=null"
                )

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonStepper:
        descent = SpringDescent(self, system)
        return GaussNewtonStepper(
            system,
            descent,
            search,
            damping,
            geodesic=self.geodesic,
            corrections=self.corrections,
        )


class SpringDescent(Descent):
    """The kernel, or the rows of J where parameters are fewer, and the last step."""

    def __init__(self, settings: Spring, system: System) -> None:
        self.settings = settings
        self.system = system
        self.solver: DampedLeastSquares | None = None
        self.past: Direction | None = None
        self.trust = 1.0
        """The part of the decay that is used."""
        self.steps = 0

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        primal = self.system.parameter_number < len(linearisation.residual)
        self.solver = Primal(linearisation) if primal else Dual(linearisation)
        diagonal = self.solver.mean_diagonal()
        self.unit = diagonal if self.settings.relative else 1.0
        self.near = max(NEAR * diagonal, 2.0 * self.solver.least_damping)
        if primal and self.settings.published is None:
            self.past = None  # no step fits all residuals: there is none to choose among them

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        decay, past = self.settings.decay * self.trust, self.past
        right = -linearisation.residual
        if past is not None and decay:
            right = right - decay * linearisation.jvp(past)
        assert self.solver is not None
        phi = self.solver.solve(right, damping)
        self.least_damping = self.solver.least_damping
        if past is not None and decay:
            phi = combine((1.0, phi), (decay, past))
        published = self.settings.published
        if published is None:
            return phi
        self.past = phi
        self.steps += 1
        correction = 1.0
        if published.bias_correction:
            correction = math.sqrt(1.0 - decay ** (2 * self.steps))
        size = norm(phi) / correction
        limit = math.sqrt(published.norm_constraint) / size if size > 0 else math.inf
        return [min(published.learning_rate, limit) / correction * v for v in phi]

    def least_squares(self, right: Tensor, damping: float) -> Direction:
        assert self.solver is not None
        return self.solver.solve(right, damping, refined=False)

    def taken(self, step: Direction | None, length: float) -> None:
        if self.settings.published is None:
            kept = self.settings.decay > 0 and length >= self.settings.least_length
            self.past = step if kept else None
        self.solver = None  # its arrays make room for those of the next step

    def judged(self, *, fell: bool) -> None:
        if fell:
            self.trust = min(1.0, GAINED * self.trust)
        elif self.settings.published is None:
            self.trust, self.past = LOST * self.trust, None

    def restart(self) -> str:
        self.past, self.steps, self.solver = None, 0, None
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {"past": self.past, "steps": self.steps, "trust": self.trust}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.past, self.steps, self.trust = state["past"], state["steps"], state["trust"]
