"""What is solved, what comes out of it, and what a run folder begins with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from pinnkfac.common.errors import UserError
from pinnkfac.config.pde_file import PdeFile, find
from pinnkfac.problem import Problem
from pinnkfac.run.accuracy import Errors
from pinnkfac.solution import Solution
from pinnkfac.store.run_folder import RunFolder, Unwritable

Given = str | Problem | Callable[..., Problem]


@dataclass
class Result:
    """What a solve returns.

    ``solution`` evaluates the fields and their derivatives, ``errors`` are those against the exact
    solution (None where none is known), ``coefficients`` the trained Parameters by name,
    ``status`` is 'finished', 'interrupted' or 'diverged', ``summary`` the content of summary.json,
    ``history`` the records of metrics.jsonl, ``folder`` where they lie (None where nothing was
    written).
    """

    problem: Problem
    solution: Solution
    errors: Errors | None
    coefficients: dict[str, float]
    status: str
    stop_reason: str
    summary: dict[str, Any]
    history: list[dict[str, Any]] = field(repr=False)
    folder: Path | None
    refused: Unwritable | None = field(default=None, repr=False)
    """What kept the last files from being written."""


@dataclass(frozen=True)
class Task:
    """What is solved: a configuration, a problem and where it is from, and what the user set."""

    config: DictConfig
    problem: Problem
    found: PdeFile
    overrides: tuple[str, ...]
    net: nn.Module | None = None

    @property
    def name(self) -> str:
        return self.found.name


def check_given(overrides: Sequence[Any], net: Any, folder: Any) -> None:
    """Raise UserError where an argument from Python is of another type than it has to be."""
    for override in overrides:
        if not isinstance(override, str):
            raise UserError(
                f"the override {override!r} is {type(override).__name__}: give each as a string of "
                'its own, KEY=VALUE, such as "stop.steps=100"'
            )
    if net is not None and not isinstance(net, nn.Module):
        raise UserError(
            f"net={net!r} is {_kind(net)}: give a torch.nn.Module that maps coordinates "
            "[batch, coord] to fields [batch, field]; the configured net is set by overrides, such "
            'as "net.widths=[32,32]"'
        )
    if folder is not None and not isinstance(folder, str | Path):
        raise UserError(f"folder={folder!r} is {_kind(folder)}: give the path of a folder")


def _kind(value: Any) -> str:
    return f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__


def given_pde(pde: Given) -> PdeFile:
    if isinstance(pde, Problem):
        problem = pde
        return PdeFile(None, "problem", lambda: problem)
    return find(pde) if isinstance(pde, str) else PdeFile.of(pde)


def identity(task: Task) -> dict[str, Any]:
    """What a checkpoint belongs to: the configuration and the problem."""
    return {
        "config": OmegaConf.to_container(task.config, resolve=True),
        "name": task.name,
        "sha256": task.found.sha256,
    }


def begin(folder: RunFolder, task: Task) -> None:
    """Write what a run begins with."""
    terms = [
        {"name": t.name, "where": str(t.where), "weight": t.weight} for t in task.problem.terms
    ]
    net = None if task.net is None else type(task.net).__name__
    folder.write_config(task.config)
    folder.write_problem(  # the file that makes a folder that of a run
        task.name,
        task.found.path,
        task.problem.signature,
        terms,
        sha256=task.found.sha256,
        net=net,
        overrides=task.overrides,
    )
