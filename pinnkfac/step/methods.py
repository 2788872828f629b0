"""Steps with names: combinations of the parts of gauss_newton.py, with their settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

from pinnkfac.common.errors import UserError, check_choice
from pinnkfac.common.settings import Count, NonNegative, Number, Range
from pinnkfac.curvature.base import Curvature
from pinnkfac.curvature.cg_fac import MatrixFree, RowSharing
from pinnkfac.curvature.conjugate_gradients import Refined, Truncated
from pinnkfac.curvature.ekfac import EigenvalueCorrected, Moments
from pinnkfac.curvature.factors import Factors
from pinnkfac.curvature.gramian import ExactGramian, Factorisation, GramianSettings
from pinnkfac.curvature.kfac import InverseSettings, KroneckerFactors
from pinnkfac.curvature.least_squares import Exact
from pinnkfac.curvature.nystrom import SketchedKernel
from pinnkfac.step.gauss_newton import GaussNewton, Method
from pinnkfac.step.lengths import Automatic, Constrained, Momentum, Projection, Published
from pinnkfac.step.path import Curved


def _refined(curvature: Curvature[Any], iterations: int) -> Curvature[Any]:
    return Refined(curvature, iterations) if iterations else curvature


@dataclass(frozen=True)
class Kfac(Method):
    """δ = −C⁻¹∇loss with C from Kronecker factors, refined on the exact damped Gramian; then
    momentum and step length (arXiv:2405.15603): KFAC where ``lengths`` is None, else KFAC*."""

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    inverse: InverseSettings = field(default_factory=InverseSettings)
    """how they become an inverse"""
    momentum: Annotated[float, Range(least=0, below=1)] = 0.0
    """fixed momentum; needs step.lengths=null"""
    iterations: Number = 0
    """conjugate-gradient iterations on the exact Gramian, preconditioned by the factors; each costs
    two products with the Jacobian"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        if self.momentum and self.lengths is not None:
            raise UserError(
                f"step.momentum={self.momentum} has no effect where step.lengths chooses it: set "
                "step.lengths=null for a fixed momentum, or step.momentum=0"
            )

    def parts(self) -> GaussNewton:
        curvature = _refined(KroneckerFactors(self.factors, self.inverse), self.iterations)
        return GaussNewton(curvature, self.lengths or Momentum(self.momentum))


@dataclass(frozen=True)
class Ekfac(Method):
    """δ = −C⁻¹∇loss with C from eigenbases and second moments (George et al. 2018,
    arXiv:1806.03884), refined on the exact damped Gramian; then the step length."""

    factors: Factors = field(default_factory=Factors)
    """how the Kronecker factors are made and averaged"""
    moments: Moments = field(default_factory=Moments)
    """the second moments along their eigenbases"""
    iterations: Number = 0
    """conjugate-gradient iterations on the exact Gramian, preconditioned by the factors; each costs
    two products with the Jacobian"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def parts(self) -> GaussNewton:
        curvature = _refined(EigenvalueCorrected(self.factors, self.moments), self.iterations)
        return GaussNewton(curvature, self.lengths or Momentum())


@dataclass(frozen=True)
class CgFac(Method):
    """δ by conjugate gradients, layer by layer, for (C + λ) δ = −∇loss, with C the Kronecker
    products of the last step's points, not formed (Chen 2021, arXiv:2101.00218)."""

    sharing: RowSharing = "expand"
    """how rows share a layer: expand or reduce; rows: one product for every row"""
    iterations: Count = 10
    """the most conjugate-gradient iterations a layer"""
    tolerance: NonNegative = 0.01
    """a layer stops where ‖r‖² is below this part of its start"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        check_choice("step.sharing", self.sharing, RowSharing)

    def parts(self) -> GaussNewton:
        curvature = MatrixFree(self.sharing, self.iterations, self.tolerance)
        return GaussNewton(curvature, self.lengths or Momentum())


@dataclass(frozen=True)
class Engd(Method):
    """δ = −(G + λ)⁻¹∇loss with G the Gramian JᵀJ (Müller & Zeinhofer 2023, arXiv:2302.13163)."""

    gramian: GramianSettings = field(default_factory=GramianSettings)
    """what of the Gramian is taken, and how it is averaged"""
    solver: Factorisation = "jacobi"
    """cholesky; jacobi: the same after scaling to a unit diagonal; least-squares: minimum norm
    (LAPACK's gelsd), as published"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        check_choice("step.solver", self.solver, Factorisation)

    def parts(self) -> GaussNewton:
        return GaussNewton(ExactGramian(self.gramian, self.solver), self.lengths or Momentum())


@dataclass(frozen=True)
class EngdWNystrom(Method):
    """δ = −Jᵀ y with y ≈ (JJᵀ + λ)⁻¹ r by conjugate gradients, preconditioned by a sketch K̂ of JJᵀ
    that is drawn anew in every step, or with y = (K̂ + λ)⁻¹ r."""

    rank: Count = 100
    """vectors of the sketch; each costs two products with the Jacobian"""
    iterations: Number = 20
    """the most conjugate-gradient iterations on the kernel; 0: the sketch stands in for it"""
    progress: NonNegative = 5e-4
    """stop where the dual model falls by less than this part an iteration; 0: never"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def parts(self) -> GaussNewton:
        curvature = SketchedKernel(self.rank, self.iterations, self.progress)
        return GaussNewton(curvature, self.lengths or Momentum())


@dataclass(frozen=True)
class GaussNewtonCg(Method):
    """δ ≈ −(JᵀJ + λ)⁻¹∇loss by preconditioned conjugate gradients: Hessian-free steps (Martens
    2010; Martens & Sutskever 2012)."""

    preconditioner: Curvature[Any] = field(default_factory=KroneckerFactors)
    """one of the options of preconditioner"""
    iterations: Count = 20
    """the most conjugate-gradient iterations in a step"""
    progress: NonNegative = 5e-4
    """stop where the quadratic model falls by less than this part an iteration; 0: never"""
    decay: Annotated[float, Range(least=0, most=1)] = 0.95
    """start from this part of the last solution; 0: from 0"""
    backtracking: bool = True
    """evaluate the loss at stored iterates, half to twice as far as the last step went, and take
    the best"""
    lengths: Automatic | None = field(default_factory=Automatic)
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        if not isinstance(self.preconditioner, Curvature):
            raise UserError(
                f"step.preconditioner={self.preconditioner} is none: choose one of the options of "
                "preconditioner, as 'list preconditioner' shows them"
            )

    def parts(self) -> GaussNewton:
        curvature = Truncated(
            self.preconditioner, self.iterations, self.progress, self.decay, self.backtracking
        )
        return GaussNewton(curvature, self.lengths or Momentum())


@dataclass(frozen=True)
class Spring(Method):
    """δ = μ φ + Jᵀ (J Jᵀ + λ)⁻¹ (−r − μ J φ) with φ the last step.

    With the ``decay`` μ = 0 this is ENGD-W (arXiv:2505.12149, eq. 5), with μ > 0 SPRING
    (arXiv:2401.10190, eq. 25; see ``Projection``). With fewer parameters than residuals, the same
    step is computed from JᵀJ. Raises UserError for a bent step beside ``published``.
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

    def parts(self) -> GaussNewton:
        lengths = Projection(self.decay, self.least_length)
        if self.published is not None:
            lengths = Constrained(self.decay, self.least_length, self.published)
        return GaussNewton(Exact(self.relative), lengths, Curved(self.geodesic, self.corrections))
