"""The Gramian JᵀJ: exact, as one matrix, by layer, or its diagonal (arXiv:2302.13163).

Rows of J are made in pieces and never kept. A layer here is one entry of a Direction: a linear
layer with its bias, and last the parameters outside of layers (scales, unknown coefficients).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Annotated, Literal

import torch
from torch import Tensor

from pinnkfac.common.errors import Diverged, check_choice
from pinnkfac.common.memory import check_fits, making
from pinnkfac.common.parallel import write
from pinnkfac.common.settings import Range
from pinnkfac.curvature.averaging import Average, Start, equal
from pinnkfac.curvature.base import Curvature, Situation, Solver
from pinnkfac.curvature.factors import dense_gramian
from pinnkfac.curvature.kernel import layer_kernel
from pinnkfac.curvature.kronecker import floored
from pinnkfac.curvature.solve import solve_damped
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.direction import Direction, is_finite
from pinnkfac.linearisation.layout import Layout, flat
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.objective import Objective

Approximation = Literal["full", "layerwise", "diagonal"]
Factorisation = Literal["cholesky", "jacobi", "least-squares"]
PANEL = 256
"""Rows of a Gramian that one thread adds to at once."""


@dataclass(frozen=True)
class GramianSettings:
    """What of the Gramian is taken, and how it is averaged: G ← decay·G + (1 − decay)·new."""

    approximation: Approximation = "layerwise"
    """full, layerwise or diagonal"""
    decay: Annotated[float, Range(least=0, below=1)] = 0.0
    """of the exponential average of the Gramian as a whole; 0: that of the step alone"""
    start: Start = "bias-corrected"
    """of that average: the identity, zero, or bias-corrected, zero with its bias divided out"""

    def __post_init__(self) -> None:
        check_choice("step.gramian.approximation", self.approximation, Approximation)
        check_choice("step.gramian.start", self.start, Start)


def gramian(linearisation: Linearisation) -> Tensor:
    """JᵀJ of all parameters, [param, param]."""
    return gramians(linearisation, [linearisation.layout.number])[0]


def diagonal_gramian(linearisation: Linearisation) -> Direction:
    """The diagonal of JᵀJ, in the form of a direction."""

    def add(total: list[Tensor], block: Block) -> None:
        for part, layer in zip(total, block.layers, strict=False):
            layer.add_squares(part, block.weight)
        if block.dense is not None:
            total[-1].add_(block.dense.square().sum((0, 1)), alpha=block.weight)

    return linearisation.sum(linearisation.layout.zeros, add)


@torch.no_grad()
def gramians(linearisation: Linearisation, widths: Sequence[int]) -> list[Tensor]:
    """Diagonal blocks of JᵀJ of the given widths, which cover all parameters."""
    layout = linearisation.layout
    totals = [linearisation.residual.new_zeros(n, n) for n in widths]
    starts = [0, *accumulate(widths)]
    places = [
        (total, start, low, min(low + PANEL, len(total)))
        for total, start in zip(totals, starts, strict=False)
        for low in range(0, len(total), PANEL)
    ]
    panels = [
        ([total[low:high, :high]], slice(start, start + high)) for total, start, low, high in places
    ]

    for block in linearisation:
        for piece in block.pieces(layout.number):
            rows = piece.jacobian(layout)

            def add(panel: Sequence[Tensor], columns: slice, rows: Tensor = rows) -> None:
                right = rows[:, columns]
                panel[0].addmm_(right[:, -len(panel[0]) :].T, right)

            write(linearisation.workers, add, reversed(panels))
    for total, _, low, high in places:
        corner = total[low:high, low:high]
        corner.copy_(corner.tril() + corner.tril(-1).T)  # symmetric to the last bit
        total[:low, low:high] = total[low:high, :low].T
    return totals


class Full:
    """JᵀJ as one matrix."""

    cheaper = "layerwise"
    diagonals = False

    def widths(self, layout: Layout) -> Sequence[int]:
        """Of the matrices that are factorised."""
        return [layout.number]

    def matrices(self, linearisation: Linearisation) -> list[Tensor]:
        return gramians(linearisation, self.widths(linearisation.layout))

    def solve(self, matrices: list[Tensor], v: Direction, solver: GramianSolver) -> Direction:
        """(G + bλ)⁻¹ v."""
        return solver.linearisation.layout.unflat(solver.solve(matrices[0], flat(v)))


class Layerwise(Full):
    """The blocks of layers."""

    cheaper = "diagonal"

    def widths(self, layout: Layout) -> Sequence[int]:
        return layout.sizes

    def solve(self, matrices: list[Tensor], v: Direction, solver: GramianSolver) -> Direction:
        pairs = list(zip(matrices, v, strict=True))
        return solver.linearisation.workers.map(lambda pair: solver.solve(*pair), pairs)


class OnlyDiagonal(Full):
    """The diagonal; entries of the sum with λ not below ε times the largest."""

    diagonals = True

    def widths(self, layout: Layout) -> Sequence[int]:
        return []

    def matrices(self, linearisation: Linearisation) -> list[Tensor]:
        return diagonal_gramian(linearisation)

    def solve(self, matrices: list[Tensor], v: Direction, solver: GramianSolver) -> Direction:
        for pair in zip(matrices, v, strict=True):
            _check_finite(*pair)
        sums = [d + solver.shift for d in matrices]
        return [g / floored(s, torch.finfo(s.dtype).eps) for g, s in zip(v, sums, strict=True)]


APPROXIMATIONS = {"full": Full(), "layerwise": Layerwise(), "diagonal": OnlyDiagonal()}


@dataclass(frozen=True)
class GramianState:
    """An average, and the scales of the equations that it is for."""

    average: Average = field(default_factory=Average)
    scales: list[Tensor] | None = None


@dataclass(frozen=True)
class ExactGramian(Curvature[GramianState]):
    """C = JᵀJ or its layers or diagonal, averaged; anew where the scales of equations change.

    Blocks of layers that are not averaged are solved through their kernels where residuals are
    fewer. Raises UserError where the Gramian does not fit into memory.
    """

    gramian: GramianSettings = field(default_factory=GramianSettings)
    solver: Factorisation = "jacobi"

    def __post_init__(self) -> None:
        check_choice("step.solver", self.solver, Factorisation)

    @property
    def kept(self) -> str:
        return "Gramian" if self.gramian.decay else ""

    def start(self, objective: Objective) -> GramianState:
        if self.gramian.approximation == "full":
            self._check_memory(objective.layout)
        return GramianState()

    def _check_memory(self, layout: Layout) -> None:
        approximation = APPROXIMATIONS[self.gramian.approximation]
        numbers = [n * n for n in approximation.widths(layout)]
        copies = 2 if self.gramian.decay else 1
        check_fits(
            (copies * sum(numbers) + max(numbers, default=0)) * torch.finfo(layout.dtype).bits / 8,
            f"the Gramian of {layout.number} parameters and its factor",
            f"net.widths, or set step.gramian.approximation={approximation.cheaper}",
            layout.device,
        )

    def at(self, situation: Situation, state: GramianState) -> Solver:
        linearisation, settings = situation.linearisation, self.gramian
        if self._by_kernels(linearisation):
            return LayerKernels(situation, self.solver, state)
        if settings.approximation != "full":  # that is checked at the start
            self._check_memory(linearisation.layout)
        average = state.average
        if not equal(linearisation.scales, state.scales):
            average = Average()
        with making("the Gramian", "net.widths"):
            approximation = APPROXIMATIONS[settings.approximation]
            average = average.updated(
                approximation.matrices(linearisation),
                settings.decay,
                settings.start,
                diagonals=approximation.diagonals,
            )
        # without decay it is that of this step alone
        after = GramianState(average, linearisation.scales) if settings.decay else GramianState()
        return GramianSolver(situation, self, average, after)

    def _by_kernels(self, linearisation: Linearisation) -> bool:
        """Whether factorising a kernel a layer is cheaper than factorising the blocks."""
        if self.gramian.approximation != "layerwise" or self.gramian.decay:
            return False
        layout = linearisation.layout
        layers = layout.sizes[: len(layout.layers)]
        fewer = len(layers) * len(linearisation.residual) ** 3 < sum(n**3 for n in layers)
        return fewer and self.solver != "least-squares"


class GramianSolver(Solver):
    """Solves with averaged matrices; raises Diverged where they or the gradient are not finite.

    With the bias b of an average G, (G/b + λ)⁻¹ v = (G + bλ)⁻¹ bv: no copy of G is corrected.
    """

    def __init__(
        self, situation: Situation, settings: ExactGramian, average: Average, state: GramianState
    ) -> None:
        super().__init__(situation, state)
        self.settings = settings
        self.average = average
        self.bias = average.bias(settings.gramian.decay, settings.gramian.start)
        self.shift = self.bias * self.damping

    def apply(self, v: Direction) -> Direction:
        approximation = APPROXIMATIONS[self.settings.gramian.approximation]
        with making("the factor of the Gramian", "net.widths"):
            return approximation.solve(self.average.total, [self.bias * part for part in v], self)

    def solve(self, matrix: Tensor, v: Tensor) -> Tensor:
        """(matrix + bλ)⁻¹ v, in the form of v."""
        right, solver = v.reshape(-1), self.settings.solver
        if solver == "least-squares":
            return _minimum_norm(matrix, right, self.shift).view_as(v)
        return solve_damped(matrix, right, self.shift, jacobi=solver == "jacobi").view_as(v)


class LayerKernels(Solver):
    """Blocks of layers through their kernels, for fewer residuals than a layer has parameters.

    With J_l the columns of a layer, (J_lᵀJ_l + λ)⁻¹ J_lᵀ r = J_lᵀ (J_l J_lᵀ + λ)⁻¹ r: a system of
    as many equations as there are residuals, however wide the layer.
    """

    curvature = "gramian.ExactGramian with few residuals"

    def __init__(self, situation: Situation, solver: Factorisation, state: GramianState) -> None:
        super().__init__(situation, state)
        self.jacobi = solver == "jacobi"

    def direction(self, gradient: Direction) -> Direction:
        right, layers = -self.linearisation.residual, self.linearisation.layout.layers
        result = [self.solve(n, right) for n in range(len(layers))]
        if len(gradient) > len(result):
            block = dense_gramian(self.linearisation)
            result.append(solve_damped(block, -gradient[-1], self.damping, jacobi=self.jacobi))
        return result

    def solve(self, number: int, right: Tensor) -> Tensor:
        """(J_lᵀJ_l + λ)⁻¹ J_lᵀ right of one layer, [out, in + bias], for right [residual]."""
        matrix = layer_kernel(self.linearisation, number)
        return self._vjp(number, solve_damped(matrix, right, self.damping, jacobi=self.jacobi))

    def _vjp(self, number: int, w: Tensor) -> Tensor:
        linearisation = self.linearisation

        def add(total: list[Tensor], block: Block, part: Tensor) -> None:
            weights = block.weight**0.5 * part.view(block.batch, block.equations)
            block.layers[number].vjp(weights, total[0])

        def zeros() -> list[Tensor]:
            return [linearisation.residual.new_zeros(linearisation.layout.layers[number])]

        return linearisation.sum(zeros, add, linearisation.split(w))[0]


def _minimum_norm(matrix: Tensor, right: Tensor, damping: float) -> Tensor:
    """The minimum-norm solution, on the CPU: other devices have no such driver."""
    _check_finite(matrix, right)
    damped = matrix.detach().clone().cpu()
    damped.diagonal().add_(damping)
    solution = torch.linalg.lstsq(damped, right.cpu()[:, None], driver="gelsd").solution
    return solution[:, 0].to(right)


def _check_finite(*values: Tensor) -> None:
    if not is_finite(*values):
        raise Diverged("the Gramian or the gradient is NaN or infinite: training diverged")
