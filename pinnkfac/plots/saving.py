"""Files of pictures: whole or not at all."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from pinnkfac.errors import UserError
from pinnkfac.plots.style import BLACK, COLOURS, DIFFERENCES, MAGNITUDES, VALUES, styled
from pinnkfac.whole import whole

FORMATS = ("png", "pdf", "svg")
DOTS = 130.0
MOST_PIXELS = 1.3e6


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as the ending of the path says, .png, .pdf or .svg; returns the path.

    Raises UserError for another ending, where the disk refuses, or for a label that matplotlib
    cannot set.
    """
    ending = checked_ending(path, FORMATS)

    def write(aside: Path) -> None:
        if ending == "png":
            dots = _dots(figure)
            image(figure, dots).save(aside, "PNG", optimize=True, dpi=(dots, dots))
        else:
            figure.savefig(aside, format=ending)

    try:
        with styled():
            return whole(Path(path), write)
    except ValueError as error:  # mathematics between two $ of a unit, for instance
        line = str(error).strip().splitlines()[0]
        raise UserError(f"{path}: a label of the picture cannot be set: {line}") from error


def image(figure: Figure, dots: float) -> Image.Image:
    """The figure in the 250 colours of these pictures: a third of the room, and no visible step."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dots, pil_kwargs={"compress_level": 1})
    return Image.open(buffer).convert("RGB").quantize(palette=_palette(), dither=Image.Dither.NONE)


def _palette() -> Image.Image:
    """Levels of the colour maps, greys, and the colours of lines fading into white."""
    levels = {VALUES: 96, DIFFERENCES: 73, MAGNITUDES: 40}
    parts = [colormaps[name](np.linspace(0, 1, n))[:, :3] for name, n in levels.items()]
    parts.append(np.linspace(0, 1, 17)[:, None].repeat(3, axis=1))
    lines = np.array([to_rgb(colour) for colour in COLOURS if colour != BLACK])
    parts += [1 - share * (1 - lines) for share in (1.0, 0.75, 0.5, 0.25)]
    colours = np.concatenate(parts)
    image = Image.new("P", (1, 1))
    image.putpalette(np.round(255 * colours).astype(np.uint8).reshape(-1).tolist())
    return image


def _dots(figure: Figure) -> float:
    """Dots per inch: fewer where a figure of many panels would be too large a file."""
    width, height = figure.get_size_inches()
    return min(DOTS, math.sqrt(MOST_PIXELS / (width * height)))


def checked_ending(path: str | Path, known: tuple[str, ...]) -> str:
    """The ending of a file name without its dot; raises UserError where it is not known."""
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in known:
        given = f"the ending '.{ending}'" if ending else "no ending"
        allowed = ", ".join(f".{name}" for name in known)
        raise UserError(f"{path} has {given}: give a file name that ends in one of {allowed}")
    return ending
