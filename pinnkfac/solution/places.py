"""Coordinates by name → points, and values at points → the shape that they were asked in."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinnkfac.common.errors import UserError, abbreviated, suggest
from pinnkfac.domain import Box, Domain
from pinnkfac.domain.box import ROUNDING
from pinnkfac.domain.domain import left_out
from pinnkfac.field import Coordinates


@dataclass(frozen=True)
class Places:
    """Where something was asked for: ``points`` [batch, coord] in float64, and the shape of the
    coordinates that were given. ``as_tensor`` is set where a tensor was among them."""

    points: Tensor
    shape: tuple[int, ...]
    as_tensor: bool

    def shaped(self, values: Tensor) -> Any:
        """Values [batch, …] as [*shape, …]: a tensor where a coordinate was one, a float where
        there is one number, otherwise a numpy array."""
        result = values.reshape((*self.shape, *values.shape[1:]))
        if self.as_tensor:
            return result.to(self.points.device)
        return result.item() if result.dim() == 0 else result.cpu().numpy()


def places(domain: Domain, asked: Mapping[str, Any], caller: str) -> Places:
    """The points of coordinates that broadcast together; those of a cube may come as one vector.
    Raises UserError, naming the coordinate, for one that is unknown, missing, given twice, not
    numbers, or of a shape that does not fit. Warns of points outside the domain."""
    names, vector = domain.coordinates.names, domain.coordinates.vector
    columns = _columns(domain.coordinates, asked, caller)
    missing = [name for name in names if name not in columns]
    if missing:
        one = len(missing) == 1
        entries = len(domain.coordinates.space)
        other = f", or the vector {vector} with {entries} entries on its last axis"
        raise UserError(
            f"{caller}: the coordinate{'' if one else 's'} {abbreviated(missing)} "
            f"{'is' if one else 'are'} missing: give all of {abbreviated(names)}"
            f"{other if vector else ''}"
        )
    try:
        broadcast = torch.broadcast_tensors(*(columns[name] for name in names))
    except RuntimeError:
        shapes = ", ".join(f"{n} has {tuple(columns[n].shape)}" for n in names[:6])
        raise UserError(
            f"{caller}: the coordinates' shapes do not broadcast together ({shapes}): give one "
            "number per point in each, or all combinations by on_grid"
        ) from None
    points = torch.stack([t.reshape(-1) for t in broadcast], dim=1)
    warn_outside(domain, points, caller)
    as_tensor = any(isinstance(value, Tensor) for value in asked.values())
    return Places(points, tuple(broadcast[0].shape), as_tensor)


def _columns(coordinates: Coordinates, asked: Mapping[str, Any], caller: str) -> dict[str, Tensor]:
    """The numbers of each coordinate, those of x1 … xd from a vector whose last axis has them."""
    space, vector = coordinates.space, coordinates.vector
    names = [*coordinates.names, *([vector] if vector else [])]
    device = next((v.device for v in asked.values() if isinstance(v, Tensor)), None)
    columns: dict[str, Tensor] = {}
    for name, value in asked.items():
        if name not in names:
            raise UserError(f"{caller}: there is no coordinate '{name}'. {suggest(name, names)}")
        numbers = _numbers(name, value, caller).to(device)
        entries = {name: numbers}
        if name == vector:
            if numbers.dim() == 0 or numbers.shape[-1] != len(space):
                raise UserError(
                    f"{caller}: '{vector}' is the vector of {abbreviated(space)} and has shape "
                    f"{tuple(numbers.shape)}: its last axis must have {len(space)} entries"
                )
            entries = dict(zip(space, numbers.unbind(-1), strict=True))
        for coordinate, column in entries.items():
            if coordinate in columns:
                raise UserError(
                    f"{caller}: '{coordinate}' is given twice, by itself and in '{vector}'"
                )
            columns[coordinate] = column
    return columns


def _numbers(name: str, value: Any, caller: str) -> Tensor:
    """Real numbers of any kind as a float64 tensor, on their own device."""
    with suppress(TypeError, ValueError, RuntimeError):
        if not isinstance(value, Tensor):
            array = np.asarray(value)
            if array.dtype.kind in "iuf" or not array.size:
                return torch.from_numpy(np.array(array, dtype=np.float64))
        elif not value.is_complex() and value.dtype != torch.bool:
            return value.detach().to(torch.float64)
    text = " ".join(repr(value).split())
    shown = text if len(text) <= 60 else f"{text[:57]}..."
    raise UserError(
        f"{caller}: {name}={shown}: give a number, or a list, numpy array or tensor of them"
    )


def warn_outside(domain: Domain, points: Tensor, caller: str) -> None:
    """Warn of points [batch, coord] that leave the bounds of the domain, and by how much; else of
    those that leave its shape."""
    if not len(points):
        return
    where = _beyond(domain.bounds, points)
    if not where:
        outside = left_out(domain, points)
        if not outside.any():
            return
        first = zip(domain.coordinates.names[:6], points[outside][0].tolist(), strict=False)
        place = ", ".join(f"{name} = {value:g}" for name, value in first)
        where = f"{int(outside.sum())} of {len(points)} points outside {domain}, such as {place}"
    warnings.warn(
        f"{caller}: {where}: the net was not trained there", stacklevel=_outside_package()
    )


def _beyond(box: Box, points: Tensor) -> str:
    """By how much points leave a box, coordinate by coordinate; '' where none does."""
    lowest, highest = points.amin(0).tolist(), points.amax(0).tolist()
    parts = []
    for (name, (low, high)), least, most in zip(box.ranges.items(), lowest, highest, strict=True):
        beyond = max(low - least, most - high)
        if beyond > ROUNDING * max(abs(low), abs(high)):
            far = least if low - least >= most - high else most
            parts.append(f"{name} = {far:g} is {beyond:g} outside ({low:g}, {high:g})")
    more = f", and {len(parts) - 3} more coordinates" if len(parts) > 3 else ""
    return "; ".join(parts[:3]) + more


def _outside_package() -> int:
    """The stack level of the caller's own line, for warnings."""
    frame, level = sys._getframe(1), 1
    package = __name__.partition(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
