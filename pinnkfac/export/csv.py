"""A row per point of the grid, headed by names and units."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import write_csv
from pinnkfac.export.content import Content

ROWS = 100_000
"""As many become Python's numbers at once."""


def write(content: Content, path: Path) -> list[Path]:
    """Coordinates and fields in columns, at the points of a grid or at named ones."""
    if content.points is None:
        grid = content.on_grid(**content.axes)
        columns = [a.reshape(-1) for a in (*grid.coordinates.values(), *grid.values.values())]
        table = np.stack(columns, axis=1)
    elif content.axes:
        raise UserError(
            f"export to {path}: points= and a grid ({', '.join(content.axes)}) exclude each other"
        )
    else:
        table = content.at(content.points)
    signature = content.signature
    header = [signature.label(name) for name in (*signature.coordinates.names, *signature.fields)]
    pieces = (table[start : start + ROWS].tolist() for start in range(0, len(table), ROWS))
    return [write_csv(path, header, itertools.chain.from_iterable(pieces))]
