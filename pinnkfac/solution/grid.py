"""Fields on a grid over the domain: axes from resolutions and fixed values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.domain import Domain
from pinnkfac.problem.signature import Signature

Array = NDArray[Any]

RESOLUTION = {1: 101, 2: 101, 3: 41}
"""Points of an axis that nothing was said about, by the number of coordinates."""
LARGEST = 10**8
"""More points are a mistyped resolution."""


@dataclass(frozen=True)
class Axes:
    """``varying`` coordinates by name with their values, and ``fixed`` ones with their number,
    both in the order of the problem."""

    varying: dict[str, Array]
    fixed: dict[str, float]

    @staticmethod
    def of(domain: Domain, asked: Mapping[str, Any]) -> Axes:
        """Axes over the bounds of a domain: whole numbers are resolutions, other numbers fix a
        coordinate, arrays are the axis.

        What is left out: in up to three coordinates an axis over the whole range; in more, the
        middle of the range, but if no axis was given then the first two coordinates of space that
        are left are axes.

        Raises UserError, naming the coordinate, for anything else.
        """
        ranges = domain.bounds.ranges
        for name in asked:
            if name not in ranges:
                raise UserError(
                    f"on_grid: there is no coordinate '{name}'. {suggest(name, ranges)}"
                )
        chosen = {name: _axis(name, value, ranges[name]) for name, value in asked.items()}
        left = [name for name in ranges if name not in chosen]
        if len(ranges) > 3:
            none = not any(isinstance(value, np.ndarray) for value in chosen.values())
            shown = [n for n in left if n in domain.coordinates.space][:2] if none else []
        else:
            shown = left
        for name in left:
            low, high = ranges[name]
            chosen[name] = 0.5 * (low + high)
            if name in shown:
                chosen[name] = np.linspace(low, high, RESOLUTION.get(len(ranges), 101))
        varying = {n: v for n in ranges if isinstance(v := chosen[n], np.ndarray)}
        fixed = {n: v for n in ranges if isinstance(v := chosen[n], float)}
        number = math.prod(len(values) for values in varying.values())
        if number > LARGEST:
            sizes = " × ".join(f"{n}={len(v)}" for n, v in varying.items())
            raise UserError(f"on_grid: {sizes} are {number:.1e} points: give fewer")
        return Axes(varying, fixed)

    def coordinates(self, names: tuple[str, ...]) -> dict[str, Array]:
        """Every coordinate as an array [axis, axis, …], fixed ones too."""
        shape = tuple(len(values) for values in self.varying.values())
        mesh = np.meshgrid(*self.varying.values(), indexing="ij") if self.varying else []
        arrays = dict(zip(self.varying, mesh, strict=True))
        return {n: arrays[n] if n in arrays else np.full(shape, self.fixed[n]) for n in names}

    def points(self, names: tuple[str, ...]) -> Tensor:
        """All points, [batch, coord], the last axis fastest."""
        columns = self.coordinates(names)
        return torch.from_numpy(np.stack([columns[n].reshape(-1) for n in names], axis=1))


def _axis(name: str, value: Any, bounds: tuple[float, float]) -> Array | float:
    """The values of an axis, or the number that a coordinate is fixed at."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.dtype == bool or array.ndim > 1 or not array.size:
        raise UserError(f"on_grid: {name}={value!r}: {_allowed(name)}")
    if not np.isfinite(array).all():
        raise UserError(f"on_grid: {name} is not finite: {_allowed(name)}")
    if array.ndim == 1:
        return array.astype(np.float64)
    if array.dtype.kind == "f":
        return float(array)
    if array < 2:
        raise UserError(
            f"on_grid: {name}={int(array)} is a number of points, at least 2; to fix {name} at "
            f"{int(array)}, write {name}={float(array)}"
        )
    return np.linspace(*bounds, int(array))


def _allowed(name: str) -> str:
    return (
        f"give a number of points ({name}=100), a number to fix it at ({name}=0.5), or a list of "
        "numbers"
    )


@dataclass(frozen=True, eq=False)
class FieldsOnGrid:
    """The fields of a solution on a grid.

    ``axes``: the coordinates that vary, {name: values [axis]}, in the order of the problem;
    ``fixed``: the others, {name: number}; ``values``: {field: array [axis, axis, …]}, one array
    axis per entry of ``axes``, in their order.
    """

    signature: Signature
    axes: dict[str, Array]
    fixed: dict[str, float]
    values: dict[str, Array]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.axes.values())

    @property
    def coordinates(self) -> dict[str, Array]:
        """The mesh: every coordinate, fixed ones too, as an array [axis, axis, …]."""
        return Axes(self.axes, self.fixed).coordinates(self.signature.coordinates.names)

    def vector(self, name: str) -> Array:
        """A vector of the problem, [axis, axis, …, component]; UserError for an unknown name."""
        vectors = self.signature.vectors
        if name not in vectors:
            raise UserError(f"there is no vector '{name}'. {suggest(name, vectors)}")
        return np.stack([self.values[component] for component in vectors[name]], axis=-1)
