"""A mesh for ParaView (needs meshio: pip install 'pinnkfac[vtu]'); where time is an axis, a file
per time, and a .pvd that lists them."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import whole, write_text
from pinnkfac.export.content import Array, Content, GridValues
from pinnkfac.problem.signature import Signature

TIMES = 21
"""Times, of which each is a file, where nothing was said about them."""
CELLS = {1: "line", 2: "quad", 3: "hexahedron"}
QUAD = ((0, 0), (1, 0), (1, 1), (0, 1))
CORNERS = {1: ((0,), (1,)), 2: QUAD, 3: tuple((*xy, z) for z in (0, 1) for xy in QUAD)}
"""The corners of a cell in VTK's order, as steps along the axes."""


def write(content: Content, path: Path) -> list[Path]:
    """Lines, quads or hexahedra on the axes of space, with fields and vectors at their points.

    Up to three coordinates of space keep their places: a slice y = 0.5 lies at y = 0.5. With more,
    the axes of the slice (at most three) are the places, and vectors are left out. Where time is
    an axis, each time is a file PATH_000.vtu …, and PATH.pvd lists them. Raises UserError where
    meshio is missing, or the axes make no mesh.
    """
    asked, signature = content.grid_of(path), content.signature
    try:
        meshio = import_module("meshio")
    except ImportError as error:
        raise UserError(
            f"export to {path}: .vtu needs meshio, which is not installed: "
            "pip install 'pinnkfac[vtu]'"
        ) from error
    time = signature.coordinates.time
    # Few coordinates are all axes unless something is said; then each time is a file.
    few = len(signature.coordinates.names) <= 3
    axes = ({time: TIMES} if time and few else {}) | dict(asked)
    _check(path, signature, content.chosen(axes).axes)
    grid = content.on_grid(**axes)
    if time is None or time not in grid.axes:
        return [_write(meshio, path, signature, grid, grid.values)]
    number, times = list(grid.axes).index(time), grid.axes[time]
    width = max(3, len(str(len(times) - 1)))
    written = []
    for i in range(len(times)):
        one = path.with_name(f"{path.stem}_{i:0{width}d}{path.suffix}")
        values = {name: np.take(v, i, axis=number) for name, v in grid.values.items()}
        written.append(_write(meshio, one, signature, grid, values))
    written.append(_write_collection(path.with_suffix(".pvd"), times, written))
    return written


def _check(path: Path, signature: Signature, varying: Mapping[str, Array]) -> None:
    """Raise UserError where the axes make no mesh, before anything is evaluated on them."""
    axes = _in_space(signature, varying)
    if len(axes) not in CELLS:
        names = signature.coordinates.space
        raise UserError(
            f"export to {path}: a mesh has one to three axes of space, not {len(axes)}: give "
            f"{names[0]}=100 for an axis and {names[-1]}=0.5 to fix a coordinate"
        )
    for name, values in axes.items():
        if len(values) < 2 or not (np.diff(values) > 0).all():
            raise UserError(
                f"export to {path}: the values of {name} must increase, and be at least two; give "
                "a number to fix it"
            )


def _in_space(signature: Signature, axes: Mapping[str, Array]) -> dict[str, Array]:
    return {name: axes[name] for name in axes if name != signature.coordinates.time}


def _write(
    meshio: Any, path: Path, signature: Signature, grid: GridValues, values: Mapping[str, Array]
) -> Path:
    """One mesh; ``values`` are the fields [axis, …] on the axes of space."""
    axes = _in_space(signature, grid.axes)
    mesh = meshio.Mesh(
        _points(axes, grid.fixed, signature.coordinates.space),
        [(CELLS[len(axes)], _cells(tuple(map(len, axes.values()))))],
        point_data={_attribute(n): v for n, v in _point_data(signature, values).items()},
    )
    return whole(path, lambda aside: meshio.write(aside, mesh, file_format="vtu"))


def _points(axes: Mapping[str, Array], fixed: Mapping[str, float], space: tuple[str, ...]) -> Array:
    """The points of the mesh, [batch, 3], the last axis fastest."""
    mesh = np.meshgrid(*axes.values(), indexing="ij")
    arrays = dict(zip(axes, mesh, strict=True))
    names = space if len(space) <= 3 else tuple(axes)
    points = np.zeros((mesh[0].size, 3))
    for i, name in enumerate(names):
        points[:, i] = arrays[name].reshape(-1) if name in arrays else fixed[name]
    return points


def _cells(shape: tuple[int, ...]) -> Array:
    """Numbers of the points of each cell, [cell, corner]."""
    numbers = np.arange(np.prod(shape)).reshape(shape)
    steps = (zip(corner, shape, strict=True) for corner in CORNERS[len(shape)])
    corners = [numbers[tuple(slice(s, n - 1 + s) for s, n in each)] for each in steps]
    return np.stack([corner.reshape(-1) for corner in corners], axis=1)


def _point_data(signature: Signature, values: Mapping[str, Array]) -> dict[str, Array]:
    """Fields [batch] and vectors [batch, 3] by their names with units."""
    data = {signature.label(name): v.reshape(-1) for name, v in values.items()}
    for name, components in signature.vectors.items():
        if len(components) <= 3:
            parts = [values[c].reshape(-1) for c in components]
            parts += [np.zeros_like(parts[0])] * (3 - len(parts))
            units = {signature.shown_units.get(c) for c in components}
            unit = units.pop() if len(units) == 1 else None
            data[f"{name} [{unit}]" if unit else name] = np.stack(parts, axis=1)
    return data


def _attribute(name: str) -> str:
    """A name as meshio may put it between quotes: it escapes nothing, and writes in the encoding
    of the locale what is read as UTF-8."""
    return escape(name, {'"': "&quot;"}).encode("ascii", "xmlcharrefreplace").decode()


def _write_collection(path: Path, times: Array, files: list[Path]) -> Path:
    """The list of files and their times that ParaView opens as one."""
    lines = [
        f'    <DataSet timestep="{float(time)!r}" part="0" file={quoteattr(file.name)}/>\n'
        for time, file in zip(times, files, strict=True)
    ]
    text = (
        '<?xml version="1.0" encoding="UTF-8"?>\n<VTKFile type="Collection" version="0.1">\n'
        f"  <Collection>\n{''.join(lines)}  </Collection>\n</VTKFile>\n"
    )
    return write_text(path, text)
