"""The exact solution against the terms: what it leaves of each residual."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Generator, Tensor
from torch.func import vmap

from pinnkfac.common.errors import first_line
from pinnkfac.domain import Points, PointSet, Uniform
from pinnkfac.field import MultiIndex
from pinnkfac.inspection import autodiff
from pinnkfac.inspection.coarse import Left, excuse
from pinnkfac.inspection.finding import Finding, failed, hint, not_checked, passed, place
from pinnkfac.inspection.hints import derivatives_read
from pinnkfac.problem import Problem
from pinnkfac.residual import Residual, exact_at

RIGHT = 1e-6
"""What may be left of a residual's size by a closed form."""
NEARLY = 1e-3
"""… by a reference solution that is interpolated."""
NOISE = 0.3
"""… on given points with values, which may be noisy."""
NUMBER = 64


def size(
    residual: Residual, z: Tensor, theta: Tensor, points: PointSet, scale: Tensor, source: float = 1
) -> Tensor:
    """Σ |∂F/∂z_i| scale_i + ``source`` |F(0, at)|, [batch, equation]: an error of ε in the slots
    relative to their ``scale`` [slot] changes a residual by ε times the sum."""
    remainder = residual.remainder(points)
    _, by_slot, _ = residual.derivative(z, theta, points, remainder)
    by_slots = (by_slot.abs() * scale).sum(-1).T.expand(len(points), -1)
    at_zero = residual.value(torch.zeros_like(z), theta, points, remainder).abs()
    return by_slots.nan_to_num(0.0, posinf=0.0) + source * at_zero.nan_to_num(0.0, posinf=0.0)


class ExactSolution:
    """A problem's exact solution with the typical sizes of its derivatives; ``trouble`` says why it
    cannot be compared with the terms, '' where it can."""

    def __init__(self, problem: Problem, residuals: Sequence[Residual]) -> None:
        self.problem = problem
        self.function = partial(exact_at, problem)
        inside = problem.domain.interior.draw(NUMBER, Uniform(), Generator().manual_seed(1))
        self.points = inside.coordinates
        self.typical: dict[MultiIndex, Tensor] = {}
        alphas = sorted({alpha for _, alpha in derivatives_read(residuals)})
        try:
            values = autodiff.derivatives(self.function, self.points, alphas)
            self.trouble = self._compare_with_differences()
        except Exception as error:  # whatever autodiff cannot do with the user's function
            self.trouble = f"it cannot be differentiated: {_reason(error)}"
            return
        self.typical = {alpha: _typical(by_field) for alpha, by_field in values.items()}

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
                # Beyond a shape that is no box, the solution may be anything.
                size = slopes[:, k].abs().nan_to_num(0.0, posinf=0.0)
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

    def scale(self, residual: Residual, typical: Mapping[MultiIndex, Tensor]) -> Tensor:
        """Σ |c| mean |D^α u| by slot."""
        sums = [sum(abs(c) * typical[a][k] for (k, _, a), c in slot) for slot in residual.slots]
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
        left, theta = self._left(residual, z, self.typical, theta, points)
        n, e = divmod(int(torch.argmax(left.ratio)), residual.equations)
        worst, where = float(left.ratio[n, e]), place(self.problem, points.coordinates[n])
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
        most = f"{text}, most at {where} ({which}residual {float(left.residual[n, e]):.4g})"
        region = residual.term.where
        if isinstance(region, Points) and region.values and worst <= NOISE:
            return hint(subject, f"{most}: noise of the given values?")
        if worst <= NEARLY:
            return hint(subject, f"{most}: fine for an interpolated solution, not for a formula")
        why = self._excuse(residual, left, theta, points)
        if why:
            return hint(subject, f"{most}; {why}")
        return failed(subject, f"{most}: the term or the solution is wrong")

    def _left(
        self,
        residual: Residual,
        z: Tensor,
        typical: Mapping[MultiIndex, Tensor],
        theta: Tensor,
        points: PointSet,
    ) -> tuple[Left, Tensor]:
        """What slots z leave, where derivatives are of a ``typical`` size, and at which
        coefficients."""
        if residual.reads_parameters:
            theta = _fit(residual, z, theta, points)
        r = residual.value(z, theta, points, residual.remainder(points))
        whole = size(residual, z, theta, points, self.scale(residual, typical))
        return Left(r, torch.where(r == 0, 0.0, r.abs() / whole)), theta

    def _excuse(self, residual: Residual, left: Left, theta: Tensor, points: PointSet) -> str:
        """Why a solution that does not fulfil a term by autodiff may be right; see coarse.py."""
        alphas = {alpha for slot in residual.slots for (_, _, alpha), _ in slot}

        def judge(z: Tensor, derivative: autodiff.Derivative) -> Left:
            typical = {alpha: _typical(derivative(self.points, alpha)) for alpha in alphas}
            return self._left(residual, z, typical, theta, points)[0]

        box = self.problem.domain.bounds
        low, high = (torch.tensor(v, dtype=torch.float64) for v in (box.low, box.high))
        return excuse(self.function, residual, points, (low, high), left, judge, NEARLY)


def _typical(values: Tensor) -> Tensor:
    """The mean of |values| [batch, field] where they are finite, [field]."""
    return values.abs().where(values.isfinite(), math.nan).nanmean(0).nan_to_num(0.0)


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
