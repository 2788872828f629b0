"""What the loop asks of a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Generator

from pinnkfac.linearisation.system import System, TermPoints


@dataclass(frozen=True)
class Request:
    """What a step asks of the loop.

    ``growth`` is how many times the points it wants from now on, ``anew`` whether it has set the
    parameters back to those that the run began from, ``note`` what it has decided that a user
    should know, such as another method.
    """

    growth: float = 1.0
    anew: bool = False
    note: str = ""


@dataclass(frozen=True)
class Report:
    """What a step did. ``losses`` are those of the terms before it, as written by the user;
    ``trained_loss`` is the sum that the step lowers, with weights and scales, and ``reached`` what
    it is after the step; ``unseen`` is that loss on the points that the step was guarded by (NaN:
    not evaluated)."""

    losses: list[float]
    trained_loss: float
    length: float
    damping: float = math.nan
    ratio: float = math.nan
    trials: int = 0
    direction_norm: float = math.nan
    reached: float = math.nan
    unseen: float = math.nan
    cost: float = math.nan
    """What the step costs, in multiplications (curvature/cost.py); NaN: it does not say."""
    request: Request = Request()


class Stepper(Protocol):
    """A step in the course of a run: it holds its averages, momentum and damping.

    ``guarded``: whether it looks at unseen points, where there are some. ``fresh``: whether the run
    began with it, from first weights.
    """

    guarded: bool = False
    fresh: bool = True

    def update(
        self,
        points: Sequence[TermPoints],
        *,
        same_loss: bool = True,
        unseen: Sequence[TermPoints] | None = None,
    ) -> Report:
        """Change the net's parameters once.

        ``same_loss`` is False where points or scales differ from those of the last step, so that
        the two losses cannot be compared. Where there are ``unseen`` points, a guarded step is not
        longer than the loss on these allows: one that fits its own points only is found out.
        """
        ...

    def recover(self) -> str:
        """Go on more carefully from the parameters that the system has now, after a divergence;
        returns what was changed, in words."""
        ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Step(Protocol):
    """The settings of a step; ``start`` gives it a system to work on.

    A step that chooses its number of points has ``share_of_points(system, numbers)`` besides, with
    ``numbers(share)`` those of all terms, and one that knows what it costs ``cost(system,
    numbers)``, in the units of curvature/cost.py.
    """

    def start(self, system: System, search: Any, damping: Any, generator: Generator) -> Stepper: ...
