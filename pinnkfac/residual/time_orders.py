"""How many derivatives by time go on from one window of time to the next."""

from __future__ import annotations

from torch import Generator

from pinnkfac.domain import Uniform
from pinnkfac.problem import Problem
from pinnkfac.problem.windows import time_of
from pinnkfac.residual.record import record


def time_orders(problem: Problem) -> tuple[int, ...]:
    """For each field of a problem with windows, how many derivatives by time go on over an edge,
    the value included: the order by time of the equations that it stands in (2 for waves), at
    least 1. What is asked for at the start alone does not count.

    Raises UserError, naming the term, for every mistake in a residual.
    """
    time = time_of(problem.coordinates)
    assert time is not None
    index = problem.coordinates.index(time)
    later = {
        term.name for k in range(1, len(problem.windows) - 1) for term in problem.window(k).terms
    }
    orders = [1] * len(problem.fields)
    for term in problem.terms:
        sample = term.where.draw(3, Uniform(), Generator().manual_seed(0))
        residual = record(term, problem, sample)
        if term.name in later:
            for slot in residual.slots:
                for (field, _, alpha), _ in slot:
                    orders[field] = max(orders[field], alpha[index])
    return tuple(orders)
