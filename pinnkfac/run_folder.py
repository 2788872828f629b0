"""The folder of a run: configuration, metrics.jsonl, summary.json, checkpoint, plots."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pinnkfac.errors import UserError


class RunFolder:
    """Writes the files of one run. Files appear whole or not at all (written aside, renamed)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"run.dir={path}: the folder cannot be made ({error.strerror}): choose another"
            ) from error
        if (self.path / "summary.json").exists():
            raise UserError(
                f"run.dir={path} holds a finished run: choose another folder, or remove it first"
            )
        (self.path / "metrics.jsonl").unlink(missing_ok=True)

    def write_text(self, name: str, text: str) -> None:
        target = self.path / name
        aside = target.with_name(target.name + ".part")
        aside.write_text(text, encoding="utf-8")
        os.replace(aside, target)

    def append_metrics(self, record: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl."""
        with open(self.path / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(record)) + "\n")

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        self.write_text("summary.json", json.dumps(_plain(summary), indent=2) + "\n")

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """checkpoint.pt: tensors and plain values only, loadable with ``weights_only=True``."""
        target = self.path / "checkpoint.pt"
        aside = target.with_name(target.name + ".part")
        torch.save(dict(state), aside)
        os.replace(aside, target)


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
