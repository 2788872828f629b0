"""References of torch, fed with the gradient of the linearisation: Adam, SGD, L-BFGS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Count, Positive, Range
from pinnkfac.linearisation.direction import Direction, combine, norm
from pinnkfac.linearisation.objective import Objective
from pinnkfac.step.base import Batch, Report, Stepper
from pinnkfac.step.damping import Damping, NoDamping
from pinnkfac.step.search import NoSearch, Search

CAUTION = 0.1
"""Factor on the learning rate after a divergence."""

Momentum = Annotated[float, Range(least=0, below=1)]
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


class FirstOrder:
    """Settings of a step from gradients alone; one with an optimizer of torch overrides ``make``,
    any other ``stepper``."""

    def make(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        raise NotImplementedError

    def stepper(self, objective: Objective) -> Stepper:
        return OptimizerStepper(objective, self.make)

    def start(
        self,
        objective: Objective,
        search: Search,
        damping: Damping,
        generator: Generator,
        *,
        fresh: bool = True,
    ) -> Stepper:
        """Raises UserError for a search or a damping, which it does not use."""
        for group, part in (("search", search), ("damping", damping)):
            if not isinstance(part, NoSearch | NoDamping):
                raise UserError(
                    f"{group}={type(part).__name__} has no effect on a first-order step: leave it "
                    f"out, or set {group}=none"
                )
        return self.stepper(objective)


@dataclass(frozen=True)
class Adam(FirstOrder):
    """torch.optim.Adam (Kingma & Ba 2015, arXiv:1412.6980)."""

    learning_rate: Positive = 1e-3
    """factor on the step"""
    beta1: Momentum = 0.9
    """of the average of gradients"""
    beta2: Momentum = 0.999
    """of the average of their squares"""
    epsilon: Positive = 1e-8
    """added to the root of the latter"""

    def make(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.Adam(parameters, self.learning_rate, betas, self.epsilon)


@dataclass(frozen=True)
class Sgd(FirstOrder):
    """torch.optim.SGD with heavy-ball momentum."""

    learning_rate: Positive = 1e-3
    """factor on the step"""
    momentum: Momentum = 0.9
    """heavy-ball momentum"""

    def make(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, self.learning_rate, self.momentum)


@dataclass(frozen=True)
class Lbfgs(FirstOrder):
    """torch.optim.LBFGS; one step is ``iterations`` iterations with a strong Wolfe search."""

    iterations: Count = 20
    """iterations that make one step"""
    history: Count = 50
    """pairs that are remembered"""

    def make(self, parameters: list[Tensor]) -> torch.optim.Optimizer:
        return torch.optim.LBFGS(
            parameters,
            lr=1.0,
            max_iter=self.iterations,
            history_size=self.history,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )


class OptimizerStepper(Stepper):
    """Runs a torch optimizer on a copy of the parameters, through the same loop as any step."""

    def __init__(self, objective: Objective, make: Make) -> None:
        self.objective = objective
        self.make = make
        self.parameters: Direction = objective.layout.zeros()
        self.optimizer = make(self.parameters)

    def update(self, parameters: Direction, batch: Batch) -> Report:
        if not batch.same_loss and isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer = self.make(self.parameters)  # its memory is of another function
        with torch.no_grad():
            for place, value in zip(self.parameters, parameters, strict=True):
                place.copy_(value)
        evaluated: list[tuple[list[float], float]] = []

        def closure() -> float:
            linearisation = self.objective.linearise(batch.points, self.parameters)
            for parameter, value in zip(self.parameters, linearisation.gradient(), strict=True):
                parameter.grad = value
            evaluated.append((linearisation.losses, linearisation.loss))
            return linearisation.loss

        self.optimizer.step(closure)
        after = [v.clone() for v in self.parameters]
        moved = norm(combine((1.0, after), (-1.0, parameters)))
        losses, loss = evaluated[0]
        length = 1.0 if moved > 0 else 0.0
        trials = len(evaluated)
        return Report(after, losses, loss, length, trials=trials, direction_norm=moved)

    def recover(self) -> str:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self.optimizer = self.make(self.parameters)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = CAUTION * rate
        return f"learning rate {rates[0]:.1g} → {CAUTION * rates[0]:.1g}"

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any], damping: float | None = None) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
