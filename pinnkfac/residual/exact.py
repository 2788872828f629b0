"""The exact solution of a problem, where it has one."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from pinnkfac.common.errors import UserError
from pinnkfac.field import At
from pinnkfac.problem import Problem
from pinnkfac.residual.mistakes import check_entry, explain
from pinnkfac.residual.residual import flatten


def exact_at(problem: Problem, point: Tensor) -> Tensor:
    """The problem's exact solution at one point [coord], as [field]."""
    assert problem.solution is not None
    output = problem.solution(At(problem.coordinates, point))
    stacked = isinstance(output, Tensor) and output.dim() == 1
    values = list(output.unbind(0)) if stacked else flatten(output)
    if len(values) != len(problem.fields):
        raise UserError(
            f"solution returned {len(values)} values, but there are {len(problem.fields)} fields "
            f"({', '.join(problem.fields)}): return one number per field"
        )
    for value in values:
        check_entry(value)
    return torch.stack([torch.as_tensor(v, dtype=point.dtype, device=point.device) for v in values])


def exact_solution(problem: Problem, coordinates: Tensor) -> Tensor:
    """The problem's exact solution at points [batch, coord], as [batch, field].

    Raises UserError for a wrong number of values, a wrong shape or dtype, or NaN.
    """
    try:
        result = vmap(partial(exact_at, problem))(coordinates)
    except UserError as error:
        message = str(error).replace("the residual", "the solution")
        raise UserError(message if "solution" in message else f"solution: {message}") from error
    except Exception as error:
        explained = explain(error, len(problem.fields)).replace("the residual", "it")
        raise UserError(f"solution: {explained}") from error
    if not torch.isfinite(result).all():
        bad = coordinates[~torch.isfinite(result).all(dim=-1)][0].tolist()
        raise UserError(f"solution is NaN or infinite at {problem.coordinates.names} = {bad}")
    return result
