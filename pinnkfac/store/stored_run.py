"""The folder of a run as it is read again, without running any code that it may hold."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from pinnkfac.common.errors import UserError, first_line
from pinnkfac.common.files import read_json
from pinnkfac.problem.signature import Signature
from pinnkfac.store.run_folder import CHECKPOINTS, FORMAT, NODES, Which
from pinnkfac.version import __version__

FILES = ("summary.json", "problem.json", "config.yaml")
"""Any of them makes a folder that of a run; one that failed early has its summary only."""


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder tells it: ``config``, the contents of problem.json and of summary.json
    (None for a run that did not end), the records of metrics.jsonl, and which of its lines are
    none."""

    path: Path
    config: Any
    problem: dict[str, Any]
    signature: Signature
    summary: dict[str, Any] | None
    history: list[dict[str, Any]]
    damages: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return str(self.problem["name"])

    @staticmethod
    def open(path: str | Path) -> StoredRun:
        """Read a folder that ``solve`` wrote.

        Raises UserError where there is none, where it is of a version that this one cannot read,
        or where a file in it is damaged.
        """
        folder = existing(path)
        for name in ("config.yaml", "problem.json"):
            if not (folder / name).is_file():
                raise UserError(_no_run(folder, name))
        problem = read_json(folder / "problem.json")
        _check_format(folder / "problem.json", problem)
        try:
            config = read_config(folder)
            signature = Signature.from_dict(problem)
            name = problem["name"]
        except Exception as error:  # whatever a damaged file may cause
            raise UserError(
                f"{folder}: config.yaml or problem.json is damaged ({type(error).__name__}: "
                f"{first_line(error)}): the run cannot be read; start it again"
            ) from error
        missing = [n for n in NODES if not OmegaConf.is_dict(config) or n not in config]
        if missing or not isinstance(name, str):
            what = missing[0] if missing else "name"
            raise UserError(f"{folder}: config.yaml is damaged: it holds no '{what}'")
        history, damages = _read_metrics(folder / "metrics.jsonl")
        summary = read_summary(folder)
        return StoredRun(folder, config, problem, signature, summary, history, damages)

    def has_checkpoint(self, which: Which = "last") -> bool:
        return (self.path / CHECKPOINTS[which]).is_file()

    def checkpoint(self, which: Which = "last") -> dict[str, Any]:
        """The content of a checkpoint, on the CPU; no code in it is executed.

        Raises UserError where it is missing, truncated, changed by a fault of the disk, of another
        version or holds anything but tensors and plain values.
        """
        if which not in CHECKPOINTS:
            raise UserError(f"checkpoint '{which}' is unknown: choose 'last' or 'best'")
        path = self.path / CHECKPOINTS[which]
        if not path.is_file():
            raise UserError(
                f"{path} is missing: the run was stopped before its first checkpoint, or the file "
                "was removed"
            )
        if not _is_sound(path):
            raise UserError(
                f"{path} is damaged: what it holds does not agree with its checksums, as after a "
                f"fault of the disk or a copy that went wrong{self._way_out(which)}"
            )
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # whatever a foreign file may cause
            raise UserError(
                f"{path} is not a checkpoint that can be read: it is truncated, or holds more than "
                f"tensors and numbers, which is never executed ({type(error).__name__}); the other "
                f"files of the run are kept{self._way_out(which)}"
            ) from error
        if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
            raise UserError(f"{path} is not a checkpoint of pinnkfac")
        _check_format(path, content)
        return content

    def _way_out(self, which: Which) -> str:
        """The other checkpoint, as far as it can take the place of one that cannot be read."""
        other: Which = "best" if which == "last" else "last"
        if not self.has_checkpoint(other) or not _is_sound(self.path / CHECKPOINTS[other]):
            return ""
        if which == "best":
            return ", and checkpoint.pt, the last net, is sound"
        return (
            ", and best.pt, the net of the lowest loss, is sound: plot and export take it with "
            "--checkpoint best, Solution.load(folder, 'best') in Python"
        )


def existing(path: str | Path) -> Path:
    """A folder that is there; raises UserError for one that is not."""
    if not Path(path).is_dir():
        raise UserError(f"{path}: there is no such folder; give the one that solve printed")
    return Path(path)


def is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in FILES)


def read_config(folder: Path) -> Any:
    """The configuration, which is written resolved: what another one would read from the
    environment is none of its business. Raises whatever a damaged file may cause."""
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    if "${" in text:
        raise ValueError("it holds an interpolation ${...}")
    return OmegaConf.create(text)


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The content of summary.json, None where there is none; raises Damaged."""
    path = folder / "summary.json"
    return read_json(path) if path.exists() else None


def jobs(path: str | Path) -> list[Path]:
    """The folders of a sweep's jobs, in the order of their numbers."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    numbered = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
    return sorted(numbered, key=lambda p: int(p.name))


def _no_run(folder: Path, name: str) -> str:
    inside = [p for p in jobs(folder) if (p / "problem.json").is_file()]
    if inside:
        return (
            f"{folder} holds a sweep of {len(inside)} runs: give one of them, such as {inside[0]}"
        )
    return f"{folder} holds no run of pinnkfac ({name} is missing): give the folder solve printed"


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    if content.get("format") != FORMAT:
        raise UserError(
            f"{path} has format {content.get('format')} (written by pinnkfac "
            f"{content.get('pinnkfac', '?')}), but pinnkfac {__version__} reads format {FORMAT}: "
            "use the version that wrote it"
        )


def _is_sound(path: Path) -> bool:
    """Whether the parts of a checkpoint agree with their checksums, which torch does not compare; a
    file of another kind, which has none, is left to torch."""
    if not zipfile.is_zipfile(path):
        return True
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # whatever a damaged file may cause
        return False


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All records, and which lines are none; a last one without its end is what a kill leaves."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = text.split("\n")
    records = [_record(line) for line in lines]
    pairs = zip(lines[:-1], records, strict=False)
    bad = [str(i) for i, (line, record) in enumerate(pairs, 1) if line.strip() and record is None]
    sound = [record for record in records if record is not None]
    if not bad:
        return sound, []
    what = "line" if len(bad) == 1 else "lines"
    shown = ", ".join(bad if len(bad) <= 5 else [*bad[:4], "…", bad[-1]])
    one = "its record is" if len(bad) == 1 else "their records are"
    return sound, [f"{path}, {what} {shown}: damaged, {one} left out"]


def _record(line: str) -> dict[str, Any] | None:
    with contextlib.suppress(ValueError):
        record = json.loads(line)
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            return None
        return record if isinstance(record.get("seconds"), int | float) else None
    return None
