"""Pictures of how runs went: losses and errors over steps and seconds, of one run or of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pinnkfac.plots.style import (
    BLACK,
    COLOURS,
    legend_below,
    light_grid,
    line_style,
    plain,
    say_empty,
    styled,
)

History = Sequence[Mapping[str, Any]]
"""Records of metrics.jsonl: any key may be missing, any value null."""
ERROR = "relative_l2_error"
OVER = {"step": "steps", "seconds": "seconds"}
MOST_COEFFICIENTS = 6
LEGEND = 105
"""Letters in a line of a legend."""


def series(history: History, *path: str) -> np.ndarray:
    """One number a record, NaN where there is none: ``series(history, "losses", "heat")``."""
    values: list[Any] = list(history)
    for key in path:
        values = [value.get(key) if isinstance(value, Mapping) else None for value in values]
    return np.array(
        [math.nan if isinstance(v, bool) or not isinstance(v, int | float) else v for v in values],
        dtype=float,
    )


def has(history: History, *path: str) -> bool:
    """Whether any record holds a finite number."""
    return bool(np.isfinite(series(history, *path)).any())


@styled()
def draw_history(history: History, title: str) -> Figure:
    """Losses by term before weighting, and the error, over steps and over seconds; below, over
    steps, damping and step length, and the unknown coefficients, as far as there are any."""
    kinds = {"damping": _damping, "length": _length}
    coefficients = names_in(history, "coefficients")
    shown = coefficients[:MOST_COEFFICIENTS]
    below: list[Callable[[Axes], object]]
    below = [partial(draw, history=history) for name, draw in kinds.items() if has(history, name)]
    below += [Axes.remove] * (len(below) % 2)
    below += [partial(_coefficient, history=history, name=n, i=i) for i, n in enumerate(shown)]
    below += [Axes.remove] * (len(below) % 2)
    rows = len(below) // 2
    figure = Figure(figsize=(9.0, 3.6 + 2.4 * rows), layout="constrained")
    heights = [1.5] + [1.0] * rows
    grid = figure.subplots(1 + rows, 2, squeeze=False, gridspec_kw={"height_ratios": heights})
    total: dict[str, Any] = {"color": BLACK, "linewidth": 2.6, "label": "relative L2 error"}
    for axes, over in zip(grid[0], OVER, strict=True):
        for number, term in enumerate(names_in(history, "losses")):
            label = plain(f"loss: {term}")
            _curve(axes, history, over, "losses", term, label=label, **line_style(number))
        _curve(axes, history, over, ERROR, **total)
        _logarithmic(axes)
    grid[0, 1].sharey(grid[0, 0])
    error = ", error" if has(history, ERROR) else ""
    grid[0, 0].set_ylabel(f"unweighted loss{error}")
    for axes, draw in zip(grid[1:].flat, below, strict=True):
        draw(axes)
    hidden = len(coefficients) - len(shown)
    figure.suptitle(plain(title) + (f" ({hidden} more coefficients not shown)" if hidden else ""))
    legend_below(figure, grid[0, 0], LEGEND)
    return figure


@styled()
def draw_comparison(histories: Mapping[str, History]) -> Figure:
    """The errors of runs over seconds and over steps, by label; where runs have none, their losses,
    in a row of their own where others have errors."""
    rows = []
    if any(has(history, ERROR) for history in histories.values()):
        rows.append((ERROR, "relative L2 error"))
    if not rows or not all(has(history, ERROR) for history in histories.values()):
        rows.append(("loss", "loss"))
    figure = Figure(figsize=(9.0, 3.4 * len(rows) + 0.5), layout="constrained")
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for places, (key, label) in zip(grid, rows, strict=True):
        for axes, over in zip(places, ("seconds", "step"), strict=True):
            for number, (name, history) in enumerate(histories.items()):
                _curve(axes, history, over, key, label=plain(name), **line_style(number))
            _logarithmic(axes)
            # Records are at steps 1, 2, 4, 8 …, and fast and slow runs fit one picture.
            axes.set_xscale("log")
        places[0].set_ylabel(label)
        places[1].sharey(places[0])
    # The row of losses holds all runs, that of errors those which have one.
    legend_below(figure, grid[-1, 0], LEGEND)
    return figure


def _damping(axes: Axes, history: History) -> None:
    _curve(axes, history, "step", "damping", color=COLOURS[0])
    _logarithmic(axes)
    axes.set(ylabel="damping", title="damping")


def _length(axes: Axes, history: History) -> None:
    """Step lengths; a step that was not taken has the length zero and is marked with a cross."""
    _curve(axes, history, "step", "length", color=COLOURS[1])
    steps, lengths = series(history, "step"), series(history, "length")
    taken = lengths[np.isfinite(lengths) & (lengths > 0)]
    refused = steps[(lengths == 0) & np.isfinite(steps)]
    if len(taken) and taken.max() > 10 * taken.min():
        _logarithmic(axes)
    else:
        axes.set_ylim(bottom=0.0)
    if len(refused):
        style: dict[str, Any] = {"color": BLACK, "markersize": 4, "label": "not taken"}
        edge = axes.get_xaxis_transform()
        axes.plot(refused, np.full(len(refused), 0.03), "x", transform=edge, **style)
        axes.legend()
    axes.set(ylabel="step length", title="step length", xlabel=OVER["step"])


def _coefficient(axes: Axes, history: History, name: str, i: int) -> None:
    style = {"color": COLOURS[i % len(COLOURS)]}
    _curve(axes, history, "step", "coefficients", name, positive=False, **style)
    axes.set(ylabel=plain(name), title=plain(f"coefficient {name}"))


def _curve(
    axes: Axes, history: History, over: str, *path: str, positive: bool = True, **style: Any
) -> None:
    """A line through the records that have a number; a lone one is a dot."""
    x, y = series(history, over), series(history, *path)
    there = np.isfinite(x) & np.isfinite(y)
    if positive:
        there &= y > 0
    if not there.any():
        return
    marker = {"marker": "o"} if there.sum() < 3 else {}
    axes.plot(x[there], y[there], **(style | marker))
    axes.set_xlabel(OVER[over])
    light_grid(axes)


def _logarithmic(axes: Axes) -> None:
    if axes.lines:
        axes.set_yscale("log")
    else:
        say_empty(axes, "no records")


def names_in(history: History, key: str) -> list[str]:
    """The names in a group of numbers, such as ``losses``, in the order of their first records."""
    groups: Any = (record.get(key) for record in history)
    return list(dict.fromkeys(n for group in groups if isinstance(group, Mapping) for n in group))
