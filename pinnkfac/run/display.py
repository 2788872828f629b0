"""What a run shows while it goes: a live table on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

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


class Display(Protocol):
    """Where a run says how it goes."""

    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        """A record of metrics.jsonl, as the run stands now."""
        ...

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def warn(self, line: str) -> None:
        """A line that matters, on stderr or in colour."""
        ...

    def notice(self, line: str) -> None:
        """A line that is shown at once, from a handler of signals."""
        ...

    def close(self) -> None:
        """The end of what ``show`` renews; lines may follow."""
        ...


def make_display(*, quiet: bool) -> Display:
    """The display that fits where the output goes."""
    if quiet:
        return Guarded(Quiet())
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    if console.is_terminal and not console.is_dumb_terminal and console.width >= NARROW:
        return Guarded(Live(console))
    return Guarded(Plain())


NARROW = 50
"""Columns below which a table cannot be read."""


class Guarded:
    """A display that falls silent where the output has gone (a closed pipe, a full disk): the run
    goes on."""

    def __init__(self, display: Display) -> None:
        self.display = display

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except (OSError, ValueError):  # ValueError: the file is closed
            self.display = Silent()
            with suppress(OSError, ValueError):  # Python flushes it once more at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        self._try(lambda: self.display.show(record, pace))

    def say(self, line: str) -> None:
        self._try(lambda: self.display.say(line))

    def warn(self, line: str) -> None:
        self._try(lambda: self.display.warn(line))

    def notice(self, line: str) -> None:
        self.display.notice(line)

    def close(self) -> None:
        self._try(self.display.close)


class Quiet:
    """Nothing but warnings."""

    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        pass

    def say(self, line: str) -> None:
        pass

    def warn(self, line: str) -> None:
        print(f"warning: {line}", file=sys.stderr, flush=True)

    def notice(self, line: str) -> None:
        write_at_once(line)

    def close(self) -> None:
        pass


class Silent(Quiet):
    """Nothing at all."""

    def warn(self, line: str) -> None:
        pass


class Plain(Quiet):
    """One line a record, for files and pipes."""

    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        losses = ", ".join(f"{name} {value:.1e}" for name, value in record["losses"].items())
        parts = [
            f"step {record['step']:6d}",
            f"{record['seconds']:7.1f} s",
            f"loss {record['loss']:.3e} ({losses})",
        ]
        if record.get("relative_l2_error") is not None:
            parts.append(f"relative L2 error {record['relative_l2_error']:.3e}")
        parts += [f"{name} {_number(record[name])}" for name in ("length", "damping")]
        parts += [f"{k} {v:.6g}" for k, v in record.get("coefficients", {}).items()]
        parts.append(str(pace))
        self.say("  ".join(parts))

    def say(self, line: str) -> None:
        print(line, flush=True)


class Live(Quiet):
    """A table that grows at steps 1, 2, 4, 8 …, with the present step as its last row."""

    def __init__(self, console: Any) -> None:
        from rich.live import Live as RichLive

        self.console = console
        self.kept: list[Mapping[str, Any]] = []
        self._live = RichLive(console=console, auto_refresh=False, vertical_overflow="visible")
        self._started = False

    def show(self, record: Mapping[str, Any], pace: Pace) -> None:
        if not self._started:
            self._live.start()
            self._started = True
        self._live.update(self._table([*self.kept, record], str(pace)), refresh=True)
        if record["step"] & (record["step"] - 1) == 0:
            self.kept.append(record)

    def say(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)

    def warn(self, line: str) -> None:
        self.console.print(f"warning: {line}", style="yellow", soft_wrap=True)

    def notice(self, line: str) -> None:
        if not self._started:
            return write_at_once(line)
        # In place of the table's last line: another line would move the cursor away from where
        # the table is renewed.
        shown = f"\r\x1b[2K{line[: self.console.width - 1]}"
        with suppress(OSError, ValueError):
            os.write(self.console.file.fileno(), shown.encode())

    def close(self) -> None:
        if self._started:
            self._live.stop()
            self._started = False

    def _table(self, records: list[Mapping[str, Any]], caption: str) -> Any:
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False)
        last = records[-1]
        terms = list(last["losses"])
        wide = self.console.width >= 60 + 11 * len(terms)
        titles = ["step", "seconds", "loss", *(terms if wide else [])]
        if last.get("relative_l2_error") is not None:
            titles.append("rel. L2 error")
        titles += ["length", "damping", *last.get("coefficients", {})]
        for title in titles:
            table.add_column(title, justify="right")
        for record in records:
            table.add_row(*self._cells(record, terms if wide else []))
        return table

    def _cells(self, record: Mapping[str, Any], terms: list[str]) -> list[str]:
        cells = [str(record["step"]), f"{record['seconds']:.1f}", f"{record['loss']:.2e}"]
        cells += [f"{record['losses'][term]:.1e}" for term in terms]
        if record.get("relative_l2_error") is not None:
            cells.append(f"{record['relative_l2_error']:.2e}")
        cells += [_number(record["length"]), _number(record["damping"])]
        return cells + [f"{value:.6g}" for value in record.get("coefficients", {}).values()]


def _number(value: float | None) -> str:
    """Two digits; a dash for what a step does not have."""
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
