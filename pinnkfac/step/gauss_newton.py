"""Steps along δ = −(C + λ)⁻¹ ∇loss, with C the Gramian JᵀJ or an approximation to it.

What C is, and how it is inverted, is a ``Descent``; momentum, step length and damping are the same
for all of them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Number, Positive
from pinnkfac.linearisation.direction import Direction, combine, inner, norm
from pinnkfac.linearisation.system import Linearisation, System, TermPoints
from pinnkfac.step.base import Report, Stepper
from pinnkfac.step.damping import Damping, NoDamping
from pinnkfac.step.model import best_combination
from pinnkfac.step.path import CurvedPath, Path
from pinnkfac.step.search import Accepted, Fixed, NoSearch, Search

CAUTION = 100.0
"""Factor on the damping after a divergence, from at least SMALLEST."""
SMALLEST = 1e-8
ALLOWED, FORGET = 2.0, 1.1
"""See Guard."""
PLATEAU = 4
"""Steps without a new low of the loss on unseen points after which momentum is trusted less."""


class Descent:
    """Curvature in the course of a run: what turns a gradient into a direction.

    A new one overrides ``direction``, and the rest where it keeps something between steps.
    """

    unit: float = 1.0
    """What a damping of 1 is, set by ``prepare``; ``direction`` is given absolute dampings."""
    least_damping: float = 0.0
    """The smallest one that is known apart from zero, for rounding; set by ``direction``."""
    near: float = 0.0
    """Dampings up to this are those near a solution: paths are corrected at these only."""

    def prepare(self, linearisation: Linearisation, damping: float, step: int) -> None:
        """Take in the linearisation of step number ``step``: averages, inverses."""

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        """δ = −(C + damping)⁻¹ gradient."""
        raise NotImplementedError

    def taken(self, step: Direction | None, length: float) -> None:
        """Learn of the step that was taken, length and momentum included, and of its length in
        units of the direction, without its bend and corrections; None: none was."""

    def judged(self, *, fell: bool) -> None:
        """Learn that the loss on unseen points fell to a new low, or has not for PLATEAU steps."""

    def least_squares(self, right: Tensor, damping: float) -> Direction:
        """About the minimiser x of ‖J x − right‖² + damping ‖x‖², for a flat right [residual]: as
        far as it costs little after ``direction`` with the same damping.

        Only exact descents have one.
        """
        raise NotImplementedError

    def restart(self) -> str:
        """Forget what was averaged, after a divergence; returns its name, such as 'factors'."""
        return ""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Guard:
    """Finds out steps that fit their own points at the expense of all others.

    The loss on unseen points (of the terms as written) may be ALLOWED times its lowest value after
    a step, or what it was before; that value is forgotten by FORGET a step. To allow no rise is
    worse: a step that is exact on its own points comes closer to the solution even where the loss
    on others grows a little, as the projections of the randomised Kaczmarz method do; only where
    rises add up to a divergence steps have to be shortened.
    """

    def __init__(self, system: System, points: Sequence[TermPoints], lowest: float) -> None:
        self.system = system
        self.points = points
        before, trained = self._losses()
        self.trained = {0.0: trained}
        """The loss that is trained on, on the unseen points, by length of the step."""
        self.lowest = min(before, FORGET * lowest)
        self.limit = max(before, ALLOWED * self.lowest)
        self.before = before

    def _losses(self) -> tuple[float, float]:
        residuals = self.system.residuals(self.points)
        return self.system.loss_of(residuals), self.system.loss_of(self.system.scaled(residuals))

    def allows(self, length: float) -> bool:
        """Whether the parameters, which are those of this length, are good enough elsewhere."""
        loss, self.trained[length] = self._losses()
        return loss <= self.limit

    def reached(self, length: float) -> float:
        """The trained loss on unseen points after a step of that length; NaN: not evaluated."""
        return self.trained.get(length, math.nan)


@dataclass(frozen=True)
class Automatic:
    """Step length and momentum from the exact quadratic model (KFAC*).

    ``by_layer`` gives every layer its own length and momentum. ``memory`` is the number of last
    steps that are directions too (published: 1, the momentum). ``first_length`` scales the first
    step instead of the model, as published (1e-6); None uses the model from the start. ``damped``
    adds λ‖step‖²/2 to the model.
    """

    by_layer: bool = True
    """a length and a momentum for every layer"""
    memory: Number = 1
    """last steps that are directions too"""
    first_length: Positive | None = None
    """of the first step, instead of the model's"""
    damped: bool = True
    """add the damping to the quadratic model"""


