"""A trained net as a solution: fields and derivatives by name, grids, run folders, files."""

from pinnkfac.solution.field_function import FieldFunction
from pinnkfac.solution.grid import FieldsOnGrid
from pinnkfac.solution.solution import Solution

__all__ = ["FieldFunction", "FieldsOnGrid", "Solution"]
