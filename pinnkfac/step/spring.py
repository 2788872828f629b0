"""ENGD-W and SPRING: exact energy natural gradient steps through the kernel of the residuals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from pinnkfac.curvature.gramian import gramian
from pinnkfac.curvature.kernel import kernel
from pinnkfac.curvature.solve import Damped
from pinnkfac.direction import Direction, combine, norm
from pinnkfac.errors import Diverged, UserError
from pinnkfac.linearise import Linearisation, System
from pinnkfac.memory import check_fits, making
from pinnkfac.settings import NonNegative, Positive, Range
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Descent, GaussNewtonStepper
from pinnkfac.step.search import Search

POINTS = "points.scale, points.interior or points.lower"
LOST, GAINED = 0.5, 1.2
"""Factors on the decay after a plateau of the loss on unseen points, and after each new low."""


@dataclass(frozen=True)
class Published:
    """The step length of arXiv:2505.12149, instead of a line search.

    The step is min(``learning_rate``, √``norm_constraint`` / ‖φ‖) · φ, and φ itself, not the step
    taken, is what the next one remembers; ``bias_correction`` divides φ_k by √(1 − μ^2k).
    """

    learning_rate: Positive = 0.5
    norm_constraint: Positive = 1e-3
    bias_correction: bool = True


@dataclass(frozen=True)
class Spring:
    """δ = μ φ + Jᵀ (J Jᵀ + λ)⁻¹ (−r − μ J φ) with φ the last step.

    ``decay`` is μ; with μ = 0 this is ENGD-W (arXiv:2505.12149, eq. 5), with μ > 0 SPRING
    (Goldshlager, Abrahamsen & Lin 2024, arXiv:2401.10190, eq. 25): among all steps that fit the
    linearised residual, the one closest to μ φ. After a step whose accepted length is below
    ``least_length``, or that was rejected, φ = 0: momentum helps where the residual is almost
    linear along a step, and hurts where it is not. With fewer parameters than residuals φ = 0
    too, as there is no choice among steps. ``relative``: λ counts in units of the mean
    diagonal entry of J Jᵀ. ``geodesic`` bends the step by the second derivative of the residual
    along δ (Transtrum & Sethna 2012, arXiv:1201.5885, eq. 9). With fewer parameters than
    residuals, the same step is computed from JᵀJ, with a correction by J.
    """

    decay: Annotated[float, Range(least=0, below=1)] = 0.9
    least_length: NonNegative = 0.05
    relative: bool = True
    geodesic: bool = False
    published: Published | None = None

    def __post_init__(self) -> None:
        if self.geodesic and self.published is not None:
            raise UserError("step.geodesic=true needs a line search: set step.published=null")

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonStepper:
        descent = SpringDescent(self, system)
        return GaussNewtonStepper(system, descent, search, damping, geodesic=self.geodesic)


class SpringDescent(Descent):
    """The kernel, or the rows of J where parameters are fewer, and the last step."""

    def __init__(self, settings: Spring, system: System) -> None:
        self.settings = settings
        self.system = system
        self.solver: Dual | Primal | None = None
        self.past: Direction | None = None
        self.trust = 1.0
        """The part of the decay that is used."""
        self.steps = 0

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        primal = self.system.parameter_number < len(linearisation.residual)
        self.solver = Primal(linearisation) if primal else Dual(linearisation)
        self.unit = self.solver.mean_diagonal() if self.settings.relative else 1.0
        if primal and self.settings.published is None:
            self.past = None  # no step fits all residuals: there is none to choose among them

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        decay, past = self.settings.decay * self.trust, self.past
        right = -linearisation.residual
        if past is not None and decay:
            right = right - decay * linearisation.jvp(past)
        phi = self.least_squares(right, damping)
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
        """The minimiser x of ‖J x − right‖² + damping ‖x‖², for right [residual]."""
        assert self.solver is not None
        return self.solver.solve(right, damping)

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


class Dual:
    """x = Jᵀ (J Jᵀ + λ)⁻¹ right."""

    def __init__(self, linearisation: Linearisation) -> None:
        self.linearisation = linearisation
        self.kernel = kernel(linearisation)
        self._inverse: Damped | None = None

    def mean_diagonal(self) -> float:
        return float(self.kernel.trace()) / len(self.kernel)

    def solve(self, right: Tensor, damping: float) -> Direction:
        with making("the factor of the kernel", POINTS):
            if self._inverse is None or self._inverse.damping != damping:
                self._inverse = Damped(self.kernel, damping)
            weights = self._inverse.solve(right)
        return self.linearisation.vjp(weights)


class Primal:
    """The same x from JᵀJ + λ, corrected once by J itself, so that the squared condition number
    hardly shows (corrected seminormal equations, Björck 1987, doi:10.1016/0024-3795(87)90101-7).
    """

    def __init__(self, linearisation: Linearisation) -> None:
        self.linearisation = linearisation
        number, columns = len(linearisation.residual), linearisation.system.parameter_number
        check_fits(
            linearisation.residual.element_size() * (number + 3 * columns) * columns,
            f"the Gramian of {columns} parameters, from {number} residuals",
            POINTS,
        )
        with making("the Gramian", POINTS):
            self.gramian = gramian(linearisation)
        self._inverse: Damped | None = None

    def mean_diagonal(self) -> float:
        return float(self.gramian.trace()) / len(self.linearisation.residual)

    def solve(self, right: Tensor, damping: float) -> Direction:
        if not (math.isfinite(damping) and bool(torch.isfinite(right).all())):
            raise Diverged("the residual is NaN or infinite: training diverged")
        solution = self._apply(self.linearisation.vjp(right), damping)
        left = self.linearisation.vjp(right - self.linearisation.jvp(solution))
        change = self._apply(combine((1.0, left), (-damping, solution)), damping)
        if norm(change) < norm(solution):  # else the factor is all rounding
            solution = combine((1.0, solution), (1.0, change))
        return solution

    def _apply(self, gradient: Direction, damping: float) -> Direction:
        """(JᵀJ + λ)⁻¹ gradient."""
        if self._inverse is None or self._inverse.damping != damping:
            with making("the factor of the Gramian", POINTS):
                self._inverse = Damped(self.gramian, damping)
        flat = self._inverse.solve(torch.cat([g.reshape(-1) for g in gradient]))
        parts = flat.split([g.numel() for g in gradient])
        return [part.view_as(g) for part, g in zip(parts, gradient, strict=True)]
