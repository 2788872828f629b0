"""Published results of the cases: published.csv, whose first lines say where they are from."""

from __future__ import annotations

import csv
from collections.abc import Sequence
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
    Errors are those after a tenth of ``seconds``, at the end, and the lowest on the way."""

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
    figures = []
    for row in csv.DictReader(line for line in lines if not line.startswith("#")):
        values: dict[str, Any] = {**row, "source": sources[row["source"]]}
        for name in ("seconds", "steps", "error_at_tenth", "error_final", "error_best"):
            kind = int if name == "steps" else float
            values[name] = kind(row[name]) if row[name] else None
        figures.append(Figure(**values))
    return tuple(figures)


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
