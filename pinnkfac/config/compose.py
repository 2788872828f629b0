"""Hydra: from overrides to a configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pinnkfac.common.errors import UserError
from pinnkfac.config import options
from pinnkfac.config.mistakes import explain
from pinnkfac.config.options import BROUGHT, GROUPS

CONFIG_NAME = "solve"
PROBLEM = "any"
"""Stands for the problem where it does not matter."""


def register(arguments: dict[str, Any]) -> None:
    """Make the keyword arguments of the PDE's function the configuration node ``pde``."""
    try:
        node = OmegaConf.create(arguments)
    except OmegaConfBaseException as error:
        raise UserError(
            "the arguments of the PDE's function must have defaults that are numbers, strings, "
            f"booleans or lists of them: {error}"
        ) from error
    ConfigStore.instance().store(name="arguments", group="pde", node=node)
    for plugin in (options.CompleteFiles, options.Completion):
        Plugins.instance().register(plugin)


def compose(name: str, arguments: dict[str, Any], overrides: Sequence[str]) -> DictConfig:
    """The configuration for a problem with some overrides, without Hydra's own machinery.

    Raises UserError for an unknown key or a value that cannot be read.
    """
    for override in parse(overrides):
        if override.is_sweep_override():
            raise UserError(
                f"{override.input_line} has several values: give one here, or quote a comma"
            )
    register(arguments)
    with explained(overrides):
        return _compose(name, overrides)


def _compose(name: str, overrides: Sequence[str]) -> DictConfig:
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    words = [*opened(overrides), f"problem={quoted(name)}"]
    try:
        with initialize_config_dir(str(options.folder()), version_base="1.3"):
            config = hydra_compose(CONFIG_NAME, words, return_hydra_config=True)
            return finish(config, dict(config.hydra.runtime.choices))
    finally:
        GlobalHydra.instance().hydra = outer  # an application of the caller's own


@contextmanager
def explained(overrides: Sequence[str]) -> Iterator[None]:
    """Within it, what Hydra complains of is a UserError that says what to do."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, lambda: _chosen(overrides))) from error


def _chosen(overrides: Sequence[str]) -> DictConfig:
    """The configuration with the options of groups among the overrides, or an empty one."""
    groups = [o for o in overrides if o.partition("=")[0] in GROUPS and "," not in o]
    try:
        return _compose(PROBLEM, groups)
    except (HydraException, OmegaConfBaseException):
        return OmegaConf.create({})


def quoted(text: str) -> str:
    """A string as a value in Hydra's grammar."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}\\'" if escaped.endswith("\\") else f"'{escaped}'"


def opened(overrides: Sequence[str]) -> list[str]:
    """Let keys be set whether the configuration has them or not: numbers of points, which are keyed
    by the terms of a problem, and the class of a part, which ``none`` has too."""
    result = []
    for override in overrides:
        key = override.partition("=")[0]
        is_class = key.startswith("+") and key.endswith("._target_")
        is_open = is_class or f"{key}.".startswith("points.numbers.")
        result.append(f"++{override.lstrip('+')}" if is_open else override)
    return result


def finish(config: DictConfig, choices: dict[str, Any] | None = None) -> DictConfig:
    """Note which option of each group was chosen, and drop Hydra's own node."""
    if choices is None:
        choices = dict(HydraConfig.get().runtime.choices)
    result = config.copy()
    with open_dict(result):
        result.pop("hydra", None)
        result.choices = {group: _name(group, choices.get(group), result) for group in GROUPS}
        for group in BROUGHT:
            if result.choices[group] == "none":  # what an option of step sets of it says nothing
                result[group] = {"_target_": result[group]._target_}
    return result


def _name(group: str, choice: Any, config: DictConfig) -> Any:
    """The option of a group, or the class in its place where the user set one."""
    target = OmegaConf.select(config, f"{group}._target_")
    if choice is None:
        raise UserError(f"{group} is needed: give one of its options, as 'list' shows them")
    of_option = target is None or str(target) in options.text_of(group, choice)
    return choice if of_option else str(target)


def parse(overrides: Sequence[str]) -> list[Override]:
    """Overrides as Hydra reads them; raises UserError for one that it cannot."""
    parser = OverridesParser.create()
    read = []
    for override in overrides:
        try:
            read.append(parser.parse_override(override))
        except HydraException as error:
            raise UserError(
                f"{override} cannot be read: write KEY=VALUE, with quotes around a value that "
                "holds a comma, a bracket or another sign (KEY='VALUE', and \"...\" around both "
                "for the shell)"
            ) from error
        if read[-1].key_or_group in GROUPS and read[-1].value() is None:
            raise UserError(f"{override}: one of its options is needed, as 'list' shows them")
    return read


def check_sweep(overrides: Sequence[str], check: Callable[[DictConfig], None]) -> None:
    """Look at the configuration with every value of every swept override, so that a sweep does not
    end in the middle for a misspelt word.

    Raises UserError for an option, a key or a value that cannot be.
    """
    read = parse(overrides)
    fixed = [o for o, r in zip(overrides, read, strict=True) if not r.is_sweep_override()]
    for override in read:
        for value in _values_of(override) if override.is_sweep_override() else ():
            words = [*fixed, f"{override.get_key_element()}={value}"]
            try:
                with explained(words):
                    config = _compose(PROBLEM, words)
                check(config)
            except UserError as error:
                raise UserError(f"in the sweep, {words[-1]}: {error}") from error


def _values_of(override: Override) -> list[str]:
    try:
        values = list(override.sweep_string_iterator())
    except (HydraException, ValueError, TypeError) as error:  # glob() has no values of its own
        raise UserError(
            f"{override.input_line}: write the values out, or as choice(...) or range(...)"
        ) from error
    if not values:
        raise UserError(
            f"{override.input_line} is empty: range(FIRST,END) leaves the end out, so that END is "
            "above FIRST"
        )
    return values
