"""A term's residual as a function of its slots."""

from pinnkfac.residual.exact import exact_at, exact_solution
from pinnkfac.residual.mistakes import check_finite, explain
from pinnkfac.residual.record import Recorder, check_parameters, record
from pinnkfac.residual.residual import (
    Evaluator,
    Residual,
    arguments_of,
    call,
    fields_in,
    flatten,
)

__all__ = [
    "Evaluator",
    "Recorder",
    "Residual",
    "arguments_of",
    "call",
    "check_finite",
    "check_parameters",
    "exact_at",
    "exact_solution",
    "explain",
    "fields_in",
    "flatten",
    "record",
]
