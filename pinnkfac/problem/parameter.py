"""Unknown coefficients, and how a residual sees their values."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.field import ELEMENTWISE, Form, tensors

_bound: ContextVar[dict[int, Tensor] | None] = ContextVar("bound parameters", default=None)


class Parameter:
    """An unknown coefficient of an inverse problem, trained together with the net.

    It stands for its value wherever a residual uses it: ``kappa * lap(u)``, ``kappa.exp()``. List
    it in ``Problem(parameters=(kappa,))``; its first value is ``initial``.
    """

    __array_ufunc__ = None

    def __init__(self, name: str, initial: float) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"Parameter: {name!r} is not a name; use letters and digits")
        if not is_finite(initial):
            raise UserError(f"Parameter '{name}': initial={initial!r}; give a finite number")
        self.name = name
        self.initial = float(initial)

    def as_tensor(self) -> Tensor:
        values = _bound.get()
        if values is None or id(self) not in values:
            raise UserError(
                f"Parameter '{self.name}' is used in a term but is not listed in "
                f"Problem(parameters=...): add it there"
            )
        return values[id(self)]

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*tensors(args), **tensors(kwargs or {}))

    def __bool__(self) -> bool:
        raise UserError(f"a branch on the Parameter '{self.name}': use torch.where instead")

    def __getattr__(self, name: str) -> Any:
        if name in ELEMENTWISE:
            return getattr(self.as_tensor(), name)
        raise AttributeError(f"a Parameter has no '{name}'")

    def __neg__(self) -> Tensor:
        return -self.as_tensor()

    def __pos__(self) -> Tensor:
        return self.as_tensor()

    def __abs__(self) -> Tensor:
        return self.as_tensor().abs()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, initial={self.initial:g})"


def _delegate(name: str) -> Callable[[Parameter, Any], Any]:
    def method(self: Parameter, other: Any) -> Any:
        if name in ("__eq__", "__ne__") and _bound.get() is None:
            return NotImplemented  # outside a residual a Parameter is an object like others
        if isinstance(other, Parameter):
            other = other.as_tensor()
        if isinstance(other, Form) and name == "__mul__":
            return other * self.as_tensor()
        return getattr(torch.Tensor, name)(self.as_tensor(), other)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Parameter, f"__{_name}__", _delegate(f"__{_name}__"))
    setattr(Parameter, f"__r{_name}__", _delegate(f"__r{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Parameter, f"__{_name}__", _delegate(f"__{_name}__"))


class bind:
    """Within ``with bind(parameters, values):`` each Parameter stands for its value."""

    def __init__(self, parameters: Sequence[Parameter], values: Sequence[Tensor] | Tensor) -> None:
        self.values = {id(p): v for p, v in zip(parameters, values, strict=True)}

    def __enter__(self) -> None:
        self.token = _bound.set(self.values)

    def __exit__(self, *_: Any) -> None:
        _bound.reset(self.token)


def is_finite(value: Any) -> bool:
    """Whether it is a number, and no NaN or infinity."""
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        return False
