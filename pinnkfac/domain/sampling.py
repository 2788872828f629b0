"""How numbers in the unit cube are drawn: uniformly, quasi-randomly, or on a grid."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Generator, Tensor


class Sampling(Protocol):
    """A rule that fills the unit cube: ``number`` points of ``dimension`` coordinates.

    ``regular`` rules fill each piece of a region on its own; the others choose the piece by one
    more coordinate, so that a union is sampled like one region.
    """

    regular: ClassVar[bool]

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        """Points in [0, 1]^dimension, ``[batch, coord]``, float64 on the CPU."""
        ...


@dataclass(frozen=True)
class Uniform:
    """Independent uniform points."""

    regular: ClassVar[bool] = False

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        return torch.rand(number, dimension, dtype=torch.float64, generator=generator)


@dataclass(frozen=True)
class Sobol:
    """Scrambled Sobol points (``scipy.stats.qmc``), a new scrambling at every draw.

    Up to 21201 coordinates; balance properties hold for powers of two (Sobol 1967, Owen 1998).
    """

    regular: ClassVar[bool] = False

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

    regular: ClassVar[bool] = True

    def unit(self, number: int, dimension: int, generator: Generator) -> Tensor:
        if dimension == 0:
            return torch.empty(number, 0, dtype=torch.float64)
        side = max(1, round(number ** (1.0 / dimension)))
        axis = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        grid = torch.meshgrid(*[axis] * dimension, indexing="ij")
        return torch.stack([g.reshape(-1) for g in grid], dim=-1)


def subset(weights: Tensor, number: int, generator: Generator) -> Tensor:
    """Indices of ``number`` entries (all, where there are fewer), drawn one after the other without
    replacement, each with probability in proportion to its weight, [batch], at least 0.

    The first to ring of clocks with these rates (Efraimidis & Spirakis 2006).
    """
    times = torch.empty(len(weights), dtype=torch.float64).exponential_(generator=generator)
    return (times / weights).topk(min(number, len(weights)), largest=False).indices
