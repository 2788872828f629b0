"""Hydra: composing the configuration, and turning its nodes into objects."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.common.settings import check
from pinnkfac.config.loading import resource

CONFIG_NAME = "solve"
GROUPS = ("net", "points", "search", "damping", "balance", "step")
BROUGHT = ("search", "damping")
"""Groups that an option of ``step`` chooses too."""


def config_folder() -> str:
    return str(resource("conf"))


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
    try:
        return _compose([*opened(overrides), "problem=" + quoted(name)])
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, overrides)) from error


def _compose(overrides: list[str]) -> DictConfig:
    outer, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with initialize_config_dir(config_folder(), version_base="1.3"):
            config = hydra_compose(CONFIG_NAME, overrides, return_hydra_config=True)
            return finish(config, dict(config.hydra.runtime.choices))
    finally:
        GlobalHydra.instance().hydra = outer  # an application of the caller's own


def quoted(text: str) -> str:
    """A string as a value in Hydra's grammar."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}\\'" if escaped.endswith("\\") else f"'{escaped}'"


def opened(overrides: Sequence[str]) -> list[str]:
    """Numbers of points are keyed by the terms of a problem, which the configuration does not
    know: let them be set like any other key."""
    return [
        f"++{o}" if o.startswith(("points.numbers.", "points.numbers=")) else o for o in overrides
    ]


def finish(config: DictConfig, choices: dict[str, Any] | None = None) -> DictConfig:
    """Note which option of each group was chosen, and drop Hydra's own node."""
    if choices is None:
        choices = dict(HydraConfig.get().runtime.choices)
    result = config.copy()
    with open_dict(result):
        result.pop("hydra", None)
        result.choices = {group: _name(group, choices.get(group), result) for group in GROUPS}
    return result


def _name(group: str, choice: Any, config: DictConfig) -> Any:
    """The option of a group, or the class in its place where the user set one."""
    target = OmegaConf.select(config, f"{group}._target_")
    if choice is None:
        raise UserError(f"{group} is needed: give one of its options, as 'list' shows them")
    text = Path(config_folder(), group, f"{choice}.yaml").read_text(encoding="utf-8")
    return choice if target is None or str(target) in text else str(target)


# -- mistakes ----------------------------------------------------------------------------------


