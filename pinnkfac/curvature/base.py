"""What a curvature is: from a linearisation and what it kept, to solves with C + λ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.objective import Objective

State = TypeVar("State")


@dataclass(frozen=True)
class Situation:
    """Where a step is taken from: ``damping`` is λ in units of the curvature, ``step`` its number,
    ``generator`` for what is drawn, ``loss(δ)`` the loss at θ + δ."""

    linearisation: Linearisation
    damping: float
    step: int
    generator: Generator
    loss: Callable[[Direction], float]


class Solver:
    """(C + λ)⁻¹ at one linearisation, for C the Gramian JᵀJ or an approximation to it.

    A new one overrides ``apply``, or, where it knows only (C + λ)⁻¹ Jᵀ, ``direction``; what it does
    not override raises UserError.
    """

    curvature: str = "this curvature"
    """Its name where the solver has no ``apply``."""
    unit: float = 1.0
    """What a damping of 1 in the settings is; solvers have absolute dampings."""
    least_damping: float = 0.0
    """The smallest one that was known apart from zero, for rounding, in what was solved."""
    near: bool = False
    """Whether λ is one of those near a solution: steps are corrected at these only."""

    def __init__(self, situation: Situation, state: Any = None) -> None:
        self.linearisation = situation.linearisation
        self.damping = situation.damping
        """λ, absolute."""
        self.state = state
        """What the curvature keeps from here on: a dataclass of tensors and numbers, or None."""

    def apply(self, v: Direction) -> Direction:
        """(C + λ)⁻¹ v: symmetric and positive definite."""
        raise UserError(
            f"{self.curvature} gives the direction of a step alone, and is no preconditioner or "
            "smoother: choose another one, such as kfac.KroneckerFactors"
        )

    def direction(self, gradient: Direction) -> Direction:
        """δ = −(C + λ)⁻¹ gradient, for the gradient Jᵀr of the linearisation."""
        return self.apply([-v for v in gradient])

    def least_squares(self, right: Tensor, *, refined: bool = True) -> Direction:
        """The minimiser x of ‖J x − right‖² + λ‖x‖² for a flat right [residual]; not ``refined``:
        as far as it costs little once ``direction`` was asked for.

        Only exact curvatures have one.
        """
        raise UserError(
            f"{self.curvature} has no least squares with J, which lengths=Projection, a "
            "geodesic path and corrections need: choose the curvature least_squares.Exact, or "
            "lengths=Momentum and a path without these"
        )


class Applied(Solver):
    """A solver whose ``apply`` is the function that it is made with."""

    def __init__(
        self, situation: Situation, function: Callable[[Direction], Direction], state: Any = None
    ) -> None:
        super().__init__(situation, state)
        self.function = function

    def apply(self, v: Direction) -> Direction:
        return self.function(v)


class Curvature(Generic[State]):
    """The settings of a curvature; what it keeps between steps is a state of its own.

    A new one overrides ``at``, and ``start`` where it keeps something.
    """

    @property
    def kept(self) -> str:
        """What the state consists of, in words, such as 'factors'."""
        return ""

    def start(self, objective: Objective) -> State:
        """The state before the first step; raises UserError where the curvature cannot be."""
        return None  # type: ignore[return-value]

    def at(self, situation: Situation, state: State) -> Solver:
        """Take in a linearisation: averages, inverses. The solver has the next state."""
        raise NotImplementedError
