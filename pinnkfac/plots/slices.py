"""Fields on the points of a picture: grids through the middle of the domain, and its diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain.domain import left_out
from pinnkfac.plots.style import plain, short
from pinnkfac.problem.signature import Signature

Array = np.ndarray
Exact = Callable[[Tensor], Tensor]
"""Points [batch, coord] to the exact values [batch, field]."""


class SolutionLike(Protocol):
    """What a picture needs of a Solution: points [batch, coord] to values [batch, field]."""

    @property
    def signature(self) -> Signature: ...

    def __call__(self, points: Tensor, /) -> Tensor: ...


class NoExact(Exception):
    """The exact solution has no value on some point of the picture; carries why."""


@dataclass(frozen=True)
class Quantity:
    """A field, or the magnitude of a vector, on the grid of a slice.

    ``values``, ``exact`` and ``error`` have the shape of the grid, NaN outside the domain. The
    error of a field is the signed difference u − u★, that of a vector, which is not ``signed``, the
    magnitude |v − v★|. ``arrows`` and ``exact_arrows`` [*grid, 2] are the components of a vector in
    the plane of the picture.
    """

    name: str
    unit: str
    values: Array
    exact: Array | None
    error: Array | None
    signed: bool = True
    arrows: Array | None = None
    exact_arrows: Array | None = None

    @property
    def limits(self) -> tuple[float, float]:
        """The smallest and largest value, of both solutions."""
        parts = [self.values] if self.exact is None else [self.values, self.exact]
        values = np.concatenate([part.reshape(-1) for part in parts])
        values = values[np.isfinite(values)]
        return (float(values.min()), float(values.max())) if len(values) else (0.0, 1.0)

    def at(self, index: int) -> Quantity:
        """The quantity at one place of the first axis of the grid."""
        names = ("values", "exact", "error", "arrows", "exact_arrows")
        arrays = {name: array for name in names if (array := getattr(self, name)) is not None}
        return replace(self, **{name: array[index] for name, array in arrays.items()})


@dataclass(frozen=True)
class Slice:
    """``values`` and ``exact`` [*axes, field] on the grid of the named ``axes``, NaN outside the
    domain."""

    signature: Signature
    axes: dict[str, Array]
    values: Array
    exact: Array | None

    def quantities(self) -> list[Quantity]:
        """Every field, then every vector of two or more components."""
        units = self.signature.shown_units
        result = [
            Quantity(
                plain(name),
                units.get(name, ""),
                self.values[..., k],
                None if self.exact is None else self.exact[..., k],
                None if self.exact is None else self.values[..., k] - self.exact[..., k],
            )
            for k, name in enumerate(self.signature.fields)
        ]
        many = len(self.signature.coordinates.space) > 1
        vectors = self.signature.vectors.items() if many else ()
        return result + [self._vector(name, components) for name, components in vectors]

    def _vector(self, name: str, components: Sequence[str]) -> Quantity:
        signature = self.signature
        units = {signature.shown_units.get(c, "") for c in components}
        place = [signature.fields.index(c) for c in components]
        values = self.values[..., place]
        exact = None if self.exact is None else self.exact[..., place]
        # The components of a vector are in the order of the coordinates of space.
        plane = [i for i, x in enumerate(signature.coordinates.space) if x in self.axes]

        drawn = len(plane) == 2
        return Quantity(
            f"|{plain(name)}|",
            units.pop() if len(units) == 1 else "",
            np.linalg.norm(values, axis=-1),
            None if exact is None else np.linalg.norm(exact, axis=-1),
            None if exact is None else np.linalg.norm(values - exact, axis=-1),
            False,
            values[..., plane] if drawn else None,
            exact[..., plane] if drawn and exact is not None else None,
        )


def ticks(signature: Signature, name: str, number: int) -> Array:
    """``number`` values of a coordinate from one end to the other."""
    low, high = signature.domain.bounds.ranges[name]
    return np.linspace(low, high, number)


def cut(solution: SolutionLike, exact: Exact | None, axes: Mapping[str, Array]) -> Slice:
    """The fields on the grid of ``axes``; other coordinates are at their middles.

    Raises NoExact where the exact solution raises UserError.
    """
    signature = solution.signature
    names = signature.coordinates.names
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    points = np.tile(_middle(signature), (mesh[0].size, 1))
    for name, part in zip(axes, mesh, strict=True):
        points[:, names.index(name)] = part.reshape(-1)
    return _evaluate(solution, exact, points, dict(axes))


def diagonal(solution: SolutionLike, exact: Exact | None, number: int) -> Slice:
    """The fields along the diagonal of the domain's bounds, from all low ends to all high ones.

    Its one axis is the share of the way. Raises NoExact like ``cut``.
    """
    box = solution.signature.domain.bounds
    low, high = np.array(box.low), np.array(box.high)
    share = np.linspace(0.0, 1.0, number)
    points = low + share[:, None] * (high - low)
    return _evaluate(solution, exact, points, {"share": share})


def relative_l2(error: Array, exact: Array) -> float | None:
    """‖u − u★‖ / ‖u★‖ over the points of the domain; None where the exact solution is zero on all
    of them."""
    inside = ~np.isnan(exact)
    size = float(np.linalg.norm(exact[inside]))
    return float(np.linalg.norm(error[inside])) / size if size > 0 else None


def fixed_note(signature: Signature, shown: Sequence[str]) -> str:
    """Where the coordinates that a slice does not show are held; '' where it shows all."""
    middle = dict(zip(signature.coordinates.names, _middle(signature), strict=True))
    held: dict[float, list[str]] = {}
    for name, value in middle.items():
        if name not in shown:
            held.setdefault(float(value), []).append(name)
    if not held:
        return ""
    parts = []
    for value, names in held.items():
        few = names if len(names) <= 4 else [*names[:2], "…", names[-1]]
        parts.append(f"{' = '.join(few)} = {short(value)}")
    return f"maps: slice at {', '.join(parts)}"


def _middle(signature: Signature) -> Array:
    box = signature.domain.bounds
    return (np.array(box.low) + np.array(box.high)) / 2


def _evaluate(
    solution: SolutionLike, exact: Exact | None, points: Array, axes: dict[str, Array]
) -> Slice:
    signature, at = solution.signature, torch.from_numpy(points)
    inside = ~left_out(signature.domain, at)
    shape = (*(len(ticks) for ticks in axes.values()), len(signature.fields))

    def on_grid(function: Exact) -> Array:
        values = torch.full((len(at), len(signature.fields)), math.nan, dtype=torch.float64)
        if inside.any():
            values[inside] = function(at[inside]).detach().double().cpu()
        return values.numpy().reshape(shape)

    values = on_grid(solution)
    try:
        return Slice(signature, axes, values, None if exact is None else on_grid(exact))
    except UserError as error:
        raise NoExact(str(error)) from error
