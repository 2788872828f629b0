"""Solve every bundled PDE with one set of settings, and print errors as a table.

    python experiments/accuracy.py [--seconds 120] [--pde NAME ...] [OVERRIDE ...]

Overrides are those of the command and hold for all PDEs. One line each: name, parameters, steps,
loss, relative L2 and RMS error against the exact solution on points that were not trained on.
"""

from __future__ import annotations

import argparse

from pinnkfac import solve
from pinnkfac.common.memory import keep_freed_memory
from pinnkfac.config.pde_file import bundled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--pde", action="append", choices=list(bundled()), metavar="NAME")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    keep_freed_memory()
    print(
        f"{'pde':<20} {'parameters':>10} {'steps':>6} {'loss':>9} {'relative L2':>12} {'RMS':>9}",
        flush=True,
    )
    for name in arguments.pde or bundled():
        result = solve(name, f"stop.seconds={arguments.seconds}", *arguments.overrides)
        row = result.summary
        print(
            f"{name:<20} {row['parameters']:>10} {row['steps']:>6} {row['loss']:>9.1e} "
            f"{row['relative_l2_error'] or float('nan'):>12.2e} "
            f"{row['rms_error'] or float('nan'):>9.2e}  {result.stop_reason}",
            flush=True,
        )


if __name__ == "__main__":
    main()
