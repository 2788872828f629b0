"""From what a curvature solves to the direction of a step: momentum, and how long it is."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from pinnkfac.common.settings import NonNegative, Number, Positive, Range
from pinnkfac.curvature.base import Solver
from pinnkfac.linearisation.direction import Direction, combine, norm
from pinnkfac.step.model import best_combination

LOST, GAINED = 0.5, 1.2
"""Factors on the decay after a plateau of the loss on unseen points, and after each new low."""


@dataclass(frozen=True)
class Taken:
    """The step that was taken, momentum included, without its bend and corrections, and its
    length in units of the direction (0: it was rejected)."""

    direction: Direction
    length: float

    @property
    def step(self) -> Direction:
        return [self.length * v for v in self.direction]


@dataclass(frozen=True)
class Combined:
    """A direction, the reduction of the loss that the model predicts for it (NaN: it does not),
    and the state with it."""

    direction: Direction
    predicted: float
    state: Any


class Lengths:
    """Settings, with a state apart from them. A new one overrides ``combine``, and the rest where
    it remembers something."""

    natural: bool = False
    """Whether a length of 1 is what the direction means: a shorter step is a failure."""

    def start(self) -> Any:
        return None

    def watched(self, state: Any, *, fell: bool) -> Any:
        """The loss on unseen points fell to a new low, or has not for some steps."""
        return state

    def combine(self, solver: Solver, gradient: Direction, state: Any) -> Combined:
        raise NotImplementedError

    def after(self, state: Any, taken: Taken) -> Any:
        return state

    def forget(self, state: Any) -> Any:
        """The parameters were changed by another method."""
        return self.start()

    def restart(self, state: Any) -> Any:
        """After a divergence."""
        return self.start()


@dataclass(frozen=True)
class Past:
    """Last directions or steps, the latest first, and how many were taken."""

    last: list[Direction] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True)
class Momentum(Lengths):
    """δ + ``decay`` · (last direction): the search decides how far to go."""

    decay: Annotated[float, Range(least=0, below=1)] = 0.0

    def start(self) -> Past:
        return Past()

    def combine(self, solver: Solver, gradient: Direction, state: Past) -> Combined:
        direction = solver.direction(gradient)
        for past in state.last:
            direction = combine((1.0, direction), (self.decay, past))
        return Combined(direction, math.nan, state)

    def after(self, state: Past, taken: Taken) -> Past:
        return Past([taken.direction] if self.decay else [], state.steps + 1)


@dataclass(frozen=True)
class Automatic(Lengths):
    """Step length and momentum from the exact quadratic model (KFAC*): the search only checks."""

    natural = True
    by_layer: bool = True
    """a length and a momentum for every layer"""
    memory: Number = 1
    """last steps that are directions too; 1, as published, is momentum"""
    first_length: Positive | None = None
    """of the first step, instead of the model's; published: 1e-6"""
    damped: bool = True
    """add λ‖step‖²/2 to the quadratic model"""

    def start(self) -> Past:
        return Past()

    def combine(self, solver: Solver, gradient: Direction, state: Past) -> Combined:
        newton = solver.direction(gradient)
        if state.steps == 0 and self.first_length is not None:
            return Combined([self.first_length * v for v in newton], math.nan, state)
        direction, predicted = best_combination(
            solver.linearisation,
            gradient,
            [newton, *state.last],
            solver.damping if self.damped else 0.0,
            by_layer=self.by_layer,
        )
        return Combined(direction, predicted, state)

    def after(self, state: Past, taken: Taken) -> Past:
        last = [taken.step, *state.last][: self.memory] if taken.length > 0 else []
        return Past(last, state.steps + 1)

    def forget(self, state: Past) -> Past:
        return Past([], state.steps)

    restart = forget


@dataclass(frozen=True)
class Projected:
    """φ, the part of the decay that is used, and the steps since the start or a divergence."""

    past: Direction | None = None
    trust: float = 1.0
    steps: int = 0


@dataclass(frozen=True)
class Projection(Lengths):
    """δ = μ φ + J⁺(−r − μ J φ) with φ the last step, μ the ``decay``, and J⁺ the damped least
    squares of an exact curvature: among all steps that fit the linearised residual, the one closest
    to μ φ (SPRING; Goldshlager, Abrahamsen & Lin 2024, arXiv:2401.10190, eq. 25).

    φ = 0 after a step that was shorter than ``least_length``, as momentum hurts where the residual
    is not almost linear along it; on a plateau of the loss on unseen points, where μ is lowered
    too; and with fewer parameters than residuals, where there is no choice among steps.
    """

    decay: Annotated[float, Range(least=0, below=1)] = 0.9
    least_length: NonNegative = 0.05

    def start(self) -> Projected:
        return Projected()

    def watched(self, state: Projected, *, fell: bool) -> Projected:
        if fell:
            return replace(state, trust=min(1.0, GAINED * state.trust))
        return replace(state, trust=LOST * state.trust, past=None)

    def combine(self, solver: Solver, gradient: Direction, state: Projected) -> Combined:
        if solver.linearisation.layout.number < len(solver.linearisation.residual):
            state = replace(state, past=None)
        return Combined(self._projected(solver, state), math.nan, state)

    def _projected(self, solver: Solver, state: Projected) -> Direction:
        decay, past = self.decay * state.trust, state.past
        right = -solver.linearisation.residual
        if past is None or not decay:
            return solver.least_squares(right)
        phi = solver.least_squares(right - decay * solver.linearisation.jvp(past))
        return combine((1.0, phi), (decay, past))

    def after(self, state: Projected, taken: Taken) -> Projected:
        remembered = self.decay > 0 and taken.length >= self.least_length and taken.length > 0
        return replace(state, past=taken.step if remembered else None, steps=state.steps + 1)

    def forget(self, state: Projected) -> Projected:
        return replace(state, past=None)

    def restart(self, state: Projected) -> Projected:
        return Projected(trust=state.trust)


@dataclass(frozen=True)
class Published:
    """The step min(``learning_rate``, √``norm_constraint`` / ‖φ‖) · φ of arXiv:2505.12149, instead
    of a line search; φ itself, not the step taken, is what the next one remembers."""

    learning_rate: Positive = 0.05
    """the longest step, in units of the direction"""
    norm_constraint: Positive = 1e-3
    """the largest square of a step's norm"""
    bias_correction: bool = True
    """divide the direction of step k by √(1 − decay^2k)"""


@dataclass(frozen=True)
class Constrained(Projection):
    """Projections with the published step length, which remember φ however many parameters there
    are."""

    published: Published = field(default_factory=Published)

    def watched(self, state: Projected, *, fell: bool) -> Projected:
        return super().watched(state, fell=fell) if fell else state

    def combine(self, solver: Solver, gradient: Direction, state: Projected) -> Combined:
        settings = self.published
        phi = self._projected(solver, state)
        state = replace(state, past=phi, steps=state.steps + 1)
        correction = 1.0
        if settings.bias_correction:
            correction = math.sqrt(1.0 - (self.decay * state.trust) ** (2 * state.steps))
        size = norm(phi) / correction
        limit = math.sqrt(settings.norm_constraint) / size if size > 0 else math.inf
        length = min(settings.learning_rate, limit) / correction
        return Combined([length * v for v in phi], math.nan, state)

    def after(self, state: Projected, taken: Taken) -> Projected:
        return state
