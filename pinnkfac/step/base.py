"""What the loop asks of a step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Generator

from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.linearisation import TermLosses
from pinnkfac.linearisation.objective import Objective
from pinnkfac.step.damping import Damping
from pinnkfac.step.search import Search


@dataclass(frozen=True)
class Batch:
    """The ``points`` of a step. Where there are ``unseen`` ones, a guarded step is not longer than
    the loss on these allows. ``same_loss`` is False where points or scales differ from those of the
    last step, so that the two losses cannot be compared."""

    points: Any
    unseen: Any = None
    same_loss: bool = True


@dataclass(frozen=True)
class Request:
    """What a step asks of the loop: ``growth`` times the points from now on, and a beginning
    ``anew`` where it went back to the first parameters. ``note`` is what a user should know."""

    growth: float = 1.0
    anew: bool = False
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a step did; NaN is what it does not say.

    ``parameters`` are those after it, ``losses`` those of the terms before it; ``trained_loss`` is
    the sum that it lowers, with weights and scales, ``reached`` the same after it, ``unseen`` that
    on the points it was guarded by; ``cost`` is in units of curvature/cost.py.
    """

    parameters: Direction
    losses: TermLosses
    trained_loss: float
    length: float
    damping: float = math.nan
    ratio: float = math.nan
    trials: int = 0
    direction_norm: float = math.nan
    reached: float = math.nan
    unseen: float = math.nan
    cost: float = math.nan
    request: Request = Request()


class Stepper(Protocol):
    """A step in the course of a run: it holds its averages, momentum and damping.

    ``guarded``: whether it looks at unseen points, where there are some.
    """

    guarded: bool = False

    def update(self, parameters: Direction, batch: Batch) -> Report:
        """Take one step from these parameters."""

    def recover(self) -> str:
        """Go on more carefully from other parameters, after a divergence; returns what was
        changed, in words."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any], damping: float | None = None) -> None:
        """Go on from a state, with another damping where one is given."""


class Step(Protocol):
    """The settings of a step; ``start`` gives it an objective to work on, ``fresh`` where the run
    begins with it, and raises UserError where search or damping do not fit it.

    One that chooses its number of points has ``share_of_points(workload, numbers)`` besides, and
    one that knows what it costs ``cost(workload, points)`` (see ``Auto``).
    """

    def start(
        self,
        objective: Objective,
        search: Search,
        damping: Damping,
        generator: Generator,
        *,
        fresh: bool = True,
    ) -> Stepper: ...
