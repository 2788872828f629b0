"""The options of the configuration: files in conf/, and what they leave to the classes they name.

A file says ``_target_`` and what differs from the defaults of that class. Hydra reads it through
``CompleteFiles``, which adds the others, so that every setting has a key. A node that is no part of
its own, such as ``stop``, names its class as ``_settings_``.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.config_source import ConfigResult
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import Container, OmegaConf

from pinnkfac.common.files import resource
from pinnkfac.config.complete import complete

GROUPS = ("net", "points", "search", "damping", "balance", "step")
BROUGHT = ("search", "damping")
"""Groups that an option of ``step`` chooses too."""


def folder() -> Path:
    return resource("conf")


def names(group: str) -> list[str]:
    """The options of a group."""
    return sorted(path.stem for path in (folder() / group).glob("*.yaml"))


def text_of(group: str, option: str) -> str:
    """The file of an option; '' where there is none."""
    path = folder() / group / f"{option}.yaml"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


def completed(config: Container) -> dict[str, Any]:
    """The nodes of a file with all of their settings."""
    values: Any = OmegaConf.to_container(config)
    return _plain(complete(values, defaults_of))


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: _plain(value) if isinstance(value, dict) else value
        for name, value in values.items()
        if name != "_settings_"
    }


def located(target: str) -> Any:
    """What a dotted name stands for; raises ImportError, AttributeError or ValueError."""
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def exists(target: str) -> bool:
    with suppress(ImportError, AttributeError, ValueError):
        located(target)
        return True
    return False


def defaults_of(target: str) -> dict[str, Any]:
    """The defaults of a settings class as a file would write them; none where there is no such
    class: that is said where it is built."""
    settings = located(target) if exists(target) else None
    fields = dataclasses.fields(settings) if dataclasses.is_dataclass(settings) else ()
    defaults = {
        f.name: f.default_factory() if callable(f.default_factory) else f.default for f in fields
    }
    return {n: _written(value) for n, value in defaults.items() if value is not dataclasses.MISSING}


def _written(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        kind = type(value)
        inner = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        value = {"_target_": f"{kind.__module__}.{kind.__qualname__}", **inner}
    if isinstance(value, Mapping):
        return {key: _written(v) for key, v in value.items()}
    return list(value) if isinstance(value, tuple) else value


class CompleteFiles(FileConfigSource):
    """The files of a folder with all of their settings."""

    @staticmethod
    def scheme() -> str:
        return "pinnkfac"

    def load_config(self, config_path: str) -> ConfigResult:
        result = super().load_config(config_path)
        result.config = OmegaConf.create(completed(result.config))
        return result


class Completion(SearchPathPlugin):
    """Lets Hydra read conf/, and no other folder, through ``CompleteFiles``."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for element in search_path.get_path():
            if element.provider == "main" and element.path == str(folder()):
                element.path = f"{CompleteFiles.scheme()}://{element.path}"
