"""What steps cost, in multiplications, from counts alone: points, rows, equations and widths.

What is not a matrix product (activations, copies, factorisations) counts as the multiplications
that take as long; measured with experiments/kernel_cost.py. Times are proportional to these within
a factor of about 1.5, and decisions that are made by them do not depend on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence

from pinnkfac.curvature.kernel import plan_kernel
from pinnkfac.linearisation.block import PIECE
from pinnkfac.linearisation.workload import Workload

TRIALS = 3.0
"""Losses that a line search evaluates."""
REFINED, CORRECTED = 8.0, 4.0
"""Products with J or Jᵀ, and losses, that exact steps take besides near a solution: between none
and three times as many (least_squares.py, step/path.py)."""
ACTIVATION = 150.0
"""One entry of a layer's output in a forward pass, beside its products."""
ENTRY = 90.0
"""One entry of a layer's output in a product with J or Jᵀ, or of z or g in Kronecker factors."""
BACKWARD = 2.0
"""The backward pass of a linearisation, in products with J."""
EIGEN, EIGEN_ENTRY = 5.0, 1200.0
"""A symmetric eigendecomposition of n × n, in n³ and in n²."""
CHOLESKY_ENTRY = 700.0
"""One entry of a matrix whose Cholesky factor is taken, beside n³/6."""
JACOBIAN_ENTRY = 130.0
"""One entry of all rows of J."""


def forward(workload: Workload, points: Sequence[int]) -> float:
    """One evaluation of the residuals at so many points of every term."""
    return workload.rows(points) * _layers(workload, ACTIVATION)


def product(workload: Workload, points: Sequence[int]) -> float:
    """One product with J, or with Jᵀ."""
    return workload.adjoints(points) * _layers(workload, ENTRY)


def _layers(workload: Workload, entry: float) -> float:
    """Multiplications of one row with the weights of all linear layers, once for every use."""
    return sum(uses * (inputs + entry) * outputs for inputs, outputs, uses in workload.layers)


def exact_step(workload: Workload, points: Sequence[int]) -> float:
    """A step through the kernel, or through J where parameters are fewer (least_squares.py), with
    geodesic acceleration."""
    residuals, parameters = workload.residuals(points), workload.parameters
    products = 6 + BACKWARD + REFINED
    once = (2 + TRIALS + CORRECTED) * forward(workload, points)
    once += products * product(workload, points)
    if parameters < residuals:
        factor = residuals * parameters**2 + parameters**3 / 6 + CHOLESKY_ENTRY * parameters**2
        return once + JACOBIAN_ENTRY * residuals * parameters + factor
    factor = residuals**3 / 6 + CHOLESKY_ENTRY * residuals**2
    return once + plan_kernel(workload, points).multiplications + factor


def conjugate_gradient_step(workload: Workload, points: Sequence[int], iterations: int) -> float:
    """A step of KFAC with so many conjugate-gradient iterations."""
    products = 3 + BACKWARD + 2 * iterations
    total = (1 + TRIALS) * forward(workload, points) + products * product(workload, points)
    rows = workload.adjoints(points)
    for inputs, outputs, uses in workload.layers:
        for n in (inputs, outputs):
            total += uses * rows * (0.75 * n**2 + ENTRY * n)
            total += EIGEN * n**3 + EIGEN_ENTRY * n**2
        total += 2.0 * max(1, iterations) * inputs * outputs * (inputs + outputs)
    return total


def exact_bytes(workload: Workload, points: Sequence[int]) -> float:
    """What the kernel and its factor, or JᵀJ, its factor and a piece of J, take at most."""
    residuals, parameters = workload.residuals(points), workload.parameters
    if parameters < residuals:
        return 8.0 * (3 * parameters**2 + min(PIECE, residuals * parameters))
    return 24.0 * residuals**2
