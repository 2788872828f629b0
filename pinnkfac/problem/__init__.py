"""What a user writes: fields, terms, unknown coefficients, and what they are called."""

from pinnkfac.problem.parameter import Parameter, bind
from pinnkfac.problem.problem import Problem
from pinnkfac.problem.signature import Signature
from pinnkfac.problem.term import Term

__all__ = ["Parameter", "Problem", "Signature", "Term", "bind"]
