"""Forms: affine expressions in derivatives of the fields.

A *form* is an affine expression in derivatives of the fields,

    f = Σ_(k, place, α) c_kα D^α u_k(place) + remainder,

with constant numbers c. Sums and multiples of forms are forms, so ``u.xx + u.yy`` and ``lap(u)``
are the same one. The moment a form meets anything nonlinear, its linear part becomes one *slot*:
a number per point, which the form's context hands out. A residual never sees more than that.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.field.coordinates import Coordinates, Key, LinearPart
from pinnkfac.field.vector import Vector, tensors


class Context:
    """Hands out the numbers behind slots while a residual is evaluated (see residual.py).

    ``like`` is any tensor of the evaluation: constants take its dtype and device.
    """

    coordinates: Coordinates
    like: Tensor

    def value(self, linear: LinearPart) -> Tensor:
        raise NotImplementedError


ELEMENTWISE = frozenset(
    (
        *("abs", "sign", "square", "sqrt", "rsqrt", "reciprocal", "pow", "clamp"),
        *("exp", "expm1", "log", "log1p", "sigmoid", "relu", "erf", "floor", "ceil"),
        *("sin", "cos", "tan", "sinh", "cosh", "tanh", "asin", "acos", "atan"),
    )
)
"""Methods of a tensor that may be written on a field or a Parameter, such as u.square()."""


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _as_operand(value: Any) -> Any:
    """A form stays, numbers and scalar tensors pass, anything else is refused by name."""
    if isinstance(value, Form | Tensor) or _is_number(value):
        return value
    if hasattr(value, "as_tensor") and not isinstance(value, Vector):
        return value.as_tensor()
    raise UserError(
        f"a residual combined a field with {type(value).__name__}: write it with numbers, "
        "torch tensors, Parameters and other fields"
    )


def _binary(function: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    def method(self: Form, other: Any) -> Any:
        if isinstance(other, Vector):
            return NotImplemented
        other = _as_operand(other)
        if isinstance(other, Form):
            other = other.as_tensor()
        return function(self.as_tensor(), other)

    return method


class Form:
    """Σ c D^α u + remainder; see the module's text.

    ``form.xx`` or ``form.d("x", "x")`` differentiates, ``form(at.opposite)`` reads the form at a
    linked point, ``+ - * /`` with numbers keep it a form, everything else makes it a slot.
    """

    __slots__ = ("context", "linear", "remainder")
    __array_priority__ = 1000
    __array_ufunc__ = None

    def __init__(self, context: Context, linear: dict[Key, float], remainder: Any = 0.0) -> None:
        self.context = context
        self.linear = linear
        self.remainder = remainder

    def d(self, *names: str) -> Form:
        """The derivative by the named coordinates, ``u.d("x1", "x3")`` = ∂²u/∂x1∂x3."""
        if not _is_number(self.remainder):
            raise UserError(
                "a derivative of a sum with a term that is not a constant-coefficient form: "
                "differentiate each summand by hand (sum and product rule)"
            )
        positions = [self.context.coordinates.index(name) for name in names]
        linear: dict[Key, float] = {}
        for (field, place, alpha), c in self.linear.items():
            beta = list(alpha)
            for i in positions:
                beta[i] += 1
            linear[(field, place, tuple(beta))] = c
        return Form(self.context, linear, 0.0 if names else self.remainder)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        coordinates = self.context.coordinates
        parsed = coordinates.parse(name)
        if parsed:
            return self.d(*parsed)
        if name == coordinates.vector:
            return Vector(map(self.d, coordinates.space))
        if name in ELEMENTWISE:
            return getattr(self.as_tensor(), name)
        raise UserError(
            f"unknown derivative '.{name}': '{name}' is not made of coordinate names. "
            f"{suggest(name, coordinates.names)}"
        )

    def __call__(self, place: Any) -> Form:
        """The form at a linked point: ``u(at.opposite)``."""
        link = getattr(place, "place", None)
        if link is None:
            raise UserError(
                f"a field was called with {type(place).__name__}: inside a residual write the "
                "field itself for its value at the point, or u(at.NAME) for its value at the "
                "linked point NAME"
            )
        if not _is_number(self.remainder):
            raise UserError("read each field at the linked point before you combine it: u(at.NAME)")
        linear = {(field, link, alpha): c for (field, _, alpha), c in self.linear.items()}
        return Form(self.context, linear, self.remainder)

    # -- the linear part stays formal ----------------------------------------------------------
    def _plus(self, other: Any, sign: float) -> Any:
        other = _as_operand(other)
        if not isinstance(other, Form):
            return Form(self.context, dict(self.linear), self.remainder + sign * other)
        linear = dict(self.linear)
        for key, c in other.linear.items():
            total = linear.get(key, 0.0) + sign * c
            if total == 0.0:
                linear.pop(key, None)
            else:
                linear[key] = total
        return Form(self.context, linear, self.remainder + sign * other.remainder)

    def _times(self, factor: float) -> Form:
        if not math.isfinite(factor):
            raise UserError(f"a field is multiplied by {factor}: its coefficients must be finite")
        linear = {key: c * factor for key, c in self.linear.items()} if factor else {}
        return Form(self.context, linear, self.remainder * factor)

    def __add__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Vector) else self._plus(other, 1.0)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Vector) else self._plus(other, -1.0)

    def __rsub__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Vector) else (-self)._plus(other, 1.0)

    def __neg__(self) -> Form:
        return self._times(-1.0)

    def __pos__(self) -> Form:
        return self

    def __mul__(self, other: Any) -> Any:
        if isinstance(other, Vector):
            return NotImplemented
        if _is_number(other):
            return self._times(float(other))
        other = _as_operand(other)
        return self.as_tensor() * (other.as_tensor() if isinstance(other, Form) else other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if _is_number(other):
            if other == 0 or not math.isfinite(other):
                raise UserError(f"a residual divides a field by {'zero' if other == 0 else other}")
            return self._times(1.0 / float(other))
        other = _as_operand(other)
        return self.as_tensor() / (other.as_tensor() if isinstance(other, Form) else other)

    def __rtruediv__(self, other: Any) -> Any:
        return _as_operand(other) / self.as_tensor()

    # -- anything else is nonlinear: the form becomes a slot -----------------------------------
    def as_tensor(self) -> Tensor:
        """The number behind the form, per point."""
        if not self.linear:
            remainder = self.remainder
            if isinstance(remainder, Tensor):
                return remainder
            return self.context.like.new_tensor(float(remainder))
        linear, lead = self.normalised()
        value = self.context.value(linear)
        if lead != 1.0:
            value = lead * value
        remainder = self.remainder
        return value if _is_number(remainder) and remainder == 0.0 else value + remainder

    def normalised(self) -> tuple[LinearPart, float]:
        """The linear part over its largest coefficient, and that coefficient.

        So u.x and 2 * u.x share a slot.
        """
        keys = sorted(self.linear)
        lead = max((self.linear[key] for key in keys), key=abs)
        return tuple((key, self.linear[key] / lead) for key in keys), lead

    __pow__ = _binary(torch.pow)
    __rpow__ = _binary(lambda a, b: torch.pow(b, a))
    __lt__ = _binary(torch.lt)
    __le__ = _binary(torch.le)
    __gt__ = _binary(torch.gt)
    __ge__ = _binary(torch.ge)
    __eq__ = _binary(torch.eq)  # type: ignore[assignment]
    __ne__ = _binary(torch.ne)  # type: ignore[assignment]
    __hash__ = object.__hash__

    def __abs__(self) -> Tensor:
        return self.as_tensor().abs()

    def __bool__(self) -> bool:
        raise UserError(
            "a branch on a value of a field: write torch.where(condition, a, b) instead"
        )

    def __float__(self) -> float:
        raise UserError(
            "a field was turned into a Python number: use torch's functions (torch.sin, not "
            "math.sin) and no float() or int() in a residual"
        )

    __int__ = __float__
    __index__ = __float__

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise UserError("a field was handed to numpy: use torch's functions in a residual")

    def __iter__(self) -> Any:
        raise UserError("a field is one number per point and cannot be iterated; use grad(u)")

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # ``tensor - u`` arrives here, and is affine like ``u - tensor``.
        name = getattr(function, "__name__", "")
        if len(args) == 2 and not kwargs and not isinstance(args[0], Vector):
            if name in ("add", "__add__", "__radd__"):
                return args[1] + args[0] if isinstance(args[1], Form) else args[0] + args[1]
            if name in ("sub", "__sub__"):
                return (-args[1]) + args[0] if isinstance(args[1], Form) else args[0] - args[1]
        return function(*tensors(args), **tensors(kwargs or {}))
