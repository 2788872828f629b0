"""grad, div, lap and dot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.field.form import Form
from pinnkfac.field.vector import Vector


def _require_form(value: Any, name: str) -> Form:
    if isinstance(value, Form):
        return value
    if isinstance(value, Tensor):
        raise UserError(
            f"{name} of a product or a nonlinear function: expand it by hand, for example "
            "(k * u.x).x = k_x * u.x + k * u.xx, because only constant-coefficient forms of "
            "the fields can be differentiated"
        )
    raise UserError(f"{name} expects a field or a form of fields, not {type(value).__name__}")


def grad(form: Form) -> Vector:
    """The gradient in space, (∂_1 u, …, ∂_d u); time is not part of it."""
    form = _require_form(form, "grad")
    return Vector(form.d(name) for name in form.context.coordinates.space)


def div(vector: Sequence[Form]) -> Form:
    """The divergence in space, Σ_i ∂_i v_i, of one form per coordinate of space."""
    forms = [_require_form(v, "div") for v in vector]
    if not forms:
        raise UserError("div of an empty vector")
    space = forms[0].context.coordinates.space
    if len(forms) != len(space):
        raise UserError(
            f"div of {len(forms)} entries, but space has {len(space)} coordinates "
            f"({', '.join(space)})"
        )
    total = forms[0].d(space[0])
    for form, name in zip(forms[1:], space[1:], strict=True):
        total = total + form.d(name)
    return total


def lap(form: Form) -> Form:
    """The Laplacian in space, Σ_i ∂²u/∂x_i²; ``lap(lap(u))`` is the bilaplacian."""
    return div(grad(_require_form(form, "lap")))


def dot(a: Any, b: Any) -> Any:
    """The product Σ_i a_i b_i of two vectors: grad(u), at.normal, at.x or plain sequences."""
    left, right = list(a), list(b)
    if len(left) != len(right):
        raise UserError(f"dot of vectors of {len(left)} and {len(right)} entries")
    forms = [isinstance(v, Form) for v in left]
    if any(forms) and not any(isinstance(v, Form) for v in right):
        left, right = right, left
    total: Any = 0.0
    for u, v in zip(left, right, strict=True):
        total = u * v + total
    return total
