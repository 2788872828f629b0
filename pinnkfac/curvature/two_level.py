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
from torch import Tensor

from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, Number
from pinnkfac.curvature.base import Curvature, Situation, Solver
from pinnkfac.curvature.kfac import KroneckerFactors
from pinnkfac.curvature.kronecker import symmetric_eigen
from pinnkfac.curvature.nystrom import random_columns
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layout import flat, flat_columns
from pinnkfac.linearisation.objective import Objective
from pinnkfac.linearisation.products import gramian_times


@dataclass(frozen=True)
class TwoLevelState:
    """Coarse vectors V [param, coarse], the oldest first, and what the smoother keeps."""

    smoother: Any
    vectors: Tensor


@dataclass(frozen=True)
class TwoLevel(Curvature[TwoLevelState]):
    """A smoother, and a sketched space of which every step replaces the oldest vectors.

    New vectors span M⁻¹JᵀJ Ω for random Ω: directions whose curvature the smoother underestimates.
    """

    smoother: Curvature[Any] = field(default_factory=KroneckerFactors)
    """a preconditioner for all but the coarse space"""
    coarse: Count = 30
    """vectors of the coarse space; each costs two products with the Jacobian a step"""
    refresh: Number = 3
    """of them drawn anew in every step; each costs two products more"""

    @property
    def kept(self) -> str:
        return " and ".join(filter(None, (self.smoother.kept, "coarse space")))

    def start(self, objective: Objective) -> TwoLevelState:
        layout = objective.layout
        vectors = torch.zeros(layout.number, 0, dtype=layout.dtype, device=layout.device)
        return TwoLevelState(self.smoother.start(objective), vectors)

    def at(self, situation: Situation, state: TwoLevelState) -> Solver:
        smoother = self.smoother.at(situation, state.smoother)
        with making("the coarse space", "step.preconditioner.coarse"):
            vectors = self._refreshed(situation, smoother, state.vectors)
            return TwoLevelSolver(situation, smoother, vectors)

    @torch.no_grad()
    def _refreshed(self, situation: Situation, smoother: Solver, vectors: Tensor) -> Tensor:
        """New vectors, orthonormal to each other and to those that stay, behind these."""
        linearisation = situation.linearisation
        size, held = vectors.shape
        most = min(self.coarse, size)
        number = min(self.refresh, most) if held else most
        if not number:
            return vectors
        stay = vectors[:, held - (most - number) :]
        random = random_columns(size, number, linearisation.residual, situation.generator)
        images = linearisation.layout.unflat_columns(gramian_times(linearisation, random))
        new = flat_columns([smoother.apply(v) for v in images])
        for _ in range(2):  # once is not enough where little is left
            new = torch.linalg.qr(new - stay @ (stay.T @ new))[0]
        return torch.cat([stay, new], dim=1)


class TwoLevelSolver(Solver):
    """``images`` are JᵀJ V, and ``factor`` is F [coarse, kept] with F Fᵀ = E⁻¹."""

    @torch.no_grad()
    def __init__(self, situation: Situation, smoother: Solver, vectors: Tensor) -> None:
        super().__init__(situation, TwoLevelState(smoother.state, vectors))
        self.layout = situation.linearisation.layout
        self.smoother = smoother
        self.vectors = vectors
        self.images = gramian_times(situation.linearisation, vectors)
        coarse = vectors.T @ self.images
        values, bases = symmetric_eigen((coarse + coarse.T) / 2)
        values = values + self.damping
        rounding = len(values) * torch.finfo(values.dtype).eps
        # Directions that are not positive beyond rounding are left to the smoother.
        keep = values > rounding * values.abs().max().clamp_min(torch.finfo(values.dtype).tiny)
        self.factor = bases[:, keep] * values[keep].rsqrt()

    @torch.no_grad()
    def apply(self, v: Direction) -> Direction:
        fine, vectors, images, damping = flat(v), self.vectors, self.images, self.damping
        coarse = self.factor @ (self.factor.T @ (vectors.T @ fine))
        left = fine - images @ coarse - damping * (vectors @ coarse)
        smoothed = flat(self.smoother.apply(self.layout.unflat(left)))
        image = images.T @ smoothed + damping * (vectors.T @ smoothed)
        correction = coarse - self.factor @ (self.factor.T @ image)
        return self.layout.unflat(smoothed + vectors @ correction)
