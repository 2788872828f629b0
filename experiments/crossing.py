"""Time to a given error over the number of points: exact steps against KFAC.

    python experiments/crossing.py [--error 1e-2] [--seconds 200] [--out crossing.png] [--short]

Poisson's equation on the unit square with a net of about 10 000 parameters. Exact steps (ENGD-W)
and KFAC take all points in every step; 'auto' may begin with fewer. A method that needs more memory
or more than the given seconds at one size is not run at larger ones. Seconds are those of the
processor, on one thread, without what measuring the error takes; where one exact step would need
more of them than given, by the cost model, it is not tried. Prints a table, with what 'auto' began
with, and draws it.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from pinnkfac import UserError
from pinnkfac.common.memory import keep_freed_memory
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import find
from pinnkfac.curvature.cost import exact_step
from pinnkfac.plots import save
from pinnkfac.plots.style import light_grid, line_style, styled
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.run.assembly import assemble
from pinnkfac.run.loop import run
from pinnkfac.run.progress import Progress
from pinnkfac.solution import Solution

STEPS = {"engd_w": "exact (ENGD-W)", "kfac_cg": "KFAC with CG", "kfac": "KFAC", "auto": "auto"}
EXACT = "engd_w"
BOUNDARY = 8
"""Points inside for each on the boundary."""
SIZES = [250, 500, 1000, 3000, 10000, 30000, 100000]
METER = 1000
"""Points that the error is measured on after every step."""


@dataclass(frozen=True)
class Reached:
    """What one run came to; ``seconds`` is infinite where it did not reach the error."""

    seconds: float
    steps: int
    note: str = ""


def time_to(step: str, points: int, widths: str, error: float, limit: float) -> Reached:
    """Solve until the relative L2 error is reached."""
    found = find("poisson2d")
    problem = found.problem({})
    overrides = [
        f"step={step}",
        f"net.widths={widths}",
        f"points.numbers.poisson={points}",
        f"points.numbers.boundary={max(4, points // BOUNDARY)}",
        "points.gap=null",
        "threads=1",
        "stop.seconds=null",
        "stop.steps=100000",
        f"stop.error={error}",
    ]
    parts = assemble(compose("poisson2d", found.defaults, overrides), problem)
    if step == EXACT:
        cost = exact_step(parts.system.workload, list(parts.source.numbers().values()))
        seconds = cost / multiplications_a_second()
        if seconds > limit:
            return Reached(math.inf, 0, f"one step would take about {seconds:.2g} s")
    meter = ErrorMeter(problem, METER)
    solution = Solution(problem.signature, parts.system.net)
    measuring, reached = 0.0, math.inf
    begin = time.process_time()

    def watch(progress: Progress) -> float:
        nonlocal measuring, reached
        now = time.process_time()
        errors = meter.measure(solution)
        assert errors is not None
        if errors.relative_l2 < error:
            reached = now - begin - measuring
        measuring += time.process_time() - now
        return errors.relative_l2

    def late() -> str:
        return "the limit" if time.process_time() - begin - measuring > limit else ""

    system, source = parts.system, parts.source
    progress, _ = run(
        system, parts.stepper, source, parts.stop, parts.balance, watch, interrupted=late
    )
    return Reached(reached, progress.step, progress.notes[0] if progress.notes else "")


def multiplications_a_second() -> float:
    """Of one thread in float64 matrix products."""
    a = torch.randn(1024, 1024, dtype=torch.float64)
    seconds = []
    for _ in range(5):
        begin = time.process_time()
        a @ a
        seconds.append(time.process_time() - begin)
    return 1024**3 / min(seconds)


def measure(
    sizes: list[int], widths: str, error: float, limit: float
) -> dict[str, dict[int, Reached]]:
    """Every step at every size, until it fails at one."""
    table: dict[str, dict[int, Reached]] = {step: {} for step in STEPS}
    for points in sizes:
        for step, own in table.items():
            if own and step != "auto" and math.isinf(list(own.values())[-1].seconds):
                continue
            try:
                own[points] = time_to(step, points, widths, error, limit)
            except UserError as refused:
                own[points] = Reached(math.inf, 0, str(refused))
            result = own[points]
            text = f"{result.seconds:9.2f} s" if math.isfinite(result.seconds) else "not reached"
            print(f"{points:>8} points  {STEPS[step]:<16} {text} {result.steps:>5} steps", end="")
            print(f"  {result.note}" if result.note else "", flush=True)
    return table


def verdict(table: dict[str, dict[int, Reached]], size: int) -> str:
    """Which method was first at a size, and where 'auto' came in."""

    def seconds(step: str) -> float:
        return table[step][size].seconds if size in table[step] else math.inf

    rivals = [step for step in STEPS if step != "auto"]
    first = min(rivals, key=seconds)
    if math.isinf(seconds(first)):
        return f"{size:>8} points: none reached the error"
    ratio = seconds("auto") / seconds(first)
    return f"{size:>8} points: {STEPS[first]} was first; auto took {ratio:.2f} of its time"


@styled()
def draw(table: dict[str, dict[int, Reached]], error: float, parameters: str) -> Figure:
    """Seconds over points, one line a step; a cross where a method did not get there."""
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    known = [r.seconds for own in table.values() for r in own.values()]
    highest = max((s for s in known if math.isfinite(s)), default=1.0)
    for number, (step, own) in enumerate(table.items()):
        style = line_style(number, marker=True)
        solved = {n: r.seconds for n, r in own.items() if math.isfinite(r.seconds)}
        axes.plot(list(solved), list(solved.values()), label=STEPS[step], **style)
        failed = [n for n in own if n not in solved]
        axes.plot(failed, [2.0 * highest] * len(failed), "x", color=style["color"], markersize=8)
    axes.set(xscale="log", yscale="log", xlabel="points in the domain", ylabel="time [s]")
    axes.set_title(f"time to a relative L2 error of {error:g}, {parameters}; ×: not reached")
    axes.legend()
    light_grid(axes)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--error", type=float, default=1e-2, help="relative L2 error to be reached")
    parser.add_argument("--seconds", type=float, default=200.0, help="limit of one run")
    parser.add_argument("--points", type=int, nargs="+", default=SIZES)
    parser.add_argument("--widths", default="[64,64,48,48]")
    parser.add_argument("--out", type=Path, default=Path("crossing.png"))
    parser.add_argument("--short", action="store_true", help="small sizes: whether it runs at all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes, widths, error = given.points, given.widths, given.error
    if given.short:
        sizes, widths, error = [30, 60], "[8]", 0.9
    table = measure(sizes, widths, error, given.seconds)
    for size in sizes:
        print(verdict(table, size))
    print(f"written to {save(draw(table, error, f'poisson2d, widths {widths}'), given.out)}")


if __name__ == "__main__":
    main()
