"""Curvatures and paths that do what a test wants of them, in place of those of a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pinnkfac.curvature.base import Curvature, Situation, Solver
from pinnkfac.linearisation.direction import Direction
from pinnkfac.step.path import Bend, Path


@dataclass(frozen=True)
class Directed(Curvature[Any]):
    """Another curvature, but for the direction of a step: ``towards(gradient, step)``, where that
    is not None."""

    by: Curvature[Any]
    towards: Callable[[Direction, int], Direction | None]

    def start(self, objective: Any) -> Any:
        return self.by.start(objective)

    def at(self, situation: Situation, state: Any) -> Solver:
        solver = self.by.at(situation, state)
        direction = self.towards(situation.linearisation.gradient(), situation.step)
        if direction is not None:
            solver.direction = lambda gradient: direction  # type: ignore[method-assign]
            least_squares = solver.least_squares
            solver.least_squares = (  # type: ignore[method-assign]
                lambda right, refined=True: direction if refined else least_squares(right, refined)
            )
        return solver


def uphill(gradient: Direction, step: int) -> Direction | None:
    """From the second step on."""
    return gradient if step else None


@dataclass(frozen=True)
class Recorded(Bend):
    """Another form of path, with the paths that were ``made``."""

    bend: Bend
    made: list[Any] = field(default_factory=list)

    def along(self, *parts: Any) -> Path:
        self.made.append(self.bend.along(*parts))
        return self.made[-1]
