"""Randomised Nyström approximations of JᵀJ and JJᵀ.

For a positive semidefinite C [size, size] and a random orthonormal Ω [size, rank],
Ĉ = (CΩ)(ΩᵀCΩ)⁺(CΩ)ᵀ = U diag(λ̂) Uᵀ ≤ C, from one product with Ω (Frangella, Tropp & Udell 2021,
arXiv:2110.02820, algorithm 2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count
from pinnkfac.curvature.conjugate_gradients import ApproximateInverse
from pinnkfac.curvature.kronecker import symmetric_eigen
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.products import flat, gramian_times, unflat
from pinnkfac.linearisation.system import Linearisation, System


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
        floor = self._floor()
        inside = self.vectors.T @ v
        outside = 1.0 / max(rest + damping, floor)
        inverses = (self.values + damping).clamp_min(floor).reciprocal() - outside
        return outside * v + self.vectors @ (inverses.view(-1, *[1] * (v.dim() - 1)) * inside)

    def _floor(self) -> float:
        info = torch.finfo(self.values.dtype)
        largest = float(self.values[0]) if len(self.values) else 0.0
        return max(info.eps**2 * largest, info.tiny**0.5)

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
class NystromSketch:
    """P = U (λ̂ + λ) Uᵀ + (λ̂_rank + λ)(I − UUᵀ) from a sketch of JᵀJ with ``rank`` vectors, up to
    a factor the preconditioner of arXiv:2110.02820, eq. 5.3.

    A sketch costs ``rank`` products with J and Jᵀ; it is drawn anew every ``every`` steps.
    """

    rank: Count = 50
    """vectors of the sketch; each costs two products with the Jacobian"""
    every: Count = 5
    """steps between sketches"""

    def start(self, system: System, generator: Generator) -> ApproximateInverse:
        return NystromInverse(self, system, generator)


class NystromInverse(ApproximateInverse):
    """A sketch of JᵀJ that serves for some steps, with the damping of each."""

    def __init__(self, settings: NystromSketch, system: System, generator: Generator) -> None:
        self.settings = settings
        self.system = system
        self.generator = generator
        self.damping = 0.0
        self.restart()

    def restart(self) -> str:
        self.sketch: Sketch | None = None
        return "sketch"

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        self.damping = damping
        if self.sketch is not None and step % self.settings.every:
            return
        with making("the sketch of the Gramian", "step.preconditioner.rank"):
            self.sketch = nystrom(
                lambda columns: gramian_times(linearisation, columns),
                self.system.parameter_number,
                self.settings.rank,
                linearisation.residual,
                self.generator,
            )

    def apply(self, v: Direction) -> Direction:
        assert self.sketch is not None
        return unflat(self.sketch.inverse(flat(v), self.damping, self.sketch.smallest), v)

    def state_dict(self) -> dict[str, Any]:
        sketch = self.sketch
        return {"sketch": None if sketch is None else (sketch.vectors, sketch.values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.sketch = None if state["sketch"] is None else Sketch(*state["sketch"])
