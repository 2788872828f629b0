"""The kernel J Jᵀ by rows against forming J, and what steps cost against the cost model.

    python experiments/kernel_cost.py [--repeats 5] [--threads 1] [--part NAME] [--short]

Parts: 'kernel' (seconds and memory of the kernel by rows, of J from (Z, G), and of J by
torch.func, with which no library is needed), 'step' (an ENGD-W step in units of one float64 matrix
product 1024 × 1024 × 1024), 'model' (times of steps over the multiplications that
curvature/cost.py counts, normalised at the smallest size, as points, width, depth and dimension
double). Times are the best of several in one process, with one thread those of the processor, which
other programs disturb less; peak memory is that of a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.func import functional_call, grad, hessian, vmap

from pinnkfac import Box, Problem, Term, lap
from pinnkfac.common.memory import keep_freed_memory
from pinnkfac.curvature.cost import TRIALS, conjugate_gradient_step, exact_step
from pinnkfac.curvature.kernel import kernel, plan_kernel
from pinnkfac.domain import Uniform
from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.linearisation import Linearisation
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp
from pinnkfac.step.base import Batch, Step
from pinnkfac.step.damping import Constant
from pinnkfac.step.lengths import Automatic
from pinnkfac.step.methods import Kfac, Spring
from pinnkfac.step.search import Accepted, Loss

MIB = 2**20
CHUNK = 32
"""Points whose rows of J torch.func forms at once."""


@dataclass(frozen=True)
class Case:
    """Poisson's equation on a cube, with so many points inside and on the boundary."""

    interior: int = 900
    boundary: int = 120
    dimension: int = 2
    widths: tuple[int, ...] = (256, 256, 128, 128)

    def start(self) -> tuple[System, list[TermPoints]]:
        box = Box.cube(self.dimension)
        terms = [
            Term("poisson", box.interior, lambda u, at: -lap(u) - 1.0),
            Term("boundary", box.boundary, lambda u, at: u),
        ]
        net = Mlp(self.dimension, 1, self.widths)
        system = System(Problem(fields=("u",), terms=terms), net)
        generator = Generator().manual_seed(0)
        numbers = (self.interior, self.boundary)
        drawn = [t.where.draw(n, Uniform(), generator) for t, n in zip(terms, numbers, strict=True)]
        return system, system.prepare(drawn)


