"""How much work there is, as counts alone: what costs and plans are computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """Widths and rows of an objective.

    ``layers`` are (in, out, uses) of every linear layer, ``terms`` (rows, equations) of every
    term, ``parameters`` the number of all trained numbers, ``memory`` the bytes that arrays of a
    step may take.
    """

    layers: tuple[tuple[int, int, int], ...]
    terms: tuple[tuple[int, int], ...]
    parameters: int
    memory: float

    def residuals(self, points: Sequence[int]) -> int:
        """Residuals of so many points of every term."""
        return sum(n * equations for n, (_, equations) in zip(points, self.terms, strict=True))

    def rows(self, points: Sequence[int]) -> int:
        """Rows of the shared axis."""
        return sum(n * rows for n, (rows, _) in zip(points, self.terms, strict=True))

    def adjoints(self, points: Sequence[int]) -> int:
        """Rows of the shared axis, once for every point and equation."""
        return sum(n * rows * e for n, (rows, e) in zip(points, self.terms, strict=True))
