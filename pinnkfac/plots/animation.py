"""Animations of solutions that depend on time."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from subprocess import CalledProcessError

from matplotlib import animation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import whole
from pinnkfac.plots.panels import (
    error_limits,
    error_line,
    error_title,
    maps,
    panel_size,
    thinned,
    value_lines,
)
from pinnkfac.plots.saving import checked_ending, drawn_image, in_few_colours, palette_of
from pinnkfac.plots.slices import Exact, NoExact, Quantity, Slice, cut, fixed_note
from pinnkfac.plots.solution import shown_plane
from pinnkfac.plots.style import styled
from pinnkfac.problem.signature import Signature
from pinnkfac.solution import Solution

FORMATS = ("gif", "mp4")
ON_MAPS = 81
ON_LINES = 241
PER_SECOND = 15
DOTS = 80
Update = Callable[[int], None]


def check_animation(signature: Signature, path: str | Path, frames: int = 60) -> str:
    """The ending of an animation's file, '.' left out; raises UserError where none can be made."""
    ending = checked_ending(path, FORMATS)
    coordinates = signature.coordinates
    if coordinates.time is None:
        names = ", ".join(coordinates.names[:6])
        why = " (Box(..., time=None) says so of t)" if "t" in coordinates.names else ""
        raise UserError(
            f"an animation needs a coordinate that is time, but none of {names} is{why}: draw the "
            "solution as a picture"
        )
    if frames < 2:
        raise UserError(f"frames={frames}: an animation has at least 2")
    if ending == "mp4" and not animation.writers.is_available("ffmpeg"):
        raise UserError(
            f"{path}: .mp4 needs the program ffmpeg, which is not installed: install it, or write "
            "a .gif"
        )
    return ending


@styled()
def animate(
    solution: Solution, path: str | Path, exact: Exact | None = None, frames: int = 60
) -> Path:
    """Write the solution over time as .gif or, where the program ffmpeg is installed, as .mp4;
    returns the path.

    Fields in rows; the solution, the exact one and the error in columns; the same scales in all
    ``frames``. One coordinate of space: lines, more: maps of the slice through the middle. Raises
    UserError as ``check_animation`` does, and where the disk refuses.
    """
    ending = check_animation(solution.signature, path, frames)
    try:
        sliced = slice_over_time(solution, exact, frames)
    except NoExact:
        sliced = slice_over_time(solution, None, frames)
    figure, update = first_frame(sliced)
    write = _write_gif if ending == "gif" else _write_mp4
    return whole(Path(path), partial(write, figure, update, frames))


def _write_gif(figure: Figure, update: Update, frames: int, path: Path) -> None:
    # With a palette of its own for each frame, the file would be twice as large.
    def at(i: int) -> Image.Image:
        update(i)
        return drawn_image(figure, DOTS)

    palette = palette_of([at(i) for i in (0, frames // 2, frames - 1)])
    images = [in_few_colours(at(i), palette) for i in range(frames)]
    pause = round(1000 / PER_SECOND)
    images[0].save(path, "GIF", save_all=True, append_images=images[1:], duration=pause, loop=0)


def _write_mp4(figure: Figure, update: Update, frames: int, path: Path) -> None:
    writer = animation.FFMpegWriter(fps=PER_SECOND, extra_args=["-f", "mp4"])
    try:
        with writer.saving(figure, str(path), dpi=2 * DOTS):
            for i in range(frames):
                update(i)
                writer.grab_frame()
    except CalledProcessError as error:
        raise UserError(f"ffmpeg could not write the animation ({error}): write a .gif") from error


def slice_over_time(solution: Solution, exact: Exact | None, frames: int) -> Slice:
    """The fields at so many times, on the plane that maps of the solution show, or on a line."""
    signature = solution.signature
    time = signature.coordinates.time
    assert time is not None
    space = [name for name in shown_plane(signature) if name != time]
    number = ON_LINES if len(space) == 1 else ON_MAPS
    return cut(solution, exact, {time: frames, **dict.fromkeys(space, number)})


@styled()
def first_frame(sliced: Slice) -> tuple[Figure, Update]:
    """The figure at the first time, and what sets it to the others."""
    quantities = sliced.quantities()
    lines = len(sliced.axes) == 2
    columns = 1 if sliced.exact is None else 2 if lines else 3
    plane = tuple(sliced.axes)[1:]
    width, height, _ = (4.4, 3.0, None) if lines else panel_size(sliced.signature, plane)
    size = (width * columns, height * len(quantities) + 0.4)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(quantities), columns, squeeze=False)
    draw = _moving_lines if lines else _moving_maps
    updates = [_clock(figure, sliced)]
    for row, quantity in zip(grid, quantities, strict=True):
        updates.append(draw(row, sliced, quantity))
    # Room is shared out once: panels that move from frame to frame are hard to look at.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")

    def update_all(i: int) -> None:
        for update in updates:
            update(i)

    return figure, update_all


def _clock(figure: Figure, sliced: Slice) -> Update:
    time, times = next(iter(sliced.axes.items()))
    unit = sliced.signature.shown_units.get(time, "")
    note = fixed_note(sliced.signature, tuple(sliced.axes))
    title = figure.suptitle("t")
    step = float(times[1] - times[0])
    decimals = max(0, math.ceil(-math.log10(step)))

    def update(i: int) -> None:
        now = f"{time} = {times[i]:.{decimals}f} {unit}".rstrip()
        title.set_text(f"{now}; {note}" if note else now)

    update(0)
    return update


def _moving_lines(row: list[Axes], sliced: Slice, quantity: Quantity) -> Update:
    (name, x) = list(sliced.axes.items())[1]
    label, first = sliced.signature.label(name), quantity.at(0)
    lines = value_lines(row[0], x, first, label)
    low, high = quantity.limits
    margin = 0.05 * (high - low) or 1.0
    row[0].set_ylim(low - margin, high + margin)
    if quantity.error is not None:
        row[0].legend(loc="upper right")
        limits = error_limits(quantity)
        lines.append(error_line(row[1], x, first, label, limits))
        row[1].set_ylim(1.1 * limits[0], 1.1 * limits[1])

    def update(i: int) -> None:
        now = quantity.at(i)
        for line, data in zip(lines, (now.values, now.exact, now.error), strict=False):
            assert data is not None
            line.set_ydata(data)
        if now.error is not None:
            row[1].set_title(error_title(now))

    return update


def _moving_maps(row: list[Axes], sliced: Slice, quantity: Quantity) -> Update:
    places = thinned(list(sliced.axes.values())[1:])
    drawn = []
    for axes, shown in zip(row, maps(quantity.at(0), quantity), strict=True):  # bars of all times
        drawn.append((axes, *shown.draw(axes, sliced)))

    def update(i: int) -> None:
        now = maps(quantity.at(i), quantity)
        for (axes, image, quiver), shown in zip(drawn, now, strict=True):
            image.set_data(shown.data.T)
            if quiver is not None and shown.arrows is not None:
                quiver.set_UVC(*shown.arrows[places].T)
            axes.set_title(shown.title)

    return update
