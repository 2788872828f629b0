"""Fields on the points of a picture: grids through the middle of the domain, and its diagonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from pinnkfac.common.errors import UserError, abbreviated
from pinnkfac.domain.domain import left_out
from pinnkfac.plots.style import plain, short
from pinnkfac.problem.signature import Signature
from pinnkfac.solution import Solution
from pinnkfac.solution.grid import Axes

Array = np.ndarray
Exact = Callable[[Tensor], Tensor]
"""Points [batch, coord] to the exact values [batch, field]."""


class NoExact(Exception):
    """The exact solution has no value on some point of the picture; carries why."""


@dataclass(frozen=True)
class Quantity:
    """A field, or the magnitude of a vector, on the grid of a slice; arrays have its shape, NaN
    outside the domain.

    The error of a field is the signed difference u − u★, that of a vector, which is not ``signed``,
    |v − v★|. ``arrows`` and ``exact_arrows`` [*grid, 2] are a vector in the plane of the picture.
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


def cut(solution: Solution, exact: Exact | None, numbers: Mapping[str, int]) -> Slice:
    """The fields on a grid with so many values of each named coordinate, the others at their
    middles; raises NoExact where the exact solution raises UserError."""
    signature, ranges = solution.signature, solution.signature.domain.bounds.ranges
    axes = {name: np.linspace(*ranges[name], num=number) for name, number in numbers.items()}
    fixed = {name: value for name, value in _middle(signature).items() if name not in axes}
    return _evaluate(solution, exact, Axes(signature, axes, fixed).points, axes)


def diagonal(solution: Solution, exact: Exact | None, number: int) -> Slice:
    """The fields from all low ends of the domain's bounds to all high ones, over the share of the
    way; raises NoExact like ``cut``."""
    box = solution.signature.domain.bounds
    low, high = np.array(box.low), np.array(box.high)
    share = np.linspace(0.0, 1.0, number)
    points = torch.from_numpy(low + share[:, None] * (high - low))
    return _evaluate(solution, exact, points, {"share": share})


def fixed_note(signature: Signature, shown: Sequence[str]) -> str:
    """Where the coordinates that a slice does not show are held; '' where it shows all."""
    held: dict[float, list[str]] = {}
    for name, value in _middle(signature).items():
        if name not in shown:
            held.setdefault(value, []).append(name)
    parts = [f"{abbreviated(n, 4, separator=' = ')} = {short(v)}" for v, n in held.items()]
    return f"maps: slice at {', '.join(parts)}" if parts else ""


def _middle(signature: Signature) -> dict[str, float]:
    return {n: (low + high) / 2 for n, (low, high) in signature.domain.bounds.ranges.items()}


def _evaluate(
    solution: Solution, exact: Exact | None, points: Tensor, axes: dict[str, Array]
) -> Slice:
    signature = solution.signature
    inside = ~left_out(signature.domain, points)
    shape = (*(len(ticks) for ticks in axes.values()), len(signature.fields))

    def on_grid(function: Exact) -> Array:
        values = torch.full((len(points), len(signature.fields)), math.nan, dtype=torch.float64)
        if inside.any():
            values[inside] = function(points[inside]).detach().double().cpu()
        return values.numpy().reshape(shape)

    values = on_grid(solution)
    try:
        return Slice(signature, axes, values, None if exact is None else on_grid(exact))
    except UserError as error:
        raise NoExact(str(error)) from error
