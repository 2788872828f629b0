"""Coordinates by name → points, and values at points → the shape that they were asked in."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.domain import Box

ROUNDING = 1e-6
"""Points this far outside the box, relative to the size of its coordinates, are taken for inside:
a bound that was written in float32 is."""


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


def places(box: Box, given: Mapping[str, Any], caller: str) -> Places:
    """The points of coordinates that broadcast together; those of a cube may come as one vector.

    Raises UserError, naming the coordinate, for one that is unknown, missing, given twice, not
    numbers, or of a shape that does not fit. Warns of points outside the box.
    """
    columns = _columns(box, given, caller)
    missing = [name for name in box.ranges if name not in columns]
    if missing:
        what = "coordinate" if len(missing) == 1 else "coordinates"
        raise UserError(
            f"{caller}: the {what} {listed(missing)} {'is' if len(missing) == 1 else 'are'} "
            f"missing: give all of {listed(box.ranges)}{_or_vector(box)}"
        )
    tensors = [columns[name] for name in box.ranges]
    try:
        broadcast = torch.broadcast_tensors(*tensors)
    except RuntimeError:
        shapes = ", ".join(f"{n} has {tuple(columns[n].shape)}" for n in list(box.ranges)[:6])
        raise UserError(
            f"{caller}: the coordinates' shapes do not broadcast together ({shapes}): give one "
            "number per point in each, or all combinations by on_grid"
        ) from None
    points = torch.stack([t.reshape(-1) for t in broadcast], dim=1)
    warn_outside(box, points, caller)
    return Places(points, tuple(broadcast[0].shape), _any_tensor(given))


def _columns(box: Box, given: Mapping[str, Any], caller: str) -> dict[str, Tensor]:
    vector = box.coordinates.vector
    known = [*box.ranges, *([vector] if vector else [])]
    device = next((v.device for v in given.values() if isinstance(v, Tensor)), None)
    columns: dict[str, Tensor] = {}
    for name, value in given.items():
        if name not in known:
            raise UserError(f"{caller}: there is no coordinate '{name}'. {suggest(name, known)}")
        numbers = _numbers(name, value, caller).to(device)
        entries = _entries(box, numbers, caller) if name == vector else {name: numbers}
        for own, column in entries.items():
            if own in columns:
                raise UserError(f"{caller}: '{own}' is given twice, by itself and in '{vector}'")
            columns[own] = column
    return columns


def _entries(box: Box, numbers: Tensor, caller: str) -> dict[str, Tensor]:
    """The coordinates x1 … xd of a vector whose last axis has them."""
    space, vector = box.coordinates.space, box.coordinates.vector
    if numbers.dim() == 0 or numbers.shape[-1] != len(space):
        raise UserError(
            f"{caller}: '{vector}' is the vector of {listed(space)} and has shape "
            f"{tuple(numbers.shape)}: its last axis must have {len(space)} entries"
        )
    return dict(zip(space, numbers.unbind(-1), strict=True))


def _numbers(name: str, value: Any, caller: str) -> Tensor:
    """Real numbers of any kind as a float64 tensor, on their own device."""
    wrong = UserError(
        f"{caller}: {name}={_short(value)}: give a number, or a list, numpy array or tensor of them"
    )
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise wrong
        return value.detach().to(torch.float64)
    try:
        array = np.asarray(value)
        if array.dtype.kind not in "iuf" and array.size:
            raise wrong
        return torch.from_numpy(np.array(array, dtype=np.float64))
    except (TypeError, ValueError, RuntimeError):
        raise wrong from None


def _any_tensor(given: Mapping[str, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in given.values())


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    """Names in a row; the middle of many is left out."""
    names = list(names)
    return ", ".join(names if len(names) <= 6 else (*names[:2], "…", names[-1]))


def _or_vector(box: Box) -> str:
    vector = box.coordinates.vector
    if not vector:
        return ""
    return f", or the vector {vector} with {len(box.coordinates.space)} entries on its last axis"


def warn_outside(box: Box, points: Tensor, caller: str) -> None:
    """Warn of points [batch, coord] that leave the box, and by how much."""
    if not len(points):
        return
    lowest, highest = points.amin(0).tolist(), points.amax(0).tolist()
    said = []
    for (name, (low, high)), least, most in zip(box.ranges.items(), lowest, highest, strict=True):
        beyond = max(low - least, most - high)
        if beyond > ROUNDING * max(abs(low), abs(high)):
            far = least if low - least >= most - high else most
            said.append(f"{name} = {far:g} is {beyond:g} outside ({low:g}, {high:g})")
    if said:
        more = f", and {len(said) - 3} more coordinates" if len(said) > 3 else ""
        warnings.warn(
            f"{caller}: {'; '.join(said[:3])}{more}: the net was not trained there",
            stacklevel=_outside_package(),
        )


def _outside_package() -> int:
    """The stack level of the caller's own line, for warnings."""
    frame, level = sys._getframe(1), 1
    package = __name__.partition(".")[0]
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] == package:
        frame, level = frame.f_back, level + 1
    return level
