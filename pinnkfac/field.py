"""What may be written in a residual: forms, their derivatives, grad, div, lap and dot.

A *form* is an affine expression in derivatives of the fields,

    f = Σ_(k, place, α) c_kα D^α u_k(place) + remainder,

with constant numbers c. Sums and multiples of forms are forms, so ``u.xx + u.yy`` and ``lap(u)``
are the same one. The moment a form meets anything nonlinear, its linear part becomes one *slot*:
a number per point, which the form's context hands out. A residual never sees more than that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from pinnkfac.errors import UserError, suggest

MultiIndex = tuple[int, ...]
Key = tuple[int, str, MultiIndex]
"""(field, place, multi-index); the place is '' for the point itself, else the name of a link."""
LinearPart = tuple[tuple[Key, float], ...]


@dataclass(frozen=True)
class Coordinates:
    """The names of the coordinates, which of them is time, and how names combine.

    ``vector`` is the common stem of coordinates x1 … xd (then ``at.x`` is the vector), or ''.
    """

    names: tuple[str, ...]
    time: str | None = None

    @property
    def space(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name != self.time)

    @property
    def vector(self) -> str:
        stems = {name.rstrip("0123456789") for name in self.space}
        if len(stems) != 1 or any(name in stems for name in self.space):
            return ""
        return stems.pop()

    def index(self, name: str) -> int:
        if name not in self.names:
            raise UserError(f"unknown coordinate '{name}'. {suggest(name, self.names)}")
        return self.names.index(name)

    def parse(self, text: str) -> list[str] | None:
        """Split 'xx' or 'x1x2' into coordinate names; None where that is impossible."""
        if not text:
            return []
        for name in sorted(self.names, key=len, reverse=True):
            if text.startswith(name):
                rest = self.parse(text[len(name) :])
                if rest is not None:
                    return [name, *rest]
        return None


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
    if hasattr(value, "as_tensor"):
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
            other = other.tensor()
        return function(self.tensor(), other)

    return method


class Form:
    """Σ c D^α u + remainder; see the module's text.

    ``form.xx`` or ``form.d("x", "x")`` differentiates, ``form(at.opposite)`` reads the form at a
    linked point, ``+ - * /`` with numbers keep it a form, everything else makes it a slot.
    """

    __slots__ = ("context", "linear", "name", "remainder")
    __array_priority__ = 1000
    __array_ufunc__ = None

    def __init__(
        self, context: Context, linear: dict[Key, float], remainder: Any = 0.0, name: str = ""
    ) -> None:
        self.context = context
        self.linear = linear
        self.remainder = remainder
        self.name = name

    # -- derivatives -------------------------------------------------------------------------
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
            return grad(self)
        if name in ELEMENTWISE:
            return getattr(self.tensor(), name)
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
        return self.tensor() * (other.tensor() if isinstance(other, Form) else other)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        if _is_number(other):
            if other == 0 or not math.isfinite(other):
                raise UserError(f"a residual divides a field by {'zero' if other == 0 else other}")
            return self._times(1.0 / float(other))
        other = _as_operand(other)
        return self.tensor() / (other.tensor() if isinstance(other, Form) else other)

    def __rtruediv__(self, other: Any) -> Any:
        return _as_operand(other) / self.tensor()

    # -- anything else is nonlinear: the form becomes a slot -----------------------------------
    def tensor(self) -> Tensor:
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
        return self.tensor().abs()

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
        return function(*_tensors(args), **_tensors(kwargs or {}))


def _tensors(value: Any) -> Any:
    """Forms and vectors inside the arguments of a torch function, as tensors."""
    if isinstance(value, Form):
        return value.tensor()
    if isinstance(value, Vector):
        return torch.stack([torch.as_tensor(_tensors(v)) for v in value])
    if hasattr(value, "as_tensor"):
        return value.as_tensor()
    if isinstance(value, tuple | list):
        return type(value)(_tensors(v) for v in value)
    if isinstance(value, dict):
        return {key: _tensors(v) for key, v in value.items()}
    return value


class Vector(Sequence[Any]):
    """A short tuple of forms or tensors with componentwise + - and multiples (grad, fluxes)."""

    def __init__(self, entries: Iterable[Any]) -> None:
        self.entries = tuple(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: Any) -> Any:
        return Vector(self.entries[i]) if isinstance(i, slice) else self.entries[i]

    def _pairs(self, other: Any) -> Iterable[tuple[Any, Any]]:
        entries = list(other.entries if isinstance(other, Vector) else other)
        if len(entries) != len(self):
            raise UserError(
                f"vectors of {len(self)} and {len(entries)} entries were combined: both must "
                "have one entry per coordinate of space"
            )
        return zip(self.entries, entries, strict=True)

    @staticmethod
    def _is_vector(other: Any) -> bool:
        return isinstance(other, Vector | tuple | list) or (
            isinstance(other, Tensor) and other.dim() == 1
        )

    def __add__(self, other: Any) -> Vector:
        if not self._is_vector(other):
            raise UserError("a vector was added to a number: add vectors entry by entry")
        return Vector(a + b for a, b in self._pairs(other))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Vector:
        return self + (-1.0) * (other if isinstance(other, Vector) else Vector(other))

    def __rsub__(self, other: Any) -> Vector:
        return (-self) + other

    def __neg__(self) -> Vector:
        return Vector(-a for a in self.entries)

    def __mul__(self, factor: Any) -> Vector:
        if self._is_vector(factor):
            raise UserError("a product of two vectors: write dot(a, b)")
        return Vector(a * factor for a in self.entries)

    __rmul__ = __mul__

    def __truediv__(self, factor: Any) -> Vector:
        return Vector(a / factor for a in self.entries)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*_tensors(args), **_tensors(kwargs or {}))


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


def multi_indices(order: int, dimension: int) -> list[MultiIndex]:
    """All multi-indices of the given order, lexicographic."""
    result = []
    for positions in itertools.combinations_with_replacement(range(dimension), order):
        alpha = [0] * dimension
        for i in positions:
            alpha[i] += 1
        result.append(tuple(alpha))
    return result


def factorial(alpha: MultiIndex) -> int:
    """α! = Π α_i!"""
    return math.prod(math.factorial(a) for a in alpha)
