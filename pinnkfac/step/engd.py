"""Energy natural gradient descent: steps with the exact Gramian, or its layers or diagonal."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import Diverged, check_choice
from pinnkfac.common.memory import check_fits, making
from pinnkfac.curvature.gramian import GramianAverage, GramianSettings
from pinnkfac.curvature.kfac import dense_gramian
from pinnkfac.curvature.kronecker import floored
from pinnkfac.curvature.layer_kernels import solve_layer
from pinnkfac.curvature.solve import solve_damped
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import Linearisation, System
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Automatic, Descent, GaussNewtonStepper
from pinnkfac.step.search import Search

Solver = Literal["cholesky", "jacobi", "least-squares"]


@dataclass(frozen=True)
class Engd:
    """δ = −(G + λ)⁻¹∇loss with G the Gramian JᵀJ (Müller & Zeinhofer 2023, arXiv:2302.13163).

    ``solver``: 'cholesky'; 'jacobi', the same after scaling to a unit diagonal; or the
    minimum-norm 'least-squares' of the code behind arXiv:2405.15603 (LAPACK's gelsd). With
    ``lengths=None`` the search decides how far to go along δ; with ``Automatic`` the quadratic
    model decides, and the search only checks.
    """

    gramian: GramianSettings = field(default_factory=GramianSettings)
    """what of the Gramian is taken, and how it is averaged"""
    solver: Solver = "jacobi"
    """jacobi: Cholesky after scaling to a unit diagonal; cholesky; least-squares: minimum norm, as
    published"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        check_choice("step.solver", self.solver, Solver)

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonStepper:
        """Raises UserError where the Gramian does not fit into memory."""
        descent = EngdDescent(self, system)
        return GaussNewtonStepper(system, descent, search, damping, lengths=self.lengths)


class EngdDescent(Descent):
    """The averaged Gramian and its solves.

    Blocks of layers that are not averaged are solved through their kernels where residuals are
    fewer; then the gradient has to be that of the linearisation, Jᵀr.
    """

    def __init__(self, settings: Engd, system: System) -> None:
        self.settings = settings
        self.system = system
        self.sizes = [v.numel() for v in system.get_parameters()]
        self.restart()
        if settings.gramian.approximation == "full":
            self._check_memory(sum(self.sizes) ** 2, sum(self.sizes) ** 2, "layerwise")

    def _check_memory(self, all_blocks: int, largest: int, cheaper: str) -> None:
        """Refuse Gramians of so many numbers, of which the largest is factorised."""
        kept = 2 if self.settings.gramian.decay else 1
        check_fits(
            (kept * all_blocks + largest) * torch.finfo(self.system.dtype).bits / 8,
            f"the Gramian of {sum(self.sizes)} parameters and its factor",
            f"net.widths, or set step.gramian.approximation={cheaper}",
        )

    def restart(self) -> str:
        self.average = GramianAverage(self.settings.gramian)
        return "Gramian" if self.settings.gramian.decay else ""

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        if self._by_kernels(linearisation):
            return
        if self.settings.gramian.approximation == "layerwise":
            squares = [n * n for n in self.sizes]
            self._check_memory(sum(squares), max(squares), "diagonal")
        with making("the Gramian", "net.widths"):
            self.average.update(linearisation)

    def _by_kernels(self, linearisation: Linearisation) -> bool:
        """Whether factorising a kernel a layer is cheaper than factorising the blocks."""
        own, layers = self.settings, len(self.system.graph.linears)
        if own.gramian.approximation != "layerwise" or own.gramian.decay:
            return False
        fewer = layers * len(linearisation.residual) ** 3 < sum(n**3 for n in self.sizes[:layers])
        return fewer and own.solver != "least-squares"

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        """Raises Diverged where the Gramian or the gradient is not finite."""
        if self._by_kernels(linearisation):
            return self._solve_kernels(linearisation, gradient, damping)
        values = self.average.values
        approximation = self.settings.gramian.approximation
        with making("the factor of the Gramian", "net.widths"):
            if approximation == "diagonal":
                return [-_divided(g, d, damping) for g, d in zip(gradient, values, strict=True)]
            if approximation == "layerwise":
                pairs = list(zip(values, gradient, strict=True))
                return self.system.workers.map(lambda pair: self._solve(*pair, damping), pairs)
            flat = torch.cat([g.reshape(-1) for g in gradient])
            parts = self._solve(values[0], flat, damping).split([g.numel() for g in gradient])
        return [part.view_as(g) for part, g in zip(parts, gradient, strict=True)]

    def _solve_kernels(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        jacobi, right = self.settings.solver == "jacobi", -linearisation.residual
        layers = range(len(self.system.graph.linears))
        result = [solve_layer(linearisation, n, right, damping, jacobi=jacobi) for n in layers]
        if len(gradient) > len(result):
            result.append(self._solve(dense_gramian(linearisation), gradient[-1], damping))
        return result

    def _solve(self, matrix: Tensor, gradient: Tensor, damping: float) -> Tensor:
        """−(matrix + damping)⁻¹ gradient, in the gradient's form."""
        right = -gradient.reshape(-1)
        solver = self.settings.solver
        if solver == "least-squares":
            return _least_squares(matrix, right, damping).view_as(gradient)
        return solve_damped(matrix, right, damping, jacobi=solver == "jacobi").view_as(gradient)

    def state_dict(self) -> dict[str, Any]:
        return self.average.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state)


def _least_squares(matrix: Tensor, right: Tensor, damping: float) -> Tensor:
    """The minimum-norm solution, on the CPU: other devices have no such driver."""
    _check(matrix, right)
    damped = matrix.detach().clone().cpu()
    damped.diagonal().add_(damping)
    solution = torch.linalg.lstsq(damped, right.cpu()[:, None], driver="gelsd").solution
    return solution[:, 0].to(right)


def _divided(gradient: Tensor, diagonal: Tensor, damping: float) -> Tensor:
    """(diagonal + damping)⁻¹ gradient; entries of the sum not below ε times the largest."""
    _check(diagonal, gradient)
    return gradient / floored(diagonal + damping, torch.finfo(diagonal.dtype).eps)


def _check(*values: Tensor) -> None:
    if not all(bool(torch.isfinite(v).all()) for v in values):
        raise Diverged("the Gramian or the gradient is NaN or infinite: training diverged")
