"""How numbers in the unit cube are drawn: uniformly, quasi-randomly, or on a grid."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Generator, Tensor

DENSE = 6
"""Coordinates in which points can lie so close that it matters how even they are, how close to the
faces, and what the residual is at their neighbours."""


class Sampling(Protocol):
    """A rule that fills the unit cube. ``regular`` ones fill each piece of a region on its own; the
    others choose the piece by one more coordinate."""

    @property
    def regular(self) -> bool: ...

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        """Points in [0, 1]^dimension, ``[batch, coord]``, float64 on the CPU."""


@dataclass(frozen=True)
class Uniform:
    """Independent uniform points."""

    regular = False

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        return torch.rand(number, dimension, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Sobol:
    """Scrambled Sobol points (``scipy.stats.qmc``), a new scrambling at every draw.

    Up to 21201 coordinates; balance properties hold for powers of two (Sobol 1967, Owen 1998).
    """

    regular = False

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        if dimension == 0:
            return torch.empty(number, 0, dtype=torch.float64)
        from scipy.stats import qmc

        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            points = qmc.Sobol(dimension, scramble=True, rng=seed).random(number)
        return torch.from_numpy(points)


@dataclass(frozen=True)
class Grid:
    """Cell midpoints of a regular grid with the nearest number of points per side.

    The number of points that comes back is m^dimension, m = round(number^(1/dimension)).
    """

    regular = True

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        if dimension == 0:
            return torch.empty(number, 0, dtype=torch.float64)
        side = max(1, round(number ** (1.0 / dimension)))
        axis = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        grid = torch.meshgrid(*[axis] * dimension, indexing="ij")
        return torch.stack([g.reshape(-1) for g in grid], dim=-1)


@dataclass(frozen=True)
class Even:
    """Scrambled Sobol points in up to DENSE coordinates, independent uniform ones in more.

    Some hundred Sobol points in ten coordinates are balanced in one coordinate only, and steps on
    them learn less.
    """

    regular = False

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        rule = Sobol() if dimension <= DENSE else Uniform()
        return rule.unit(number, dimension, generator)


@dataclass(frozen=True)
class Clustered:
    """Points of another rule, moved towards the faces of the cube, with the weights of that.

    Of d coordinates, each goes from u to

        x = (1 − c) u + c (1 − cos πu)/2,   c = faces · min(1, √(2/d)),

    so that its density is 1/(1 − c) at both ends, and a point has the weight Π dx/du, with which
    means are those over the cube. With uniform points, the error of least squares grows towards
    faces and corners (Cohen & Migliorati 2017, arXiv:1608.00512; c = 1 in one dimension is their
    arcsine density). The root keeps the weights from scattering in many dimensions; in more than
    DENSE, c is 0.
    """

    sampling: Sampling
    faces: float = 0.9

    @property
    def regular(self) -> bool:
        return self.sampling.regular

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        return self.sampling.unit(number, dimension, generator)

    def moved(self, unit: Tensor) -> tuple[Tensor, Tensor]:
        """x [batch, coord] and the weights [batch] of points u [batch, coord]."""
        dimension = unit.shape[1]
        c = self.faces * math.sqrt(2.0 / max(2, dimension)) if dimension <= DENSE else 0.0
        x = (1.0 - c) * unit + c * 0.5 * (1.0 - torch.cos(math.pi * unit))
        slopes = (1.0 - c) + c * 0.5 * math.pi * torch.sin(math.pi * unit)
        return x, slopes.prod(dim=1)


def subset(weights: Tensor, number: int, generator: Generator) -> Tensor:
    """Indices of ``number`` entries (all, where there are fewer), drawn one by one without
    replacement, in proportion to their weights [batch]: the first to ring of clocks with these
    rates (Efraimidis & Spirakis 2006)."""
    times = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator)
    return (times / weights).topk(min(number, len(weights)), largest=False).indices
