"""pinnkfac: write a PDE as on paper, solve it to many digits with curvature-aware steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pinnkfac.version import __version__ as __version__

if TYPE_CHECKING:
    from pinnkfac.common.errors import UserError
    from pinnkfac.domain import Box, Grid, Points, Sobol, Uniform
    from pinnkfac.field import div, dot, grad, lap
    from pinnkfac.problem import Parameter, Problem, Term
    from pinnkfac.run.resuming import resume
    from pinnkfac.run.solving import solve
    from pinnkfac.run.task import Result
    from pinnkfac.solution import Solution

_HOMES = {
    "Box": "pinnkfac.domain",
    "Grid": "pinnkfac.domain",
    "Parameter": "pinnkfac.problem",
    "Points": "pinnkfac.domain",
    "Problem": "pinnkfac.problem",
    "Result": "pinnkfac.run.task",
    "Sobol": "pinnkfac.domain",
    "Solution": "pinnkfac.solution",
    "Term": "pinnkfac.problem",
    "Uniform": "pinnkfac.domain",
    "UserError": "pinnkfac.common.errors",
    "div": "pinnkfac.field",
    "dot": "pinnkfac.field",
    "grad": "pinnkfac.field",
    "lap": "pinnkfac.field",
    "resume": "pinnkfac.run.resuming",
    "solve": "pinnkfac.run.solving",
}
__all__ = [
    "Box",
    "Grid",
    "Parameter",
    "Points",
    "Problem",
    "Result",
    "Sobol",
    "Solution",
    "Term",
    "Uniform",
    "UserError",
    "div",
    "dot",
    "grad",
    "lap",
    "resume",
    "solve",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that commands which don't need torch start at once."""
    if name not in _HOMES:
        raise AttributeError(f"module 'pinnkfac' has no attribute '{name}'")
    from importlib import import_module

    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
