"""Replay published step-by-step trajectories and print how far ours deviate from them.

    python experiments/replay_trajectory.py FILE.npz ...

Each file holds the problem (points, right-hand sides), the settings of the optimizer, and the
parameters and Kronecker factors after every step of the code behind arXiv:2405.15603. One line a
file: the largest relative deviation (Frobenius norm of the difference over that of the published
array) of parameters and of factors over all steps. Exit code 1 where one exceeds 1e-8.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator

from pinnkfac import Box, Points, Problem, Term, Uniform, dot, grad, lap
from pinnkfac.curvature.factors import Factors
from pinnkfac.curvature.gramian import GramianSettings
from pinnkfac.curvature.kfac import InverseSettings
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp
from pinnkfac.step.base import Batch, Step
from pinnkfac.step.damping import Constant
from pinnkfac.step.gauss_newton import GaussNewtonStepper
from pinnkfac.step.lengths import Automatic, Published
from pinnkfac.step.methods import Engd, Kfac, Spring
from pinnkfac.step.search import Fixed, Grid, Search
from pinnkfac.taylor.published import published_plan

LIMIT = 1e-8


@dataclass(frozen=True)
class Deviation:
    """The largest relative deviation of parameters and of factors, and how many were compared."""

    parameters: float
    factors: float
    steps: int
    arrays: int


def problem_of(meta: dict[str, Any], data: dict[str, np.ndarray]) -> Problem:
    """The trajectory's problem, its points and right-hand sides given."""
    d, equation = meta["spatial_dim"], meta["equation"]
    timed = equation != "poisson"
    box = Box.cube(d, t=(0.0, 1.0) if timed else None)
    if equation == "log-fokker-planck-isotropic":
        box = Box.cube(d, -5.0, 5.0, t=(0.0, 1.0))

    def poisson(u: Any, at: Any) -> Any:
        return -lap(u) - at.rhs

    def heat(u: Any, at: Any) -> Any:
        return u.t - 0.25 * lap(u) - at.rhs

    def log_fokker_planck(q: Any, at: Any) -> Any:
        gradient = grad(q)
        return q.t - d / 2 - 0.5 * dot(gradient, at.x) - dot(gradient, gradient) - lap(q) - at.rhs

    residual = {
        "poisson": poisson,
        "heat": heat,
        "log-fokker-planck-isotropic": log_fokker_planck,
    }[equation]

    def given(name: str) -> Points:
        x = data[f"X_{name}"]
        columns = {c: x[:, i] for i, c in enumerate(box.coordinates.names)}
        return Points(columns, rhs=data[f"y_{name}"][:, 0])

    return Problem(
        fields=("u",),
        terms=[
            Term("interior", given("interior"), residual),
            Term("boundary", given("boundary"), lambda u, at: u - at.rhs),
        ],
        domain=box,
    )


def stepper_of(meta: dict[str, Any], system: System) -> GaussNewtonStepper:
    """The published settings in our words."""
    step, search = STEPS[meta["optimizer"]](meta["hyperparameters"])
    damping = Constant(meta["hyperparameters"]["damping"])
    return step.start(system, search, damping, Generator().manual_seed(0))


def kfac(h: dict[str, Any]) -> tuple[Step, Search]:
    automatic = h["lr"][0] == "auto"
    step = Kfac(
        factors=Factors(
            sharing=h.get("kfac_approx", "expand"),
            backpropagated=h.get("ggn_type", "type-2"),
            decay=h["ema_factor"],
            start="identity" if h["initialize_to_identity"] else "zero",
            active_rows=False,
        ),
        inverse=InverseSettings(terms="sum", damping=h.get("damping_heuristic", "same"), floor=0.0),
        momentum=h.get("momentum", 0.0),
        lengths=Automatic(by_layer=False, first_length=h["lr"][1]) if automatic else None,
    )
    return step, Fixed(1.0) if automatic else Grid()


def engd(h: dict[str, Any]) -> tuple[Step, Search]:
    names = {"full": "full", "per_layer": "layerwise", "diagonal": "diagonal"}
    gramian = GramianSettings(
        approximation=names[h["approximation"]],
        decay=h["ema_factor"],
        start="identity" if h.get("initialize_to_identity", False) else "zero",
    )
    return Engd(gramian, solver="least-squares"), Grid()


def spring(h: dict[str, Any]) -> tuple[Step, Search]:
    published = Published(h["lr"], h["norm_constraint"], bias_correction=False)
    return Spring(h["decay_factor"], relative=False, geodesic=False, published=published), Fixed(
        1.0
    )


STEPS = {"KFAC": kfac, "ENGD": engd, "SPRING": spring}
"""Optimizers as the files name them, and what turns their settings into ours."""


def published_parameters(
    system: System, data: dict[str, np.ndarray], step: int
) -> list[torch.Tensor]:
    return [
        torch.from_numpy(np.hstack([data[f"step{step}_W{k}"], data[f"step{step}_b{k}"][:, None]]))
        for k in range(len(system.graph.linears))
    ]


def relative(ours: torch.Tensor, published: torch.Tensor) -> float:
    return float((ours - published).norm() / published.norm())


def replay(path: Path) -> Deviation:
    """Run all steps of one file from its first parameters."""
    with np.load(path) as archive:
        data = {name: archive[name] for name in archive.files}
    meta = json.loads(str(data["meta"]))
    if meta["optimizer"] not in STEPS:
        raise NotImplementedError(f"{meta['optimizer']} is not a step of this version")
    widths = meta["widths"]
    net = Mlp(widths[0], 1, widths[1:-1])
    system = System(problem_of(meta, data), net, planner=published_plan)
    ours = published_parameters(system, data, 0)
    points = system.prepare(
        [t.where.draw(t.where.number, Uniform(), Generator()) for t in system.problem.terms]
    )
    stepper = stepper_of(meta, system)
    worst_parameters = worst_factors = 0.0
    arrays = 0
    for step in range(1, meta["steps"] + 1):
        ours = stepper.update(ours, Batch(points)).parameters
        for mine, theirs in zip(ours, published_parameters(system, data, step), strict=True):
            worst_parameters = max(worst_parameters, relative(mine, theirs))
        for term, name in enumerate(("interior", "boundary")):
            for layer in range(len(ours)):
                for side, letter in enumerate("AB"):
                    key = f"step{step}_{letter}_{name}{layer}"
                    if key in data:
                        published = torch.from_numpy(data[key])
                        sides = stepper.memory.curvature.average.factors.total
                        mine = sides[2 * (term * len(ours) + layer) + side]
                        worst_factors = max(worst_factors, relative(mine, published))
                        arrays += 1
    return Deviation(worst_parameters, worst_factors, meta["steps"], arrays)


def main(arguments: list[str]) -> int:
    if not arguments:
        print(__doc__)
        return 2
    failed = False
    for argument in arguments:
        path = Path(argument)
        try:
            result = replay(path)
        except NotImplementedError as error:
            print(f"{path.stem}: skipped, {error}")
            continue
        except OSError as error:
            print(f"{path}: cannot be read: {error}", file=sys.stderr)
            return 2
        worst = max(result.parameters, result.factors)
        failed |= not worst <= LIMIT
        print(
            f"{path.stem}: parameters {result.parameters:.2e}, factors {result.factors:.2e} "
            f"over {result.steps} steps ({result.arrays} factors)"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
