"""One panel of a picture: lines, a map of values, a map of errors, arrows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colorbar import Colorbar
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.quiver import Quiver

from pinnkfac.plots.slices import Array, Quantity, relative_l2
from pinnkfac.plots.style import (
    BLACK,
    COLOURS,
    DIFFERENCES,
    MAGNITUDES,
    VALUES,
    divide_ticks,
    exponent,
    light_grid,
    short,
    unit_text,
)
from pinnkfac.problem.signature import Signature

ARROWS = 13
"""Arrows along the longer side of a map."""
INCHES_A_NUMBER = 0.45
"""Room that a number below a map takes."""
Limits = tuple[float, float]


def value_label(quantity: Quantity) -> str:
    return f"{quantity.name}{unit_text(0, quantity.unit)}"


def error_title(quantity: Quantity) -> str:
    """'relative L2 error 3.2e-07', over the points of the panel."""
    assert quantity.error is not None
    assert quantity.exact is not None
    relative = relative_l2(quantity.error, quantity.exact)
    if relative is None:
        inside = ~np.isnan(quantity.exact)
        largest = float(np.abs(quantity.error[inside]).max(initial=0.0))
        return f"largest error {short(largest)}"
    return f"relative L2 error {relative:.1e}"


def error_label(quantity: Quantity, power: int) -> str:
    text = f"{quantity.name} − exact" if quantity.signed else "|difference|"
    return f"{text}{unit_text(power, quantity.unit)}"


def error_limits(quantity: Quantity) -> Limits:
    """The range of the error with zero in the middle, or at the low end for a magnitude."""
    assert quantity.error is not None
    finite = quantity.error[np.isfinite(quantity.error)]
    largest = float(np.abs(finite).max()) if len(finite) else 0.0
    largest = largest or 1.0
    return (-largest if quantity.signed else 0.0, largest)


# -- lines -----------------------------------------------------------------------------------------
def value_lines(axes: Axes, x: Array, quantity: Quantity, x_label: str) -> list[Line2D]:
    """The solution as a line and the exact one dashed above it."""
    lines = axes.plot(x, quantity.values, color=COLOURS[0], linewidth=2.4, label="solution")
    if quantity.exact is not None:
        lines += axes.plot(x, quantity.exact, "--", color=BLACK, linewidth=1.2, label="exact")
        axes.legend()
    axes.set(xlabel=x_label, ylabel=value_label(quantity), title=quantity.name)
    light_grid(axes)
    return lines


def error_line(
    axes: Axes, x: Array, quantity: Quantity, x_label: str, limits: Limits | None = None
) -> Line2D:
    """The signed error around a line at zero, in units of a power of ten.

    ``limits`` are those of more errors than the ones shown, as in an animation.
    """
    assert quantity.error is not None
    axes.axhline(0.0, color=BLACK, linewidth=0.8)
    (line,) = axes.plot(x, quantity.error, color=COLOURS[1])
    power = exponent((limits or error_limits(quantity))[1])
    divide_ticks(axes.yaxis, power)
    axes.set(xlabel=x_label, ylabel=error_label(quantity, power), title=error_title(quantity))
    light_grid(axes)
    return line


# -- maps ------------------------------------------------------------------------------------------
def value_map(
    axes: Axes,
    plane: Sequence[Array],
    data: Array,
    limits: Limits,
    arrows: Array | None = None,
) -> tuple[AxesImage, Quiver | None]:
    """A map of values on the grid of two axes, and the arrows of a vector on it."""
    image = _image(axes, plane, data, limits, VALUES)
    return image, None if arrows is None else _arrows(axes, plane, arrows, limits[1])


def error_map(axes: Axes, plane: Sequence[Array], quantity: Quantity, limits: Limits) -> AxesImage:
    """A map of the error: signed with zero in the middle, or a magnitude from zero."""
    assert quantity.error is not None
    colours = DIFFERENCES if quantity.signed else MAGNITUDES
    return _image(axes, plane, quantity.error, limits, colours)


def value_bar(image: AxesImage, axes: Axes) -> None:
    """A colour bar beside a map, exactly as high; the title of the map says what is shown."""
    _bar(image, axes)


def error_bar(image: AxesImage, axes: Axes, quantity: Quantity) -> None:
    """A colour bar whose numbers are in units of a power of ten, which its label says."""
    power = exponent(float(image.get_clim()[1]))
    bar = _bar(image, axes)
    bar.set_label(error_label(quantity, power))
    divide_ticks(bar.ax.yaxis, power)


def _bar(image: AxesImage, axes: Axes) -> Colorbar:
    assert axes.figure is not None
    return axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)))


def set_plane(axes: Axes, signature: Signature, names: Sequence[str], width: float | None) -> None:
    """Labels of the two axes of a map; where its ``width`` in inches is given, both have the same
    scale, and as many numbers stand below it as there is room for."""
    axes.set(xlabel=signature.label(names[0]), ylabel=signature.label(names[1]))
    axes.locator_params(nbins=5)
    if width is not None:
        axes.set_aspect("equal")
        axes.locator_params(axis="x", nbins=max(1, min(5, int(width / INCHES_A_NUMBER))))


def thinned(plane: Sequence[Array]) -> tuple[slice, slice]:
    """The places on a grid where arrows stand: as far apart along both axes, none on an edge."""
    lengths = [float(values[-1] - values[0]) for values in plane]
    parts = []
    for values, length in zip(plane, lengths, strict=True):
        number = max(3, round(ARROWS * length / max(lengths)))
        step = max(1, (len(values) - 1) // number)
        parts.append(slice(step // 2, None, step))
    return parts[0], parts[1]


def _arrows(axes: Axes, plane: Sequence[Array], arrows: Array, longest: float) -> Quiver:
    """Arrows on one scale in all panels: a vector of the length ``longest`` spans one gap."""
    places = thinned(plane)
    columns = len(plane[0][places[0]])
    return axes.quiver(
        plane[0][places[0]],
        plane[1][places[1]],
        *arrows[places].T,
        color="white",
        edgecolor=BLACK,
        linewidth=0.5,
        pivot="mid",
        width=0.008,
        scale=(longest or 1.0) * columns,
        scale_units="width",
    )


def _image(
    axes: Axes, plane: Sequence[Array], data: Array, limits: Limits, colours: str
) -> AxesImage:
    x, y = plane
    # Values stand at the middles of pixels, so that the outer half of those on the edge is cut.
    right, up = (x[1] - x[0]) / 2, (y[1] - y[0]) / 2
    image = axes.imshow(
        data.T,
        cmap=colours,
        vmin=limits[0],
        vmax=limits[1],
        extent=(x[0] - right, x[-1] + right, y[0] - up, y[-1] + up),
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
        interpolation_stage="data",
    )
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    return image
