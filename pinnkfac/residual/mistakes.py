"""What may be wrong with a residual, said in words."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.field import Form


def check_entry(entry: Any) -> None:
    """Raise UserError unless an equation is one real number; of a form, its remainder is."""
    if isinstance(entry, Form):
        entry = entry.remainder
    if isinstance(entry, Real) and not isinstance(entry, bool):
        return
    if hasattr(entry, "as_tensor"):
        entry = entry.as_tensor()
    if callable(entry) and not isinstance(entry, Tensor):
        raise UserError(
            f"the residual returned a function ({getattr(entry, '__name__', entry)}): a "
            "derivative of a product has to be expanded by hand, and a method needs its brackets"
        )
    if not isinstance(entry, Tensor):
        raise UserError(
            f"the residual returned {type(entry).__name__}; return a number per equation: "
            "a field, a tensor, or a tuple of them"
        )
    if entry.dim() > 0:
        raise UserError(
            f"the residual has shape {tuple(entry.shape)} at a point; return one number per "
            "equation, several as a tuple (a residual sees one point at a time: no batch axis; "
            "was a sum forgotten?)"
        )
    if not entry.is_floating_point():
        raise UserError(f"the residual has dtype {entry.dtype}; return real floating-point numbers")


def explain(error: Exception, fields: int) -> str:
    """In words, what was wrong in a residual that failed with an exception of torch or Python."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, TypeError) and "positional argument" in text:
        return f"{text}. A residual takes one argument per field ({fields} here), then `at`"
    if "called random operation" in text:
        return (
            "random numbers must not be drawn here, there is one value at a point: draw them once, "
            "outside, or give them with their points, Points({...}, NAME=values)"
        )
    if "data-dependent control flow" in text or "vmap: It looks like you're" in text:
        return (
            "a branch (if, min, max, float()) on a value, or a function of math: values differ "
            "from point to point; write torch.where(condition, a, b), and torch.sin for math.sin"
        )
    if isinstance(error, AttributeError) and "'Tensor' object has no attribute" in text:
        return (
            f"{text}: only constant-coefficient forms of the fields can be differentiated, so "
            "expand the product rule by hand: (k * u.x).x = k_x * u.x + k * u.xx"
        )
    if "does not support ufuncs" in text or "Cannot access data pointer of Tensor" in text:
        return "numpy was applied to a field or a point: use torch's functions (torch.sin, …)"
    if isinstance(error, TypeError) and "must be real number" in text:
        return f"{text}. Use torch's functions (torch.sin, not math.sin) in a residual"
    return f"the residual failed with {type(error).__name__}: {text}"


def check_finite(name: str, residual: Tensor, points: Tensor, names: Sequence[str]) -> None:
    """Raise UserError, naming the term and a point, where a first residual is not finite."""
    finite = torch.isfinite(residual).all(dim=-1)
    if not bool(finite.all()):
        point = dict(zip(names, points[~finite][0].tolist(), strict=True))
        raise UserError(
            f"term '{name}': the residual is NaN or infinite at {point} already at the start: "
            "check divisions, logarithms and roots in it"
        )
