"""The folder of a run: what is in it, how it is written, and how it is read again.

    config.yaml      the whole configuration            problem.json   name, file, fields, terms
    metrics.jsonl    one record a line                  summary.json   errors, timings, versions
    checkpoint.pt    all that is needed to go on        best.pt        the net of the lowest loss

Files appear whole or not at all (written aside, then renamed), but for metrics.jsonl, which grows.
One process at a time writes to a folder: it holds the lock ``.lock``, which ends with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import whole
from pinnkfac.problem.signature import Signature
from pinnkfac.version import __version__

FORMAT = 1
"""Raised whenever an older program could not read what a newer one wrote, or the reverse."""
NODES = ("pde", "net", "points", "step", "search", "damping", "balance", "stop", "run", "choices")
"""What every configuration has."""
CHECKPOINTS = {"last": "checkpoint.pt", "best": "best.pt"}
Which = Literal["last", "best"]


class Unwritable(UserError):
    """A file of the run could not be written: the disk is full, or read-only."""


class RunFolder:
    """The writer of a run's files; use it in a ``with`` block, which ends with its lock.

    Raises UserError where the folder cannot be made or another process is writing to it, and
    Unwritable, by every method that writes, where the disk refuses.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(self.path / ".lock", timeout=0)
            self._lock.acquire()
        except Timeout as error:
            raise UserError(
                f"another process is writing to {path}: wait for it, or choose another folder "
                "with run.dir=..."
            ) from error
        except OSError as error:
            raise UserError(
                f"run.dir={path}: the folder cannot be used ({error.strerror}): choose another"
            ) from error

    @staticmethod
    def new(path: str | Path) -> RunFolder:
        """A folder for a new run; raises UserError where it holds one already."""
        folder = RunFolder(path)
        if (folder.path / "problem.json").exists():
            ended = (folder.path / "summary.json").exists()
            folder.close()
            what = "a finished run" if ended else "a run that was stopped"
            raise UserError(
                f"run.dir={path} holds {what}: continue it with 'python -m pinnkfac resume {path}',"
                " or choose another folder"
            )
        folder.set_aside("metrics.jsonl")
        return folder

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._lock.release()

    # -- writing ---------------------------------------------------------------------------------
    def _whole(self, name: str, content: bytes | memoryview) -> None:
        try:
            whole(self.path / name, lambda aside: _write(aside, content))
        except UserError as error:
            raise Unwritable(str(error)) from error

    def write_text(self, name: str, text: str) -> None:
        self._whole(name, text.encode())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_text(name, json.dumps(_plain(value), indent=2) + "\n")

    def write_config(self, config: Any) -> None:
        self.write_text("config.yaml", OmegaConf.to_yaml(config, resolve=True))

    def write_problem(
        self,
        name: str,
        file: Path | None,
        signature: Signature,
        terms: list[dict[str, Any]],
        *,
        sha256: str | None = None,
        net: str | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        """problem.json, and a copy of the PDE file for the record.

        ``sha256`` is a hash of the PDE file and what it imports from beside it, ``net`` the class
        of a net that was given from Python, None for the configured one.
        """
        self.write_json(
            "problem.json",
            {
                "format": FORMAT,
                "pinnkfac": __version__,
                "name": name,
                "file": None if file is None else str(file.resolve()),
                "sha256": sha256,
                **signature.as_dict(),
                "terms": terms,
                "net": net,
                "overrides": list(overrides),
            },
        )
        if file is not None:
            self._whole("pde.py", file.read_bytes())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self.write_json("summary.json", summary)

    def write_checkpoint(self, state: Mapping[str, Any], which: Which = "last") -> None:
        """Tensors and plain values only, loadable with ``weights_only=True``."""
        content = {"format": FORMAT, "pinnkfac": __version__, **state}
        file = io.BytesIO()
        torch.save(content, file)
        self._whole(CHECKPOINTS[which], file.getbuffer())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; where the disk refuses, none of it."""
        path = self.path / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(record)) + "\n")
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise Unwritable(f"{path} cannot be written ({error.strerror}): make room") from error

    def restart_metrics(self, history: list[dict[str, Any]]) -> None:
        """metrics.jsonl with these records only: what a resumed run goes on from."""
        self.write_text("metrics.jsonl", "".join(json.dumps(_plain(r)) + "\n" for r in history))

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def set_aside(self, name: str) -> None:
        """Drop a file that holds no longer; one that is not there is no mistake."""
        (self.path / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class StoredRun:
    """A run as its folder tells it, without running any code that it may hold.

    ``config`` is the configuration, ``problem`` the content of problem.json, ``summary`` that of
    summary.json (None for a run that did not end), ``history`` the records of metrics.jsonl,
    ``damages`` says which of its lines are none.
    """

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
        folder = Path(path)
        if not folder.is_dir():
            raise UserError(f"{path}: there is no such folder; give the one that solve printed")
        for name in ("config.yaml", "problem.json"):
            if not (folder / name).is_file():
                raise UserError(_no_run(folder, name))
        problem = _read_json(folder / "problem.json")
        _check_format(folder / "problem.json", problem)
        try:
            config = OmegaConf.create(_without_interpolation(folder / "config.yaml"))
            signature = Signature.from_dict(problem)
            name = problem["name"]
        except Exception as error:  # whatever a damaged file may cause
            raise UserError(
                f"{folder}: config.yaml or problem.json is damaged ({_line(error)}): the run "
                "cannot be read; start it again"
            ) from error
        missing = [n for n in NODES if not OmegaConf.is_dict(config) or n not in config]
        if missing or not isinstance(name, str):
            what = missing[0] if missing else "name"
            raise UserError(f"{folder}: config.yaml is damaged: it holds no '{what}'")
        summary = folder / "summary.json"
        return StoredRun(
            folder,
            config,
            problem,
            signature,
            _read_json(summary) if summary.is_file() else None,
            *_read_metrics(folder / "metrics.jsonl"),
        )

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


def jobs(path: str | Path) -> list[Path]:
    """The folders of a sweep's jobs, in the order of their numbers."""
    folder = Path(path)
    if not folder.is_dir():
        return []
    found = [p for p in folder.iterdir() if p.is_dir() and p.name.isdigit()]
    return sorted(found, key=lambda p: int(p.name))


def _no_run(folder: Path, name: str) -> str:
    inside = [p for p in jobs(folder) if (p / "problem.json").is_file()]
    if inside:
        return (
            f"{folder} holds a sweep of {len(inside)} runs: give one of them, such as {inside[0]}"
        )
    return f"{folder} holds no run of pinnkfac ({name} is missing): give the folder solve printed"


def _write(path: Path, content: bytes | memoryview) -> None:
    path.write_bytes(content)


def _check_format(path: Path, content: Mapping[str, Any]) -> None:
    found = content.get("format")
    if found != FORMAT:
        raise UserError(
            f"{path} has format {found} (written by pinnkfac {content.get('pinnkfac', '?')}), but "
            f"pinnkfac {__version__} reads format {FORMAT}: use the version that wrote it"
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is damaged ({_line(error)}): it cannot be read") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} is damaged: it holds {type(value).__name__}, not names and values")
    return value


def _is_sound(path: Path) -> bool:
    """Whether the parts of a checkpoint agree with their checksums, which torch does not compare.

    A file of another kind has none: to refuse it is left to torch.
    """
    if not zipfile.is_zipfile(path):
        return True
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # whatever a damaged file may cause
        return False


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """All records, and which lines are none.

    A last line without its end is what a kill leaves: nothing is said of it.
    """
    if not path.is_file():
        return [], []
    records: list[dict[str, Any]] = []
    bad: list[str] = []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    for number, line in enumerate(lines, 1):
        record = None
        with contextlib.suppress(ValueError):
            record = json.loads(line)
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
        elif line.strip() and number < len(lines):
            bad.append(str(number))
    if not bad:
        return records, []
    what = "line" if len(bad) == 1 else "lines"
    shown = ", ".join(bad if len(bad) <= 5 else [*bad[:4], "…", bad[-1]])
    one = "its record is" if len(bad) == 1 else "their records are"
    return records, [f"{path}, {what} {shown}: damaged, {one} left out"]


def _without_interpolation(path: Path) -> str:
    """A stored configuration is written resolved: what another one would read from the
    environment is none of its business."""
    text = path.read_text(encoding="utf-8")
    if "${" in text:
        raise ValueError("it holds an interpolation ${...}")
    return text


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120] if lines else ''}"


def _plain(value: Any) -> Any:
    """JSON has no NaN or infinity: these become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def parameters_sha256(values: list[Tensor]) -> str:
    """SHA-256 over the bytes of all trained numbers, in order."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def remove_if_empty(path: str | Path) -> None:
    """Drop a folder in which nothing was written but its lock."""
    folder = Path(path)
    if folder.is_dir() and {p.name for p in folder.iterdir()} <= {".lock"}:
        shutil.rmtree(folder, ignore_errors=True)
