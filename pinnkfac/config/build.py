"""From nodes of a configuration to the objects that they describe."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from omegaconf import OmegaConf

from pinnkfac.common.errors import UserError
from pinnkfac.common.settings import check
from pinnkfac.config.options import GROUPS, exists, located, names, text_of


def build(node: Any, key: str) -> Any:
    """The object that a node of settings with ``_target_`` describes.

    Values are compared with the types of the settings first. Raises UserError, naming the setting
    under ``key``, for one that cannot be, and for a node that names no class.
    """
    values: Any = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    if not isinstance(values, dict) or "_target_" not in values:
        raise UserError(f"{key}={values}: choose one of its options, as 'list' shows them")
    return _build(values, key)


def _build(values: dict[str, Any], key: str) -> Any:
    target = values["_target_"]
    made = {
        name: _build(v, f"{key}.{name}") if isinstance(v, dict) and "_target_" in v else v
        for name, v in values.items()
        if name != "_target_"
    }
    try:
        settings = located(str(target))
    except (ImportError, AttributeError, ValueError) as error:
        home = _home(str(target))
        instead = f": give {home}" if home else ""
        raise UserError(
            f"{key}._target_={target}: there is no such class ({error}){instead}"
        ) from error
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise UserError(f"{key}._target_={target} is no class of settings (a dataclass)")
    check(key, settings, made)
    return settings(**made)


def _home(target: str) -> str:
    """The path of a class of ours that was named by another one, as by that of an earlier version;
    '' where there is none in the modules that the options name."""
    texts = [text_of(group, option) for group in GROUPS for option in names(group)]
    modules = sorted(set(re.findall(r"_target_: (\S+)\.", "\n".join(texts))))
    name = target.rpartition(".")[2]
    paths = [f"{module}.{name}" for module in modules if target.startswith("pinnkfac.")]
    things = [located(path) for path in paths if exists(path)]
    homes = [thing.__module__ for thing in things if dataclasses.is_dataclass(thing)]
    return f"{homes[0]}.{name}" if homes else ""
