"""What steps cost, in multiplications, from counts alone: points, rows, equations and widths.

Times are proportional to these within a factor of about two; decisions that are made by them do
not depend on the machine, nor on what else it does.
"""

from __future__ import annotations

from collections.abc import Sequence

from pinnkfac.curvature.kernel import plan_kernel
from pinnkfac.linearise import System

EIGEN = 12.0
"""A symmetric eigendecomposition of n × n, in n³ multiplications (measured)."""
TRIALS = 3.0
"""Losses that a line search evaluates."""


def residual_number(system: System, numbers: Sequence[int]) -> int:
    """Residuals of so many points of every term."""
    return sum(n * t.residual.equations for n, t in zip(numbers, system.terms, strict=True))


def forward(system: System, numbers: Sequence[int]) -> float:
    """One evaluation of the residuals."""
    return sum(n * t.rows for n, t in zip(numbers, system.terms, strict=True)) * _weights(system)


def product(system: System, numbers: Sequence[int]) -> float:
    """One product with J, or with Jᵀ."""
    pairs = zip(numbers, system.terms, strict=True)
    return sum(n * t.rows * t.residual.equations for n, t in pairs) * _weights(system)


def _weights(system: System) -> float:
    """Entries of the weights of Linear layers, once for every use."""
    pairs = zip(system.graph.linears, system.graph.uses, strict=True)
    return float(sum(uses * m.in_features * m.out_features for m, uses in pairs))


def exact_step(system: System, numbers: Sequence[int]) -> float:
    """A step through the kernel, or through J where parameters are fewer (step/spring.py)."""
    residuals, parameters = residual_number(system, numbers), system.parameter_number
    once = forward(system, numbers) * (1 + TRIALS) + 4 * product(system, numbers)
    if parameters < residuals:
        return once + 2.0 * (residuals + parameters) * parameters**2
    solves = residuals**3 / 6 + 4.0 * residuals**2
    return once + plan_kernel(system, numbers).multiplications + solves


def conjugate_gradient_step(system: System, numbers: Sequence[int], iterations: int) -> float:
    """A step of KFAC with so many conjugate-gradient iterations (step/kfac.py)."""
    once = forward(system, numbers) * (1 + TRIALS) + (3 + 2 * iterations) * product(system, numbers)
    rows = sum(
        n * t.rows * t.residual.equations for n, t in zip(numbers, system.terms, strict=True)
    )
    for layer, uses in zip(system.graph.linears, system.graph.uses, strict=True):
        inputs, outputs = layer.in_features, layer.out_features
        once += uses * rows * (inputs**2 + outputs**2) / 2 + EIGEN * (inputs**3 + outputs**3)
        once += 4.0 * (1 + iterations) * inputs * outputs * (inputs + outputs)
    return once


def exact_bytes(system: System, numbers: Sequence[int]) -> float:
    """What the kernel and its factor, or J and its factors, take at once."""
    residuals, parameters = residual_number(system, numbers), system.parameter_number
    if parameters < residuals:
        return 24.0 * (residuals + parameters) * parameters
    return 24.0 * residuals**2
