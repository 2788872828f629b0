"""The folder of a run: what is in it, and how it is written; stored_run.py reads it.

    config.yaml      the whole configuration            problem.json   name, file, fields, terms
    metrics.jsonl    one record a line                  summary.json   errors, timings, versions
    checkpoint.pt    all that is needed to go on        best.pt        the net of the lowest loss

Files appear whole or not at all (written aside, then renamed), but for metrics.jsonl, which grows.
One process at a time writes to a folder: it holds the lock ``.lock``, which ends with it.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import OmegaConf

from pinnkfac.common.errors import UserError
from pinnkfac.common.files import as_json, whole
from pinnkfac.common.locks import locked
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
        self._held = contextlib.ExitStack()
        advice = f"is writing to {path}: wait for it, or choose another folder with run.dir=..."
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(locked(self.path, advice))
        except OSError as error:
            raise UserError(
                f"run.dir={path}: the folder cannot be used ({error.strerror}): choose another"
            ) from error

    @staticmethod
    def new(path: str | Path) -> RunFolder:
        """A folder for a new run; raises UserError where it holds one already."""
        folder = RunFolder(path)
        try:
            RunFolder.check_new(path)
        except UserError:
            folder.close()
            raise
        folder.set_aside("metrics.jsonl")
        return folder

    @staticmethod
    def check_new(path: str | Path) -> None:
        """Raise UserError where a folder holds a run already."""
        if not (Path(path) / "problem.json").exists():
            return
        ended = (Path(path) / "summary.json").exists()
        what = "a finished run" if ended else "a run that was stopped"
        raise UserError(
            f"run.dir={path} holds {what}: continue it with 'python -m pinnkfac resume {path}',"
            " or choose another folder"
        )

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self._held.close()

    def _write(self, name: str, content: bytes | memoryview) -> None:
        try:
            whole(self.path / name, lambda aside: aside.write_bytes(content))
        except UserError as error:
            raise Unwritable(str(error)) from error

    def write_text(self, name: str, text: str) -> None:
        self._write(name, text.encode())

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        self.write_text(name, as_json(value, indent=2))

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
        """problem.json, and a copy of the PDE file for the record; ``net`` is the class of a net
        that was given from Python."""
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
            self._write("pde.py", file.read_bytes())

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self.write_json("summary.json", summary)

    def write_checkpoint(self, state: Mapping[str, Any], which: Which = "last") -> None:
        """Tensors and plain values only, loadable with ``weights_only=True``."""
        file = io.BytesIO()
        torch.save({"format": FORMAT, "pinnkfac": __version__, **state}, file)
        self._write(CHECKPOINTS[which], file.getbuffer())

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; where the disk refuses, none of it."""
        path = self.path / "metrics.jsonl"
        size = path.stat().st_size if path.exists() else 0
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(as_json(record))
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(path, size)
            raise Unwritable(f"{path} cannot be written ({error.strerror}): make room") from error

    def restart_metrics(self, history: Iterable[Mapping[str, Any]]) -> None:
        """metrics.jsonl with these records only: what a resumed run goes on from."""
        self.write_text("metrics.jsonl", "".join(map(as_json, history)))

    def has(self, name: str) -> bool:
        return (self.path / name).exists()

    def set_aside(self, name: str) -> None:
        """Drop a file that holds no longer; one that is not there is no mistake."""
        (self.path / name).unlink(missing_ok=True)
