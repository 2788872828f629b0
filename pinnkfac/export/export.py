"""A solution as a file: .npz, .csv and .pt2 here, .vtu in vtu.py."""

from __future__ import annotations

import copy
import csv
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.common.files import whole
from pinnkfac.export.vtu import write_vtu
from pinnkfac.solution.places import places
from pinnkfac.version import __version__

if TYPE_CHECKING:
    from pinnkfac.solution.solution import Solution


@dataclass(frozen=True)
class Wanted:
    """What is to be written: a grid by its ``axes``, as in on_grid, or given ``points``."""

    points: Mapping[str, Any] | None
    axes: Mapping[str, Any]


def export(
    solution: Solution, path: Path, points: Mapping[str, Any] | None, axes: Mapping[str, Any]
) -> list[Path]:
    """Write a file of the kind that its ending says; see ``Solution.export``."""
    ending = path.suffix.lower()
    if ending not in WRITERS:
        given = f"the ending '{path.suffix}' is unknown" if path.suffix else "it has no ending"
        raise UserError(f"export to {path}: {given}. {suggest(ending, WRITERS)}")
    if points is not None and ending != ".csv":
        raise UserError(f"export to {path}: points= is for .csv; other files hold a grid")
    if points is not None and axes:
        raise UserError(
            f"export to {path}: points= and a grid ({', '.join(axes)}) exclude each other"
        )
    return WRITERS[ending](solution, path, Wanted(points, axes))


def _description(solution: Solution) -> dict[str, Any]:
    return {
        **solution.signature.as_dict(),
        "coefficients": solution.coefficients,
        "pinnkfac": __version__,
    }


def _npz(solution: Solution, path: Path, wanted: Wanted) -> list[Path]:
    """Axes [axis], fixed coordinates [], fields [axis, axis, …], each under its own name."""
    grid = solution.on_grid(**wanted.axes)
    described = {
        "axes": list(grid.axes),
        "fixed": grid.fixed,
        **_description(solution),
    }
    arrays: dict[str, Any] = {**grid.axes, **grid.fixed}
    for name, values in (*grid.values.items(), ("description", json.dumps(described))):
        if name in arrays:
            raise UserError(
                f"export to {path}: two things are called '{name}', which .npz cannot tell apart: "
                "rename the field or the coordinate, or choose .csv"
            )
        arrays[name] = values

    def write(aside: Path) -> None:
        # What numpy.savez_compressed does, which cannot store a field named 'file'.
        with zipfile.ZipFile(aside, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, values in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, np.asarray(values), allow_pickle=False)

    return [whole(path, write)]


def _csv(solution: Solution, path: Path, wanted: Wanted) -> list[Path]:
    """Coordinates and fields in columns, headed by their names with units."""
    signature = solution.signature
    if wanted.points is None:
        grid = solution.on_grid(**wanted.axes)
        columns = [a.reshape(-1) for a in (*grid.coordinates.values(), *grid.values.values())]
        table = np.stack(columns, axis=1)
    else:
        asked = places(signature.domain, wanted.points, "export")
        values = solution(asked.points).double().cpu()
        table = torch.cat([asked.points.cpu(), values], dim=1).numpy()
    header = [signature.label(name) for name in (*signature.coordinates.names, *signature.fields)]

    def write(aside: Path) -> None:
        with open(aside, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            for start in range(0, len(table), 100_000):
                writer.writerows(table[start : start + 100_000].tolist())

    return [whole(path, write)]


def _vtu(solution: Solution, path: Path, wanted: Wanted) -> list[Path]:
    return write_vtu(solution.on_grid, path, solution.signature, wanted.axes)


def _pt2(solution: Solution, path: Path, wanted: Wanted) -> list[Path]:
    """The net as a program for any number of points, on the CPU; names go into
    ``signature.json`` beside it."""
    if wanted.axes:
        raise UserError(
            f"export to {path}: .pt2 holds the net, which has no grid: leave out "
            f"{', '.join(wanted.axes)}"
        )
    # Not to be trained: what the program returns would carry a graph of autograd.
    net = copy.deepcopy(solution.net).cpu().eval().requires_grad_(False)
    box = solution.signature.domain.bounds
    # Not 1 point: torch.export takes an axis of length 1 for a constant.
    example = next(net.parameters()).new_tensor([box.low, box.high, box.low, box.high])
    try:
        with torch.no_grad():
            program = torch.export.export(
                net,
                (example,),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                strict=False,
            )
    except Exception as error:
        line = (str(error).strip().splitlines() or [""])[0][:160]
        raise UserError(
            f"export to {path}: torch.export refuses {type(solution.net).__name__} "
            f"({type(error).__name__}: {line}): write its forward from plain operations on tensors"
        ) from error
    described = {"signature.json": json.dumps(_description(solution))}

    def write(aside: Path) -> None:
        content = io.BytesIO()
        torch.export.save(program, content, extra_files=described)
        aside.write_bytes(content.getvalue())

    return [whole(path, write)]


WRITERS: dict[str, Callable[[Solution, Path, Wanted], list[Path]]] = {
    ".npz": _npz,
    ".csv": _csv,
    ".vtu": _vtu,
    ".pt2": _pt2,
}
