"""References that learn the inverse Hessian from gradients: self-scaled BFGS and Broyden.

H is dense, [param, param]. With the step s, the change of the gradient y, and

    b = sᵀH⁻¹s / yᵀs,   h = yᵀHy / yᵀs,   a = b h − 1 ≥ 0,   v = √(yᵀHy) (s / yᵀs − Hy / yᵀHy),

every method is a choice of τ and φ in

    H ← (H − Hy yᵀH / yᵀHy + φ v vᵀ) / τ + s sᵀ / yᵀs,

which maps y to s (the secant equation). τ = φ = 1 is BFGS; τ = 1, φ = 0 is DFP. Sources: Al-Baali
1998; Al-Baali & Khalfan 2005; Urbán, Stefanou & Pons 2025, arXiv:2405.04230, sect. 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from pinnkfac.common.errors import check_choice
from pinnkfac.common.memory import check_fits, making
from pinnkfac.common.settings import Count
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layout import flat
from pinnkfac.linearisation.objective import Objective
from pinnkfac.step.base import Batch, Report, Stepper
from pinnkfac.step.first_order import FirstOrder
from pinnkfac.step.wolfe import Wolfe

Scaling = Literal["al-baali", "oren-luenberger", "none"]


UpdateRule = Callable[[float, float, int], tuple[float, float]]
"""(τ, φ) of the formula in the module's text, for b, h and the number of parameters."""


def bfgs_rule(scaling: Scaling = "al-baali") -> UpdateRule:
    """φ = 1; τ = min(1, 1/b) (Al-Baali 1998), 1/b (Oren & Luenberger 1974) or 1 (plain BFGS)."""

    def rule(b: float, h: float, size: int) -> tuple[float, float]:
        return {"al-baali": min(1.0, 1 / b), "oren-luenberger": 1 / b, "none": 1.0}[scaling], 1.0

    return rule


def broyden_rule(b: float, h: float, size: int) -> tuple[float, float]:
    """SSBroyden: φ = (1 − θ) / (1 + a θ) with θ = max(θ⁻, min(θ⁺, (1 − b)/b)), where

        c = √(a / (1 + a)),   ρ = min(1, h (1 − c)),   θ⁻ = (ρ − 1) / a,   θ⁺ = 1 / ρ;

    with σ = 1 + a θ and ω = σ^(−1/(size − 1)), which keeps the determinant,

        τ = min(1, 1/b) min(ω, 1/θ) for θ > 0,   min(min(1, 1/b) ω, σ) for θ ≤ 0.

    Source: Al-Baali & Khalfan 2005; Urbán, Stefanou & Pons 2025, arXiv:2405.04230.
    """
    a = max(b * h - 1.0, 1e-15)  # 0 only by rounding, or where the step is Newton's
    rho = min(1.0, h * (1.0 - math.sqrt(a / (1.0 + a))))
    theta = max((rho - 1.0) / a, min(1.0 / rho, (1.0 - b) / b))
    sigma = 1.0 + a * theta
    smaller = min(1.0, 1.0 / b)
    root = sigma ** (-1.0 / max(1, size - 1))
    tau = smaller * min(root, 1.0 / theta) if theta > 0 else min(smaller * root, sigma)
    return tau, (1.0 - theta) / sigma


def update_inverse(
    inverse: Tensor, s: Tensor, y: Tensor, hy: Tensor, tau: float, phi: float
) -> None:
    """Replace H [param, param] by that of the formula in the module's text, in place; ``hy`` is
    H y."""
    ys, yhy = float(y @ s), float(y @ hy)
    basis = torch.stack([s, hy])
    mixed = -phi / (tau * ys)
    inner = basis.new_tensor(
        [[phi * yhy / (tau * ys**2) + 1 / ys, mixed], [mixed, (phi - 1.0) / (tau * yhy)]]
    )
    inverse.addmm_(basis.T, inner @ basis, beta=1 / tau)


@dataclass(frozen=True)
class Ssbfgs(FirstOrder):
    """Self-scaled BFGS with a strong Wolfe search."""

    iterations: Count = 20
    """iterations that make one step"""
    scaling: Scaling = "al-baali"
    """al-baali (only ever enlarges the inverse Hessian), oren-luenberger (shrinks it too), or none:
    plain BFGS"""
    search: Wolfe = field(default_factory=Wolfe)
    """its strong Wolfe search"""

    def __post_init__(self) -> None:
        check_choice("step.scaling", self.scaling, Scaling)

    def stepper(self, objective: Objective) -> QuasiNewtonStepper:
        return QuasiNewtonStepper(objective, bfgs_rule(self.scaling), self.search, self.iterations)


