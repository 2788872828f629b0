"""The exact solution against the terms: what it leaves of each residual."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.func import vmap

from pinnkfac.common.errors import UserError, first_line
from pinnkfac.domain import Points, PointSet, Uniform
from pinnkfac.field import MultiIndex
from pinnkfac.inspection import autodiff
from pinnkfac.inspection.finding import Finding, failed, hint, not_checked, passed, place
from pinnkfac.inspection.hints import derivatives_read
from pinnkfac.problem import Problem
from pinnkfac.residual import Residual, exact_solution

RIGHT = 1e-6
"""What may be left of a residual's size by a closed form."""
NEARLY = 1e-3
"""… by a reference solution that is interpolated."""
NOISE = 0.3
"""… on given points with values, which may be noisy."""
NUMBER = 64


def sensitivity(
    residual: Residual, z: Tensor, theta: Tensor, points: PointSet, scale: Tensor
) -> Tensor:
    """Σ |∂F/∂z_i| scale_i, [batch, equation].

    An error of ε in the slots relative to their ``scale`` [slot] changes a residual by ε times
    that.
    """
    _, by_slot, _ = residual.derivative(z, theta, points, residual.remainder(points))
    whole = (by_slot.abs() * scale).sum(-1).T.expand(len(points), -1)
    return whole.nan_to_num(0.0, posinf=0.0)


def offset(residual: Residual, theta: Tensor, points: PointSet) -> Tensor:
    """|F(0, at)|, [batch, equation]."""
    zero = points.coordinates.new_zeros(len(points), len(residual.slots))
    value = residual.value(zero, theta, points, residual.remainder(points))
    return value.abs().nan_to_num(0.0, posinf=0.0)


