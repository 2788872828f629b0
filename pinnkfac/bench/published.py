"""Published results of the cases: published.csv, whose first lines say where they are from."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("published.csv")


@dataclass(frozen=True)
class Source:
    """A paper, on what it was measured, and how its numbers were chosen."""

    where: str
    hardware: str
    text: str


@dataclass(frozen=True)
class Figure:
    """A published result; what is not published is None or '', and ``net`` '' for the case's own.

    ``error_at_tenth`` is the error after a tenth of ``seconds``, ``error_best`` the lowest on the
    way, ``error_final`` that at the end.
    """

    case: str
    optimizer: str
    net: str
    seconds: float | None
    steps: int | None
    error_at_tenth: float | None
    error_final: float
    error_best: float
    source: Source
    note: str

    @property
    def by(self) -> str:
        """'KFAC*, 1000 s'; with the net where it is another than that of the case."""
        time = "" if self.seconds is None else f"{self.seconds:.0f} s"
        net = f"net {self.net}" if self.net else ""
        return ", ".join(part for part in (self.optimizer, time, net) if part)


@cache
def _read() -> tuple[Figure, ...]:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    sources = {}
    for line in lines:
        if line.startswith("# source | "):
            name, *parts = (part.strip() for part in line.split("|")[1:])
            sources[name] = Source(*parts)
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return tuple(_figure(row, sources[row["source"]]) for row in rows)


def _figure(row: Mapping[str, str], source: Source) -> Figure:
    values: dict[str, Any] = {**row, "source": source}
    for name in ("seconds", "error_at_tenth", "error_final", "error_best"):
        values[name] = float(row[name]) if row[name] else None
    values["steps"] = int(row["steps"]) if row["steps"] else None
    return Figure(**values)


def published(case: str) -> list[Figure]:
    """All published results of a case, in the order of the file; none for an unknown case."""
    return [figure for figure in _read() if figure.case == case]


def best_by_source(case: str) -> list[Figure]:
    """The result with the lowest error (best on the way) of each source, in their order."""
    figures = published(case)
    each = [[f for f in figures if f.source == source] for source in sources(figures)]
    return [min(of_source, key=lambda f: f.error_best) for of_source in each]


def sources(figures: Sequence[Figure]) -> list[Source]:
    """The sources of figures, each once."""
    return list(dict.fromkeys(figure.source for figure in figures))
