"""The start of a run: random features that solve the problem, or say which activation fits it."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, open_dict
from torch import nn

from pinnkfac.config.build import build
from pinnkfac.domain import Points
from pinnkfac.features.search import SOLVED, WAVES, Candidate, Found, Search
from pinnkfac.linearisation.system import System
from pinnkfac.nets import FeatureSettings, Mlp, MlpSettings, OutputScaling
from pinnkfac.nets.mlp import embedded
from pinnkfac.nets.settings import AUTO
from pinnkfac.points.settings import PointSettings
from pinnkfac.problem import Problem
from pinnkfac.run.assembly import compiled, general_settings, one_thread_in_torch, stop_of
from pinnkfac.run.progress import Stop
from pinnkfac.step.auto import Auto

RATE = 6e9
"""Multiplications that a second is taken for: a run that is repeated must not depend on clocks."""
ROUNDED = 1e-9
"""Relative residual below which no step is needed: rounding is near."""
LEAST = 1e-12
"""Size of what a net adds to features that leave less."""
ROUGHLY = 0.05
"""Relative residual below which a net begins with features whose waves it does not find."""
RESERVE = 0.4
"""Part of the work that features may take where more of them help much."""
CLEARLY = 5.0
"""How many times less features with sin must leave than others for a net of them."""


MORE_THAN_ONE = (
    "the terms do not determine '{}': other functions fulfil them as well. Is a condition missing, "
    "or is it fixed up to a constant only? Add what is known of it"
)


@dataclass(frozen=True)
class Start:
    """A configuration in which nothing of the net is left to be chosen, that net, what was found in
    words, what a user must be warned of, whether the problem is solved to rounding, and the seconds
    that it took."""

    config: DictConfig
    net: nn.Module
    note: str
    doubts: list[str]
    solved: bool
    seconds: float


def find_start(config: DictConfig, system: System) -> Start | None:
    """Random features within the share of the work that the step allows them, for the problem of a
    ``system`` with the configured net; None where it allows none, where the net is none that they
    fit in, or where a problem has unknown coefficients or values that were measured, which features
    would fit with their noise.

    Where they leave almost nothing, the net begins with them, and adds to them. Else they say
    whether waves fit the problem better than steps, and the net is of sin instead of tanh.
    """
    begin = time.perf_counter()
    settings: Any = build(config.net, "net")
    step: Any = build(config.step, "step")
    problem, net = system.problem, system.net
    if not isinstance(settings, MlpSettings) or not isinstance(net, Mlp):
        return None
    if net.features is not None or _unknown(problem):
        return None
    if not isinstance(step, Auto) or not step.features:
        return None
    search = _search(config, system, net, step)
    with one_thread_in_torch(system.device):
        found = search.found()
        if found is None:
            return None
        best = search.checked(found.best) if _solves(found.best) else found.best
        doubtful = search.undetermined(best) if _solves(best) else None
    if settings.activation == AUTO:
        settings = replace(settings, activation=_activation(found))
    if _solves(best):
        rest = max(best.residual, LEAST)  # where nothing is left, something of the net is
        settings = replace(settings, features=replace(best.settings, rest=rest))
    made = settings.make(problem.signature, general_settings(config).seed)
    if settings.features is not None:
        _take_over(made, best)
    note = _note(best, settings)
    seconds = time.perf_counter() - begin
    doubts = [] if doubtful is None else [MORE_THAN_ONE.format(doubtful)]
    solved = best.residual < ROUNDED and not doubts
    return Start(_resolved(config, settings), made, note, doubts, solved, seconds)


def _unknown(problem: Problem) -> bool:
    """Whether there is something to be found from data."""
    regions = [term.where for term in problem.terms]
    return bool(problem.parameters) or any(isinstance(r, Points) and r.values for r in regions)


def _search(config: DictConfig, system: System, net: Mlp, step: Auto) -> Search:
    """Among nets whose coordinates and fields are mapped like those of the configured one."""
    problem, seed = system.problem, general_settings(config).seed
    embedding: list[nn.Module] = list(net.embedding)
    inputs = embedded(len(problem.coordinates.names), embedding)

    def make(features: FeatureSettings) -> nn.Sequential:
        drawn = features.make(inputs, len(problem.fields), seed)
        behind = [] if net.output is None else [net.output]
        return nn.Sequential(*embedding, drawn, *behind)

    work = _work(stop_of(config), step, system, build(config.points, "points"))
    first, reserve = step.features * work, (RESERVE - step.features) * work
    return Search(problem, make, partial(compiled, config, problem), first, max(0.0, reserve))


def _work(stop: Stop, step: Auto, system: System, points: PointSettings) -> float:
    """Multiplications of the whole run, about."""
    limits = []
    if stop.seconds is not None:
        limits.append(RATE * stop.seconds)
    if stop.steps is not None:
        dimension = len(system.problem.coordinates.names)
        numbers = [points.number(term, dimension) for term in system.problem.terms]
        a_step = min(step.cost(system.workload, numbers), step.multiplications)
        limits.append(a_step * stop.steps)
    return min(limits)


def _activation(found: Found) -> str:
    """sin where as many features of it leave much less, or more of them have short waves."""
    left = {name: candidate.residual for name, candidate in found.few.items()}
    clearly = CLEARLY * left.get("sin", math.inf) < left.get("tanh", math.inf)
    best = found.best.settings
    return "sin" if clearly or (best.activation == "sin" and best.scale > WAVES) else "tanh"


def _solves(best: Candidate) -> bool:
    """Whether a net begins with these features."""
    return best.residual < (ROUGHLY if best.settings.scale > WAVES else SOLVED)


@torch.no_grad()
def _take_over(net: Mlp, best: Candidate) -> None:
    """The net is what the features are, to which its layers add nothing yet."""
    assert net.features is not None
    net.features.load_state_dict(best.features.state_dict())
    net.be_features()
    here, there = net.output, best.net[-1]
    if isinstance(here, OutputScaling) and isinstance(there, OutputScaling):
        here.take_over(there)


def _resolved(config: DictConfig, settings: MlpSettings) -> DictConfig:
    """The configuration that says what was chosen, so that the run needs no search to go on."""
    result = config.copy()
    with open_dict(result):
        result.net.activation = settings.activation
        if settings.features is not None:
            path = f"{FeatureSettings.__module__}.{FeatureSettings.__qualname__}"
            result.net.features = {"_target_": path, **asdict(settings.features)}
    return result


def _note(best: Candidate, settings: MlpSettings) -> str:
    features = best.settings
    left = (
        f"{features.number} random features ({features.activation}, scale {features.scale:.3g}) "
        f"leave a relative residual of {best.residual:.1e}"
    )
    if settings.features is not None:
        return f"start: {left}; the net adds to them"
    return f"start: {left}; the net is of {settings.activation}"
