"""Errors of a solution against the exact one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Generator, Tensor

from pinnkfac.domain import Uniform
from pinnkfac.problem import Problem
from pinnkfac.problem.windows import box_of
from pinnkfac.residual import exact_solution


@dataclass(frozen=True)
class Errors:
    """‖u − u★‖ / ‖u★‖, √mean (u − u★)² and max |u − u★| over points, of all fields and by field."""

    relative_l2: float
    rms: float
    maximum: float
    relative_l2_by_field: dict[str, float]
    rms_by_field: dict[str, float]
    maximum_by_field: dict[str, float]


class ErrorMeter:
    """Measures errors on uniform points of the domain, drawn once from a generator of their own;
    where it has windows, of those up to the last of ``times``."""

    def __init__(
        self,
        problem: Problem,
        number: int = 10_000,
        seed: int = 0,
        *,
        times: Sequence[float] | None = None,
    ) -> None:
        self.problem = problem
        self.exact: Tensor | None = None
        if problem.solution is not None:
            generator = Generator().manual_seed(0x5EED + seed)
            domain = problem.domain
            if times is not None:
                domain = box_of(domain.bounds, (times[0], times[-1]), 0)
            drawn = domain.interior.draw(number, Uniform(), generator)
            self.points = drawn.coordinates
            self.exact = exact_solution(problem, self.points)

    def measure(self, solution: Callable[[Tensor], Tensor]) -> Errors | None:
        """Errors now of a function from points [batch, coord] to values [batch, field], or None
        where no exact solution is known."""
        if self.exact is None:
            return None
        values = solution(self.points).double().cpu()
        largest = (values - self.exact).abs().amax(0)
        difference = (values - self.exact).square().mean(0)
        size = self.exact.square().mean(0)
        names = self.problem.fields
        return Errors(
            _ratio(float(difference.sum()), float(size.sum())),
            math.sqrt(float(difference.mean())),
            float(largest.max()),
            {n: _ratio(float(difference[i]), float(size[i])) for i, n in enumerate(names)},
            {n: math.sqrt(float(difference[i])) for i, n in enumerate(names)},
            {n: float(largest[i]) for i, n in enumerate(names)},
        )


def _ratio(difference: float, size: float) -> float:
    return math.sqrt(difference / size) if size > 0 else math.inf
