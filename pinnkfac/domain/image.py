"""Curved regions: images of the regions of a box of parameters."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Generator

from pinnkfac.domain.domain import Domain
from pinnkfac.domain.patches import Patches
from pinnkfac.domain.points import Map, PointSet, image
from pinnkfac.domain.sampling import Sampling


@dataclass(eq=False)
class Image:
    """A region of a domain as the image of one of a box: of the disk, say,
    ``Image("interior", disk, Box(s=(0, 1), angle=(0, 2 * pi)).interior, place)``.

    ``map`` takes parameters [batch, param] to points, with their normals and links where they have
    any. It has to keep parts of the measure, as x = √s (cos φ, sin φ) does: what is uniform in the
    box is uniform in the region then, whatever the sampling.
    """

    name: str
    domain: Domain
    parameters: Patches
    map: Map
    link_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.coordinates = self.domain.coordinates
        self.bounds = tuple(self.domain.bounds.ranges.values())
        self.dimension = self.parameters.dimension

    def draw(self, number: int, sampling: Sampling, generator: Generator) -> PointSet:
        return image(self.parameters.draw(number, sampling, generator), self.map)

    def __str__(self) -> str:
        return self.name
