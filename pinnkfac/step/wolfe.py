"""Step lengths that satisfy the strong Wolfe conditions, which keep quasi-Newton matrices positive
definite. The search is SciPy's."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from scipy.optimize import line_search

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Count, Fraction, Range

Function = Callable[[float], float]

SHORTER = 1e-3
"""Factor on the first length where none was found from there: SciPy zooms ten times at most."""
ATTEMPTS = 4


@dataclass(frozen=True)
class Found:
    """A step length (0: none lowers the loss), and how many losses were evaluated for it;
    ``exact``: both conditions hold."""

    length: float
    trials: int
    exact: bool


@dataclass(frozen=True)
class Wolfe:
    """Lengths α with f(α) ≤ f(0) + c₁ α f'(0) and |f'(α)| ≤ c₂ |f'(0)| (Nocedal & Wright 2006,
    alg. 3.5 and 3.6, as in scipy.optimize.line_search). Raises UserError unless c₁ < c₂."""

    sufficient: Annotated[float, Range(above=0, below=0.5)] = 1e-4
    """c₁ of the strong Wolfe conditions: part of the promised fall that is enough"""
    curvature: Fraction = 0.9
    """c₂ of them: part of the slope that may be left"""
    most: Count = 20
    """doublings of a length"""

    def __post_init__(self) -> None:
        if self.sufficient >= self.curvature:
            raise UserError(
                f"step.search.sufficient={self.sufficient:g} must be below "
                f"step.search.curvature={self.curvature:g}"
            )

    def run(
        self, loss: Function, derivative: Function, loss_0: float, slope: float, first: float = 1.0
    ) -> Found:
        """Search along a direction of descent, from the length ``first`` (at most 1) on.

        ``derivative(α)`` is asked for right after ``loss(α)``, and only where that is low enough;
        of the lengths where it was, the best is taken where none satisfies both conditions.
        """
        losses: dict[float, float] = {}
        lowest, best = loss_0, 0.0

        def value(at: np.ndarray) -> float:
            length = float(at[0])
            reached = loss(length)
            losses[length] = reached if math.isfinite(reached) else math.inf
            return losses[length]

        def gradient(at: np.ndarray) -> np.ndarray:
            nonlocal lowest, best
            length = float(at[0])
            if losses[length] < lowest:
                lowest, best = losses[length], length
            return np.array([derivative(length)])

        for _ in range(ATTEMPTS):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # a failure shows in the result
                factor, *_, final = line_search(
                    value,
                    gradient,
                    np.zeros(1),
                    np.array([first]),  # SciPy tries 1 times this first
                    np.array([slope]),
                    loss_0,
                    c1=self.sufficient,
                    c2=self.curvature,
                    maxiter=self.most,
                )
            if final is not None and losses[length := float(factor) * first] < loss_0:
                return Found(length, len(losses), True)
            if best > 0.0:
                break
            first *= SHORTER
        return Found(best, len(losses), False)
