"""Coefficients of random features by least squares: one solve of linear equations, Newton's
method for others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import System

ITERATIONS = 8
"""Steps of Newton's method at most."""
HALVINGS = 4
"""How often a step that does not lower the loss is halved."""
LINEAR = 1e-6
"""Part of the loss by which that of a linear equation may differ from what a step predicts."""
ENOUGH = 0.2
"""A step that leaves more of the loss is the last one: Newton's method is not near a solution."""


@dataclass(frozen=True)
class Solved:
    """In how many steps, and whether the equations are ``linear`` in the coefficients."""

    steps: int
    linear: bool


def solve(system: System, points: Sequence[TermPoints], most: int = ITERATIONS) -> Solved:
    """Minimise the loss at these points over all that is trained, which is one linear layer, in
    at ``most`` so many steps.

    Each is δ = argmin ‖J δ + r‖ by the singular value decomposition of J, whose columns are scaled
    to norm 1: normal equations would lose half of the digits.
    """
    loss = system.loss(points)
    most = min(most, ITERATIONS)
    for iteration in range(most):
        start = system.get_parameters()
        step, predicted = _least_squares(system, points)
        reached = _moved(system, points, start, step, loss)
        if not reached < loss:
            system.set_parameters(start)
            return Solved(iteration + 1, linear=False)
        linear = iteration == 0 and abs(reached - predicted) <= LINEAR * loss
        if linear or reached > ENOUGH * loss:
            return Solved(iteration + 1, linear)
        loss = reached
    return Solved(most, linear=False)


def _moved(
    system: System, points: Sequence[TermPoints], start: Direction, step: Tensor, loss: float
) -> float:
    """The loss after the longest step that lowers it, of length 1, ½, ¼ …"""
    reached = math.inf
    for halving in range(HALVINGS + 1):
        moved = [v.clone() for v in start]
        moved[0] += 0.5**halving * step.view_as(moved[0])
        reached = system.loss(points, moved)
        if reached < loss:
            break
    return reached


def _least_squares(system: System, points: Sequence[TermPoints]) -> tuple[Tensor, float]:
    """The step [param], and the loss that it leads to if the equations are linear."""
    j, r = jacobian(system, points)
    norms = j.norm(dim=0).clamp_min(torch.finfo(j.dtype).tiny)
    # the decomposition that tells a rank is LAPACK's
    scaled, target = (j / norms).cpu(), -r.cpu()
    eps = torch.finfo(j.dtype).eps
    solution = torch.linalg.lstsq(scaled, target[:, None], rcond=100 * eps, driver="gelsd").solution
    left = scaled @ solution[:, 0] - target
    return solution[:, 0].to(j) / norms, 0.5 * float(left.square().sum())


def jacobian(system: System, points: Sequence[TermPoints]) -> tuple[Tensor, Tensor]:
    """J [residual, param] of a net in which one linear layer is trained, and r [residual]."""
    rows: list[Tensor] = []
    residuals: list[Tensor] = []
    for block in system.linearise(points):
        root = math.sqrt(block.weight)
        for e in range(block.equations):
            rows.append(block.layers[0].jacobian(e, root).flatten(1))
            residuals.append(root * block.residual[:, e])
    return torch.cat(rows), torch.cat(residuals)
