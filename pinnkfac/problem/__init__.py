"""What a user writes: fields, terms, unknown coefficients, and what they are called."""

from pinnkfac.problem.problem import (
    Parameter,
    Problem,
    Term,
    bind,
)
from pinnkfac.problem.signature import Signature

__all__ = [
    "Parameter",
    "Problem",
    "Signature",
    "Term",
    "bind",
]
