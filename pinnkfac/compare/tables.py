"""Tables on the terminal, and numbers as they stand in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Column:
    """A column of a table: numbers, or texts that are folded where room is short."""

    header: str
    cells: Sequence[str]
    number: bool = True


def in_digits(value: float | None) -> str:
    return "-" if value is None else f"{value:.1e}"


def in_seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def shortened(text: str, length: int) -> str:
    """The first words of a text, with … where some are left out."""
    words = " ".join(text.split())
    return words if len(words) <= length else words[: length - 1].rstrip() + "…"


def print_table(columns: Sequence[Column], console: Console | None = None) -> None:
    """A table in the width of the console; in a file or pipe, wider where it does not fit."""
    shown = console or Console()
    table = _table(columns, gap=1)
    if _width(table) > shown.width:
        table = _table(columns, gap=0)
    if console is None and not shown.is_terminal:
        shown = Console(width=max(shown.width, _width(table)))
    shown.print(table)


def fits(columns: Sequence[Column]) -> bool:
    """Whether the table fits the terminal, or 80 columns where there is none."""
    return _width(_table(columns, gap=0)) <= Console().width


def _width(table: Table) -> int:
    """The width of a table in which nothing is folded."""
    return Console(width=10_000).measure(table).maximum


def _table(columns: Sequence[Column], gap: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        padding=(0, gap),
        collapse_padding=True,
        pad_edge=False,
        show_edge=False,
        header_style="",
    )
    for column in columns:
        table.add_column(
            column.header,
            justify="right" if column.number else "left",
            no_wrap=column.number,
            overflow="fold",
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        # As plain text: [32,32] is no markup.
        table.add_row(*map(Text, cells))
    return table


def print_line(text: str, console: Console | None = None) -> None:
    """A line of plain text, folded to the width of the console."""
    (console or Console()).print(Text(text))
