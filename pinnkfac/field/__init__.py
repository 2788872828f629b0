"""What may be written in a residual: forms, their derivatives, the point, grad, div, lap, dot."""

from pinnkfac.field.at import At, shadowed
from pinnkfac.field.coordinates import (
    Coordinates,
    Key,
    LinearPart,
    MultiIndex,
    factorial,
    multi_indices,
)
from pinnkfac.field.form import ELEMENTWISE, Context, Form
from pinnkfac.field.operators import div, dot, grad, lap
from pinnkfac.field.vector import Vector, tensors

__all__ = [
    "ELEMENTWISE",
    "At",
    "Context",
    "Coordinates",
    "Form",
    "Key",
    "LinearPart",
    "MultiIndex",
    "Vector",
    "div",
    "dot",
    "factorial",
    "grad",
    "lap",
    "multi_indices",
    "shadowed",
    "tensors",
]
