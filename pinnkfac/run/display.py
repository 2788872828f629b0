"""What a run shows while it goes: a live table on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from typing import Any

from pinnkfac.run.interruption import write_at_once


@dataclass(frozen=True)
class Pace:
    """Seconds a step takes, and seconds left (None where no setting says when the run ends, and at
    its end)."""

    step: float
    left: float | None

    def __str__(self) -> str:
        left = "" if self.left is None else f"  {_duration(self.left)} left"
        return f"{_duration(self.step)} a step{left}"


NARROW = 50
"""Columns below which a table cannot be read."""


def surviving(method: Callable[..., None]) -> Callable[..., None]:
    """A method that shows nothing any more where the output has gone (a closed pipe, a full disk),
    so that the run goes on."""

    @wraps(method)
    def call(*arguments: Any) -> None:
        try:
            method(*arguments)
        except (OSError, ValueError):  # ValueError: the file is closed
            with suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                os.dup2(nothing.fileno(), 1)  # Python flushes it once more at its end

    return call


class Display:
    """Where a run says how it goes; this one says nothing but warnings."""

    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        """A record of metrics.jsonl, as the run stands now."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def section(self, line: str) -> None:
        """A line that stays, before a new part of a run."""
        self.say(line)

    @surviving
    def warn(self, line: str) -> None:
        """A line that matters, on stderr or in colour."""
        print(f"warning: {line}", file=sys.stderr, flush=True)

    def notice(self, line: str) -> None:
        """A line that is shown at once, from a handler of signals."""
        write_at_once(line)

    def close(self) -> None:
        """The end of what ``show`` renews; lines may follow."""


def make_display(*, quiet: bool) -> Display:
    """The display that fits where the output goes."""
    if quiet:
        return Display()
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if console.is_terminal and not console.is_dumb_terminal and console.width >= NARROW:
        return Live(console)
    return Plain()


class Plain(Display):
    """One line a record, for files and pipes."""

    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        residuals = record["relative_residuals"]
        parts = [
            f"step {record['step']:6d}",
            f"{record['seconds']:7.1f} s",
            f"residuals {', '.join(f'{name} {value:.1e}' for name, value in residuals.items())}",
        ]
        if record.get("relative_l2_error") is not None:
            parts.append(f"relative L2 error {record['relative_l2_error']:.3e}")
        parts += [f"{name} {_number(record[name])}" for name in ("length", "damping")]
        parts += [f"{k} {v:.6g}" for k, v in record.get("coefficients", {}).items()]
        self.say("  ".join([*parts, str(pace)]))

    @surviving
    def say(self, line: str) -> None:
        print(line, flush=True)


class Live(Display):
    """A table that grows at steps 1, 2, 4, 8 …, with the present step as its last row."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live as RichLive

        self.console = console
        self.kept: list[Mapping[str, Any]] = []
        self.before: int | None = 0
        """Steps before those of this table; None: not known yet."""
        self._live = RichLive(console=console, auto_refresh=False, vertical_overflow="visible")

    @surviving
    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        self._live.start()
        self._live.update(self._table([*self.kept, record], str(pace)), refresh=True)
        if self.before is None:
            self.before = record["step"] - 1
        step = record["step"] - self.before
        if step & (step - 1) == 0:
            self.kept.append(record)

    @surviving
    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def section(self, line: str) -> None:
        self.close()
        self.kept, self.before = [], None
        self.say(line)

    @surviving
    def warn(self, line: str) -> None:
        self.console.print(f"warning: {line}", style="yellow", soft_wrap=True)

    def notice(self, line: str) -> None:
        if not self._live.is_started:
            return write_at_once(line)
        # In place of the table's last line: another line would move the cursor away from where
        # the table is renewed.
        shown = f"\r\x1b[2K{line[: self.console.width - 1]}"
        with suppress(OSError, ValueError):
            os.write(self.console.file.fileno(), shown.encode())

    @surviving
    def close(self) -> None:
        self._live.stop()

    def _table(self, records: list[Mapping[str, Any]], caption: str) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
        terms = list(records[-1]["relative_residuals"])
        wide = self.console.width >= 60 + 11 * len(terms)
        rows = [_cells(record, terms if wide else []) for record in records]
        for title, _ in rows[-1]:
            table.add_column(title, justify="right")
        for row in rows:
            table.add_row(*(cell for _, cell in row))
        return table


def _cells(record: Mapping[str, Any], terms: list[str]) -> list[tuple[str, str]]:
    """The titles of the columns, and what a record has in them."""
    residuals = record["relative_residuals"]
    error, coefficients = record.get("relative_l2_error"), record.get("coefficients", {})
    return [
        ("step", str(record["step"])),
        ("seconds", f"{record['seconds']:.1f}"),
        ("residual", f"{max(residuals.values()):.1e}"),
        *((term, f"{residuals[term]:.1e}") for term in terms),
        *([] if error is None else [("rel. L2 error", f"{error:.2e}")]),
        ("length", _number(record["length"])),
        ("damping", _number(record["damping"])),
        *((name, f"{value:.6g}") for name, value in coefficients.items()),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None or value != value else f"{value:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{1e6 * seconds:.0f} µs"
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
