"""Where terms live: shapes, their regions, given points, and how points are drawn."""

from pinnkfac.domain.box import Box
from pinnkfac.domain.domain import Domain, Outline
from pinnkfac.domain.image import Image
from pinnkfac.domain.part import Part
from pinnkfac.domain.patches import Patches
from pinnkfac.domain.points import Points, PointSet, Region
from pinnkfac.domain.sampling import Even, Grid, Sampling, Sobol, Uniform

__all__ = [
    "Box",
    "Domain",
    "Even",
    "Grid",
    "Image",
    "Outline",
    "Part",
    "Patches",
    "PointSet",
    "Points",
    "Region",
    "Sampling",
    "Sobol",
    "Uniform",
]
