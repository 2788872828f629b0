"""Hydra: composing the configuration, and turning its nodes into objects."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pinnkfac.errors import UserError
from pinnkfac.loading import resource

CONFIG_NAME = "solve"
GROUPS = ("net", "points", "search", "damping", "balance", "step")


def config_folder() -> str:
    return str(resource("conf"))


def register(arguments: dict[str, Any]) -> None:
    """Make the keyword arguments of the PDE's function the configuration node ``pde``."""
    OmegaConf.register_new_resolver(
        "problem_name", lambda given: Path(str(given).partition(":")[0]).stem, replace=True
    )
    try:
        node = OmegaConf.create(arguments)
    except OmegaConfBaseException as error:
        raise UserError(
            "the arguments of the PDE's function must have defaults that are numbers, strings, "
            f"booleans or lists of them: {error}"
        ) from error
    ConfigStore.instance().store(name="arguments", group="pde", node=node)


def compose(name: str, arguments: dict[str, Any], overrides: list[str]) -> DictConfig:
    """The configuration for a problem with some overrides, without Hydra's own machinery.

    Raises UserError for an unknown key or a value that cannot be read.
    """
    register(arguments)
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(config_folder(), version_base="1.3"):
            config = hydra_compose(
                CONFIG_NAME,
                [*opened(overrides), f"problem='{name}'"],
                return_hydra_config=True,
            )
            return finish(config, dict(config.hydra.runtime.choices))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    finally:
        GlobalHydra.instance().hydra = outer  # an application of the caller's own


def opened(overrides: list[str]) -> list[str]:
    """Numbers of points are keyed by the terms of a problem, which the configuration does not
    know: let them be set like any other key."""
    return [f"++{o}" if o.startswith("points.numbers.") else o for o in overrides]


def finish(config: DictConfig, choices: dict[str, Any] | None = None) -> DictConfig:
    """Note which option of each group was chosen, and drop Hydra's own node."""
    if choices is None:
        choices = dict(HydraConfig.get().runtime.choices)
    result = config.copy()
    with open_dict(result):
        result.pop("hydra", None)
        result.choices = {group: choices.get(group) for group in GROUPS}
    return result


def explain(error: Exception) -> str:
    """Hydra's complaint in one line that says what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines[:2])
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match and "is not in struct" in str(error):
        return (
            f"the setting '{match.group(1)}' does not exist. 'solve NAME --cfg job' prints all "
            "settings, 'list' the options of each group and the arguments of each PDE"
        )
    if match:
        return f"the setting '{match.group(1)}' cannot take that value: {' '.join(lines[1:3])}"
    match = re.search(r"Could not find '([^']+)'", str(error))
    if match:
        group, _, name = match.group(1).rpartition("/")
        options = sorted(p.stem for p in Path(config_folder(), group).glob("*.yaml"))
        return f"{group}={name} does not exist. Known: {', '.join(options)}"
    return text


def build(node: DictConfig) -> Any:
    """The object that a configuration node with ``_target_`` describes."""
    try:
        return instantiate(node, _convert_="object")
    except HydraException as error:
        cause = error.__cause__ or error
        if isinstance(cause, UserError):
            raise cause from error
        raise UserError(f"a setting is wrong: {cause}") from error
