"""What came out of the windows of a run, and what is left for the later ones."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from pinnkfac.common.errors import counted
from pinnkfac.nets import TimeWindows
from pinnkfac.run.progress import Ending, Progress, Stop
from pinnkfac.run.watching import Before

SHOWN = (
    *("from", "to", "status", "stop_reason", "steps", "seconds", "relative_l2_error"),
    *("loss", "losses", "relative_residuals", "warnings"),
)
"""What summary.json says of each window."""


@dataclass
class Outcomes:
    """What came out of each window of time that has ended, as plain values: ``each``."""

    windows: TimeWindows
    time: str
    each: list[dict[str, Any]] = field(default_factory=list)

    def name(self, k: int) -> str:
        low, high = self.windows.edges[k : k + 2]
        return f"window {k + 1} of {self.windows.number}, {self.time} from {low:g} to {high:g}"

    @property
    def times(self) -> tuple[float, ...]:
        """The edges of the windows that have ended."""
        return self.windows.edges[: len(self.each) + 1]

    def add(
        self,
        progress: Progress,
        ending: Ending,
        told: Mapping[str, Any],
        records: Sequence[Mapping[str, Any]],
        scales: dict[str, float],
    ) -> None:
        """The next window has ended: what is told of it, its records, and the scales of its net."""
        low, high = self.windows.edges[len(self.each) :][:2]
        last = records[-1] if records else {}
        self.each.append(
            {
                "from": low,
                "to": high,
                "status": ending.status,
                "stop_reason": ending.reason,
                "steps": progress.step,
                "seconds": progress.seconds,
                "relative_l2_error": last.get("relative_l2_error"),
                **{n: told[n] for n in ("loss", "losses", "relative_residuals", "warnings")},
                "recovered": progress.recovered,
                "notes": progress.notes,
                "resumed": progress.resumed,
                "scales": scales,
            }
        )

    def before(self, k: int, stop: Stop) -> Before:
        """What was done before a window, and what is left of a run's from there on."""
        steps = sum(one["steps"] for one in self.each[:k])
        seconds = sum(one["seconds"] for one in self.each[:k])
        return Before(k + 1, steps, seconds, _left(stop, steps, seconds))

    def state(self, k: int, *, ended: bool) -> dict[str, Any]:
        """What a checkpoint has to hold of the windows, beside the net, in or at the end of one."""
        return {
            "edges": list(self.windows.edges),
            "orders": list(self.windows.orders),
            "number": k,
            "ended": ended,
            "done": deepcopy(self.each[: k + ended]),
        }

    def total(self) -> Progress:
        """Steps, seconds and words of all windows."""
        return Progress(
            step=sum(one["steps"] for one in self.each),
            seconds=sum(one["seconds"] for one in self.each),
            recovered=self._sentences("recovered"),
            notes=self._sentences("notes"),
            resumed=self._sentences("resumed"),
        )

    def _sentences(self, key: str) -> list[str]:
        return [f"{self.name(k)}: {what}" for k, one in enumerate(self.each) for what in one[key]]

    def summary(self, ending: Ending) -> dict[str, Any]:
        """What summary.json says of the state of all windows at the end."""
        return {
            "relative_residuals": _worst(one["relative_residuals"] for one in self.each),
            "warnings": [*self._missing(ending), *self._sentences("warnings")],
            "loss": max(one["loss"] for one in self.each),
            "losses": _worst(one["losses"] for one in self.each),
            "coefficients": {},
            "windows": [{key: one[key] for key in SHOWN} for one in self.each],
        }

    def _missing(self, ending: Ending) -> list[str]:
        """What is to be said of windows that were not trained."""
        missing = self.windows.number - len(self.each)
        if not missing:
            return []
        more = ", resume goes on with them" if ending.status == "interrupted" else ""
        return [
            f"{missing} of {counted(self.windows.number, 'window')} not trained{more}: the "
            f"solution ends at {self.time} = {self.times[-1]:g} and is NaN after it, errors are "
            "those before it"
        ]


def _left(stop: Stop, steps: int, seconds: float) -> Stop:
    """What is left after some steps and seconds: at least one step."""
    return replace(
        stop,
        steps=None if stop.steps is None else max(1, stop.steps - steps),
        seconds=None if stop.seconds is None else max(1e-6, stop.seconds - seconds),
    )


def share(stop: Stop, before: Before, windows: int) -> Stop:
    """What a window may take of what is left for that many."""
    left = _left(stop, before.steps, before.seconds)
    return replace(
        left,
        steps=None if left.steps is None else math.ceil(left.steps / windows),
        seconds=None if left.seconds is None else left.seconds / windows,
    )


def _worst(each: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The largest number of every name."""
    result: dict[str, float] = {}
    for numbers in each:
        for name, value in numbers.items():
            result[name] = max(value, result.get(name, value))
    return result