class ExactSolution:
    """A problem's exact solution with the typical sizes of its derivatives.

    ``trouble`` says why it cannot be compared with the terms; '' where it can.
    """

    def __init__(self, problem: Problem, residuals: Sequence[Residual]) -> None:
        self.problem = problem
        self.function = autodiff.of_solution(problem)
        inside = problem.domain.interior.draw(NUMBER, Uniform(), Generator().manual_seed(1))
        self.points = inside.coordinates
        self.typical: dict[tuple[int, MultiIndex], float] = {}
        alphas = sorted({alpha for _, alpha in derivatives_read(residuals)})
        try:
            values = autodiff.derivatives(self.function, self.points, alphas)
            self.trouble = self._compare_with_differences()
        except Exception as error:  # whatever autodiff cannot do with the user's function
            self.trouble = f"it cannot be differentiated: {_reason(error)}"
            return
        for alpha, by_field in values.items():
            for k, column in enumerate(by_field.unbind(-1)):
                finite = column[torch.isfinite(column)]
                self.typical[k, alpha] = float(finite.abs().mean()) if len(finite) else 0.0

    def _compare_with_differences(self) -> str:
        """What torch does not see: where central differences of two lengths agree, and autodiff
        says something else at most points, the solution uses a table, or .detach()."""
        box = self.problem.domain.bounds
        low, high = (torch.tensor(v, dtype=torch.float64) for v in (box.low, box.high))
        h = 1e-2 * (high - low)
        points = torch.minimum(torch.maximum(self.points, low + 2 * h), high - 2 * h)
        for i, coordinate in enumerate(self.problem.coordinates.names):
            step = torch.zeros_like(h)
            step[i] = h[i]
            alpha = tuple(int(j == i) for j in range(len(h)))
            exact = autodiff.derivatives(self.function, points, [alpha])[alpha]
            slopes, others = (self._differences(points, part) for part in (step, step / 2))
            for k, name in enumerate(self.problem.fields):
                size = slopes[:, k].abs()
                sure = (slopes[:, k] - others[:, k]).abs() <= 0.2 * size
                sure &= size > max(0.1 * float(size.max()), 1e-8)
                wrong = sure & ((exact[:, k] - slopes[:, k]).abs() > 0.5 * size)
                if int(wrong.sum()) > max(1, len(points) // 8, int(sure.sum()) // 2):
                    n = int(torch.argmax(size * wrong))
                    return (
                        f"torch cannot differentiate it: at {place(self.problem, points[n])} "
                        f"∂{name}/∂{coordinate} is {exact[n, k]:.4g} by autodiff, but "
                        f"{slopes[n, k]:.4g} by differences; does it use a table, or .detach()?"
                    )
        return ""

    def _differences(self, points: Tensor, step: Tensor) -> Tensor:
        """Central differences along a step of one coordinate, [batch, field]."""
        ahead, behind = (vmap(self.function)(points + s) for s in (step, -step))
        return (ahead - behind) / (2 * step.sum())

    def scale(self, residual: Residual) -> Tensor:
        """Σ |c| mean |D^α u| by slot."""
        typical = self.typical
        sums = [sum(abs(c) * typical[k, a] for (k, _, a), c in slot) for slot in residual.slots]
        return torch.tensor(sums, dtype=torch.float64)

    def against(self, residual: Residual, points: PointSet, theta: Tensor) -> Finding:
        """What the solution leaves of a term's residual at these points."""
        subject = f"term '{residual.term.name}'"
        try:
            _, z = autodiff.evaluate(residual, points, self.function, theta)
        except Exception as error:
            return not_checked(subject, f"the exact solution at its points: {_reason(error)}")
        finite = torch.isfinite(z).all(-1)
        if not finite.any():
            where = place(self.problem, points.coordinates[0])
            return not_checked(
                subject, f"the exact solution's derivatives are not finite, such as at {where}"
            )
        return self._judge(subject, residual, z[finite], theta, points[finite])

    def _judge(
        self, subject: str, residual: Residual, z: Tensor, theta: Tensor, points: PointSet
    ) -> Finding:
        """What is left at the initial coefficients, or, where some enter, those that fit best."""
        if residual.reads_parameters:
            theta = _fit(residual, z, theta, points)
        r = residual.value(z, theta, points, residual.remainder(points))
        whole = sensitivity(residual, z, theta, points, self.scale(residual))
        whole = whole + offset(residual, theta, points)
        ratio = torch.where(r == 0, 0.0, r.abs() / whole)
        n, e = divmod(int(torch.argmax(ratio)), residual.equations)
        worst, where = float(ratio[n, e]), place(self.problem, points.coordinates[n])
        if math.isnan(worst):
            return failed(subject, f"with the exact solution it is NaN at {where}")
        read = [(residual.parameters[i].name, float(theta[i])) for i in residual.reads_parameters]
        fitted = ", ".join(f"{name} = {value:.6g}" for name, value in read)
        best = f" at {fitted}, which fits it best" if fitted else ""
        rest = f"{worst:.1g} of" if worst < 1 else f"{worst:.2g} times"
        text = (
            f"the exact solution leaves {rest if worst else 'nothing of'} the residual's size{best}"
        )
        if worst <= RIGHT:
            return passed(subject, text)
        which = f"equation {e + 1}, " if residual.equations > 1 else ""
        most = f"{text}, most at {where} ({which}residual {float(r[n, e]):.4g})"
        region = residual.term.where
        if isinstance(region, Points) and region.values and worst <= NOISE:
            return hint(subject, f"{most}: noise of the given values?")
        if worst <= NEARLY:
            return hint(subject, f"{most}: fine for an interpolated solution, not for a formula")
        return failed(subject, f"{most}: the term or the solution is wrong")


def _reason(error: Exception) -> str:
    return first_line(error, 160) or type(error).__name__


def _fit(residual: Residual, z: Tensor, theta: Tensor, points: PointSet) -> Tensor:
    """Gauss-Newton for the coefficients that a residual reads, with halved steps."""
    read = list(residual.reads_parameters)
    for _ in range(30):
        r, _, by_parameter = residual.derivative(z, theta, points, None)
        assert by_parameter is not None
        jacobian, flat = by_parameter[..., read].flatten(0, 1), r.T.reshape(-1, 1)
        if not (torch.isfinite(jacobian).all() and torch.isfinite(flat).all()):
            break
        step = torch.zeros_like(theta)
        step[read] = torch.linalg.lstsq(jacobian, -flat, driver="gelsd").solution[:, 0]
        tried = (theta + 0.5**k * step for k in range(20))
        better = (t for t in tried if residual.value(z, t, points, None).norm() < r.norm())
        moved = next(better, None)
        if moved is None:
            break
        theta = moved
    return theta


def not_finite(problem: Problem, parts: Sequence[PointSet]) -> str:
    """Why a run could not measure errors with the exact solution; '' where it can."""
    inside = problem.domain.interior.draw(1000, Uniform(), Generator().manual_seed(2))
    try:
        for points in (inside, *parts):
            exact_solution(problem, points.coordinates)
    except UserError as error:
        return str(error)
    return ""
