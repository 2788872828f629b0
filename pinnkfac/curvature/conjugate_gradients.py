"""Conjugate gradients, preconditioned and truncated, and the curvatures that they make exact.

With A = JᵀJ + λ symmetric positive definite, the iterates x_i lower the quadratic model
φ(x) = ½ xᵀA x − bᵀx, which is the predicted change of the loss for b = −∇loss.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Annotated, Any

from pinnkfac.common.settings import Count, NonNegative, Range
from pinnkfac.curvature.base import Applied, Curvature, Situation, Solver
from pinnkfac.curvature.kfac import KroneckerFactors
from pinnkfac.linearisation.direction import Direction, combine, inner
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.objective import Objective
from pinnkfac.linearisation.products import gramian_products

Operator = Callable[[Direction], Direction]
"""A linear map of directions, or of lists with one residual-space vector."""

SPACING = 1.3
"""Iterates number ⌈SPACING^j⌉ are stored (Martens 2010, section 4.6)."""
REACH = 2
FEWEST = 10
"""With backtracking, CG makes at most ``REACH`` times the iterations of the iterate that the last
step took (and at least ``FEWEST``): far beyond it, iterates are too long for the loss anyway."""


@dataclass(frozen=True)
class Iterate:
    """x_i with its number i and φ(x_i)."""

    number: int
    solution: Direction
    model: float


def damped_gramian(linearisation: Linearisation, damping: float) -> Operator:
    """v ↦ (JᵀJ + λ) v."""
    return lambda v: combine((1.0, gramian_products(linearisation, [v])[0]), (damping, v))


def iterates(
    product: Operator, right: Direction, precondition: Operator, start: Direction | None = None
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
    preconditioner: Solver,
    damping: float,
    iterations: int,
) -> Direction:
    """x of (JᵀJ + λ) x = right after so many iterations from 0, or fewer (see ``iterates``)."""
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


@dataclass(frozen=True)
class Identity(Curvature[None]):
    """C + λ = I: no preconditioner."""

    def at(self, situation: Situation, state: None) -> Solver:
        return Applied(situation, lambda v: [x.clone() for x in v])


@dataclass(frozen=True)
class Refined(Curvature[Any]):
    """The exact Gramian, by conjugate gradients that another curvature preconditions."""

    by: Curvature[Any]
    iterations: Count

    @property
    def kept(self) -> str:
        return self.by.kept

    def start(self, objective: Objective) -> Any:
        return self.by.start(objective)

    def at(self, situation: Situation, state: Any) -> Solver:
        by, damping = self.by.at(situation, state), situation.damping

        def solve(v: Direction) -> Direction:
            return conjugate_gradients(situation.linearisation, v, by, damping, self.iterations)

        return Applied(situation, solve, by.state)


@dataclass(frozen=True)
class TruncatedState:
    """What the preconditioner keeps, the last solution, and the number of the iterate that was
    taken (None: none was chosen)."""

    preconditioner: Any
    solution: Direction | None = None
    taken: int | None = None


@dataclass(frozen=True)
class Truncated(Curvature[TruncatedState]):
    """The exact Gramian, solved with by at most ``iterations`` of preconditioned CG, from ``decay``
    times the last solution until ``has_stalled``. With ``backtracking`` δ is the stored iterate
    with the lowest loss, about as far as the last step went (Martens 2010)."""

    preconditioner: Curvature[Any] = field(default_factory=KroneckerFactors)
    iterations: Count = 20
    progress: NonNegative = 5e-4
    decay: Annotated[float, Range(least=0, most=1)] = 0.95
    backtracking: bool = True

    @property
    def kept(self) -> str:
        return self.preconditioner.kept

    def start(self, objective: Objective) -> TruncatedState:
        return TruncatedState(self.preconditioner.start(objective))

    def at(self, situation: Situation, state: TruncatedState) -> Solver:
        solver = self.preconditioner.at(situation, state.preconditioner)
        return TruncatedSolver(self, situation, solver, state)


class TruncatedSolver(Solver):
    """Its state is the one before, until a direction was computed."""

    def __init__(
        self, settings: Truncated, situation: Situation, by: Solver, state: TruncatedState
    ) -> None:
        super().__init__(situation, state)
        self.settings = settings
        self.situation = situation
        self.by = by

    def apply(self, v: Direction) -> Direction:
        settings, situation, last = self.settings, self.situation, self.state
        product = damped_gramian(situation.linearisation, situation.damping)
        start = None
        if settings.decay and last.solution is not None:
            start = [settings.decay * x for x in last.solution]
        fewest, most = 0, settings.iterations
        if settings.backtracking and last.taken is not None:
            fewest, most = last.taken // REACH, min(most, max(FEWEST, REACH * last.taken))
        iterations = iterates(product, v, self.by.apply, start)
        kept = truncated(iterations, most, settings.progress)
        best, taken = kept[-1], last.taken
        if settings.backtracking:
            best = best_of([i for i in kept if i.number >= fewest] or kept[-1:], situation.loss)
            taken = best.number
        self.state = TruncatedState(self.by.state, kept[-1].solution, taken)
        return best.solution
