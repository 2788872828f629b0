"""Pictures of how runs went: losses and errors over steps and seconds, of one run or of several."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    return np.array([_number(record, path) for record in history], dtype=float)


def _number(value: Any, path: Sequence[str]) -> float:
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value)


def has(history: History, *path: str) -> bool:
    """Whether any record holds a finite number."""
    return bool(np.isfinite(series(history, *path)).any())


@styled()
def draw_history(history: History, title: str) -> Figure:
    """Losses by term, as they are before weighting, and the error over steps and over seconds.

    Below, over steps: damping and step length, then the unknown coefficients, where there are any.
    """
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
    for axes, over in zip(grid[0], OVER, strict=True):
        _losses(axes, history, over)
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
    """The errors of runs over seconds and over steps, by label.

    Runs without a known exact solution are compared by their losses, in a row of their own where
    others have errors.
    """
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
                style = line_style(number)
                _curve(axes, history, over, (key,), positive=True, label=plain(name), **style)
            _logarithmic(axes)
            # Records are at steps 1, 2, 4, 8 …, and fast and slow runs fit one picture.
            axes.set_xscale("log")
        places[0].set_ylabel(label)
        places[1].sharey(places[0])
    # The row of losses holds all runs, that of errors those which have one.
    legend_below(figure, grid[-1, 0], LEGEND)
    return figure


# -- panels ----------------------------------------------------------------------------------------
def _losses(axes: Axes, history: History, over: str) -> None:
    for number, term in enumerate(names_in(history, "losses")):
        label = plain(f"loss: {term}")
        path = ("losses", term)
        _curve(axes, history, over, path, positive=True, label=label, **line_style(number))
    if has(history, ERROR):
        error = {"color": BLACK, "linewidth": 2.6, "label": "relative L2 error"}
        _curve(axes, history, over, (ERROR,), positive=True, **error)
    _logarithmic(axes)


def _damping(axes: Axes, history: History) -> None:
    _curve(axes, history, "step", ("damping",), positive=True, color=COLOURS[0])
    _logarithmic(axes)
    axes.set(ylabel="damping", title="damping")


def _length(axes: Axes, history: History) -> None:
    """Step lengths; a step that was not taken has the length zero and is marked with a cross."""
    _curve(axes, history, "step", ("length",), positive=True, color=COLOURS[1])
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
    _curve(axes, history, "step", ("coefficients", name), color=COLOURS[i % len(COLOURS)])
    axes.set(ylabel=plain(name), title=plain(f"coefficient {name}"))


def _curve(
    axes: Axes,
    history: History,
    over: str,
    path: Sequence[str],
    *,
    positive: bool = False,
    **style: Any,
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
    groups: Iterable[Any] = (record.get(key) for record in history)
    names = (name for group in groups if isinstance(group, Mapping) for name in group)
    return list(dict.fromkeys(names))
