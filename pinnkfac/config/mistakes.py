"""Hydra's complaints in one line that says what to do."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from pinnkfac.common.errors import suggest
from pinnkfac.config.options import GROUPS, completed, names, text_of

NO_SETTINGS = frozenset(("choices", "_target_", "problem"))


def explain(error: Exception, chosen: Callable[[], DictConfig]) -> str:
    """What the user is told; ``chosen`` makes the configuration without what is wrong in it."""
    text = str(error)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    match = re.search(r"Could not find '([^']+)'", text)
    if match:
        group, _, name = match[1].rpartition("/")
        return f"{group}={name} does not exist. {suggest(name, names(group))}"
    match = re.search(r"Could not override '([^']+)'", text)
    if match and "To append to your config" not in text:
        return f"the setting '{match[1]}' cannot take that value: {' '.join(lines[1:3])}"
    match = match or re.search(r"Could not (?:override|append to|delete).*?'([^'@]+)", text)
    return unknown_key(match[1], chosen()) if match else " ".join(lines[:2])


def unknown_key(key: str, config: DictConfig) -> str:
    """In words, that there is no such setting in a configuration, and what was meant."""
    reason = _of_another_option(key, config)
    if reason:
        return f"the setting '{key}' does not exist: {reason}"
    others = [k for k in keys(config) if k != key and not key.startswith(f"{k}.")]
    near = difflib.get_close_matches(key, others, n=1, cutoff=0.6)
    leaf = [k for k in others if k.rpartition(".")[2] == key.rpartition(".")[2]]
    meant = near or leaf or difflib.get_close_matches(key, others, n=1, cutoff=0.4)
    hint = f" Did you mean '{meant[0]}'?" if meant else ""
    return (
        f"the setting '{key}' does not exist.{hint} 'list settings' shows those of every run, "
        "'list' the options of each group and the arguments of each PDE"
    )


def _of_another_option(key: str, config: DictConfig) -> str:
    """Why a setting of a group, or an argument of a PDE, is none here; '' for another mistake."""
    group, dot, name = key.partition(".")
    if group == "pde" and dot and not config.get("pde"):
        return "the PDE's function has no arguments"
    if group not in GROUPS or not dot or "choices" not in config:
        return ""
    others = [option for option in names(group) if name in _keys_of_option(group, option)]
    if not others and keys(config[group]):
        return ""
    step, choice = config.choices.step, config.choices[group]
    chosen = f"{group}={choice}"
    if f"override /{group}: {choice}\n" in text_of("step", step):
        chosen = f"step={step} brings {chosen}, which"
    if not others:
        return f"{chosen} has no settings"
    return f"{chosen} has no setting '{name}'; it is one of {group}={', '.join(others)}"


def _keys_of_option(group: str, option: str) -> list[str]:
    text = text_of(group, option)
    values = completed(OmegaConf.create(text))
    return keys(values[group] if "@package _global_" in text else values)


def keys(config: Any) -> list[str]:
    """All settings of a configuration by their dotted names, nodes included."""
    values = OmegaConf.to_container(config) if OmegaConf.is_config(config) else config
    nodes = walk(values) if isinstance(values, dict) else ()
    return [key for key, _ in nodes if NO_SETTINGS.isdisjoint(key.split("."))]


def walk(values: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All nodes and values by their dotted names."""
    for name, value in values.items():
        yield f"{prefix}{name}", value
        if isinstance(value, dict):
            yield from walk(value, f"{prefix}{name}.")
