"""A term's residual as a function of its slots."""

from pinnkfac.residual.residual import (
    Evaluator,
    Recorder,
    Residual,
    arguments_of,
    call,
    check_finite,
    check_parameters,
    exact_solution,
    explain,
    fields_in,
    flatten,
    record,
)

__all__ = [
    "Evaluator",
    "Recorder",
    "Residual",
    "arguments_of",
    "call",
    "check_finite",
    "check_parameters",
    "exact_solution",
    "explain",
    "fields_in",
    "flatten",
    "record",
]
