"""A preconditioner of two levels: a smoother, and a coarse space on which the Gramian is exact.

With A = JᵀJ + λ, orthonormal coarse vectors V [param, coarse], E = VᵀAV and the smoother
M⁻¹ ≈ A⁻¹ (balancing, or a limited-memory preconditioner: Tang, Nabben, Vuik & Erlangga 2009,
doi:10.1007/s10915-009-9272-6, 'BNN'),

    P⁻¹ = V E⁻¹ Vᵀ + (I − V E⁻¹ VᵀA) M⁻¹ (I − A V E⁻¹ Vᵀ).

P⁻¹A is the identity on V, and everywhere where V is everything. The vectors are kept over steps; AV
is computed anew in each, since with images of earlier steps P is worse than its smoother.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor

from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, Number
from pinnkfac.curvature.conjugate_gradients import ApproximateInverse, Preconditioning
from pinnkfac.curvature.kronecker import symmetric_eigen
from pinnkfac.curvature.nystrom import random_columns
from pinnkfac.curvature.preconditioner import KroneckerFactors
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.products import flat, gramian_times, unflat
from pinnkfac.linearisation.system import Linearisation, System


@dataclass(frozen=True)
class TwoLevel:
    """A ``smoother`` and a sketched space of ``coarse`` vectors, of which every step replaces the
    oldest ``refresh``.

    New vectors span M⁻¹JᵀJ Ω for random Ω: directions whose curvature the smoother underestimates.
    A step costs ``coarse + refresh`` products with J and Jᵀ, in two passes.
    """

    smoother: Preconditioning = field(default_factory=KroneckerFactors)
    """a preconditioner for all but the coarse space"""
    coarse: Count = 30
    """vectors of the coarse space; each costs two products with the Jacobian a step"""
    refresh: Number = 3
    """of them drawn anew in every step; each costs two products more"""

    def start(self, system: System, generator: Generator) -> ApproximateInverse:
        return TwoLevelInverse(self, system, generator)


class TwoLevelInverse(ApproximateInverse):
    """A smoother and a coarse space in the course of a run.

    ``vectors`` V [param, coarse], the oldest first, are kept over steps. Of the step are
    ``images`` JᵀJ V and ``solver`` F [coarse, kept] with F Fᵀ = E⁻¹.
    """

    def __init__(self, settings: TwoLevel, system: System, generator: Generator) -> None:
        self.settings = settings
        self.system = system
        self.generator = generator
        self.smoother = settings.smoother.start(system, generator)
        self._forget()

    def _forget(self) -> None:
        size = self.system.parameter_number
        self.damping = 0.0
        self.vectors, self.images, self.solver = (
            torch.zeros(n, 0, dtype=self.system.dtype, device=self.system.device)
            for n in (size, size, 0)
        )

    def restart(self) -> str:
        self._forget()
        return " and ".join(filter(None, (self.smoother.restart(), "coarse space")))

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        self.smoother.prepare(linearisation, damping, step)
        self.damping = damping
        with making("the coarse space", "step.preconditioner.coarse"):
            self._refresh(linearisation)
        self._factorise()

    @torch.no_grad()
    def _refresh(self, linearisation: Linearisation) -> None:
        """Put new vectors, orthonormal to each other and to those that stay, behind these."""
        size = self.system.parameter_number
        most = min(self.settings.coarse, size)
        number = min(self.settings.refresh, most) if self.vectors.shape[1] else most
        if number:
            old = self.vectors[:, self.vectors.shape[1] - (most - number) :]
            random = random_columns(size, number, linearisation.residual, self.generator)
            new = self._smoothed(gramian_times(linearisation, random))
            for _ in range(2):  # once is not enough where little is left
                new = torch.linalg.qr(new - old @ (old.T @ new))[0]
            self.vectors = torch.cat([old, new], dim=1)
        self.images = gramian_times(linearisation, self.vectors)

    def _smoothed(self, columns: Tensor) -> Tensor:
        like = self.system.zeros()
        smoothed = [self.smoother.apply(unflat(v, like)) for v in columns.T.contiguous()]
        return torch.stack([flat(v) for v in smoothed], dim=1)

    @torch.no_grad()
    def _factorise(self) -> None:
        """F from the eigenvalues of VᵀJᵀJV + λ; directions in which it is not positive beyond
        rounding are left to the smoother."""
        coarse = self.vectors.T @ self.images
        values, vectors = symmetric_eigen((coarse + coarse.T) / 2)
        values = values + self.damping
        rounding = len(values) * torch.finfo(values.dtype).eps
        keep = values > rounding * values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)
        self.solver = vectors[:, keep] * values[keep].rsqrt()

    @torch.no_grad()
    def apply(self, v: Direction) -> Direction:
        fine, vectors, images, damping = flat(v), self.vectors, self.images, self.damping
        coarse = self.solver @ (self.solver.T @ (vectors.T @ fine))
        left = fine - images @ coarse - damping * (vectors @ coarse)
        smoothed = flat(self.smoother.apply(unflat(left, v)))
        image = images.T @ smoothed + damping * (vectors.T @ smoothed)
        return unflat(smoothed + vectors @ (coarse - self.solver @ (self.solver.T @ image)), v)

    def state_dict(self) -> dict[str, Any]:
        return {"smoother": self.smoother.state_dict(), "vectors": self.vectors}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.smoother.load_state_dict(state["smoother"])
        self.vectors = state["vectors"]
