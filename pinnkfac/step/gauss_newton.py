"""Steps along δ = −(C + λ)⁻¹ ∇loss, with C the Gramian JᵀJ or an approximation to it.

A step has five parts: what C is (``curvature``), what momentum and the quadratic model make of δ
(``lengths``), the path that begins along it (``path``), how far to go on that (``search``), and the
next λ (``damping``). Every combination is a step, but projections, geodesic paths and corrections
need the curvature ``Exact``; those with names are in methods.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator

from pinnkfac.common.errors import Diverged, UserError
from pinnkfac.common.state import restore, state_of
from pinnkfac.curvature.base import Curvature, Situation, Solver
from pinnkfac.linearisation.direction import Direction, combine, inner, is_finite, norm
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.objective import Objective
from pinnkfac.step.base import Batch, Report, Stepper
from pinnkfac.step.damping import Damping, NoDamping
from pinnkfac.step.guard import Guard, Watch
from pinnkfac.step.lengths import Combined, Lengths, Momentum, Taken
from pinnkfac.step.path import Bend, Curved, Line, Path
from pinnkfac.step.search import Accepted, NoSearch, Search

CAUTION = 100.0
"""Factor on the damping after a divergence, from at least SMALLEST."""
SMALLEST = 1e-8


class Method:
    """Settings that are a combination of a curvature, lengths and a path; search and damping are
    given at the start of a run."""

    def parts(self) -> GaussNewton:
        raise NotImplementedError

    def start(
        self,
        objective: Objective,
        search: Search,
        damping: Damping,
        generator: Generator,
        *,
        fresh: bool = True,
    ) -> GaussNewtonStepper:
        """Raises UserError where a part does not fit another one, or the objective."""
        for group, part in (("search", search), ("damping", damping)):
            if isinstance(part, NoSearch | NoDamping):
                raise UserError(f"{group}=none fits first-order steps only: choose another option")
        return GaussNewtonStepper(self.parts(), objective, search, damping, generator)


@dataclass(frozen=True)
class GaussNewton(Method):
    """The combination itself."""

    curvature: Curvature[Any]
    lengths: Lengths = field(default_factory=Momentum)
    path: Bend = field(default_factory=Curved)

    def parts(self) -> GaussNewton:
        return self


@dataclass(frozen=True)
class Memory:
    """What a step leaves for the next one: the states of its parts, ``damping`` in units of the
    curvature, the ``length`` of the last accepted step and the ``size`` of its direction, the
    losses on unseen points, and as ``pending`` the loss before the last step and the reduction that
    was predicted, where the loss after it was not evaluated."""

    curvature: Any
    lengths: Any
    damping: float
    steps: int = 0
    length: float | None = None
    size: float = 0.0
    pending: tuple[float, float] | None = None
    watch: Watch = field(default_factory=Watch)


@dataclass
class GaussNewtonStepper(Stepper):
    """Steps of one combination in the course of a run; ``memory`` is what the last one left."""

    method: GaussNewton
    objective: Objective
    search: Search
    damping: Damping
    generator: Generator

    def __post_init__(self) -> None:
        self.guarded = getattr(self.search, "evaluates", True)
        curvature = self.method.curvature.start(self.objective)
        self.memory = Memory(curvature, self.method.lengths.start(), self.damping.start)

    def update(self, parameters: Direction, batch: Batch) -> Report:
        linearisation = self.objective.linearise(batch.points, parameters)
        losses, loss_0 = linearisation.losses, linearisation.loss
        if not math.isfinite(loss_0):
            return Report(parameters, losses, loss_0, length=0.0)
        memory = self._settled(loss_0 if batch.same_loss else math.nan)
        guard = None
        if batch.unseen is not None:
            guard = Guard(self.objective, batch.unseen, parameters, memory.watch)
            memory = self._watched(memory, guard)

        gradient = linearisation.gradient()
        if not is_finite(*gradient):  # averages would keep it
            raise Diverged("the gradient is NaN or infinite: training diverged")
        solver = self._solver(linearisation, parameters, batch, memory)
        combined = self.method.lengths.combine(solver, gradient, memory.lengths)
        direction, size = combined.direction, norm(combined.direction)
        memory = replace(memory, curvature=solver.state, lengths=combined.state)
        slope = inner(gradient, direction)
        line = Line(self.objective, batch.points, parameters, direction)
        path = self.method.path.along(line, solver)
        first = self._first_length(memory, size)
        accepted, arrived = self._searched(path, slope, loss_0, first, guard)

        used = memory.damping
        if solver.unit > 0:
            used = max(used, solver.least_damping / solver.unit)
        if self.damping.adapts:
            memory = replace(memory, damping=used)
        expected = math.nan
        if self.damping.needs_ratio:
            expected = _expected(accepted.length, slope, combined, linearisation)
        memory, ratio = self._damped(memory, loss_0, accepted, expected)
        self.memory = self._remembered(memory, Taken(direction, accepted.length), size)
        return Report(
            arrived,
            losses,
            loss_0,
            length=accepted.length,
            damping=used,
            ratio=ratio,
            trials=accepted.trials,
            direction_norm=size,
            reached=accepted.loss,
            unseen=math.nan if guard is None else guard.reached(accepted.length),
        )

    def _settled(self, loss: float) -> Memory:
        """A step whose loss was not evaluated is judged by the loss of the next one."""
        memory = self.memory
        if memory.pending is None:
            return memory
        before, expected = memory.pending
        if math.isnan(loss):
            return replace(memory, pending=None)
        ratio = (before - loss) / expected if expected > 0 else math.nan
        damping = self.damping.after(memory.damping, ratio, memory.steps - 1)
        return replace(memory, pending=None, damping=damping)

    def _watched(self, memory: Memory, guard: Guard) -> Memory:
        lengths = memory.lengths
        if guard.fell is not None:
            lengths = self.method.lengths.watched(lengths, fell=guard.fell)
        return replace(memory, watch=guard.watch, lengths=lengths)

    def _solver(
        self, linearisation: Linearisation, parameters: Direction, batch: Batch, memory: Memory
    ) -> Solver:
        def loss(direction: Direction) -> float:
            return self.objective.loss(batch.points, combine((1.0, parameters), (1.0, direction)))

        situation = Situation(linearisation, memory.damping, memory.steps, self.generator, loss)
        return self.method.curvature.at(situation, memory.curvature)

    def _first_length(self, memory: Memory, size: float) -> float | None:
        """The last accepted length, for a direction of this norm: changed by a power of two to be
        about as far in the parameters, as the norm depends much on the damping."""
        if self.method.lengths.natural or memory.length is None:
            return None
        change = memory.size / size if size > 0 else math.nan
        if not 0 < change < math.inf:
            return None
        return memory.length * 2.0 ** math.ceil(math.log2(change))

    def _searched(
        self, path: Path, slope: float, loss_0: float, first: float | None, guard: Guard | None
    ) -> tuple[Accepted, Direction]:
        """The length of the step, and where it leads."""
        place: Direction = []
        tried = math.nan

        def loss(length: float) -> float:
            nonlocal place, tried
            arrival = path.go(length, loss_0)
            place, tried = arrival.parameters, length
            fine = guard is None or arrival.loss >= loss_0 or guard.allows(length, place)
            return arrival.loss if fine else math.inf

        accepted = self.search.run(loss, loss_0, slope, first)
        if loss_0 - accepted.loss < 4 * torch.finfo(self.objective.layout.dtype).eps * loss_0:
            accepted = Accepted(0.0, loss_0, accepted.trials)  # a fall by rounding alone
        if tried != accepted.length:
            place = path.end(accepted.length, loss_0)
        return accepted, place

    def _damped(
        self, memory: Memory, loss_0: float, accepted: Accepted, expected: float
    ) -> tuple[Memory, float]:
        """With the next λ, where it can be said already; and actual over expected reduction of the
        loss (NaN: not known, or the step was rejected)."""
        ratio = math.nan
        if self.damping.needs_ratio:
            if math.isnan(accepted.loss):
                return replace(memory, pending=(loss_0, expected)), ratio
            if accepted.length > 0 and self.method.lengths.natural and accepted.shrunk:
                ratio = 0.0  # the model's own step did not lower the loss
            elif accepted.length > 0 and expected > 0:
                ratio = (loss_0 - accepted.loss) / expected
        damping = self.damping.after(memory.damping, ratio, memory.steps, accepted.length)
        return replace(memory, damping=damping), ratio

    def _remembered(self, memory: Memory, taken: Taken, size: float) -> Memory:
        lengths = self.method.lengths.after(memory.lengths, taken)
        memory = replace(memory, lengths=lengths, steps=memory.steps + 1)
        return replace(memory, length=taken.length, size=size) if taken.length > 0 else memory

    def forget_steps(self) -> None:
        """Begin without momentum: the parameters were changed by another method."""
        lengths = self.method.lengths.forget(self.memory.lengths)
        self.memory = replace(self.memory, lengths=lengths, length=None, pending=None)

    def recover(self) -> str:
        before, method = self.memory.damping, self.method
        damping = max(before, SMALLEST) * CAUTION
        self.memory = replace(
            self.memory,
            curvature=method.curvature.start(self.objective),
            lengths=method.lengths.restart(self.memory.lengths),
            damping=damping,
            length=None,
            pending=None,
        )
        anew = " and ".join(filter(None, ("momentum", method.curvature.kept)))
        return f"damping {before:.1g} → {damping:.1g}, {anew} anew"

    def state_dict(self) -> dict[str, Any]:
        return state_of(self.memory)

    def load_state_dict(self, state: dict[str, Any], damping: float | None = None) -> None:
        self.memory = restore(self.memory, state, self.objective.layout.device)
        if damping is not None:
            self.memory = replace(self.memory, damping=damping)


def _expected(
    length: float, slope: float, combined: Combined, linearisation: Linearisation
) -> float:
    """The reduction of the loss that its quadratic model predicts for a step of that length; with
    ‖J d‖² from the prediction −(slope + ‖J d‖²/2) of a whole one, where there is one."""
    if math.isnan(combined.predicted):
        curvature = float(linearisation.jvp(combined.direction).square().sum())
    else:
        curvature = -2.0 * (combined.predicted + slope)
    return -(length * slope + 0.5 * length * length * curvature)
