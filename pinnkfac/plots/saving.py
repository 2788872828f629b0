"""Files of pictures: whole or not at all."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import whole
from pinnkfac.plots.style import styled

FORMATS = ("png", "pdf", "svg")
DOTS = 130.0
MOST_PIXELS = 1.3e6
MOST_BYTES = 200_000
"""Above it, an image is in 256 colours instead of its own."""
ALMOST_WHITE = 246


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as the ending of the path says, .png, .pdf or .svg; returns the path. Raises
    UserError for another ending, where the disk refuses, or for a label that cannot be set."""
    ending = checked_ending(path, FORMATS)

    def write(aside: Path) -> None:
        if ending != "png":
            figure.savefig(aside, format=ending)
            return
        dots = dots_per_inch(figure)
        drawn = drawn_image(figure, dots)
        for image in (drawn, in_few_colours(drawn, palette_of([drawn]))):
            image.save(aside, "PNG", optimize=True, dpi=(dots, dots))
            if aside.stat().st_size <= MOST_BYTES:
                break

    try:
        with styled():
            return whole(Path(path), write)
    except ValueError as error:  # mathematics between two $ of a unit, for instance
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: a label of the picture cannot be set: {line}") from error


def drawn_image(figure: Figure, dots: float) -> Image.Image:
    """The figure as it is, before it is written, with so many dots per inch."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots, pil_kwargs={"compress_level": 1})
    return Image.open(buffer).convert("RGB")


def palette_of(images: Sequence[Image.Image]) -> Image.Image:
    """256 colours of which each colour of the images is near to one: in a fixed palette, the edge
    of a line on a map would take the colour of something else."""
    together = Image.fromarray(np.concatenate([np.asarray(image) for image in images]))
    palette = together.quantize(256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette(), dtype=np.uint8).reshape(-1, 3)
    # The paper stays exactly as white as it is.
    colours[(colours >= ALMOST_WHITE).all(axis=1)] = 255
    palette.putpalette(colours.reshape(-1).tolist())
    return palette


def in_few_colours(drawn: Image.Image, palette: Image.Image) -> Image.Image:
    """An image in the colours of a palette: a third of the room."""
    return drawn.quantize(palette=palette, dither=Image.Dither.NONE)


def dots_per_inch(figure: Figure) -> float:
    """DOTS, but fewer where a figure of many panels would be too large a file."""
    width, height = figure.get_size_inches()
    return min(DOTS, math.sqrt(MOST_PIXELS / (width * height)))


def checked_ending(path: str | Path, endings: tuple[str, ...]) -> str:
    """The ending of a file name without its dot; raises UserError where it is none of those."""
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in endings:
        what = f"the ending '.{ending}'" if ending else "no ending"
        allowed = ", .".join(endings)
        raise UserError(f"{path} has {what}: give a file name that ends in one of .{allowed}")
    return ending
