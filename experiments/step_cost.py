"""What a step costs, in units of one float64 matrix product 1024 × 1024 × 1024.

    python experiments/step_cost.py [--repeats 7] [--threads 1] [--case NAME]

The unit is timed in the same process on the same threads, between the measurements. Cases and nets
are those of arXiv:2405.15603; the published code's figures, from one core, stand beside ours. One
line each: case, what was timed, median in units, the published figure where there is one.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import torch
from torch import Generator

from pinnkfac.common.memory import keep_freed_memory
from pinnkfac.config.build import build
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import find
from pinnkfac.curvature.factors import factors
from pinnkfac.linearisation.system import System
from pinnkfac.points.functions import functions_of
from pinnkfac.points.source import PointSource
from pinnkfac.step.base import Batch, Stepper

CASES = {
    "poisson2d_medium": ("poisson2d", "[64,64,48,48]", {"poisson": 900, "boundary": 120}),
    "heat4d_big": ("heat4d", "[256,256,128,128]", {"heat": 3000, "walls": 250, "start": 250}),
}
PUBLISHED = {
    ("poisson2d_medium", "kfac"): 5.9,
    ("poisson2d_medium", "kfac_star"): 2.6,
    ("heat4d_big", "kfac"): 187.0,
    ("heat4d_big", "kfac_star"): 76.0,
}


class Clock:
    """Times calls in units of the matrix product, measured alternately with them."""

    def __init__(self, repeats: int) -> None:
        self.repeats = repeats
        self.a = torch.randn(1024, 1024, dtype=torch.float64)
        self.b = torch.randn(1024, 1024, dtype=torch.float64)
        self.out = torch.empty_like(self.a)
        self.unit()

    def unit(self) -> float:
        start = time.perf_counter()
        torch.mm(self.a, self.b, out=self.out)
        return time.perf_counter() - start

    def units(self, call: Callable[[], object]) -> float:
        call()
        seconds, units = [], []
        for _ in range(self.repeats):
            units.append(min(self.unit() for _ in range(2)))
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds) / statistics.median(units)


def measure(case: str, clock: Clock, warm_up: int) -> None:
    name, widths, numbers = CASES[case]
    found = find(name)
    problem = found.problem({})
    overrides = [f"net.widths={widths}"]
    known = [t.name for t in problem.terms]
    overrides += [f"points.numbers.{k}={v}" for k, v in numbers.items() if k in known]

    def start(step: str) -> tuple[System, PointSource, Stepper]:
        config = compose(name, found.defaults, [f"step={step}", *overrides])
        system = System(problem, build(config.net, "net").make(problem.signature, 0))
        settings, g = build(config.points, "points"), Generator().manual_seed(0)
        source = PointSource(problem, settings, functions_of(system), g)
        stepper = build(config.step, "step").start(
            system,
            build(config.search, "search"),
            build(config.damping, "damping"),
            Generator().manual_seed(1),
        )
        return system, source, stepper

    def line(what: str, units: float) -> None:
        published = PUBLISHED.get((case, what))
        beside = f"  (published code {published:g})" if published else ""
        print(f"{case}: {what} {units:.3f} units{beside}", flush=True)

    system, source, stepper = start("kfac")
    points = source.at(0)
    linearisation = system.linearise(points)
    gradient = linearisation.gradient()
    settings = stepper.method.curvature.factors  # type: ignore[attr-defined]
    line("linearisation", clock.units(lambda: system.linearise(points)))
    line("loss", clock.units(lambda: system.loss(points)))
    line("Jv", clock.units(lambda: linearisation.jvp(gradient)))
    line("J^T w", clock.units(lambda: linearisation.gradient()))
    line("factors", clock.units(lambda: factors(linearisation, settings)))
    for step in ("kfac", "kfac_star"):
        line(step, _step_units(clock, *start(step), warm_up))


def _step_units(
    clock: Clock, system: System, source: PointSource, stepper: Stepper, warm_up: int
) -> float:
    """The mean over an even number of steps, since factors are updated in every second one."""
    batch = Batch(source.at(0))
    parameters = system.get_parameters()
    for _ in range(warm_up):
        parameters = stepper.update(parameters, batch).parameters

    def two() -> None:
        nonlocal parameters
        for _ in range(2):
            parameters = stepper.update(parameters, batch).parameters

    return clock.units(two) / 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--warm-up", type=int, default=3, help="steps before timing starts")
    parser.add_argument("--case", choices=sorted(CASES), action="append")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    clock = Clock(arguments.repeats)
    seconds = statistics.median(clock.unit() for _ in range(9))
    print(f"unit: {seconds:.4f} s, {2 * 1024**3 / seconds / 1e9:.1f} GFLOP/s")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    for case in arguments.case or CASES:
        measure(case, clock, arguments.warm_up)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{case}: peak memory {peak:.2f} GiB ({before:.2f} before the first case)")


if __name__ == "__main__":
    main()
