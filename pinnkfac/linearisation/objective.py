"""What is minimised, as far as curvatures and steps see it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layout import Layout
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.workload import Workload


@dataclass(frozen=True)
class Losses:
    """½ · mean over points of Σ residual² of every term (``terms``), Σ weight · loss of these
    (``written``), and the same with the scales of the equations, which is what steps lower
    (``trained``); infinite where they are not numbers."""

    terms: list[float]
    written: float
    trained: float


class NamedTerm(Protocol):
    """One of the terms of an objective."""

    @property
    def name(self) -> str: ...


class Objective(Protocol):
    """A sum of squares ½ Σ weight · mean |residual|² of terms as a function of the parameters, or
    any other loss with the gradient Jᵀr and the Gauss-Newton matrix JᵀJ of its linearisations.

    ``points`` are what residuals are evaluated on: a step only hands them on. Every method
    evaluates at the parameters ``at``; the net is left anywhere.
    """

    @property
    def layout(self) -> Layout: ...

    @property
    def workload(self) -> Workload: ...

    @property
    def terms(self) -> Sequence[NamedTerm]: ...

    def numbers(self, points: Any) -> list[int]:
        """How many points every term has."""

    def evaluate(self, points: Any, at: Direction) -> Losses: ...

    def loss(self, points: Any, at: Direction) -> float:
        """The one that steps lower: ``evaluate(points, at).trained``."""

    def residual(self, points: Any, at: Direction) -> Tensor:
        """The residual of a linearisation at the same points, flat."""

    def linearise(self, points: Any, at: Direction) -> Linearisation: ...
