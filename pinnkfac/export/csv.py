"""A row per point of the grid, headed by names and units."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import write_csv
from pinnkfac.export.content import Array, Content, Wanted

ROWS = 100_000
"""As many become Python's numbers at once."""


def write(content: Content, path: Path, wanted: Wanted) -> list[Path]:
    """Coordinates and fields in columns, at the points of a grid or at named ones."""
    table, signature = _table(content, path, wanted), content.signature
    header = [signature.label(name) for name in (*signature.coordinates.names, *signature.fields)]
    pieces = (table[start : start + ROWS].tolist() for start in range(0, len(table), ROWS))
    return [write_csv(path, header, itertools.chain.from_iterable(pieces))]


def _table(content: Content, path: Path, wanted: Wanted) -> Array:
    """[batch, coord + field]"""
    if wanted.points is None:
        grid = content.on_grid(**wanted.axes)
        columns = [a.reshape(-1) for a in (*grid.coordinates.values(), *grid.values.values())]
        return np.stack(columns, axis=1)
    if wanted.axes:
        raise UserError(
            f"export to {path}: points= and a grid ({', '.join(wanted.axes)}) exclude each other"
        )
    return content.at(wanted.points)
