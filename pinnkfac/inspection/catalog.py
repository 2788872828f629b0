"""What can be chosen: bundled PDEs with their arguments, configuration groups with their options.

All is read from the files as text: a new file appears by itself, and torch need not be imported.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pinnkfac.common.files import resource
from pinnkfac.config.complete import complete
from pinnkfac.config.pde_file import bundled, summary
from pinnkfac.inspection.declared import Leaf, defaults_of, meanings_of

PLURALS = {"net": "nets", "step": "steps", "search": "searches"}
"""Groups whose options one speaks of in the plural."""
REMARK = "#"
"""The key of the remark behind a node."""
NO_SETTINGS = ("_target_", "_settings_", "defaults", "hydra", REMARK)


@dataclass(frozen=True)
class Setting:
    """``key`` as an override names it, its value where nothing else is said, and a remark.
    ``owner`` is the class that it is a field of, if known; ``is_object``: a class, whose settings
    follow."""

    key: str
    value: str
    remark: str = ""
    owner: str = ""
    is_object: bool = False


@dataclass(frozen=True)
class Option:
    """A PDE, or an option of a group; ``settings()`` are read when they are asked for, ``brings``
    are the options of other groups it chooses."""

    name: str
    text: str
    settings: Callable[[], list[Setting]]
    brings: tuple[str, ...] = ()
    is_default: bool = False
    source: str = ""


def groups() -> dict[str, Path]:
    """The folders of configuration groups by the names that ``list`` calls them."""
    folders = sorted(path for path in resource("conf").iterdir() if any(path.glob("*.yaml")))
    return {PLURALS.get(path.name, path.name): path for path in folders}


def pdes() -> list[Option]:
    """The bundled PDEs."""
    result = []
    for name, path in bundled().items():
        source = re.search(r"^Source: (.*?)\.?$", path.read_text(encoding="utf-8"), re.M)
        line, arguments = summary(path)
        settings = partial(_arguments, arguments)
        result.append(Option(name, line, settings, source=source.group(1) if source else ""))
    return result


def _arguments(signature: str) -> list[Setting]:
    arguments = ast.parse(f"def f({signature}): pass").body[0].args  # type: ignore[attr-defined]
    names = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    defaults = [*arguments.defaults, *arguments.kw_defaults]
    defaults = [*[None] * (len(names) - len(defaults)), *defaults]
    pairs = zip(names, defaults, strict=True)
    return [Setting(f"pde.{n.arg}", ast.unparse(v) if v is not None else "") for n, v in pairs]


def options(folder: Path) -> list[Option]:
    """The options of a group, the default first."""
    every = [_option(path, folder.name) for path in sorted(folder.glob("*.yaml"))]
    return sorted(every, key=lambda option: not option.is_default)


def _option(path: Path, group: str) -> Option:
    text = path.read_text(encoding="utf-8")
    prefix = "" if text.startswith("# @package _global_") else f"{group}."
    settings = partial(settings_of, text, prefix)
    brings = tuple(
        f"{other}={name}" for other, name in re.findall(r"^ *- override /(\w+): (\w+)", text, re.M)
    )
    remark = re.match(r"(?:# @.*\n)*# (?!@)(.*)", text)
    described = remark[1].strip() if remark else ""
    return Option(path.stem, described, settings, brings, path.stem == default_of(group))


def default_of(group: str) -> str:
    """The option of a group that is chosen where nothing else is said."""
    entry = re.search(rf"^ *- {group}: (\w+)", _text_of_all(), re.M)
    return entry[1] if entry else ""


def general() -> list[Setting]:
    """The settings beside the groups: seed, device, stop.seconds …"""
    return settings_of(_text_of_all())


def _text_of_all() -> str:
    return (resource("conf") / "solve.yaml").read_text(encoding="utf-8")


def settings_of(text: str, prefix: str = "") -> list[Setting]:
    """The settings of a configuration file, with those that it leaves to classes."""
    return list(_settings(complete(nodes_of(text), defaults_of), prefix))


def _settings(node: dict[str, Any], prefix: str) -> Iterator[Setting]:
    owner = node.get("_target_", node.get("_settings_", ""))
    meanings = meanings_of(owner)
    for name, value in node.items():
        if name in NO_SETTINGS:
            continue
        key, meaning = f"{prefix}{name}", meanings.get(name, "")
        if isinstance(value, dict):
            inner = list(_settings(value, f"{key}."))
            if "_target_" in value:
                kind = value["_target_"].rpartition(".")[2]
                yield Setting(key, kind, value.get(REMARK) or meaning, owner, bool(inner))
            yield from inner
        elif value.value != "???":
            yield Setting(key, value.value, value.remark or meaning, owner)


def nodes_of(text: str) -> dict[str, Any]:
    """The nodes of a configuration file: each value a Leaf, with the comment behind it."""
    root: dict[str, Any] = {}
    outer = [(-1, root)]
    for line in text.splitlines():
        entry = re.match(r"""( *)(\w+): *('[^']*'|"[^"]*"|.*?)(?: +# ?(.*))?$""", line)
        if not entry or line.lstrip().startswith(("#", "-")):
            continue
        indent, key, value, remark = len(entry[1]), entry[2], entry[3], entry[4] or ""
        while outer[-1][0] >= indent:
            outer.pop()
        node = outer[-1][1]
        if key in ("_target_", "_settings_"):
            node[key] = value
        elif not value or value.startswith("#"):
            node[key] = {REMARK: remark or value.lstrip("# ")}
            outer.append((indent, node[key]))
        else:  # without blanks, as a shell passes it on in one word
            node[key] = Leaf(value.replace(", ", ","), remark)
    return root
