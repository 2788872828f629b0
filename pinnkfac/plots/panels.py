"""One panel of a picture: lines, a map of values, a map of errors, arrows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.quiver import Quiver

from pinnkfac.plots.slices import Array, Quantity, Slice
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
    """'relative L2 error 3.2e-07' over the points of the panel, or, where the exact solution is
    zero on all of them, the largest error."""
    assert quantity.error is not None and quantity.exact is not None
    inside = ~np.isnan(quantity.exact)
    error, size = quantity.error[inside], float(np.linalg.norm(quantity.exact[inside]))
    if size > 0:
        return f"relative L2 error {float(np.linalg.norm(error)) / size:.1e}"
    return f"largest error {short(float(np.abs(error).max(initial=0.0)))}"


def error_label(quantity: Quantity, power: int) -> str:
    text = f"{quantity.name} − exact" if quantity.signed else "|difference|"
    return f"{text}{unit_text(power, quantity.unit)}"


def error_limits(quantity: Quantity) -> Limits:
    """The range of the error with zero in the middle, or at the low end for a magnitude."""
    assert quantity.error is not None
    finite = quantity.error[np.isfinite(quantity.error)]
    largest = float(np.abs(finite).max(initial=0.0)) or 1.0
    return (-largest if quantity.signed else 0.0, largest)


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
    """The signed error around a line at zero, in units of a power of ten; ``limits`` are those of
    more errors than the ones shown, as in an animation."""
    assert quantity.error is not None
    axes.axhline(0.0, color=BLACK, linewidth=0.8)
    (line,) = axes.plot(x, quantity.error, color=COLOURS[1])
    power = exponent((limits or error_limits(quantity))[1])
    divide_ticks(axes.yaxis, power)
    axes.set(xlabel=x_label, ylabel=error_label(quantity, power), title=error_title(quantity))
    light_grid(axes)
    return line


@dataclass(frozen=True)
class MapPanel:
    """A map on a plane: its values, the arrows of a vector on it, its title, and the ``label`` at
    its colour bar, whose numbers are in units of a power of ten."""

    data: Array
    colours: str
    limits: Limits
    title: str
    arrows: Array | None = None
    label: str = ""

    def draw(
        self, axes: Axes, sliced: Slice, *, bar: bool = True
    ) -> tuple[AxesImage, Quiver | None]:
        """The map over the last two axes of a slice, and a colour bar beside it, as high as it."""
        plane = list(sliced.axes.values())[-2:]
        image = _image(axes, plane, self.data, self.limits, self.colours)
        quiver = None if self.arrows is None else _arrows(axes, plane, self.arrows, self.limits[1])
        _label_plane(axes, sliced.signature, tuple(sliced.axes)[-2:])
        axes.set_title(self.title)
        if bar:
            assert axes.figure is not None
            scale = axes.figure.colorbar(image, cax=axes.inset_axes((1.03, 0.0, 0.05, 1.0)))
            if self.label:
                scale.set_label(self.label)
                divide_ticks(scale.ax.yaxis, exponent(self.limits[1]))
        return image, quiver


def maps(quantity: Quantity, over_time: Quantity | None = None, moment: str = "") -> list[MapPanel]:
    """The solution and, where the exact one is there, that and the error. ``over_time`` is the
    quantity at all times, where the scales are those of all; ``moment`` says which is shown."""
    whole, label = over_time or quantity, value_label(quantity)
    behind, before = (f", {moment}", f"{moment}: ") if moment else ("", "")
    limits = whole.limits
    result = [MapPanel(quantity.values, VALUES, limits, f"{label}{behind}", quantity.arrows)]
    if quantity.exact is not None and quantity.error is not None:
        title, arrows = f"exact {label}{behind}", quantity.exact_arrows
        result.append(MapPanel(quantity.exact, VALUES, limits, title, arrows))
        limits, title = error_limits(whole), f"{before}{error_title(quantity)}"
        # A signed error has zero in the middle, a magnitude at the low end.
        colours = DIFFERENCES if quantity.signed else MAGNITUDES
        label = error_label(quantity, exponent(limits[1]))
        result.append(MapPanel(quantity.error, colours, limits, title, label=label))
    return result


def panel_size(signature: Signature, plane: Sequence[str]) -> tuple[float, float, float | None]:
    """Width and height of a panel in inches, and the width of the map in it where both its axes
    have the same scale."""
    low, high = zip(*(signature.domain.bounds.ranges[name] for name in plane), strict=True)
    ratio = (high[1] - low[1]) / (high[0] - low[0])
    if signature.coordinates.time in plane or not 1 / 3 <= ratio <= 3:
        return 3.4, 2.7, None
    width, height = (2.3, 2.3 * ratio) if ratio < 1 else (2.3 / ratio, 2.3)
    return max(width, 1.5) + 1.1, max(height, 1.3) + 0.6, width


def _label_plane(axes: Axes, signature: Signature, names: Sequence[str]) -> None:
    """Labels of the two axes of a map; where both have the same scale, as many numbers stand below
    it as there is room for."""
    axes.set(xlabel=signature.label(names[0]), ylabel=signature.label(names[1]))
    axes.locator_params(nbins=5)
    width = panel_size(signature, names)[2]
    if width is not None:
        axes.set_aspect("equal")
        axes.locator_params(axis="x", nbins=max(1, min(5, int(width / INCHES_A_NUMBER))))


def thinned(plane: Sequence[Array]) -> tuple[slice, slice]:
    """The places on a grid where arrows stand: as far apart along both axes, none on an edge."""
    longest = max(float(values[-1] - values[0]) for values in plane)

    def part(values: Array) -> slice:
        number = max(3, round(ARROWS * float(values[-1] - values[0]) / longest))
        step = max(1, (len(values) - 1) // number)
        return slice(step // 2, None, step)

    return part(plane[0]), part(plane[1])


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
