"""What points ask of that which they are for: functions of prepared points, or of their numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from pinnkfac.curvature.cost import forward
from pinnkfac.domain import PointSet
from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.system import System
from pinnkfac.points.numbers import Price


@dataclass(frozen=True)
class Functions:
    """``prepare`` makes drawn points what the trained ``residuals`` of every term, [batch,
    equation], and the ``loss`` are evaluated on. On so many points of every term, a step costs
    ``price``, an evaluation ``evaluation``, and ``few``: residuals are fewer than parameters."""

    prepare: Callable[[Sequence[PointSet]], list[TermPoints]]
    residuals: Callable[[Sequence[TermPoints]], list[Tensor]]
    loss: Callable[[Sequence[TermPoints]], float]
    price: Price
    evaluation: Price
    few: Callable[[Sequence[int]], bool]


def functions_of(system: System, price: Price | None = None) -> Functions:
    """Those of a system; where a step does not say its price, it counts as an evaluation."""
    workload = system.workload
    evaluation = partial(forward, workload)
    return Functions(
        system.prepare,
        system.trained_residuals,
        system.loss,
        price or evaluation,
        evaluation,
        lambda numbers: workload.residuals(numbers) < workload.parameters,
    )
