"""The pictures of a benchmark: a small panel for each case, with errors over seconds or steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from pinnkfac.bench.published import Figure, best_by_source
from pinnkfac.bench.results import Entry, Outcome, Report
from pinnkfac.bench.tables import MEASURES
from pinnkfac.plots import save
from pinnkfac.plots.history import OVER, series
from pinnkfac.plots.style import BLACK, light_grid, line_style, plain, say_empty, styled

MOST_COLUMNS = 4
GREY = "#606060"
DASHED = (0, (4, 3))
PANEL = (3.0, 2.3)
"""Inches."""


def write_pictures(report: Report) -> list[Path]:
    """error_over_seconds.png and error_over_steps.png."""
    files = {over: report.root / f"error_over_{name}.png" for over, name in OVER.items()}
    return [save(draw(report, over), file) for over, file in files.items()]


@styled()
def draw(report: Report, over: str) -> Picture:
    """The error of every step over ``seconds`` or ``step``, a panel a case: a thick line for the
    seed whose final error is the median (of two, the larger one), thin ones for the others, and a
    dashed one for the best published figure of each source."""
    steps = list(dict.fromkeys(entry.step for entry in report.entries))
    by_case: dict[str, list[Entry]] = {}
    for entry in report.entries:
        by_case.setdefault(entry.case.name, []).append(entry)
    columns = min(MOST_COLUMNS, len(by_case))
    rows = math.ceil(len(by_case) / columns)
    size = (max(6.0, columns * PANEL[0]), rows * PANEL[1] + 0.5)
    picture = Picture(figsize=size, layout="constrained")
    grid = picture.subplots(rows, columns, squeeze=False).reshape(-1)
    for axes, (case, entries) in zip(grid, by_case.items(), strict=False):
        axes.set_title(plain(case), fontsize=9)
        for entry in entries:
            _lines(axes, entry, over, line_style(steps.index(entry.step)))
        if axes.lines:
            _finish(axes, best_by_source(case))
        else:
            say_empty(axes, "no records")
    for axes in grid[len(by_case) :]:
        axes.remove()
    for axes in grid[max(0, len(by_case) - columns) : len(by_case)]:
        axes.set_xlabel(OVER[over])
    picture.supylabel(MEASURES[report.suite.measure], fontsize=10)
    styles = {plain(step): line_style(number) for number, step in enumerate(steps)}
    if any(map(best_by_source, by_case)):
        styles["best published"] = {"color": BLACK, "linestyle": DASHED, "linewidth": 1.0}
    handles = [Line2D([], [], label=label, **style) for label, style in styles.items()]
    picture.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return picture


def _lines(axes: Axes, entry: Entry, over: str, style: dict[str, Any]) -> None:
    def rank(one: Outcome) -> tuple[bool, float]:
        """By the final error; jobs that have not ended come last."""
        error = one.error(entry.measure)
        return one not in entry.counted, math.inf if error is None else error

    outcomes = sorted(entry.outcomes, key=rank)
    middle = outcomes[len(entry.counted) // 2] if entry.counted else outcomes[0]
    for one in outcomes:
        x, y = series(one.history, over), series(one.history, entry.measure)
        there = np.isfinite(x) & np.isfinite(y) & (y > 0)
        if there.any():
            thin = {} if one is middle else {"linewidth": 0.7, "alpha": 0.5}
            marker = {"marker": "o"} if there.sum() < 3 else {}
            axes.plot(x[there], y[there], **(style | thin | marker))


def _finish(axes: Axes, figures: Sequence[Figure]) -> None:
    axes.set_xscale("log")
    axes.set_yscale("log")
    for figure in figures:
        colour = BLACK if figure is figures[0] else GREY
        below = figure.error_best < max(other.error_best for other in figures)
        axes.axhline(figure.error_best, color=colour, linestyle=DASHED, linewidth=1.0)
        # Lines may lie close together: the upper one is labelled above, the lower one below it.
        axes.annotate(
            plain(f"{figure.by or 'published'}: {figure.error_best:.1e}"),
            (0.98 if below else 0.02, figure.error_best),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, -2 if below else 2),
            textcoords="offset points",
            fontsize=6.5,
            color=colour,
            ha="right" if below else "left",
            va="top" if below else "bottom",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.4},
        )
    low, high = axes.get_ylim()
    axes.set_ylim(low / 2, high)  # room for a label below the lowest line
    axes.yaxis.set_major_locator(LogLocator(numticks=6))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(labelsize=8)
    light_grid(axes)
