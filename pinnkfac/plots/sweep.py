"""The picture of a sweep: errors over what was swept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from pinnkfac.plots.style import legend_below, light_grid, line_style, plain, say_empty, styled

LEGEND = 85
"""Letters in a line of the legend."""
SEED = "seed"
DONE = ("finished", "interrupted")
OPEN: dict[str, Any] = {
    "linestyle": "none",
    "markersize": 6.5,
    "markerfacecolor": "white",
    "zorder": 5,
}
"""The marker of a job that was interrupted, on top of that of a finished one."""


class SweepRow(Protocol):
    """What a picture needs of a job of a sweep."""

    @property
    def pde(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def overrides(self) -> Mapping[str, str]: ...
    @property
    def error(self) -> float | None: ...
    @property
    def loss(self) -> float | None: ...


@dataclass(frozen=True)
class Group:
    """Jobs that differ by their seeds and by the value on the horizontal axis only."""

    label: str
    values: dict[str, list[float]]
    """Errors of all seeds, by the value on the horizontal axis."""
    early: list[tuple[str, float]] = field(default_factory=list)
    """(value on the horizontal axis, error) of the jobs that were interrupted."""


@styled()
def draw_sweep(rows: Sequence[SweepRow]) -> Figure:
    """The error of every job over what was swept, or its loss where no exact solution is known.

    A swept number is the horizontal axis (the one with most values), with one line for every
    combination of the other swept keys; without one, there is a dot for every job above the name
    that was swept. Seeds are one point: their median, with their range. A job that was interrupted
    has an open marker; those that failed or have no number are left out, and counted below.
    """
    key = "error" if any(_finite(row.error) for row in rows) else "loss"
    used = [row for row in rows if row.status in DONE and _finite(getattr(row, key))]
    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set_ylabel("relative L2 error" if key == "error" else "loss")
    groups: list[Group] = []
    numbers: list[str] = []
    if used:
        keys = [k for k in swept_keys(used) if k != SEED]
        texts = {k: {row.overrides.get(k, "") for row in used} for k in (*keys, SEED)}
        numbers = [k for k in keys if all(_finite(_as_number(text)) for text in texts[k])]
        over = max(numbers or keys or [SEED], key=lambda k: len(texts[k]))
        groups = _groups(used, over, [k for k in keys if k != over], key)
        (_number_lines if numbers else _category_dots)(axes, groups, over)
        if all(getattr(row, key) > 0 for row in used):
            axes.set_yscale("log")
        light_grid(axes)
        early = any(group.early for group in groups)
        if early:
            axes.plot([], [], **OPEN, marker="o", color="black", label="interrupted")
        if early or len(groups) > 1:
            legend_below(figure, axes, LEGEND)
    else:
        say_empty(axes, "no job has a result")
    names = list(dict.fromkeys(row.pde for row in rows if row.pde))
    axes.set_title(plain(", ".join(names)))
    notes = _left_out(rows, used, key)
    if any(len(errors) > 1 for group in groups for errors in group.values.values()):
        spread = "their median and range" if numbers else "a dot each, a dash at their median"
        notes.insert(0, f"several seeds: {spread}")
    figure.suptitle("\n".join(fill(note, 100) for note in notes), fontsize=9)
    return figure


def swept_keys(rows: Sequence[SweepRow]) -> list[str]:
    """The overrides whose values differ between rows, in the order of their first rows. A row that
    lacks a key says nothing of it: it failed too early to tell."""
    values: dict[str, set[str]] = {}
    for row in rows:
        for key, value in row.overrides.items():
            values.setdefault(key, set()).add(value)
    return [key for key, different in values.items() if len(different) > 1]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _as_number(text: str) -> float:
    """The number in a text; NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _groups(
    rows: Sequence[SweepRow], over: str, others: Sequence[str], measure: str
) -> list[Group]:
    groups: dict[str, Group] = {}
    for row in rows:
        label = ", ".join(f"{k}={row.overrides.get(k, '')}" for k in others)
        group = groups.setdefault(label, Group(label, {}))
        value = row.overrides.get(over, "")
        group.values.setdefault(value, []).append(getattr(row, measure))
        if row.status != "finished":
            group.early.append((value, getattr(row, measure)))
    return list(groups.values())


def _number_lines(axes: Axes, groups: Sequence[Group], over: str) -> None:
    # As the user wrote them: 1e-8, not 1e-08.
    texts = {_as_number(text): text for group in groups for text in group.values}
    every = sorted(texts)
    logarithmic = every[0] > 0 and every[-1] / every[0] > 10
    for number, group in enumerate(groups):
        ordered = sorted(group.values.items(), key=lambda item: _as_number(item[0]))
        x = [_as_number(value) for value, _ in ordered]
        seeds = [errors for _, errors in ordered]
        low, middle, high = (np.array([f(e) for e in seeds]) for f in (min, np.median, max))
        several = any(len(errors) > 1 for errors in seeds)
        spread = np.stack([middle - low, high - middle]) if several else None
        style, label = line_style(number, marker=True), plain(group.label)
        axes.errorbar(x, middle, yerr=spread, capsize=3, elinewidth=1.0, label=label, **style)
        for value, error in group.early:
            axes.plot(_as_number(value), error, **(style | OPEN))
    if logarithmic:
        axes.set_xscale("log")
    axes.set_xlabel(plain(over))
    if len(every) <= 8:
        axes.set_xticks(every, [texts[value] for value in every])
        axes.xaxis.set_minor_locator(NullLocator())


def _category_dots(axes: Axes, groups: Sequence[Group], over: str) -> None:
    """A dot for every job, and a dash at the median where there are several."""
    names = list(dict.fromkeys(name for group in groups for name in group.values))
    width = 0.7 / len(groups)
    for number, group in enumerate(groups):
        shift = (number - (len(groups) - 1) / 2) * width
        places = [names.index(n) + shift for n, errors in group.values.items() for _ in errors]
        errors = [e for errors in group.values.values() for e in errors]
        style = line_style(number, marker=True) | {"linestyle": "none", "markersize": 6.5}
        axes.plot(places, errors, label=plain(group.label), **style)
        for name, error in group.early:
            axes.plot(names.index(name) + shift, error, **(style | OPEN))
        for name, several in group.values.items():
            if len(several) > 1:
                place, middle = names.index(name) + shift, float(np.median(several))
                axes.hlines(middle, place - width / 3, place + width / 3, color=style["color"])
    tilted = sum(len(name) + 2 for name in names) > 80
    axes.set_xticks(range(len(names)), [plain(name) for name in names], rotation=30 * tilted)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_xlabel(plain(over))


def _left_out(rows: Sequence[SweepRow], used: Sequence[SweepRow], key: str) -> list[str]:
    """'2 of 9 jobs left out: 1 failed (step=adam), 1 without an error (step=sgd)'."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row not in used:
            reason = f"without an {key}" if row.status in DONE else row.status
            reasons.setdefault(reason.replace("an loss", "a loss"), []).append(plain(row.label))
    parts = []
    for reason, labels in reasons.items():
        few = "; ".join(labels[:2]) + ("; …" if len(labels) > 2 else "")
        parts.append(f"{len(labels)} {reason} ({few})")
    number = len(rows) - len(used)
    return [f"{number} of {len(rows)} jobs left out: {', '.join(parts)}"] if parts else []