@dataclass(frozen=True)
class Ssbroyden(FirstOrder):
    """Self-scaled Broyden with a strong Wolfe search."""

    iterations: Count = 20
    """iterations that make one step"""
    search: Wolfe = field(default_factory=Wolfe)
    """its strong Wolfe search"""

    def stepper(self, objective: Objective) -> QuasiNewtonStepper:
        return QuasiNewtonStepper(objective, broyden_rule, self.search, self.iterations)


class Place:
    """Parameters [param] of an objective, with the loss there, and the gradient where it is asked
    for."""

    def __init__(self, objective: Objective, points: Any, parameters: Tensor) -> None:
        self.parameters = parameters
        at = objective.layout.unflat(parameters)
        self.linearisation = objective.linearise(points, at)
        self.losses, self.loss = self.linearisation.losses, self.linearisation.loss

    @cached_property
    def gradient(self) -> Tensor:
        """∇ loss, [param]."""
        gradient = flat(self.linearisation.gradient())
        del self.linearisation  # the largest array of all, and of no more use
        return gradient


class QuasiNewtonStepper(Stepper):
    """A dense quasi-Newton method in the course of a run: H is kept where points or scales change,
    and begins anew where no length along its direction lowers the loss.

    Raises UserError where H does not fit in memory.
    """

    def __init__(
        self, objective: Objective, rule: UpdateRule, search: Wolfe, iterations: int
    ) -> None:
        self.objective = objective
        self.rule = rule
        self.search = search
        self.iterations = iterations
        layout = objective.layout
        size = layout.number
        what = f"the inverse Hessian of {size} parameters"
        setting = "net.widths, or choose step=lbfgs"
        numbers = size**2 * torch.finfo(layout.dtype).bits // 8
        check_fits(numbers, what, setting, layout.device)
        with making(what, setting):
            self.inverse = torch.eye(size, dtype=layout.dtype, device=layout.device)
        self.updates = 0

    def update(self, parameters: Direction, batch: Batch) -> Report:
        start = here = Place(self.objective, batch.points, flat(parameters))
        trials = 0
        for _ in range(self.iterations if math.isfinite(start.loss) else 0):
            there, tried = self._iterate(here, batch.points)
            trials += tried
            if there is here:
                break
            here = there
        return Report(
            self.objective.layout.unflat(here.parameters),
            start.losses,
            start.loss,
            length=0.0 if here is start else 1.0,
            trials=trials,
            direction_norm=float((here.parameters - start.parameters).norm()),
        )

    def _iterate(self, here: Place, points: Any) -> tuple[Place, int]:
        """Search along −H ∇ loss, and update H; returns the next place and the number of losses
        that it took. The place stays where no length lowers the loss."""
        gradient = here.gradient
        direction = -(self.inverse @ gradient)
        slope = float(gradient @ direction)
        if not slope < 0:
            self._forget()
            direction, slope = -gradient, -float(gradient @ gradient)
        if not slope < 0:
            return here, 0
        last = here
        reached: dict[float, Place] = {}

        def loss(length: float) -> float:
            nonlocal last
            last = here  # so that no two linearisations are in memory
            last = Place(self.objective, points, here.parameters + length * direction)
            return last.loss

        def derivative(length: float) -> float:
            reached[length] = last
            return float(last.gradient @ direction)

        first = 1.0 if self.updates else min(1.0, 1.0 / float(gradient.norm()))
        searched = self.search.run(loss, derivative, here.loss, slope, first)
        if searched.length == 0.0:
            self._forget()
            return here, searched.trials
        there = reached[searched.length]
        self._learn(here, there, -(searched.length**2) * slope)
        return there, searched.trials

    def _learn(self, here: Place, there: Place, shs: float) -> None:
        """Update H by the step s from here to there; ``shs`` is sᵀH⁻¹s: with s = −α H ∇ loss it
        is −α² times the slope."""
        s = there.parameters - here.parameters
        y = there.gradient - here.gradient
        ys = float(y @ s)
        if not ys > torch.finfo(y.dtype).eps * float(s.norm() * y.norm()):
            return  # the search ended early, at a length of negative curvature
        hy = self.inverse @ y
        tau, phi = self.rule(shs / ys, float(y @ hy) / ys, len(s))
        update_inverse(self.inverse, s, y, hy, tau, phi)
        self.updates += 1

    def _forget(self) -> None:
        torch.eye(len(self.inverse), out=self.inverse)
        self.updates = 0

    def recover(self) -> str:
        self._forget()
        return "inverse Hessian anew"

    def state_dict(self) -> dict[str, Any]:
        return {"inverse": self.inverse, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any], damping: float | None = None) -> None:
        self.inverse.copy_(state["inverse"])
        self.updates = state["updates"]