def explain(error: Exception, overrides: Sequence[str] = ()) -> str:
    """Hydra's complaint in one line that says what to do."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    match = re.search(r"Could not override '([^']+)'", str(error))
    if match and "To append to your config" in str(error):
        return _unknown_key(match.group(1), _chosen(overrides))
    if match:
        return f"the setting '{match.group(1)}' cannot take that value: {' '.join(lines[1:3])}"
    match = re.search(r"Could not find '([^']+)'", str(error))
    if match:
        group, _, name = match.group(1).rpartition("/")
        options = sorted(p.stem for p in Path(config_folder(), group).glob("*.yaml"))
        return f"{group}={name} does not exist. {suggest(name, options)}"
    match = re.search(r"Could not (?:override|append to|delete).*?'([^']+)'", str(error))
    if match:
        return _unknown_key(match.group(1).split("@")[0], _chosen(overrides))
    return " ".join(lines[:2])


def _chosen(overrides: Sequence[str]) -> DictConfig:
    """The configuration with the options of groups among the overrides; empty where they cannot
    be."""
    groups = [o for o in overrides if o.partition("=")[0] in GROUPS and "," not in o]
    try:
        return _compose([*groups, "problem=any"])
    except (HydraException, OmegaConfBaseException):
        return OmegaConf.create({})


def _unknown_key(key: str, config: DictConfig) -> str:
    """In words, that there is no such setting in a configuration, and what was meant."""
    own = _of_another_option(key, config)
    if own:
        return f"the setting '{key}' does not exist: {own}"
    known = [k for k in keys(config) if k != key and not key.startswith(f"{k}.")]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    leaf = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    found = near or leaf or difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f" Did you mean '{found[0]}'?" if found else ""
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
    files = sorted(Path(config_folder(), group).glob("*.yaml"))
    others = [file.stem for file in files if name in _keys_of_option(group, file)]
    if not others and list(keys(config[group])):
        return ""
    chosen = f"{group}={config.choices[group]}"
    step = Path(config_folder(), "step", f"{config.choices.step}.yaml")
    if step.is_file() and f"override /{group}: {config.choices[group]}\n" in step.read_text():
        chosen = f"step={config.choices.step} brings {chosen}, which"
    if not others:
        return f"{chosen} has no settings"
    return f"{chosen} has no setting '{name}'; it is one of {group}={', '.join(others)}"


def _keys_of_option(group: str, file: Path) -> list[str]:
    """The settings of an option, as they are named in its group."""
    node = OmegaConf.load(file)
    assert isinstance(node, DictConfig)
    return list(keys(node[group] if "@package _global_" in file.read_text("utf-8") else node))


def keys(config: DictConfig) -> Iterable[str]:
    """All settings of a configuration by their dotted names, nodes included."""
    values = OmegaConf.to_container(config)
    return _keys(values, "") if isinstance(values, dict) else []


def _keys(values: dict[Any, Any], prefix: str) -> Iterable[str]:
    for name, value in values.items():
        if name in ("choices", "_target_", "problem"):
            continue
        yield f"{prefix}{name}"
        if isinstance(value, dict):
            yield from _keys(value, f"{prefix}{name}.")


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


def swept_configs(overrides: Sequence[str]) -> Iterator[tuple[str, DictConfig]]:
    """'key=value' and the configuration with it, for every value of every swept override.

    Looked at before the first job starts, so that a sweep does not end in the middle for a
    misspelt word. Raises UserError for an option, a key or a value that cannot be. (``register``
    must have been called.)
    """
    read = parse(overrides)
    fixed = [o for o, r in zip(overrides, read, strict=True) if not r.is_sweep_override()]
    for override in read:
        if not override.is_sweep_override():
            continue
        name = str(override.get_key_element())
        values = list(_values_of(override))
        if not values:
            raise UserError(
                f"{override.input_line} is empty: range(FIRST,END) leaves the end out, so that END "
                "is above FIRST"
            )
        for value in values:
            words = [*fixed, f"{name}={value}"]
            try:
                yield words[-1], _compose([*opened(words), "problem=any"])
            except (HydraException, OmegaConfBaseException) as error:
                raise UserError(f"in the sweep, {words[-1]}: {explain(error, words)}") from error


def _values_of(override: Override) -> Iterator[str]:
    try:
        yield from override.sweep_string_iterator()
    except (HydraException, ValueError, TypeError) as error:  # glob() has no values of its own
        raise UserError(
            f"{override.input_line}: write the values out, or as choice(...) or range(...)"
        ) from error


# -- a stored configuration --------------------------------------------------------------------


def changed(
    stored: DictConfig,
    arguments: dict[str, Any],
    overrides: Sequence[str],
    earlier: Sequence[str] = (),
) -> DictConfig:
    """A stored configuration with some overrides: values and options of groups.

    A new ``step`` brings its own search and damping along, unless these are given too. What was
    set ``earlier`` holds for a new option too, where it has that setting. Raises UserError for
    what cannot be, and for a sweep.
    """
    read = parse(overrides)
    given = {str(r.key_or_group): o for o, r in zip(overrides, read, strict=True)}
    for override in read:
        if override.is_sweep_override() or override.is_delete():
            raise UserError(f"{override.input_line}: resume takes one value for each setting")
    if "run.dir" in given:
        raise UserError(
            f"{given['run.dir']}: a run goes on in its own folder; copy that to go on in another"
        )
    result = copy.deepcopy(stored)
    groups = [o for name, o in given.items() if name in GROUPS]
    if groups:
        fresh = compose("any", arguments, groups)
        taken = [name for name in GROUPS if name in given]
        if "step" in given:
            taken += [name for name in BROUGHT if name not in given]
        with open_dict(result):
            for name in taken:
                result[name] = fresh[name]
                result.choices[name] = fresh.choices[name]
            for override in parse(earlier):
                key = str(override.key_or_group)
                group, dot, _ = key.partition(".")
                if dot and group in taken and key in keys(result):
                    OmegaConf.update(result, key, override.value())
    values = [o for name, o in given.items() if name not in GROUPS]
    known = set(keys(result))
    for override in parse(values):
        key = str(override.key_or_group)
        open_key = key.startswith("points.numbers.")
        own_class = key.endswith("_target_") and OmegaConf.select(result, key) is not None
        if key not in known and not open_key and not own_class:
            raise UserError(_unknown_key(key, result))
        if OmegaConf.is_dict(OmegaConf.select(result, key)) and override.value() is not None:
            raise UserError(f"{override.input_line}: '{key}' is a group of settings; set one of it")
        OmegaConf.update(result, key, override.value(), force_add=open_key)
    return result


def differences(old: DictConfig, new: DictConfig, overrides: Sequence[str] = ()) -> list[str]:
    """'key: old → new' for every setting that differs; of a group whose option was exchanged, the
    option and what was set by ``overrides``."""
    before, after = _flat(old), _flat(new)
    given = {override.partition("=")[0].lstrip("+") for override in overrides}

    def is_said(key: str) -> bool:
        group = key.partition(".")[0]
        exchanged = old.choices.get(group) != new.choices.get(group)
        return not key.endswith("_target_") and (not exchanged or key in given)

    return [
        f"{key.removeprefix('choices.')}: {before.get(key, '–')} → {after.get(key, '–')}"
        for key in sorted({**before, **after}, key=lambda key: not key.startswith("choices."))
        if before.get(key) != after.get(key) and is_said(key)
    ]


def _flat(config: DictConfig) -> dict[str, Any]:
    leaves: dict[str, Any] = {}

    def visit(values: Any, prefix: str) -> None:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                visit(value, f"{prefix}{name}.")
            else:
                leaves[f"{prefix}{name}"] = value

    values = OmegaConf.to_container(config, resolve=True)
    visit(values, "")
    return leaves


def foreign_targets(config: DictConfig, overrides: Sequence[str]) -> list[str]:
    """Classes outside pinnkfac that a stored configuration would call, unless the user names them
    in ``overrides`` too."""
    own = {f"{key}={value}" for key, value in _flat(config).items() if key.endswith("_target_")}
    return sorted(
        t for t in own if not t.partition("=")[2].startswith("pinnkfac.") and t not in overrides
    )


# -- objects -----------------------------------------------------------------------------------


def build(node: Any, key: str) -> Any:
    """The object that a node of settings with ``_target_`` describes; {} where it has none.

    Values are compared with the types of the settings first. Raises UserError, naming the setting
    under ``key``, for one that cannot be.
    """
    values = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    return _build(values, key)


def _build(values: Any, key: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{key}={values}: choose one of its options, as 'list' shows them")
    target = values.get("_target_")
    made = {
        name: _build(v, f"{key}.{name}") if isinstance(v, dict) and "_target_" in v else v
        for name, v in values.items()
        if name != "_target_"
    }
    if target is None:
        return made
    settings = _located(str(target), key)
    if not (isinstance(settings, type) and dataclasses.is_dataclass(settings)):
        raise UserError(f"{key}._target_={target} is no class of settings (a dataclass)")
    check(key, settings, made)
    return settings(**made)


def _located(target: str, key: str) -> Any:
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{key}._target_={target}: there is no such class ({error})") from error
