"""What a command line names: a PDE file, its arguments, and the configuration beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pinnkfac.common.errors import UserError
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import PdeFile, find
from pinnkfac.problem import Problem


@dataclass(frozen=True)
class ConfiguredPde:
    """A PDE file and the configuration that ``solve`` would have with the same overrides."""

    file: PdeFile
    config: DictConfig
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(OmegaConf.to_container(self.config.pde, resolve=True))  # type: ignore[arg-type]

    @property
    def place(self) -> str:
        """FILE.py:function, as it may be given again."""
        path = self.file.path
        if path is None:
            return self.file.name
        here = Path.cwd()
        shown = path.relative_to(here) if path.is_relative_to(here) else path
        return f"{shown}:{self.file.name}"

    def problem(self) -> Problem:
        """The problem with these arguments; raises UserError where its function fails."""
        return self.file.problem(self.arguments)


def configured(pde: str, overrides: Sequence[str], file: PdeFile | None = None) -> ConfiguredPde:
    """The PDE of a command line; ``file`` where it is loaded already. Raises UserError for a wrong
    file, name or override."""
    file = file or find(pde)
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"'{word}' is not an override: give one PDE, then KEY=VALUE, such as "
                "net.widths=[32,32]"
            )
    return ConfiguredPde(file, compose(pde, file.defaults, list(overrides)), tuple(overrides))