def best_of(calls: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """The least time of each of several calls, made in turn: the one least disturbed."""
    now = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    least = [float("inf")] * len(calls)
    for _ in range(repeats):
        for i, call in enumerate(calls):
            start = now()
            call()
            least[i] = min(least[i], now() - start)
    return least


def best(call: Callable[[], object], repeats: int) -> float:
    return best_of([call], repeats)[0]


# -- the kernel ------------------------------------------------------------------------------------
def dense_kernel(linearisation: Linearisation) -> Tensor:
    """J Jᵀ from all rows of J, which (Z, G) yield."""
    rows = torch.cat([block.jacobian(linearisation.layout) for block in linearisation])
    return rows @ rows.T


def autograd_kernel(system: System, points: Sequence[TermPoints]) -> Tensor:
    """J Jᵀ from all rows of J by reverse over forward over reverse mode, without (Z, G)."""
    net = system.net
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def value(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(net, parameters, (x[None],))[0, 0]

    def poisson(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return -hessian(value, argnums=1)(parameters, x).trace() - 1.0

    rows = []
    for residual, own in zip((poisson, value), points, strict=True):
        derivative = vmap(grad(residual), in_dims=(None, 0), chunk_size=CHUNK)
        found = derivative(parameters, own.points.coordinates)
        rows.append(torch.cat([v.flatten(1) for v in found.values()], dim=1) / len(own) ** 0.5)
    jacobian = torch.cat(rows)
    return jacobian @ jacobian.T


def kernels(case: Case) -> dict[str, Callable[[], Tensor]]:
    """Each from the net alone: linearisations are made where they are needed."""
    system, points = case.start()
    return {
        "by rows": lambda: kernel(system.linearise(points)),
        "dense": lambda: dense_kernel(system.linearise(points)),
        "torch.func": lambda: autograd_kernel(system, points),
    }


def compare_kernels(case: Case, repeats: int, threads: int) -> None:
    ways = kernels(case)
    system, points = case.start()
    numbers = [len(own) for own in points]
    plan = plan_kernel(system.workload, numbers)
    products = replace(
        plan_kernel(system.workload, numbers, products_only=True), by_rows=plan.by_rows
    )
    print(
        f"kernel of {case.interior} + {case.boundary} residuals, {case.dimension}d, widths "
        f"{'-'.join(map(str, case.widths))}, {system.layout.number} parameters; layers by rows: "
        f"{sum(plan.by_rows)} of {len(plan.by_rows)}"
    )
    reference = ways["by rows"]()
    product = len(reference) ** 2 * system.layout.number
    print(
        f"multiplications: {products.multiplications:.2e} by rows, {product:.2e} for J times its "
        f"transpose ({product / products.multiplications:.1f} times)"
    )
    linearisation = best(lambda: system.linearise(points), repeats)
    print(f"  linearisation: {linearisation:.3f} s, contained in the first two times below")
    times, peaks = {}, {}
    for name, call in ways.items():
        found = call()
        deviation = float((found - reference).abs().max() / reference.abs().max())
        print(f"deviation of '{name}': {deviation:.1e}")
        times[name] = best(call, repeats if name == "by rows" else max(1, repeats // 2))
        peaks[name] = _peak_in_a_child(case, name, threads)
    for name in ways:
        print(
            f"  {name}: {times[name]:.3f} s ({times[name] / times['by rows']:.1f} times), peak "
            f"{peaks[name] / MIB:.0f} MiB ({peaks[name] / peaks['by rows']:.1f} times)"
        )
    own = times["by rows"] - linearisation
    ratio = (times["dense"] - linearisation) / own if own > 0 else float("nan")
    print(f"  without the linearisation: dense {ratio:.1f} times")


def _peak_in_a_child(case: Case, name: str, threads: int) -> int:
    text = json.dumps({**vars(case), "name": name, "threads": threads})
    command = [sys.executable, str(Path(__file__).resolve()), "--measure-memory", text]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout)


def measure_memory(text: str) -> None:
    """Print by how many bytes the peak of this process rises for one kernel."""
    given = json.loads(text)
    name, threads = given.pop("name"), given.pop("threads")
    torch.set_num_threads(threads)
    case = Case(**{**given, "widths": tuple(given["widths"])})
    small = kernels(replace(case, interior=4, boundary=4))[name]
    call = kernels(case)[name]
    small()  # what libraries take at their first call is no part of the kernel
    before = _status("VmHWM")
    call()
    print(_status("VmHWM") - before)


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {key}")


# -- steps -----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class SomeTrials:
    """A search that always evaluates as many losses as the cost model counts, and hardly moves."""

    length: float = 1e-4

    def run(self, loss: Loss, loss_0: float, slope: float, last: float | None) -> Accepted:
        for _ in range(round(TRIALS)):
            value = loss(self.length)
        return Accepted(self.length, value, round(TRIALS))


def stepping(case: Case, step: Step) -> Callable[[], object]:
    """A function that takes a step, after the first one."""
    system, points = case.start()
    stepper = step.start(system, SomeTrials(), Constant(1e-6), Generator().manual_seed(0))
    parameters, batch = system.get_parameters(), Batch(points)

    def go() -> None:
        nonlocal parameters
        parameters = stepper.update(parameters, batch).parameters

    go()
    return go


def compare_steps(case: Case, repeats: int) -> None:
    a, b = torch.randn(2, 1024, 1024, dtype=torch.float64)
    out = torch.empty_like(a)
    steps = [stepping(case, Spring(decay=0.0, geodesic=g)) for g in (False, True)]
    unit, plain, bent = best_of([lambda: torch.mm(a, b, out=out), *steps], repeats)
    print(f"unit: {unit:.4f} s, {2 * 1024**3 / unit / 1e9:.1f} GFLOP/s")
    print(f"  ENGD-W step without geodesic acceleration: {plain / unit:.1f} units")
    print(f"  ENGD-W step with geodesic acceleration: {bent / unit:.1f} units")


# -- the cost model --------------------------------------------------------------------------------
ITERATIONS = 10


def sizes(base: Case, doublings: int) -> list[tuple[str, Case]]:
    """The smallest case, and each of its sizes doubled once, twice …"""
    result = [("smallest", base)]
    for k in range(1, doublings + 1):
        factor = 2**k
        points = replace(base, interior=base.interior * factor, boundary=base.boundary * factor)
        result += [
            (f"points x {factor}", points),
            (f"width x {factor}", replace(base, widths=tuple(factor * w for w in base.widths))),
            (f"depth x {factor}", replace(base, widths=base.widths * factor)),
            (f"dimension x {factor}", replace(base, dimension=base.dimension * factor)),
        ]
    return result


def compare_model(base: Case, doublings: int, repeats: int) -> None:
    """Print how many multiplications of the model a second has, relative to the smallest size."""
    steps = (
        Spring(decay=0.0, geodesic=True),
        Kfac(iterations=ITERATIONS, lengths=Automatic()),
    )
    cases = sizes(base, doublings)
    times = best_of([stepping(case, step) for _, case in cases for step in steps], repeats)
    print("cost model: seconds, and the model over them relative to the smallest size")
    print(f"{'':>16} {'exact':>9} {'ratio':>6} {'KFAC CG':>9} {'ratio':>6}")
    first: list[float] = []
    for i, (name, case) in enumerate(cases):
        seconds = times[2 * i : 2 * i + 2]
        rates = [c / t for c, t in zip(counts(case), seconds, strict=True)]
        first = first or rates
        pairs = zip(seconds, rates, first, strict=True)
        print(f"{name:>16} {' '.join(f'{t:9.4f} {r / f:6.2f}' for t, r, f in pairs)}")
    exact, factored = first
    print(f"one multiplication of an exact step takes {factored / exact:.2f} of one of KFAC")


def counts(case: Case) -> tuple[float, float]:
    """The multiplications of both steps by the cost model."""
    system, points = case.start()
    numbers = [len(own) for own in points]
    workload = system.workload
    return exact_step(workload, numbers), conjugate_gradient_step(workload, numbers, ITERATIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--part", choices=("kernel", "step", "model"), action="append")
    parser.add_argument("--short", action="store_true", help="small sizes: whether it runs at all")
    parser.add_argument("--measure-memory", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure_memory:
        measure_memory(arguments.measure_memory)
        return
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    case = Case(30, 10, widths=(16, 16)) if arguments.short else Case()
    repeats = 1 if arguments.short else arguments.repeats
    parts = arguments.part or ("kernel", "step", "model")
    if "kernel" in parts:
        compare_kernels(case, repeats, arguments.threads)
    if "step" in parts:
        compare_steps(case, repeats)
    if "model" in parts:
        base = Case(20, 10, widths=(8, 8)) if arguments.short else Case(450, 60, widths=(64,) * 3)
        compare_model(base, 1 if arguments.short else 2, repeats)


if __name__ == "__main__":
    main()
