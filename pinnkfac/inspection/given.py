"""What a command line names: a PDE file, its arguments, and the configuration beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pinnkfac.common.errors import UserError
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import PdeFile, find, summary
from pinnkfac.problem import Problem


@dataclass(frozen=True)
class Given:
    """A PDE file and the configuration that ``solve`` would have with the same overrides."""

    found: PdeFile
    config: DictConfig
    overrides: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(OmegaConf.to_container(self.config.pde, resolve=True))  # type: ignore[arg-type]

    @property
    def place(self) -> str:
        """FILE.py:function, as it may be given again."""
        path = self.found.path
        if path is None:
            return self.found.name
        here = Path.cwd()
        inside = path.is_absolute() and path.is_relative_to(here)
        return f"{path.relative_to(here) if inside else path}:{self.found.name}"

    @property
    def headline(self) -> str:
        """What the file says of itself first."""
        text = summary(self.found.path)[0] if self.found.path else ""
        return text or (self.found.function.__doc__ or "").strip().partition("\n")[0]

    def problem(self) -> Problem:
        """The problem with these arguments; raises UserError where its function fails."""
        return self.found.problem(self.arguments)


def given(pde: str, overrides: Sequence[str]) -> Given:
    """The PDE of a command line; raises UserError for a wrong file, name or override."""
    return configured(find(pde), pde, overrides)


def configured(found: PdeFile, pde: str, overrides: Sequence[str]) -> Given:
    """A PDE file with the configuration; raises UserError for a wrong override."""
    for word in overrides:
        if "=" not in word and not word.startswith("~"):
            raise UserError(
                f"'{word}' is not an override: give one PDE, then KEY=VALUE, such as "
                "net.widths=[32,32]"
            )
    return Given(found, compose(pde, found.defaults, list(overrides)), tuple(overrides))
