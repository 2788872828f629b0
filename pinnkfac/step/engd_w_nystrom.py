"""ENGD-W for more points than an exact kernel can afford: JJᵀ by its products and a sketch.

    δ = −Jᵀ y,   (JJᵀ + λ) y = r

is the Gauss-Newton direction −(JᵀJ + λ)⁻¹∇loss in the space of residuals (Woodbury,
arXiv:2505.12149), where a vector is one number a residual. A randomised Nyström approximation K̂ of
JJᵀ either stands in for it, y = (K̂ + λ)⁻¹ r, as in that paper's randomised variant, or
preconditions conjugate gradients on JJᵀ itself, as in arXiv:2505.21404.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator, Tensor

from pinnkfac.common.memory import making
from pinnkfac.common.settings import Count, NonNegative, Number
from pinnkfac.curvature.conjugate_gradients import iterates, truncated
from pinnkfac.curvature.nystrom import Sketch, nystrom
from pinnkfac.linearisation.direction import Direction, combine
from pinnkfac.linearisation.products import kernel_products, vjps
from pinnkfac.linearisation.system import Linearisation, System
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Automatic, Descent, GaussNewtonStepper
from pinnkfac.step.search import Search


@dataclass(frozen=True)
class EngdWNystrom:
    """δ = −Jᵀ y with y ≈ (JJᵀ + λ)⁻¹ r from a sketch of JJᵀ with ``rank`` vectors.

    ``iterations`` of conjugate gradients at most, preconditioned by the sketch, stopped where they
    have stalled for ``progress`` (see ``has_stalled``); with 0, y = (K̂ + λ)⁻¹ r. A sketch costs
    ``rank`` products with J and Jᵀ, and is drawn anew in every step.
    """

    rank: Count = 100
    """vectors of the sketch; each costs two products with the Jacobian"""
    iterations: Number = 20
    """the most conjugate-gradient iterations on the kernel; 0: the sketch stands in for it"""
    progress: NonNegative = 5e-4
    """stop where the dual model falls by less than this part an iteration; 0: never"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonStepper:
        descent = KernelDescent(self, generator)
        return GaussNewtonStepper(system, descent, search, damping, lengths=self.lengths)


class KernelDescent(Descent):
    """The sketch of a step's kernel; nothing is kept between steps."""

    def __init__(self, settings: EngdWNystrom, generator: Generator) -> None:
        self.settings = settings
        self.generator = generator

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        with making("the sketch of the kernel", "step.rank"):
            sketch = self._sketch(linearisation)
            y = self._solve(linearisation, sketch, damping)
        return [-v for v in vjps(linearisation, y[None])[0]]

    def _sketch(self, linearisation: Linearisation) -> Sketch:
        residual = linearisation.residual
        return nystrom(
            lambda columns: kernel_products(linearisation, columns.T.contiguous()).T,
            len(residual),
            self.settings.rank,
            residual,
            self.generator,
        )

    def _solve(self, linearisation: Linearisation, sketch: Sketch, damping: float) -> Tensor:
        """y [residual], ≈ (JJᵀ + λ)⁻¹ r."""
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
