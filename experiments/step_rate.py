"""The part of the machine's rate of float64 matrix products that steps reach, at three sizes.

    python experiments/step_rate.py [--step NAME ...] [--repeats 3] [--short]

A line a step and net: milliseconds of a step, the matrix products in it and all else that is
counted (Cholesky factors and their solves; no eigendecompositions), in units of one product
1024 × 1024 × 1024, and the part of the rate of that product at which they are done. It is the
second step of poisson2d (900 + 120 points), the best of several times, on one thread, in seconds of
the processor.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from pinnkfac import UserError
from pinnkfac.common.memory import keep_freed_memory
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import find
from pinnkfac.run.assembly import Assembly, assemble
from pinnkfac.step.base import Batch

WIDTHS = {"small": "[64]", "medium": "[64,64,48,48]", "big": "[256,256,128,128]"}
STEPS = ("spring", "engd_layerwise", "kfac", "kfac_cg", "ekfac", "cg_fac")
STEPS += ("gauss_newton_cg", "engd_w_nystrom")
UNIT = 2 * 1024**3
"""Floating-point operations of the product that all is measured by."""
Shape = tuple[int, ...]


def _added(own: Shape, a: Shape, b: Shape, **_: object) -> int:
    """C += A B in place, which torch's counter leaves out."""
    return 2 * a[-2] * a[-1] * b[-1] * (a[0] if len(a) == 3 else 1)


def _cholesky(matrix: Shape, *_: object, **__: object) -> int:
    return matrix[-1] ** 3 // 3


def _cholesky_solve(right: Shape, factor: Shape, *_: object, **__: object) -> int:
    return 2 * right[-1] * factor[-1] ** 2


aten = torch.ops.aten
COUNTED = {
    aten.addmm_: _added,
    aten.baddbmm_: _added,
    aten.linalg_cholesky_ex: _cholesky,
    aten.cholesky_solve: _cholesky_solve,
}


def start(step: str, widths: str, scale: float) -> Assembly:
    found = find("poisson2d")
    settings = [f"step={step}", f"net.widths={widths}", f"points.scale={scale}", "threads=1"]
    return assemble(compose("poisson2d", found.defaults, settings), found.problem({}))


def measure(step: str, widths: str, scale: float, repeats: int) -> tuple[float, float]:
    """The least seconds of the second step, and its operations."""
    parts = start(step, widths, scale)
    batch = Batch(parts.source.at(0))
    place = parts.stepper.update(parts.system.get_parameters(), batch).parameters
    state = parts.stepper.state_dict()
    fastest = float("inf")
    for _ in range(repeats):  # of one and the same step
        begin = time.process_time()
        parts.stepper.update(place, batch)
        fastest = min(fastest, time.process_time() - begin)
        parts.stepper.load_state_dict(state)
    with FlopCounterMode(display=False, custom_mapping=COUNTED) as counter:  # which takes time
        parts.stepper.update(place, batch)
    return fastest, counter.get_total_flops()


def seconds_of_unit() -> float:
    a, b = torch.randn(2, 1024, 1024, dtype=torch.float64)
    out, seconds = torch.empty_like(a), []
    for _ in range(9):
        begin = time.process_time()
        torch.mm(a, b, out=out)
        seconds.append(time.process_time() - begin)
    return min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--step", nargs="+", default=STEPS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="small sizes: whether it runs at all")
    given = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    sizes, scale = WIDTHS, 1.0
    if given.short:
        sizes, scale = {"tiny": "[8]", "deep": "[8,8]"}, 0.05
    unit = seconds_of_unit()
    print(f"unit: {unit:.4f} s, {UNIT / unit / 1e9:.1f} GFLOP/s")
    print(f"{'step':>16} {'net':>7} {'ms':>9} {'units':>8} {'part of the rate':>17}")
    for step in given.step:
        for name, widths in sizes.items():
            seconds, operations = measure(step, widths, scale, given.repeats)
            units = operations / UNIT
            part = units * unit / seconds
            print(
                f"{step:>16} {name:>7} {1e3 * seconds:9.1f} {units:8.3f} {part:17.2f}", flush=True
            )


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
