"""Randomised Nyström approximations of JᵀJ and JJᵀ.

For a positive semidefinite C [size, size] and a random orthonormal Ω [size, rank],
Ĉ = (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ = U diag(λ̂) Uᵀ ≤ C, from one product with Ω (Frangella, Tropp & Udell 2021,
arXiv:2110.02820, algorithm 2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, NonNegative, Number
from pinnkfac.curvature.base import Applied, Curvature, Situation, Solver
from pinnkfac.curvature.conjugate_gradients import iterates, truncated
from pinnkfac.curvature.kronecker import symmetric_eigen
from pinnkfac.linearisation.direction import Direction, combine
from pinnkfac.linearisation.layout import flat
from pinnkfac.linearisation.objective import Objective
from pinnkfac.linearisation.products import gramian_times, kernel_products, vjps


@dataclass(frozen=True)
class Sketch:
    """Ĉ = U diag(λ̂) Uᵀ with orthonormal ``vectors`` U [size, rank] and ``values`` λ̂ [rank] ≥ 0,
    the largest first."""

    vectors: Tensor
    values: Tensor

    def inverse(self, v: Tensor, damping: float, rest: float) -> Tensor:
        """(U diag(λ̂) Uᵀ + rest·(I − UUᵀ) + λ)⁻¹ v for v [size] (or [size, k]).

        ``rest = 0`` gives (Ĉ + λ)⁻¹. Eigenvalues below rounding of the largest are raised to it.
        """
        info = torch.finfo(self.values.dtype)
        largest = float(self.values[0]) if len(self.values) else 0.0
        floor = max(info.eps**2 * largest, info.tiny**0.5)
        inside = self.vectors.T @ v
        outside = 1.0 / max(rest + damping, floor)
        inverses = (self.values + damping).clamp_min(floor).reciprocal() - outside
        return outside * v + self.vectors @ (inverses.view(-1, *[1] * (v.dim() - 1)) * inside)

    @property
    def smallest(self) -> float:
        """λ̂ of the last vector: about what is left beside the sketch."""
        return float(self.values[-1]) if len(self.values) else 0.0


def random_columns(size: int, rank: int, like: Tensor, generator: Generator) -> Tensor:
    """Standard normal numbers [size, rank], drawn in float64 on the CPU."""
    return torch.randn(size, rank, dtype=torch.float64, generator=generator).to(like)


@torch.no_grad()
def nystrom(
    product: Callable[[Tensor], Tensor], size: int, rank: int, like: Tensor, generator: Generator
) -> Sketch:
    """A sketch of C from ``product(Ω)`` = CΩ for one Ω [size, min(rank, size)].

    C is shifted by ν = ε‖CΩ‖ for the Cholesky factor B = (CΩ + νΩ) chol(Ωᵀ(CΩ + νΩ))⁻¹, and the
    shift is taken off the squared singular values of B again. Here the factor is made from
    eigenvalues, those below ν raised to it, so that no C makes it fail.
    """
    omega = torch.linalg.qr(random_columns(size, min(rank, size), like, generator))[0]
    image = product(omega)
    shift = torch.finfo(image.dtype).eps * float(torch.linalg.matrix_norm(image))
    image = image + shift * omega
    core = omega.T @ image
    values, vectors = symmetric_eigen((core + core.T) / 2)
    floor = max(shift, torch.finfo(image.dtype).tiny ** 0.5)
    factor = image @ (vectors * values.clamp_min(floor).rsqrt())
    u, s, _ = torch.linalg.svd(factor, full_matrices=False)
    return Sketch(u, (s.square() - shift).clamp_min(0.0))


@dataclass(frozen=True)
class SketchState:
    sketch: Sketch | None = None


@dataclass(frozen=True)
class NystromSketch(Curvature[SketchState]):
    """C + λ = U (λ̂ + λ) Uᵀ + (λ̂_rank + λ)(I − UUᵀ) from a sketch of JᵀJ, up to a factor the
    preconditioner of arXiv:2110.02820, eq. 5.3."""

    rank: Count = 50
    """vectors of the sketch; each costs two products with the Jacobian"""
    every: Count = 5
    """steps between sketches"""

    kept = "sketch"

    def start(self, objective: Objective) -> SketchState:
        return SketchState()

    def at(self, situation: Situation, state: SketchState) -> Solver:
        sketch, linearisation = state.sketch, situation.linearisation
        layout, damping = linearisation.layout, situation.damping
        if sketch is None or situation.step % self.every == 0:
            with making("the sketch of the Gramian", "step.preconditioner.rank"):
                sketch = nystrom(
                    lambda columns: gramian_times(linearisation, columns),
                    layout.number,
                    self.rank,
                    linearisation.residual,
                    situation.generator,
                )
        inverse, rest = sketch.inverse, sketch.smallest
        return Applied(
            situation, lambda v: layout.unflat(inverse(flat(v), damping, rest)), SketchState(sketch)
        )


@dataclass(frozen=True)
class SketchedKernel(Curvature[None]):
    """JᵀJ in the space of residuals, where a vector is one number a residual (Woodbury):

        δ = −Jᵀ y,   (JJᵀ + λ) y = r.

    A sketch K̂ of JJᵀ, drawn anew in every step, either stands in for it (``iterations`` = 0), as in
    the randomised variant of arXiv:2505.12149, or preconditions conjugate gradients on JJᵀ itself,
    as in arXiv:2505.21404, until these have stalled (see ``has_stalled``).
    """

    rank: Count = 100
    iterations: Number = 20
    progress: NonNegative = 5e-4

    def at(self, situation: Situation, state: None) -> Solver:
        return KernelSolver(self, situation)


class KernelSolver(Solver):
    curvature = "nystrom.SketchedKernel"

    def __init__(self, settings: SketchedKernel, situation: Situation) -> None:
        super().__init__(situation)
        self.settings = settings
        self.generator = situation.generator

    def direction(self, gradient: Direction) -> Direction:
        linearisation, residual = self.linearisation, self.linearisation.residual
        with making("the sketch of the kernel", "step.rank"):
            sketch = nystrom(
                lambda columns: kernel_products(linearisation, columns.T.contiguous()).T,
                len(residual),
                self.settings.rank,
                residual,
                self.generator,
            )
            y = self._solve(sketch)
        return [-v for v in vjps(linearisation, y[None])[0]]

    def _solve(self, sketch: Sketch) -> Tensor:
        """y [residual], ≈ (JJᵀ + λ)⁻¹ r."""
        linearisation, damping = self.linearisation, self.damping
        residual = linearisation.residual
        if self.settings.iterations == 0:
            return sketch.inverse(residual, damping, 0.0)

        def product(w: list[Tensor]) -> list[Tensor]:
            image = kernel_products(linearisation, w[0][None])[0]
            return combine((1.0, [image]), (damping, w))

        def precondition(w: list[Tensor]) -> list[Tensor]:
            return [sketch.inverse(w[0], damping, sketch.smallest)]

        run = iterates(product, [residual], precondition)
        return truncated(run, self.settings.iterations, self.settings.progress)[-1].solution[0]
