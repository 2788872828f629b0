"""Damped least squares with J: x minimises ‖J x − b‖² + λ‖x‖², for λ near the rounding of JᵀJ.

A factor of J Jᵀ + λ or of JᵀJ + λ knows nothing of singular values below √ε times the largest,
and there lies what is left of the residual near a solution. So it only preconditions conjugate
gradients, whose residuals are computed with J itself (corrected seminormal equations, Björck 1987,
doi:10.1016/0024-3795(87)90101-7, iterated).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnkfac.common.errors import Diverged
from pinnkfac.common.memory import check_fits, making
from pinnkfac.curvature.base import Curvature, Situation, Solver
from pinnkfac.curvature.gramian import gramian
from pinnkfac.curvature.kernel import POINTS, kernel
from pinnkfac.curvature.solve import Damped
from pinnkfac.linearisation.block import PIECE
from pinnkfac.linearisation.direction import Direction, combine, inner
from pinnkfac.linearisation.layout import flat
from pinnkfac.linearisation.linearisation import Linearisation

ROUNDING = 4.0
"""Factors are of at least so many times ε·‖C‖, with C the matrix: below, they are all rounding."""
REACH = 64.0
"""How many times smaller λ may be than what is factorised."""
ITERATIONS = 24
"""Of conjugate gradients, at most."""
NEAR = 1e-7
"""Dampings near a solution, in units of the mean diagonal entry of J Jᵀ: far from one, steps that
lower the loss as far as it goes lead to where it is low without a solution."""


class DampedLeastSquares:
    """What both forms share: a matrix C, J Jᵀ or JᵀJ, and its factor for the λ last asked for."""

    accuracy: float
    """Conjugate gradients end where their residual, in the norm of the factor's inverse, has fallen
    by that."""

    def __init__(self, linearisation: Linearisation, matrix: Tensor, factor: str) -> None:
        self.linearisation = linearisation
        self.matrix = matrix
        self._factor = factor
        self._rounding = ROUNDING * torch.finfo(matrix.dtype).eps * float(matrix.norm())
        self._inverse: Damped | None = None

    @property
    def least_damping(self) -> float:
        """The smallest λ that ``solve`` knows apart from zero; it takes smaller ones for this."""
        raised = 0.0 if self._inverse is None else self._inverse.raised
        return max(self._rounding, raised) / REACH

    def mean_diagonal(self) -> float:
        """The mean diagonal entry of J Jᵀ."""
        return float(self.matrix.trace()) / len(self.linearisation.residual)

    def solve(self, right: Tensor, damping: float, *, refined: bool = True) -> Direction:
        """x for right [residual]; not ``refined``: by the factor alone, of at least 4ε·‖C‖.

        Raises Diverged where something is not finite.
        """
        raise NotImplementedError

    def _by_factor(self, right: Tensor, damping: float) -> Tensor:
        """(C + λ)⁻¹ right, as far as the factor knows it."""
        damping = max(damping, self._rounding)
        with making(self._factor, POINTS):  # at last, eigenvectors
            if self._inverse is None or self._inverse.damping != damping:
                self._inverse = Damped(self.matrix, damping)
            return self._inverse.solve(right)


class Dual(DampedLeastSquares):
    """x = Jᵀ (J Jᵀ + λ)⁻¹ b, for fewer residuals than parameters."""

    accuracy = 0.03

    def __init__(self, linearisation: Linearisation) -> None:
        super().__init__(linearisation, kernel(linearisation), "the factor of the kernel")

    def solve(self, right: Tensor, damping: float, *, refined: bool = True) -> Direction:
        linearisation, factored = self.linearisation, damping
        step = scaled = self._by_factor(right, factored)
        moved = linearisation.vjp(step)
        if not refined:
            return moved
        damping = max(damping, self.least_damping)
        rest, solution = right, [torch.zeros_like(v) for v in moved]
        size = first = float(right @ scaled)
        for iteration in range(1, ITERATIONS + 1):
            length = _ratio(size, inner(moved, moved) + damping * float(step @ step))
            solution = combine((1.0, solution), (length, moved))
            rest = rest - length * (linearisation.jvp(moved) + damping * step)
            scaled = self._by_factor(rest, factored)
            last, size = size, float(rest @ scaled)
            if iteration == ITERATIONS or not size > self.accuracy**2 * first:
                break
            step = scaled + size / last * step
            moved = linearisation.vjp(step)
        # The error that is left lies where J is large, and there the factor is exact.
        return combine((1.0, solution), (1.0, linearisation.vjp(scaled)))


class Primal(DampedLeastSquares):
    """x = (JᵀJ + λ)⁻¹ Jᵀ b, for fewer parameters than residuals."""

    accuracy = 0.001  # what J hardly sees counts little in the norm of JᵀJ + λ

    def __init__(self, linearisation: Linearisation) -> None:
        number, columns = len(linearisation.residual), linearisation.layout.number
        check_fits(
            linearisation.residual.element_size() * (3 * columns**2 + PIECE),
            f"the Gramian of {columns} parameters, from {number} residuals",
            POINTS,
            linearisation.residual.device,
        )
        with making("the Gramian", POINTS):
            matrix = gramian(linearisation)
        super().__init__(linearisation, matrix, "the factor of the Gramian")

    def solve(self, right: Tensor, damping: float, *, refined: bool = True) -> Direction:
        if not (math.isfinite(damping) and bool(torch.isfinite(right).all())):
            raise Diverged("the residual is NaN or infinite: training diverged")
        linearisation, factored = self.linearisation, damping
        gradient = linearisation.vjp(right)
        step = scaled = self._apply(gradient, factored)
        if not refined:
            return step
        damping = max(damping, self.least_damping)
        rest, solution = right, [torch.zeros_like(v) for v in step]
        size = first = inner(gradient, scaled)
        for iteration in range(1, ITERATIONS + 1):
            moved = linearisation.jvp(step)
            length = _ratio(size, float(moved @ moved) + damping * inner(step, step))
            solution = combine((1.0, solution), (length, step))
            rest = rest - length * moved
            gradient = combine((1.0, linearisation.vjp(rest)), (-damping, solution))
            scaled = self._apply(gradient, factored)
            last, size = size, inner(gradient, scaled)
            if iteration == ITERATIONS or not size > self.accuracy**2 * first:
                break
            step = combine((1.0, scaled), (size / last, step))
        return combine((1.0, solution), (1.0, scaled))

    def _apply(self, gradient: Direction, damping: float) -> Direction:
        """(JᵀJ + λ)⁻¹ gradient, by the factor."""
        return self.linearisation.layout.unflat(self._by_factor(flat(gradient), damping))


def _ratio(size: float, curvature: float) -> float:
    return size / curvature if curvature > 0 else 0.0


@dataclass(frozen=True)
class Exact(Curvature[None]):
    """C = JᵀJ, through the kernel J Jᵀ, or itself where parameters are fewer than residuals
    (Woodbury; arXiv:2505.12149). ``relative``: λ counts in units of the mean diagonal entry of
    J Jᵀ."""

    relative: bool = True

    def at(self, situation: Situation, state: None) -> Solver:
        return ExactSolver(situation, relative=self.relative)


class ExactSolver(Solver):
    curvature = "least_squares.Exact"

    def __init__(self, situation: Situation, *, relative: bool) -> None:
        super().__init__(situation)
        linearisation = situation.linearisation
        primal = linearisation.layout.number < len(linearisation.residual)
        self.solver = Primal(linearisation) if primal else Dual(linearisation)
        diagonal = self.solver.mean_diagonal()
        self.unit = diagonal if relative else 1.0
        self.damping *= self.unit
        self.near = self.damping <= max(NEAR * diagonal, 2.0 * self.solver.least_damping)

    @property
    def least_damping(self) -> float:  # type: ignore[override]
        return self.solver.least_damping

    def direction(self, gradient: Direction) -> Direction:
        return self.least_squares(-self.linearisation.residual)

    def least_squares(self, right: Tensor, *, refined: bool = True) -> Direction:
        return self.solver.solve(right, self.damping, refined=refined)
