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
    error_bar,
    error_limits,
    error_line,
    error_map,
    error_title,
    set_plane,
    value_bar,
    value_label,
    value_lines,
    value_map,
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
Panel = Callable[[Figure, Axes], object]


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


def panel_size(signature: Signature, plane: Sequence[str]) -> tuple[float, float, float | None]:
    """Width and height of a panel in inches, and the width of the map in it where both its axes
    have the same scale."""
    if signature.coordinates.time in plane:
        return 3.4, 2.7, None
    low, high = zip(*(signature.domain.bounds.ranges[name] for name in plane), strict=True)
    ratio = (high[1] - low[1]) / (high[0] - low[0])
    if not 1 / 3 <= ratio <= 3:
        return 3.4, 2.7, None
    side = 2.3
    width, height = (side, side * ratio) if ratio < 1 else (side / ratio, side)
    return max(width, 1.5) + 1.1, max(height, 1.3) + 0.6, width


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
            panel(figure, axes)
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
    panels: list[Panel] = [lambda _, axes: value_lines(axes, x, quantity, label)]
    if quantity.error is not None:
        panels.append(lambda _, axes: error_line(axes, x, quantity, label))
    return panels


# -- maps ------------------------------------------------------------------------------------------
def _map_row(sliced: Slice, quantity: Quantity) -> list[Panel]:
    """Maps of the solution, the exact one and the error."""
    panels: list[Panel] = [partial(_value_panel, sliced=sliced, quantity=quantity, which="values")]
    if quantity.error is not None:
        panels.append(partial(_value_panel, sliced=sliced, quantity=quantity, which="exact"))
        panels.append(partial(_error_panel, sliced=sliced, quantity=quantity))
    return panels


def _value_panel(figure: Figure, axes: Axes, sliced: Slice, quantity: Quantity, which: str) -> None:
    exact = which == "exact"
    data = quantity.exact if exact else quantity.values
    assert data is not None
    arrows = quantity.exact_arrows if exact else quantity.arrows
    plane = list(sliced.axes.values())
    image, _ = value_map(axes, plane, data, quantity.limits, arrows)
    value_bar(image, axes)
    label_plane(axes, sliced)
    axes.set_title(f"{'exact ' if exact else ''}{value_label(quantity)}")


def _error_panel(_: Figure, axes: Axes, sliced: Slice, quantity: Quantity) -> None:
    image = error_map(axes, list(sliced.axes.values()), quantity, error_limits(quantity))
    error_bar(image, axes, quantity)
    label_plane(axes, sliced)
    axes.set_title(error_title(quantity))


def label_plane(axes: Axes, sliced: Slice) -> None:
    """Labels and scales of a map over the last two axes of a slice."""
    plane = tuple(sliced.axes)[-2:]
    set_plane(axes, sliced.signature, plane, panel_size(sliced.signature, plane)[2])


# -- one coordinate of space, and time -------------------------------------------------------------
def _space_and_time(solution: SolutionLike, exact: Exact | None) -> Figure:
    signature = solution.signature
    time, space = shown_plane(signature)
    sliced = cut(solution, exact, _axes(signature, (time, space), ON_MAPS))
    instants = {
        time: ticks(signature, time, LINE_TIMES),
        space: ticks(signature, space, ON_LINES),
    }
    at_times = cut(solution, exact, instants)
    rows: list[list[Panel]] = []
    for quantity, lines in zip(sliced.quantities(), at_times.quantities(), strict=True):
        panel = partial(_time_lines, sliced=at_times, quantity=lines)
        rows.append([*_map_row(sliced, quantity), panel])
    return _arrange(rows, sliced)


def _time_lines(_: Figure, axes: Axes, sliced: Slice, quantity: Quantity) -> None:
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
    kinds = ["values"] if exact is None else ["values", "exact", "error"]
    width, height, _ = panel_size(signature, plane)
    rows = len(quantities) * len(kinds)
    figure = Figure(figsize=((width - 0.5) * len(times) + 0.9, height * rows), layout="constrained")
    grid = figure.subplots(rows, len(times), squeeze=False, sharex=True, sharey=True)
    for k, quantity in enumerate(quantities):
        for j, kind in enumerate(kinds):
            _row_in_time(grid[k * len(kinds) + j], sliced, quantity, kind)
    for axes in grid.flat:
        axes.label_outer()
    return figure


def _row_in_time(row: Sequence[Axes], sliced: Slice, quantity: Quantity, kind: str) -> None:
    """One row: the same scale at all times, and one colour bar."""
    time, times = next(iter(sliced.axes.items()))
    plane = list(sliced.axes.values())[1:]
    for i, axes in enumerate(row):
        now = quantity.at(i)
        moment = f"{time} = {short(times[i])}"
        if kind == "error":
            image = error_map(axes, plane, now, error_limits(quantity))
            axes.set_title(f"{moment}: {error_title(now)}")
        else:
            data = now.exact if kind == "exact" else now.values
            assert data is not None
            arrows = now.exact_arrows if kind == "exact" else now.arrows
            image, _ = value_map(axes, plane, data, quantity.limits, arrows)
            which = "exact " if kind == "exact" else ""
            axes.set_title(f"{which}{value_label(quantity)}, {moment}")
        label_plane(axes, sliced)
    if kind == "error":
        error_bar(image, row[-1], quantity)
    else:
        value_bar(image, row[-1])


# -- more coordinates ------------------------------------------------------------------------------
def _many_coordinates(solution: SolutionLike, exact: Exact | None) -> Figure:
    signature = solution.signature
    sliced = cut(solution, exact, _axes(signature, shown_plane(signature), ON_MAPS))
    line = diagonal(solution, exact, ON_LINES)
    rows: list[list[Panel]] = []
    for quantity, along in zip(sliced.quantities(), line.quantities(), strict=True):
        panel = partial(_diagonal_lines, sliced=line, quantity=along)
        rows.append([*_map_row(sliced, quantity), panel])
    return _arrange(rows, sliced)


def _diagonal_lines(_: Figure, axes: Axes, sliced: Slice, quantity: Quantity) -> None:
    value_lines(axes, sliced.axes["share"], quantity, "share of the diagonal")
    error = "" if quantity.error is None else f"\n{error_title(quantity)}"
    axes.set_title(f"{quantity.name} along the diagonal{error}")
