"""What tests ask of curvatures and steps: a place to solve at, and one step that moves the net."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Generator

from pinnkfac.curvature.base import Situation
from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.system import System
from pinnkfac.step.base import Batch, Report, Stepper


def _not_asked(direction: Direction) -> float:
    raise AssertionError("the loss of a direction was asked for")


def situation(
    linearisation: Linearisation, damping: float = 1e-2, step: int = 0, *, seed: int = 0
) -> Situation:
    """A step from this linearisation, for curvatures that evaluate no loss."""
    return Situation(linearisation, damping, step, Generator().manual_seed(seed), _not_asked)


def take(
    stepper: Stepper, system: System, points: Sequence[TermPoints], *, same_loss: bool = True
) -> Report:
    """One step from where the net is, to where it leads."""
    report = stepper.update(system.get_parameters(), Batch(points, same_loss=same_loss))
    system.set_parameters(report.parameters)
    return report
