"""Colours, line styles, fonts and number formats that all pictures share.

Lines have the colours of Okabe & Ito (2008), which colour-blind readers tell apart, and each a dash
and a marker of its own, so that a grey print is readable. Maps of values are viridis, maps of
signed differences red-blue with zero in the middle: both keep their order in every kind of sight.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

# Without the yellow of the eight, which is too light for lines on paper.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Five dashes beside seven colours: only the thirty-sixth line looks like the first.
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (6, 2, 1, 2)), (0, (1, 1.5)), (0, (9, 2)))
MARKERS = ("o", "s", "^", "D", "v")
VALUES, DIFFERENCES, MAGNITUDES = "viridis", "RdBu_r", "magma_r"
BLACK = "#000000"

# Beside matplotlib's defaults.
STYLE: dict[Any, Any] = {
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": True,
    "axes.titlesize": 10,
    "figure.constrained_layout.h_pad": 0.06,
    "figure.constrained_layout.w_pad": 0.06,
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.framealpha": 0.85,
    "legend.handlelength": 2.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "mathtext.default": "regular",
    "pdf.fonttype": 42,
    "savefig.dpi": 130,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


@contextmanager
def styled() -> Iterator[None]:
    """Within it, figures are made and written in the style above, whatever the user's own is."""
    with matplotlib.style.context(STYLE, after_reset=True):
        yield


def line_style(number: int, *, marker: bool = False) -> dict[str, Any]:
    """Colour, dash and, if asked for, marker of the line of this number."""
    colour, dash = COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]
    marked = {"marker": MARKERS[number % len(MARKERS)]} if marker else {}
    return {"color": colour, "linestyle": dash, **marked}


def plain(text: str) -> str:
    """A user's name as a label: matplotlib reads $ as mathematics, and hides what begins with _."""
    escaped = text.replace("$", r"\$")
    return f" {escaped}" if escaped.startswith("_") else escaped


def short(value: float) -> str:
    """A coordinate or an error in a text, such as 0.5 or 3.2e-07."""
    return f"{value:.4g}" if value == 0 or 1e-3 <= abs(value) < 1e5 else f"{value:.1e}"


def exponent(extreme: float) -> int:
    """The power of ten that numbers up to ``extreme`` are shown in: 0 between 0.1 and 1000."""
    if not (math.isfinite(extreme) and extreme > 0):
        return 0
    power = math.floor(math.log10(extreme))
    return 0 if -1 <= power <= 2 else power


def unit_text(power: int, unit: str) -> str:
    """The bracket behind a label, such as ' [10⁻⁸ K]'; empty where there is nothing to say."""
    parts = ([f"$10^{{{power}}}$"] if power else []) + ([unit] if unit else [])
    return f" [{' '.join(parts)}]" if parts else ""


def divide_ticks(axis: Axis, power: int) -> None:
    """Show the numbers of an axis in units of 10^power; the data stay as they are."""
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if power:
        shown = FuncFormatter(lambda value, _: f"{value / 10.0**power:.4g}".replace("-", "−"))
        axis.set_major_formatter(shown)


def light_grid(axes: Axes) -> None:
    axes.grid(True, which="major", color="#b0b0b0", linewidth=0.6, alpha=0.6)
    axes.set_axisbelow(True)


def legend_below(figure: Figure, axes: Axes, letters: int) -> None:
    """One legend for all panels, below them, with so many letters a line: it hides nothing."""
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = max(1, min(len(labels), letters // (max(map(len, labels)) + 8)))
        figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def say_empty(axes: Axes, text: str) -> None:
    """A text in a panel that has nothing to show."""
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center")
    axes.set(xticks=[], yticks=[])
