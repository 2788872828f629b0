"""Conjugate gradients, preconditioned and truncated, and what a preconditioner is.

With A = JᵀJ + λ symmetric positive definite, the iterates x_i lower the quadratic model
φ(x) = ½ xᵀA x − bᵀx, which is the predicted change of the loss for b = −∇loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

from torch import Generator

from pinnkfac.linearisation.direction import Direction, combine, inner
from pinnkfac.linearisation.products import gramian_products
from pinnkfac.linearisation.system import Linearisation, System

Map = Callable[[Direction], Direction]
"""A linear map of directions, or of lists with one residual-space vector."""

SPACING = 1.3
"""Iterates number ⌈SPACING^j⌉ are stored (Martens 2010, section 4.6)."""


class Applicable(Protocol):
    """What CG needs of a preconditioner P: ``apply(v)`` = P⁻¹ v, symmetric positive definite."""

    def apply(self, v: Direction) -> Direction: ...


class ApproximateInverse:
    """P⁻¹ ≈ (JᵀJ + λ)⁻¹ in the course of a run.

    A new one overrides ``apply``, and the rest where it learns from linearisations.
    """

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        """Take in the linearisation of step number ``step``."""

    def apply(self, v: Direction) -> Direction:
        """P⁻¹ v: symmetric and positive definite."""
        raise NotImplementedError

    def restart(self) -> str:
        """Forget what was kept, after a divergence; returns its name, such as 'factors'."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Preconditioning(Protocol):
    """The settings of a preconditioner; ``start`` gives it a system to work on. A new one is a
    dataclass anywhere and an option in conf/preconditioner."""

    def start(self, system: System, generator: Generator) -> ApproximateInverse: ...


class Nothing(ApproximateInverse):
    """P = I."""

    def apply(self, v: Direction) -> Direction:
        return [x.clone() for x in v]


@dataclass(frozen=True)
class Identity:
    """No preconditioner."""

    def start(self, system: System, generator: Generator) -> ApproximateInverse:
        return Nothing()


@dataclass(frozen=True)
class Iterate:
    """x_i with its number i and φ(x_i)."""

    number: int
    solution: Direction
    model: float


def damped_gramian(linearisation: Linearisation, damping: float) -> Map:
    """v ↦ (JᵀJ + λ) v."""
    return lambda v: combine((1.0, gramian_products(linearisation, [v])[0]), (damping, v))


def iterates(
    product: Map, right: Direction, precondition: Map, start: Direction | None = None
) -> Iterator[Iterate]:
    """x_0, x_1, … of preconditioned conjugate gradients for A x = right, one product each.

    x_0 is ``start``, or 0 where that is better for the model (or None). Ends where a search
    direction has no positive curvature left: at the solution, or at rounding.
    """
    solution = [0.0 * v for v in right]
    residual, model = [v.clone() for v in right], 0.0
    if start is not None:
        left = combine((1.0, right), (-1.0, product(start)))
        value = -0.5 * inner(start, combine((1.0, right), (1.0, left)))
        if value < 0.0:
            solution, residual, model = [v.clone() for v in start], left, value
    yield Iterate(0, solution, model)
    search = precondition(residual)
    scale = inner(residual, search)
    number = 0
    while True:
        image = product(search)
        curvature = inner(search, image)
        if not (0.0 < curvature < math.inf and 0.0 < scale < math.inf):
            return
        length, number = scale / curvature, number + 1
        solution = combine((1.0, solution), (length, search))
        model -= 0.5 * length * scale
        yield Iterate(number, solution, model)
        residual = combine((1.0, residual), (-length, image))
        preconditioned = precondition(residual)
        scale, before = inner(residual, preconditioned), scale
        search = combine((1.0, preconditioned), (scale / before, search))


def conjugate_gradients(
    linearisation: Linearisation,
    right: Direction,
    preconditioner: Applicable,
    damping: float,
    iterations: int,
) -> Direction:
    """Solve (JᵀJ + λ) x = right by preconditioned conjugate gradients from 0.

    One iteration costs one product with J and one with Jᵀ; the first iterate is a multiple of
    P⁻¹·right. Stops early where a search direction has no positive curvature left.
    """
    run = iterates(damped_gramian(linearisation, damping), right, preconditioner.apply)
    *_, last = islice(run, iterations + 1)
    return last.solution


def has_stalled(models: Sequence[float], progress: float) -> bool:
    """Whether φ(x_0) … φ(x_i) have fallen by less than ``progress`` an iteration, relatively:

        i > k,  φ(x_i) < 0,  (φ(x_i) − φ(x_{i−k})) / φ(x_i) < k · progress,  k = max(10, ⌈i/10⌉)

    (Martens 2010, section 4.4, who takes 5e-4).
    """
    i = len(models) - 1
    k = max(10, -(-i // 10))
    if not (i > k and models[i] < 0.0):
        return False
    return (models[i] - models[i - k]) / models[i] < k * progress


def truncated(run: Iterator[Iterate], most: int, progress: float) -> list[Iterate]:
    """Run CG until it has stalled or made ``most`` iterations; the iterates number 1, 2, 3, 4, 5,
    7, 9, 11, 14 … (see SPACING) and the last one. x_0 is among them where it is the only one."""
    last = next(run)
    kept, models, exponent = [last], [last.model], 0
    for last in islice(run, most):
        models.append(last.model)
        if last.number >= SPACING**exponent:
            kept.append(last)
            exponent = math.floor(math.log(last.number, SPACING)) + 1
        if has_stalled(models, progress):
            break
    return [*kept[1:], last] if kept[-1] is not last else kept[1:] or kept


def best_of(kept: Sequence[Iterate], loss: Callable[[Direction], float]) -> Iterate:
    """The stored iterate with the lowest loss (CG backtracking, Martens 2010, section 4.6), or
    the last one where no loss is a number."""
    best, lowest = kept[-1], math.inf
    for iterate in reversed(kept):
        value = loss(iterate.solution)
        if value < lowest:
            best, lowest = iterate, value
    return best
