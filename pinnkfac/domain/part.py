"""A part of a region, by a condition on the point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain.points import PointSet, Region
from pinnkfac.domain.sampling import Sampling
from pinnkfac.field import At

Condition = Callable[[Any], Any]
"""``lambda at: at.x**2 + at.y**2 > 1``, with tensors [batch] behind coordinates."""
ROUNDING = 1e-6
"""Points this far outside of a region, relative to the size of coordinates, are taken for inside: a
bound that was written in float32 is."""
TRIED = 1_000_000
"""Candidates for a point after which a condition that none fulfils is refused."""


class Part:
    """The points of a region at which a condition holds, ``box.interior.where(lambda at: …)``.

    They are drawn as in the region, and those taken at which it holds, so that they are as uniform
    as these; normals and linked points are kept. Raises UserError where it is no condition on
    points, or where none fulfils it.
    """

    def __init__(self, region: Region, condition: Condition) -> None:
        if not callable(condition):
            raise UserError(
                f"{region}.where({condition!r}): give a function of the point, such as "
                "lambda at: at.x > 0"
            )
        self.region = region
        self.condition = condition
        self.coordinates = region.coordinates
        self.dimension = region.dimension
        self.link_names = region.link_names
        for name in ("bounds", "domain"):
            if hasattr(region, name):
                setattr(self, name, getattr(region, name))

    def where(self, condition: Condition) -> Part:
        """The points at which that holds too."""
        return Part(self.region, lambda at: self.condition(at) & condition(at))

    def holds(self, points: PointSet) -> Tensor:
        """Whether the condition holds, bool [batch]."""
        normals = None if points.normals is None else points.normals.T
        at = At(self.coordinates, points.coordinates.T, normals)
        try:
            result = torch.as_tensor(self.condition(at))
        except UserError as error:
            raise UserError(f"{self}: {error}") from error
        except Exception as error:
            raise UserError(
                f"{self}: its condition fails with {type(error).__name__}: {error}. Write it with "
                "torch's functions, & for and, | for or, ~ for not: lambda at: (at.x > 0) & "
                "(at.y < 1)"
            ) from error
        if result.dtype != torch.bool or result.shape not in ((), (len(points),)):
            raise UserError(
                f"{self}: its condition gives {result.dtype} of shape {tuple(result.shape)}; give "
                "a comparison, true or false for each point, such as lambda at: at.x > 0"
            )
        return result.expand(len(points))

    def contains(self, points: Tensor) -> Tensor:
        """Which points [batch, coord] of the region's own dimension lie in it, up to rounding: on
        its edge the condition need not hold."""
        whole = getattr(self, "domain", None) or self.region
        inside = self._nearly(points)
        return inside & whole.contains(points) if hasattr(whole, "contains") else inside

    def _nearly(self, points: Tensor) -> Tensor:
        """Whether the condition holds at points, or at one that lies closer than rounding."""
        result = self.holds(PointSet(points))
        for i, bounds in enumerate(getattr(self, "bounds", ())):
            step = torch.zeros_like(points[:1])
            step[:, i] = ROUNDING * max(map(abs, bounds))
            for moved in (points - step, points + step):
                result = result | self.holds(PointSet(moved))
        return result

    def draw(self, number: int, sampling: Sampling, generator: Generator) -> PointSet:
        parts: list[PointSet] = []
        tried = taken = 0
        while taken < number:
            # as many as will be enough by what has been taken so far, and somewhat more
            more = number if not tried else int(1.2 * (number - taken) * tried / max(taken, 1)) + 8
            drawn = self.region.draw(min(more, TRIED), sampling, generator)
            kept = drawn[self.holds(drawn)]
            parts.append(kept)
            tried, taken = tried + len(drawn), taken + len(kept)
            once = self.dimension == 0 or sampling.regular
            if not taken and (once or tried >= TRIED):
                raise UserError(
                    f"{self}: none of {tried} points fulfils the condition; check it, or make the "
                    "region smaller"
                )
            if once:
                break
        points = PointSet.concatenate([part for part in parts if len(part)])
        if self.dimension and not sampling.regular:  # any of them, those of one box together
            points = points[torch.randperm(len(points), generator=generator)[:number].sort().values]
            ranges = points.ranges if points.chart is None else points.chart.origin.ranges
            if ranges is not None:
                _, box = ranges.unique(return_inverse=True, dim=0)
                points = points[box.argsort(stable=True)]
        return points.within(self.holds)

    def __str__(self) -> str:
        name = getattr(self.condition, "__name__", "…")
        return f"{self.region} where {'…' if name == '<lambda>' else name}"
