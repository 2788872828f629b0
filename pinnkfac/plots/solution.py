"""The picture of a solution: beside the exact one and the error, where that is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pinnkfac.domain import Outline
from pinnkfac.plots.panels import (
    error_line,
    error_title,
    maps,
    panel_size,
    value_label,
    value_lines,
)
from pinnkfac.plots.slices import Exact, NoExact, Quantity, Slice, cut, diagonal, fixed_note
from pinnkfac.plots.style import BLACK, VALUES, light_grid, short, styled
from pinnkfac.problem.signature import Signature
from pinnkfac.solution import Solution

ON_MAPS = 161
ON_LINES = 401
LINE_TIMES = 5
MAP_TIMES = 3
Panel = Callable[[Axes], object]


@styled()
def draw_solution(solution: Solution, exact: Exact | None = None) -> Figure:
    """The fields of a solution and, where ``exact`` is given, the exact ones and the errors.

    One row of panels per field and per vector. One coordinate: lines. One of space and time: maps
    over both, and lines at five times. Two of space: maps, with time at three times. More: maps of
    the slice through the middle, and lines along the diagonal of the domain's bounds. Outside the
    domain there is nothing. ``exact`` maps points [batch, coord] to values [batch, field]; where it
    raises UserError, the picture goes without it and says why.
    """
    notes = []
    domain = solution.signature.domain
    if isinstance(domain, Outline) and domain.region is None:
        notes.append(f"the shape of {domain.kind} is not at hand: this is the box around it")
    try:
        return _draw(solution, exact, notes)
    except NoExact as reason:
        notes.append(f"without the exact solution: {str(reason)[:100]}")
        return _draw(solution, None, notes)


def shown_plane(signature: Signature) -> tuple[str, ...]:
    """The coordinates that maps show: the first two of space, or time and the only one."""
    coordinates = signature.coordinates
    if len(coordinates.space) > 1 or coordinates.time is None:
        return coordinates.space[:2]
    return (coordinates.time, coordinates.space[0])


def _draw(solution: Solution, exact: Exact | None, notes: Sequence[str]) -> Figure:
    signature = solution.signature
    coordinates = signature.coordinates
    if len(coordinates.names) == 1:
        sliced = cut(solution, exact, dict.fromkeys(coordinates.names, ON_LINES))
        figure = _arrange([_line_row(sliced, q) for q in sliced.quantities()], sliced)
    elif len(coordinates.space) == 2 and coordinates.time:
        figure = _maps_in_time(solution, exact)
    else:
        plane = shown_plane(signature)
        sliced = cut(solution, exact, dict.fromkeys(plane, ON_MAPS))
        drawn = [maps(quantity) for quantity in sliced.quantities()]
        rows: list[list[Panel]]
        rows = [[partial(shown.draw, sliced=sliced) for shown in row] for row in drawn]
        if len(coordinates.space) == 1:
            numbers = {plane[0]: LINE_TIMES, plane[1]: ON_LINES}
            _add_lines(rows, cut(solution, exact, numbers), _time_lines)
        elif len(coordinates.space) > 2:
            _add_lines(rows, diagonal(solution, exact, ON_LINES), _diagonal_lines)
            number = len(coordinates.names)
            lines = f"lines: along the diagonal, where all {number} coordinates change"
            notes = [f"{fixed_note(signature, plane)}; {lines}", *notes]
        figure = _arrange(rows, sliced)
    if notes:
        figure.suptitle("\n".join(notes), fontsize=9)
    return figure


def _arrange(rows: Sequence[Sequence[Panel]], sliced: Slice) -> Figure:
    """One row of panels after the other; a single row of four is folded into two."""
    if len(rows) == 1 and len(rows[0]) == 4:
        rows = [rows[0][:2], rows[0][2:]]
    columns = max(map(len, rows))
    plane = tuple(sliced.axes)
    width, height, _ = panel_size(sliced.signature, plane) if len(plane) == 2 else (4.4, 3.2, None)
    figure = Figure(figsize=(width * columns, height * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for row, places in zip(rows, grid, strict=True):
        for panel, axes in zip(row, places, strict=False):
            panel(axes)
        for axes in places[len(row) :]:
            axes.remove()
    return figure


def _line_row(sliced: Slice, quantity: Quantity) -> list[Panel]:
    ((name, x),) = sliced.axes.items()
    label = sliced.signature.label(name)
    panels: list[Panel] = [lambda axes: value_lines(axes, x, quantity, label)]
    if quantity.error is not None:
        panels.append(lambda axes: error_line(axes, x, quantity, label))
    return panels


def _add_lines(rows: Sequence[list[Panel]], along: Slice, draw: Callable[..., object]) -> None:
    """Behind the maps of each quantity, its lines along something else."""
    for row, quantity in zip(rows, along.quantities(), strict=True):
        row.append(partial(draw, sliced=along, quantity=quantity))


def _time_lines(axes: Axes, sliced: Slice, quantity: Quantity) -> None:
    """Lines over space at each time, the exact ones thin and dashed on top of all."""
    (time, times), (space, x) = sliced.axes.items()
    shades = colormaps[VALUES](np.linspace(0.25, 0.95, len(times)))
    for i, t in enumerate(times):
        label = f"{time} = {short(t)}"
        axes.plot(x, quantity.values[i], color=shades[i], linewidth=2.4, label=label)
    if quantity.exact is not None:
        labels = ["exact", *["_"] * (len(times) - 1)]
        axes.plot(x, quantity.exact.T, "--", color=BLACK, linewidth=0.9, label=labels)
    axes.set(
        xlabel=sliced.signature.label(space),
        ylabel=value_label(quantity),
        title=f"{quantity.name} at {len(times)} times",
    )
    light_grid(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


def _diagonal_lines(axes: Axes, sliced: Slice, quantity: Quantity) -> None:
    value_lines(axes, sliced.axes["share"], quantity, "share of the diagonal")
    error = "" if quantity.error is None else f"\n{error_title(quantity)}"
    axes.set_title(f"{quantity.name} along the diagonal{error}")


def _maps_in_time(solution: Solution, exact: Exact | None) -> Figure:
    """Columns are times; rows are the solution, the exact one and the error of each field."""
    signature = solution.signature
    time = signature.coordinates.time
    assert time is not None
    plane = shown_plane(signature)
    numbers = {time: MAP_TIMES, **dict.fromkeys(plane, ON_MAPS // 2 + 1)}
    sliced = cut(solution, exact, numbers)
    quantities, times = sliced.quantities(), sliced.axes[time]
    kinds = 1 if exact is None else 3
    width, height, _ = panel_size(signature, plane)
    rows = len(quantities) * kinds
    figure = Figure(figsize=((width - 0.5) * len(times) + 0.9, height * rows), layout="constrained")
    grid = figure.subplots(rows, len(times), squeeze=False, sharex=True, sharey=True)
    for k, quantity in enumerate(quantities):
        for i, t in enumerate(times):
            column = grid[k * kinds : (k + 1) * kinds, i]
            at_time = maps(quantity.at(i), quantity, f"{time} = {short(t)}")
            for axes, shown in zip(column, at_time, strict=True):
                shown.draw(axes, sliced, bar=i == len(times) - 1)  # one scale for all times
    for axes in grid.flat:
        axes.label_outer()
    return figure
