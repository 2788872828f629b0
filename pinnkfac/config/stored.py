"""The configuration of a stored run: changed, compared, and looked at before it is run."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from pinnkfac.common.errors import UserError
from pinnkfac.config.compose import PROBLEM, compose, parse
from pinnkfac.config.mistakes import keys, unknown_key, walk
from pinnkfac.config.options import BROUGHT, GROUPS, exists


def changed(
    stored: DictConfig,
    arguments: dict[str, Any],
    overrides: Sequence[str],
    earlier: Sequence[str] = (),
) -> DictConfig:
    """A stored configuration with some overrides: values and options of groups.

    A new ``step`` brings its search and damping along, unless these are set too. What was set
    ``earlier`` holds for a new option where it has that setting. Raises UserError for what cannot
    be, and for a sweep.
    """
    read = parse(overrides)
    for override in read:
        if override.is_sweep_override() or override.is_delete():
            raise UserError(f"{override.input_line}: resume takes one value for each setting")
        if override.key_or_group == "run.dir":
            raise UserError(
                f"{override.input_line}: a run goes on in its own folder; copy that to go on in "
                "another"
            )
    pairs = zip(overrides, read, strict=True)
    options = {str(r.key_or_group): o for o, r in pairs if r.key_or_group in GROUPS}
    result = _exchanged(stored, arguments, options, earlier) if options else copy.deepcopy(stored)
    existing = set(keys(result))
    for override in read:
        key = str(override.key_or_group)
        if key in GROUPS:
            continue
        is_open = key.startswith("points.numbers.")
        is_class = key.endswith("_target_") and OmegaConf.select(result, key) is not None
        if key not in existing and not is_open and not is_class:
            raise UserError(unknown_key(key, result))
        if OmegaConf.is_dict(OmegaConf.select(result, key)) and override.value() is not None:
            raise UserError(f"{override.input_line}: '{key}' is a group of settings; set one of it")
        OmegaConf.update(result, key, override.value(), force_add=is_open)
    return result


def _exchanged(
    stored: DictConfig,
    arguments: dict[str, Any],
    options: Mapping[str, str],
    earlier: Sequence[str],
) -> DictConfig:
    """A stored configuration with other options, each an override by the name of its group."""
    fresh, result = compose(PROBLEM, arguments, [*options.values()]), copy.deepcopy(stored)
    taken = {*options, *(BROUGHT if "step" in options else ())}
    with open_dict(result):
        for group in taken:
            result[group], result.choices[group] = fresh[group], fresh.choices[group]
        for override in parse(earlier):
            key = str(override.key_or_group)
            group, dot, _ = key.partition(".")
            if dot and group in taken and key in keys(result):
                OmegaConf.update(result, key, override.value())
    return result


def differences(old: DictConfig, new: DictConfig, overrides: Sequence[str] = ()) -> list[str]:
    """'key: old → new' for every setting that differs; of a group whose option was exchanged, the
    option and what was set by ``overrides``."""
    before, after = _flat(old), _flat(new)
    overridden = {override.partition("=")[0].lstrip("+") for override in overrides}

    def is_said(key: str) -> bool:
        group = key.partition(".")[0]
        exchanged = old.choices.get(group) != new.choices.get(group)
        return not key.endswith("_target_") and (not exchanged or key in overridden)

    return [
        f"{key.removeprefix('choices.')}: {before.get(key, '–')} → {after.get(key, '–')}"
        for key in sorted({**before, **after}, key=lambda key: not key.startswith("choices."))
        if before.get(key) != after.get(key) and is_said(key)
    ]


def check_classes(config: DictConfig, overrides: Sequence[str], path: Path) -> None:
    """Raise UserError where the configuration of the run at ``path`` names a class outside pinnkfac
    that the user does not name in ``overrides`` too, or one that pinnkfac has no more."""
    for key, target in sorted(_flat(config).items()):
        if not key.endswith("_target_"):
            continue
        if not str(target).startswith("pinnkfac."):
            if f"{key}={target}" not in overrides:
                raise UserError(
                    f"{path} calls code from outside pinnkfac ({key}={target}): if you trust it, "
                    "add this setting to the command"
                )
        elif not exists(target):
            raise UserError(
                f"{path} was made by an earlier version of pinnkfac, whose settings have moved "
                f"({key}={target}): it cannot go on, start a new run; plot, compare and export "
                "still read it"
            )


def _flat(config: DictConfig) -> dict[str, Any]:
    values: Any = OmegaConf.to_container(config, resolve=True)
    return {key: value for key, value in walk(values) if not (isinstance(value, dict) and value)}
