"""The windows of time of a problem in words."""

from __future__ import annotations

from pinnkfac.common.errors import abbreviated
from pinnkfac.inspection import notation
from pinnkfac.problem import Problem
from pinnkfac.problem.windows import time_of
from pinnkfac.residual.time_orders import time_orders


def windows_text(problem: Problem) -> str:
    """'4 of t, from 0, 0.25, 0.5, 0.75 to 1; u and u_t go on from one to the next'; '' without.

    Raises UserError, naming the term, for a residual that is wrong.
    """
    if not problem.windows:
        return ""
    time = time_of(problem.coordinates)
    edges = [notation.number(edge) for edge in problem.windows]
    orders = zip(problem.fields, time_orders(problem), strict=True)
    going_on = [f"{name}{'_' * (j > 0)}{j * str(time)}" for name, n in orders for j in range(n)]
    last = going_on.pop()
    names = f"{abbreviated(going_on)} and {last} go" if going_on else f"{last} goes"
    places = f"from {abbreviated(edges[:-1])} to {edges[-1]}"
    return f"{len(edges) - 1} of {time}, {places}; {names} on from one to the next"
