"""Solving with a damped symmetric positive semidefinite matrix, however ill-conditioned."""

from __future__ import annotations

import torch
from torch import Tensor

from pinnkfac.common.errors import Diverged
from pinnkfac.curvature.kronecker import floored, symmetric_eigen
from pinnkfac.linearisation.direction import is_finite

RAISED = 4.0
TRIES = 6
"""Where Cholesky fails, the damping is multiplied by ``RAISED``, at most so many times."""


def solve_damped(matrix: Tensor, right: Tensor, damping: float, *, jacobi: bool = False) -> Tensor:
    """x = (C + λ)⁻¹ right, once; see ``Damped``."""
    return Damped(matrix, damping, jacobi=jacobi).solve(right)


class Damped:
    """(C + λ)⁻¹ for a symmetric positive semidefinite C [param, param], factorised once.

    By Cholesky; where it fails for rounding, with raised damping (from 4ε·‖C‖ on); at last by
    eigenvalues, ``floored``. ``jacobi`` factorises D^-½ (C + λ) D^-½ with D = diag(C + λ): the same
    with less rounding where parameters differ in scale.

    Raises Diverged where C, λ or a right-hand side is not finite.
    """

    @torch.no_grad()
    def __init__(self, matrix: Tensor, damping: float, *, jacobi: bool = False) -> None:
        _check(matrix, matrix.new_tensor([damping]))
        self.matrix = matrix
        self.damping = damping
        self.jacobi = jacobi
        self.raised = 0.0
        """The damping that was needed instead, for rounding; 0: none."""
        self._eigen: tuple[Tensor, Tensor] | None = None
        self._factor: Tensor | None = None
        self._scale: Tensor | None = None
        if not len(matrix):
            return
        work, shift = torch.empty_like(matrix), damping
        for _ in range(1 + TRIES):
            work.copy_(matrix).diagonal().add_(shift)
            if self._cholesky(work):
                return
            rounding = torch.finfo(matrix.dtype).eps * float(matrix.norm())
            self.raised = shift = RAISED * max(shift, rounding)
        self.raised = 0.0  # by eigenvalues, which take the damping as it is

    def _cholesky(self, work: Tensor) -> bool:
        """Factorise in place; whether the matrix is positive definite to rounding."""
        scale = None
        if self.jacobi:
            diagonal = work.diagonal()
            if not bool((diagonal > 0).all()):
                return False
            scale = diagonal.rsqrt()[:, None]
            work.mul_(scale).mul_(scale.T)
        failed = torch.empty((), dtype=torch.int32, device=work.device)
        torch.linalg.cholesky_ex(work, out=(work, failed))
        if bool(failed):
            return False
        self._factor, self._scale = work, scale
        return True

    @torch.no_grad()
    def solve(self, right: Tensor) -> Tensor:
        """x for right [param] or [param, k], in its form."""
        _check(right)
        if not len(self.matrix):
            return right.clone()
        columns = right if right.dim() == 2 else right[:, None]
        if self._factor is not None:
            scaled = columns if self._scale is None else columns * self._scale
            solution = torch.cholesky_solve(scaled, self._factor)
            if self._scale is not None:
                solution *= self._scale
            if is_finite(solution):
                return solution.view_as(right)
            self._factor, self.raised = None, 0.0
        if self._eigen is None:
            eps = torch.finfo(self.matrix.dtype).eps
            values, vectors = symmetric_eigen(self.matrix)
            self._eigen = floored(values.clamp_min_(0.0) + self.damping, eps), vectors
        values, vectors = self._eigen
        return (vectors @ ((vectors.T @ columns) / values[:, None])).view_as(right)


def _check(*values: Tensor) -> None:
    if not is_finite(*values):
        raise Diverged(
            "the curvature or the gradient is NaN or infinite: training diverged; raise the "
            "damping or use dtype=float64"
        )
