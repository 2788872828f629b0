"""Whether a step has fitted its own points at the expense of all others."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.objective import Objective

ALLOWED, FORGET = 2.0, 1.1
"""See Guard."""
PLATEAU = 4
"""Steps without a new low of the loss on unseen points after which momentum is trusted less."""


@dataclass(frozen=True)
class Watch:
    """The losses on unseen points, as written: the ``lowest``, which is forgotten by FORGET a step,
    the ``record`` of all, and ``since`` how many steps it stands."""

    lowest: float = math.inf
    record: float = math.inf
    since: int = 0

    def after(self, loss: float) -> tuple[Watch, bool | None]:
        """With one more loss; and whether it was a new low, or has been none for PLATEAU steps
        (False), or neither (None)."""
        watch = replace(self, lowest=min(loss, FORGET * self.lowest))
        if loss < self.record:
            return replace(watch, record=loss, since=0), True
        if self.since + 1 >= PLATEAU:
            return replace(watch, since=0), False
        return replace(watch, since=self.since + 1), None


class Guard:
    """Finds out steps that fit their own points at the expense of all others.

    The loss on unseen points may be ALLOWED times its lowest value after a step, or what it was
    before. To allow no rise is worse: a step that is exact on its own points comes closer to the
    solution even where the loss on others grows a little, as in the randomised Kaczmarz method.
    """

    def __init__(self, objective: Objective, points: Any, start: Direction, watch: Watch) -> None:
        self.objective = objective
        self.points = points
        before = objective.evaluate(points, start)
        self.trained = {0.0: before.trained}
        """The loss that is trained on, on the unseen points, by length of the step."""
        self.watch, self.fell = watch.after(before.written)
        self.limit = max(before.written, ALLOWED * self.watch.lowest)

    def allows(self, length: float, parameters: Direction) -> bool:
        """Whether the parameters, which are those of this length, are good enough elsewhere."""
        losses = self.objective.evaluate(self.points, parameters)
        self.trained[length] = losses.trained
        return losses.written <= self.limit

    def reached(self, length: float) -> float:
        """The trained loss on unseen points after a step of that length; NaN: not evaluated."""
        return self.trained.get(length, math.nan)
