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
    Map,
    error_line,
    error_title,
    maps,
    panel_size,
    value_label,
    value_lines,
)
from pinnkfac.plots.slices import (
    Array,
    Exact,
    NoExact,
    Quantity,
    Slice,
    SolutionLike,
    cut,
    diagonal,
    fixed_note,
    ticks,
)
from pinnkfac.plots.style import BLACK, VALUES, light_grid, short, styled
from pinnkfac.problem.signature import Signature

ON_MAPS = 161
ON_LINES = 401
LINE_TIMES = 5
MAP_TIMES = 3
Panel = Callable[[Axes], object]


@styled()
def draw_solution(solution: SolutionLike, exact: Exact | None = None) -> Figure:
    """The fields of a solution and, where ``exact`` is given, the exact ones and the errors.

    One row of panels per field and per vector. One coordinate: lines. One of space and time: maps
    over both, and lines at five times. Two of space: maps, with time at three times. More: maps of
    the slice through the middle, and lines along the diagonal of the domain's bounds. Outside the
    domain there is nothing. ``exact`` maps points [batch, coord] to values [batch, field]; where it
    raises UserError, the picture goes without it and says why.
    """
    notes = []
    domain = solution.signature.domain
    if isinstance(domain, Outline):
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


def _draw(solution: SolutionLike, exact: Exact | None, notes: Sequence[str]) -> Figure:
    signature = solution.signature
    coordinates = signature.coordinates
    if len(coordinates.names) == 1:
        figure = _one_coordinate(solution, exact)
    elif len(coordinates.space) == 1:
        figure = _space_and_time(solution, exact)
    elif len(coordinates.space) > 2:
        figure = _many_coordinates(solution, exact)
        lines = f"lines: along the diagonal, where all {len(coordinates.names)} coordinates change"
        notes = [f"{fixed_note(signature, shown_plane(signature))}; {lines}", *notes]
    elif coordinates.time:
        figure = _maps_in_time(solution, exact)
    else:
        sliced = cut(solution, exact, _axes(signature, shown_plane(signature), ON_MAPS))
        figure = _arrange([_map_row(sliced, q) for q in sliced.quantities()], sliced)
    if notes:
        figure.suptitle("\n".join(notes), fontsize=9)
    return figure


def _axes(signature: Signature, names: Sequence[str], number: int) -> dict[str, Array]:
    return {name: ticks(signature, name, number) for name in names}


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


# -- one coordinate --------------------------------------------------------------------------------
def _one_coordinate(solution: SolutionLike, exact: Exact | None) -> Figure:
    (name,) = solution.signature.coordinates.names
    sliced = cut(solution, exact, _axes(solution.signature, [name], ON_LINES))
    label = solution.signature.label(name)
    rows = [_line_row(sliced.axes[name], q, label) for q in sliced.quantities()]
    return _arrange(rows, sliced)


def _line_row(x: Array, quantity: Quantity, label: str) -> list[Panel]:
    panels: list[Panel] = [lambda axes: value_lines(axes, x, quantity, label)]
    if quantity.error is not None:
        panels.append(lambda axes: error_line(axes, x, quantity, label))
    return panels


# -- maps ------------------------------------------------------------------------------------------
def _map_row(sliced: Slice, quantity: Quantity) -> list[Panel]:
    """Maps of the solution, the exact one and the error."""
    return [partial(_map_panel, sliced=sliced, shown=shown) for shown in maps(quantity)]


def _map_panel(axes: Axes, sliced: Slice, shown: Map) -> None:
    image, _ = shown.draw(axes, sliced)
    shown.bar(axes, image)


# -- one coordinate of space, and time -------------------------------------------------------------
def _space_and_time(solution: SolutionLike, exact: Exact | None) -> Figure:
    signature = solution.signature
    time, space = shown_plane(signature)
    sliced = cut(solution, exact, _axes(signature, (time, space), ON_MAPS))
    instants = {
        time: ticks(signature, time, LINE_TIMES),
        space: ticks(signature, space, ON_LINES),
    }
    return _maps_and_lines(sliced, cut(solution, exact, instants), _time_lines)


def _maps_and_lines(sliced: Slice, along: Slice, draw: Callable[..., object]) -> Figure:
    """The maps of each quantity, and behind them its lines along something else."""
    pairs = zip(sliced.quantities(), along.quantities(), strict=True)
    return _arrange(
        [
            [*_map_row(sliced, quantity), partial(draw, sliced=along, quantity=lines)]
            for quantity, lines in pairs
        ],
        sliced,
    )


def _time_lines(axes: Axes, sliced: Slice, quantity: Quantity) -> None:
    """Lines over space at each time, the exact ones thin and dashed on top of all."""
    (time, times), (space, x) = sliced.axes.items()
    shades = colormaps[VALUES](np.linspace(0.25, 0.95, len(times)))
    for i, t in enumerate(times):
        label = f"{time} = {short(t)}"
        axes.plot(x, quantity.values[i], color=shades[i], linewidth=2.4, label=label)
    if quantity.exact is not None:
        for i in range(len(times)):
            label = "exact" if i == 0 else "_"
            axes.plot(x, quantity.exact[i], "--", color=BLACK, linewidth=0.9, label=label)
    axes.set(
        xlabel=sliced.signature.label(space),
        ylabel=value_label(quantity),
        title=f"{quantity.name} at {len(times)} times",
    )
    light_grid(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)


# -- two coordinates of space, and time ------------------------------------------------------------
def _maps_in_time(solution: SolutionLike, exact: Exact | None) -> Figure:
    """Columns are times; rows are the solution, the exact one and the error of each field."""
    signature = solution.signature
    time = signature.coordinates.time
    assert time is not None
    plane = shown_plane(signature)
    times = ticks(signature, time, MAP_TIMES)
    sliced = cut(solution, exact, {time: times, **_axes(signature, plane, ON_MAPS // 2 + 1)})
    quantities = sliced.quantities()
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
                image, _ = shown.draw(axes, sliced)
                if i == len(times) - 1:  # the scale is the same at all times
                    shown.bar(axes, image)
    for axes in grid.flat:
        axes.label_outer()
    return figure


# -- more coordinates ------------------------------------------------------------------------------
def _many_coordinates(solution: SolutionLike, exact: Exact | None) -> Figure:
    signature = solution.signature
    sliced = cut(solution, exact, _axes(signature, shown_plane(signature), ON_MAPS))
    return _maps_and_lines(sliced, diagonal(solution, exact, ON_LINES), _diagonal_lines)


def _diagonal_lines(axes: Axes, sliced: Slice, quantity: Quantity) -> None:
    value_lines(axes, sliced.axes["share"], quantity, "share of the diagonal")
    error = "" if quantity.error is None else f"\n{error_title(quantity)}"
    axes.set_title(f"{quantity.name} along the diagonal{error}")
