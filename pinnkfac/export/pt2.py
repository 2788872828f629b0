"""The net as a program of torch.export, from coordinates to fields."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import torch

from pinnkfac.common.errors import UserError, first_line
from pinnkfac.common.files import whole
from pinnkfac.export.content import Content


def write(content: Content, path: Path) -> list[Path]:
    """The net for any number of points, on the CPU; names go into ``signature.json`` beside it."""
    if axes := content.grid_of(path):
        raise UserError(
            f"export to {path}: .pt2 holds the net, which has no grid: leave out {', '.join(axes)}"
        )
    # Not to be trained: what the program returns would carry a graph of autograd.
    net = copy.deepcopy(content.net).cpu().eval().requires_grad_(False)
    box = content.signature.domain.bounds
    # Not 1 point: torch.export takes an axis of length 1 for a constant.
    example = next(net.parameters()).new_tensor([box.low, box.high, box.low, box.high])
    shapes = ({0: torch.export.Dim("batch")},)
    try:
        with torch.no_grad():
            program = torch.export.export(net, (example,), dynamic_shapes=shapes, strict=False)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"export to {path}: torch.export refuses {type(net).__name__} "
            f"({type(error).__name__}: {first_line(error, 160)}): write its forward from plain "
            "operations on tensors"
        ) from error
    described = {"signature.json": content.described()}

    def write_program(aside: Path) -> None:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=described)
        aside.write_bytes(buffer.getvalue())

    return [whole(path, write_program)]
