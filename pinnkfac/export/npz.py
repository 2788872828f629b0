"""Axes and fields on a grid, for numpy, with a description of names and units."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import whole
from pinnkfac.export.content import Content


def write(content: Content, path: Path) -> list[Path]:
    """Axes [axis], fixed coordinates [], fields [axis, axis, …], each under its own name."""
    grid = content.on_grid(**content.grid_of(path))
    description = content.described(axes=list(grid.axes), fixed=grid.fixed)
    arrays: dict[str, Any] = {**grid.axes, **grid.fixed}
    for name, values in (*grid.values.items(), ("description", description)):
        if name in arrays:
            raise UserError(
                f"export to {path}: two things are called '{name}', which .npz cannot tell apart: "
                "rename the field or the coordinate, or choose .csv"
            )
        arrays[name] = values

    def write_arrays(aside: Path) -> None:
        # What numpy.savez_compressed does, which cannot store a field named 'file'.
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)

    return [whole(path, write_arrays)]
