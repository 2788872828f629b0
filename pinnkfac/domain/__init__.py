"""Where terms live: boxes, their regions, given points, and how points are drawn."""

from pinnkfac.domain.box import Box
from pinnkfac.domain.points import Points, PointSet, Region
from pinnkfac.domain.sampling import Even, Grid, Sampling, Sobol, Uniform

__all__ = ["Box", "Even", "Grid", "PointSet", "Points", "Region", "Sampling", "Sobol", "Uniform"]
