"""Solving with a damped symmetric positive semidefinite matrix, however ill-conditioned."""

from __future__ import annotations

import torch
from torch import Tensor

from pinnkfac.curvature.kronecker import floored, symmetric_eigen
from pinnkfac.errors import Diverged

RAISED = 10.0
TRIES = 4
"""Where Cholesky fails, the damping is multiplied by ``RAISED``, at most so many times."""


@torch.no_grad()
def solve_damped(matrix: Tensor, right: Tensor, damping: float, *, jacobi: bool = False) -> Tensor:
    """x = (C + λ)⁻¹ right for a symmetric positive semidefinite C [param, param].

    ``right`` and x are [param] or [param, k]. By Cholesky; where it fails for rounding, with
    raised damping (at least ε·param·max C_ii); at last by eigenvalues, those below ε times the
    largest raised to it. ``jacobi`` factorises D^-½ (C + λ) D^-½ with D = diag(C + λ): the same
    solution with less rounding where parameters differ in scale. Cholesky takes the memory of one
    more matrix.

    Raises Diverged where C, λ or ``right`` is not finite.
    """
    if not (_finite(matrix) and _finite(right) and _finite(right.new_tensor([damping]))):
        raise Diverged(
            "the curvature or the gradient is NaN or infinite: training diverged; raise the "
            "damping or use dtype=float64"
        )
    if not len(matrix):
        return right.clone()
    columns = right if right.dim() == 2 else right[:, None]
    eps = torch.finfo(matrix.dtype).eps
    rounding = len(matrix) * eps * float(matrix.diagonal().max())
    work, shift = torch.empty_like(matrix), damping
    for _ in range(1 + TRIES):
        work.copy_(matrix).diagonal().add_(shift)
        solution = _cholesky(work, columns, jacobi)
        if solution is not None:
            return solution.view_as(right)
        shift = RAISED * max(shift, rounding)
    del work
    values, vectors = symmetric_eigen(matrix)
    values = floored(values.clamp_min_(0.0) + damping, eps)
    return (vectors @ ((vectors.T @ columns) / values[:, None])).view_as(right)


def _finite(values: Tensor) -> bool:
    """From the extremes, which carry NaN and infinity: no mask of the size of a large matrix."""
    return not values.numel() or bool(torch.isfinite(torch.stack(values.aminmax())).all())


def _cholesky(work: Tensor, right: Tensor, jacobi: bool) -> Tensor | None:
    """work⁻¹ right, or None where the matrix is not positive definite to rounding; ``work`` is
    overwritten."""
    scale = None
    if jacobi:
        diagonal = work.diagonal()
        if not bool((diagonal > 0).all()):
            return None
        scale = diagonal.rsqrt()[:, None]
        work.mul_(scale).mul_(scale.T)
        right = right * scale
    failed = torch.empty((), dtype=torch.int32, device=work.device)
    torch.linalg.cholesky_ex(work, out=(work, failed))
    if bool(failed):
        return None
    solution = torch.cholesky_solve(right, work)
    if scale is not None:
        solution *= scale
    return solution if _finite(solution) else None