class GaussNewtonStepper(Stepper):
    """A descent with momentum, search and damping, in the course of a run.

    With ``lengths=None`` the direction is δ + momentum · (last direction), and the search decides
    how far to go; with ``Automatic`` the quadratic model decides, and the search only checks.
    """

    def __init__(
        self,
        system: System,
        descent: Descent,
        search: Search,
        damping: Damping,
        *,
        momentum: float = 0.0,
        lengths: Automatic | None = None,
        geodesic: bool = False,
        corrections: int = 0,
    ) -> None:
        for group, part, nothing in (("search", search, NoSearch), ("damping", damping, NoDamping)):
            if isinstance(part, nothing):
                raise UserError(f"{group}=none fits first-order steps only: choose another option")
        self.system = system
        self.descent = descent
        self.momentum = momentum
        self.lengths = lengths
        self.geodesic = geodesic
        self.corrections = corrections
        self.search = search
        self.guarded = not isinstance(search, Fixed)
        self.schedule = damping
        self.damping = damping.start
        self.steps = 0
        self.past: list[Direction] = []
        self.last_length: float | None = None
        self.last_norm = 0.0
        """Of the direction of the last accepted step."""
        self.pending: tuple[float, float] | None = None
        self.lowest = math.inf
        self.record, self.since = math.inf, 0
        """Of the losses on unseen points: see Guard; without forgetting, and how long ago."""

    def update(
        self,
        points: Sequence[TermPoints],
        *,
        same_loss: bool = True,
        unseen: Sequence[TermPoints] | None = None,
    ) -> Report:
        linearisation = self.system.linearise(points)
        if not math.isfinite(linearisation.loss):
            return Report(linearisation.losses, linearisation.loss, length=0.0)
        self._settle(linearisation.loss if same_loss else math.nan)
        guard = None
        if unseen is not None:
            guard = Guard(self.system, unseen, self.lowest)
            self.lowest = guard.lowest
            self._watch(guard.before)
        self.descent.prepare(linearisation, self.damping, self.steps)
        gradient = linearisation.gradient()
        damping = self.damping * self.descent.unit
        newton = self.descent.direction(linearisation, gradient, damping)
        direction, predicted = self._direction(newton, gradient, linearisation)
        slope = inner(gradient, direction)
        curvature = self._curvature(direction, slope, predicted, linearisation)
        path = self._path(direction, damping, linearisation, points)
        size = norm(direction)
        accepted = self._search(path, size, slope, linearisation.loss, guard)
        used, ratio = self.damping, math.nan
        if self.descent.unit > 0:
            used = max(used, self.descent.least_damping / self.descent.unit)
        if getattr(self.schedule, "adapts", False):  # one of a user's own may not say
            self.damping = used
        if self.schedule.needs_ratio:
            a = accepted.length
            expected = -(a * slope + 0.5 * a * a * curvature)
            if math.isnan(accepted.loss):
                self.pending = (linearisation.loss, expected)
            else:
                ratio = self._ratio(linearisation.loss, accepted, expected)
        if self.pending is None:
            self.damping = self.schedule.after(self.damping, ratio, self.steps, accepted.length)
        self._remember(direction, size, accepted)
        self.steps += 1
        return Report(
            losses=linearisation.losses,
            trained_loss=linearisation.loss,
            length=accepted.length,
            damping=used,
            ratio=ratio,
            trials=accepted.trials,
            direction_norm=size,
            reached=accepted.loss,
            unseen=math.nan if guard is None else guard.reached(accepted.length),
        )

    def _watch(self, unseen: float) -> None:
        """Tell the descent where the loss on unseen points has not fallen for a while."""
        if unseen < self.record:
            self.record, self.since = unseen, 0
            self.descent.judged(fell=True)
        else:
            self.since += 1
            if self.since >= PLATEAU:
                self.since = 0
                self.descent.judged(fell=False)

    def _settle(self, loss: float) -> None:
        """A step whose loss was not evaluated is judged by the loss of the next one."""
        if self.pending is not None:
            before, expected = self.pending
            if not math.isnan(loss):
                ratio = (before - loss) / expected if expected > 0 else math.nan
                self.damping = self.schedule.after(self.damping, ratio, self.steps - 1)
            self.pending = None

    def _direction(
        self, newton: Direction, gradient: Direction, linearisation: Linearisation
    ) -> tuple[Direction, float]:
        """The direction with its momentum, and the reduction that the model predicts for it (NaN
        where its length is left to the search)."""
        lengths = self.lengths
        if lengths is None:
            if self.past:
                newton = combine((1.0, newton), (self.momentum, self.past[0]))
            return newton, math.nan
        if self.steps == 0 and lengths.first_length is not None:
            return [lengths.first_length * v for v in newton], math.nan
        damping = self.damping * self.descent.unit if lengths.damped else 0.0
        sources = [newton, *self.past]
        return best_combination(
            linearisation, gradient, sources, damping, by_layer=lengths.by_layer
        )

    def _path(
        self,
        direction: Direction,
        damping: float,
        linearisation: Linearisation,
        points: Sequence[TermPoints],
    ) -> Path:
        corrections = self.corrections if damping <= self.descent.near else 0
        if not (self.geodesic or corrections):
            return Path(self.system, points, direction)

        def solve(right: Tensor) -> Direction:
            return self.descent.least_squares(right, damping)

        return CurvedPath(
            linearisation, points, direction, solve, bent=self.geodesic, corrections=corrections
        )

    def _search(
        self, path: Path, size: float, slope: float, loss_0: float, guard: Guard | None
    ) -> Accepted:
        """Choose the length and move there."""
        where = 0.0

        def loss(length: float) -> float:
            nonlocal where
            where = length
            value = path.go(length, loss_0)
            allowed = guard is None or value >= loss_0 or guard.allows(length)
            return value if allowed else math.inf

        accepted = self.search.run(loss, loss_0, slope, self._last_length(size))
        if loss_0 - accepted.loss < 4 * torch.finfo(self.system.dtype).eps * loss_0:
            accepted = Accepted(0.0, loss_0, accepted.trials)  # a fall by rounding alone
        if where != accepted.length:
            path.move(accepted.length, loss_0)
        return accepted

    def _last_length(self, size: float) -> float | None:
        """The last accepted length, for a direction of this norm: changed by a power of two to be
        about as far in the parameters, as the norm depends much on the damping."""
        if self.lengths is not None or self.last_length is None:
            return None
        change = self.last_norm / size if size > 0 else math.nan
        if not 0 < change < math.inf:
            return None
        return self.last_length * 2.0 ** math.ceil(math.log2(change))

    def _curvature(
        self, direction: Direction, slope: float, predicted: float, linearisation: Linearisation
    ) -> float:
        """‖J d‖², from the model's prediction −(slope + ‖J d‖²/2) where there is one."""
        if not math.isnan(predicted):
            return -2.0 * (predicted + slope)
        if not self.schedule.needs_ratio:
            return math.nan
        return float(linearisation.jvp(direction).square().sum())

    def _ratio(self, loss: float, accepted: Accepted, expected: float) -> float:
        """Actual over expected reduction of the loss; NaN where the step was rejected."""
        if accepted.length == 0.0:
            return math.nan
        if self.lengths is not None and accepted.shrunk:
            return 0.0  # the model's own step did not lower the loss
        return (loss - accepted.loss) / expected if expected > 0 else math.nan

    def _remember(self, direction: Direction, size: float, accepted: Accepted) -> None:
        lengths = self.lengths
        step = [accepted.length * v for v in direction] if accepted.length > 0 else None
        self.descent.taken(step, accepted.length)
        if step is not None:
            self.last_length, self.last_norm = accepted.length, size
        if lengths is None:
            self.past = [direction] if self.momentum else []
        elif step is None:
            self.past = []
        else:
            self.past = [step, *self.past][: lengths.memory]

    def forget_steps(self) -> None:
        """Begin without momentum: the parameters were changed by another method."""
        self.past, self.last_length, self.pending = [], None, None
        self.descent.taken(None, 0.0)

    def recover(self) -> str:
        before = self.damping
        forgotten = self.descent.restart()
        self.past, self.last_length, self.pending = [], None, None
        self.damping = max(before, SMALLEST) * CAUTION
        anew = " and ".join(filter(None, ("momentum", forgotten)))
        return f"damping {before:.1g} → {self.damping:.1g}, {anew} anew"

    def state_dict(self) -> dict[str, Any]:
        state = {
            "descent": self.descent.state_dict(),
            **{name: getattr(self, name) for name in self._plain},
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = copy.deepcopy(state)
        self.descent.load_state_dict(state["descent"])
        for name in self._plain:
            setattr(self, name, state.get(name, getattr(self, name)))

    _plain = (
        *("damping", "steps", "past", "last_length", "last_norm", "pending"),
        *("lowest", "record", "since"),
    )
