"""Short vectors of forms and tensors, and what torch's functions make of both."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError


def tensors(value: Any) -> Any:
    """Forms, vectors and Parameters inside the arguments of a torch function, as tensors."""
    if hasattr(value, "as_tensor"):
        return value.as_tensor()
    if isinstance(value, tuple | list):
        return type(value)(tensors(v) for v in value)
    if isinstance(value, dict):
        return {key: tensors(v) for key, v in value.items()}
    return value


class Vector(Sequence[Any]):
    """A short tuple of forms or tensors with componentwise + - and multiples (grad, fluxes)."""

    def __init__(self, entries: Iterable[Any]) -> None:
        self.entries = tuple(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: Any) -> Any:
        return Vector(self.entries[i]) if isinstance(i, slice) else self.entries[i]

    def as_tensor(self) -> Tensor:
        return torch.stack([torch.as_tensor(tensors(v)) for v in self.entries])

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
        return function(*tensors(args), **tensors(kwargs or {}))
