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
from pinnkfac.problem.signature import Signature

Array = NDArray[Any]

LARGEST = 10**8
"""More points are a mistyped resolution."""


@dataclass(frozen=True, eq=False)
class Axes:
    """A grid: ``axes`` are the coordinates that vary, {name: values [axis]}, ``fixed`` the others,
    {name: number}, both in the order of the problem."""

    signature: Signature
    axes: dict[str, Array]
    fixed: dict[str, float]

    @staticmethod
    def of(signature: Signature, asked: Mapping[str, Any]) -> Axes:
        """The axes that ``Solution.on_grid`` is asked for, and what it says of those left out;
        raises UserError, naming the coordinate, for one that cannot be."""
        ranges = signature.domain.bounds.ranges
        for name in asked:
            if name not in ranges:
                raise UserError(
                    f"on_grid: there is no coordinate '{name}'. {suggest(name, ranges)}"
                )
        chosen = {name: _axis(name, value, ranges[name]) for name, value in asked.items()}
        left = [name for name in ranges if name not in chosen]
        shown = left
        if len(ranges) > 3:
            none = not any(isinstance(value, np.ndarray) for value in chosen.values())
            shown = [n for n in left if n in signature.coordinates.space][:2] if none else []
        number = 41 if len(ranges) == 3 else 101
        for name in left:
            low, high = ranges[name]
            axis = np.linspace(low, high, number)
            chosen[name] = axis if name in shown else 0.5 * (low + high)
        varying = {n: v for n in ranges if isinstance(v := chosen[n], np.ndarray)}
        fixed = {n: v for n in ranges if isinstance(v := chosen[n], float)}
        result = Axes(signature, varying, fixed)
        if math.prod(result.shape) > LARGEST:
            sizes = " × ".join(f"{n}={len(v)}" for n, v in varying.items())
            raise UserError(
                f"on_grid: {sizes} are {math.prod(result.shape):.1e} points: give fewer"
            )
        return result

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(values) for values in self.axes.values())

    @property
    def coordinates(self) -> dict[str, Array]:
        """The mesh: every coordinate, fixed ones too, as an array [axis, axis, …]."""
        mesh = np.meshgrid(*self.axes.values(), indexing="ij") if self.axes else []
        arrays = dict(zip(self.axes, mesh, strict=True))
        arrays |= {name: np.full(self.shape, value) for name, value in self.fixed.items()}
        return {name: arrays[name] for name in self.signature.coordinates.names}

    @property
    def points(self) -> Tensor:
        """All points, [batch, coord], the last axis fastest."""
        columns = [values.reshape(-1) for values in self.coordinates.values()]
        return torch.from_numpy(np.stack(columns, axis=1))


def _axis(name: str, value: Any, bounds: tuple[float, float]) -> Array | float:
    """The values of an axis, or the number that a coordinate is fixed at."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    allowed = (
        f"give a number of points ({name}=100), a number to fix it at ({name}=0.5), or a list of "
        "numbers"
    )
    try:
        array = np.asarray(value)
    except Exception as error:  # lists of different lengths, or what numpy cannot read
        raise UserError(f"on_grid: {name}={value!r}: {allowed}") from error
    if array.dtype.kind not in "iuf" or array.ndim > 1 or not array.size:
        raise UserError(f"on_grid: {name}={value!r}: {allowed}")
    if not np.isfinite(array).all():
        raise UserError(f"on_grid: {name} is not finite: {allowed}")
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


@dataclass(frozen=True, eq=False)
class FieldsOnGrid(Axes):
    """The fields of a solution on a grid, with its ``axes`` and ``fixed`` coordinates; ``values``:
    {field: array [axis, axis, …]}, one array axis per entry of ``axes``, in their order."""

    values: dict[str, Array]

    def vector(self, name: str) -> Array:
        """A vector of the problem, [axis, axis, …, component]; UserError for an unknown name."""
        vectors = self.signature.vectors
        if name not in vectors:
            raise UserError(f"there is no vector '{name}'. {suggest(name, vectors)}")
        return np.stack([self.values[component] for component in vectors[name]], axis=-1)
