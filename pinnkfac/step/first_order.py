"""References of torch, fed with the gradient of the linearisation: Adam, SGD, L-BFGS."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import Count, Positive, Range
from pinnkfac.linearisation.direction import Direction, combine, norm
from pinnkfac.linearisation.system import System, TermPoints
from pinnkfac.step.base import Report, Stepper
from pinnkfac.step.damping import Damping, NoDamping
from pinnkfac.step.search import NoSearch, Search

CAUTION = 0.1
"""Factor on the learning rate after a divergence."""

Momentum = Annotated[float, Range(least=0, below=1)]
Make = Callable[[list[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Adam:
    """torch.optim.Adam (Kingma & Ba 2015, arXiv:1412.6980)."""

    learning_rate: Positive = 1e-3
    """factor on the step"""
    beta1: Momentum = 0.9
    """of the average of gradients"""
    beta2: Momentum = 0.999
    """of the average of their squares"""
    epsilon: Positive = 1e-8
    """added to the root of the latter"""

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> OptimizerStepper:
        def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.Adam(
                parameters, self.learning_rate, (self.beta1, self.beta2), self.epsilon
            )

        refuse(search, damping)
        return OptimizerStepper(system, make)


@dataclass(frozen=True)
class Sgd:
    """torch.optim.SGD with heavy-ball momentum."""

    learning_rate: Positive = 1e-3
    """factor on the step"""
    momentum: Momentum = 0.9
    """heavy-ball momentum"""

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> OptimizerStepper:
        def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.SGD(parameters, self.learning_rate, self.momentum)

        refuse(search, damping)
        return OptimizerStepper(system, make)


@dataclass(frozen=True)
class Lbfgs:
    """torch.optim.LBFGS; one step is ``iterations`` iterations with a strong Wolfe search."""

    iterations: Count = 20
    """iterations that make one step"""
    history: Count = 50
    """pairs that are remembered"""

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> OptimizerStepper:
        def make(parameters: list[Tensor]) -> torch.optim.Optimizer:
            return torch.optim.LBFGS(
                parameters,
                lr=1.0,
                max_iter=self.iterations,
                history_size=self.history,
                tolerance_grad=0.0,
                tolerance_change=0.0,
                line_search_fn="strong_wolfe",
            )

        refuse(search, damping)
        return OptimizerStepper(system, make)


def refuse(search: Search, damping: Damping) -> None:
    """Raise UserError for a search or a damping, which a first-order step does not use."""
    for group, part, nothing in (("search", search, NoSearch), ("damping", damping, NoDamping)):
        if not isinstance(part, nothing):
            raise UserError(
                f"{group}={type(part).__name__} has no effect on a first-order step: leave it out, "
                f"or set {group}=none"
            )


class OptimizerStepper(Stepper):
    """Runs a torch optimizer on a copy of the parameters, through the same loop as any step."""

    def __init__(self, system: System, make: Make) -> None:
        self.system = system
        self.parameters: Direction = system.get_parameters()
        self.make = make
        self.optimizer = make(self.parameters)

    def update(
        self,
        points: Sequence[TermPoints],
        *,
        same_loss: bool = True,
        unseen: Sequence[TermPoints] | None = None,
    ) -> Report:
        if not same_loss and isinstance(self.optimizer, torch.optim.LBFGS):
            self.optimizer = self.make(self.parameters)  # its memory is of another function
        before = [v.clone() for v in self.parameters]
        found: list[tuple[list[float], float]] = []

        def closure() -> float:
            self.system.set_parameters(self.parameters)
            linearisation = self.system.linearise(points)
            for parameter, value in zip(self.parameters, linearisation.gradient(), strict=True):
                parameter.grad = value
            found.append((linearisation.losses, linearisation.loss))
            return linearisation.loss

        self.optimizer.step(closure)
        self.system.set_parameters(self.parameters)
        change = combine((1.0, self.parameters), (-1.0, before))
        return Report(
            losses=found[0][0],
            trained_loss=found[0][1],
            length=1.0 if norm(change) > 0 else 0.0,
            trials=len(found),
            direction_norm=norm(change),
        )

    def recover(self) -> str:
        rates = [group["lr"] for group in self.optimizer.param_groups]
        with torch.no_grad():
            for own, value in zip(self.parameters, self.system.get_parameters(), strict=True):
                own.copy_(value)
        self.optimizer = self.make(self.parameters)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = CAUTION * rate
        return f"learning rate {rates[0]:.1g} → {CAUTION * rates[0]:.1g}"

    def state_dict(self) -> dict[str, Any]:
        return {"parameters": self.parameters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            for own, value in zip(self.parameters, state["parameters"], strict=True):
                own.copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
