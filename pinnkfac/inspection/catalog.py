"""What can be chosen: bundled PDEs with their arguments, configuration groups with their options.

Everything is read from the files as text, so that a new file appears by itself and torch need not
be imported.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

from pinnkfac.config.loading import bundled, resource, summary

PLURALS = {"net": "nets", "step": "steps", "search": "searches"}
"""Groups whose options one speaks of in the plural."""


@dataclass(frozen=True)
class Setting:
    """``key`` as an override names it, its value where nothing else is said, and a remark."""

    key: str
    value: str
    remark: str = ""


@dataclass(frozen=True)
class Option:
    """A PDE, or an option of a group; ``brings`` are the options of other groups it chooses."""

    name: str
    text: str
    settings: tuple[Setting, ...] = ()
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
        settings = tuple(_arguments(arguments))
        result.append(Option(name, line, settings, source=source.group(1) if source else ""))
    return result


def _arguments(signature: str) -> list[Setting]:
    arguments = ast.parse(f"def f({signature}): pass").body[0].args  # type: ignore[attr-defined]
    names = [*arguments.posonlyargs, *arguments.args]
    defaults = [*[None] * (len(names) - len(arguments.defaults)), *arguments.defaults]
    pairs = [*zip(names, defaults, strict=True)]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [Setting(f"pde.{n.arg}", ast.unparse(v) if v is not None else "") for n, v in pairs]


def options(folder: Path) -> list[Option]:
    """The options of a group, the default first."""
    found = [_option(path, folder.name) for path in sorted(folder.glob("*.yaml"))]
    return sorted(found, key=lambda option: not option.is_default)


def _option(path: Path, group: str) -> Option:
    text = path.read_text(encoding="utf-8")
    everywhere = text.startswith("# @package _global_")
    entries = entries_of(text)
    settings = tuple(
        Setting(key if everywhere else f"{group}.{key}", value, remark)
        for key, value, remark in entries
    )
    brings = tuple(
        f"{other}={name}" for other, name in re.findall(r"^ *- override /(\w+): (\w+)", text, re.M)
    )
    return Option(path.stem, first_remark(text), settings, brings, path.stem == default_of(group))


def default_of(group: str) -> str:
    """The option of a group that is chosen where nothing else is said."""
    text = (resource("conf") / "solve.yaml").read_text(encoding="utf-8")
    found = re.search(rf"^ *- {group}: (\w+)", text, re.M)
    return found.group(1) if found else ""


def general() -> list[Setting]:
    """The settings beside the groups: seed, device, stop.seconds …"""
    text = (resource("conf") / "solve.yaml").read_text(encoding="utf-8")
    return [
        Setting(*entry)
        for entry in entries_of(text)
        if not entry[0].startswith(("hydra", "problem"))
    ]


def first_remark(text: str) -> str:
    """The first comment of a configuration file that is no directive."""
    for line in text.splitlines():
        if line.startswith("# @"):
            continue
        return line[2:].strip() if line.startswith("# ") else ""
    return ""


def entries_of(text: str) -> list[tuple[str, str, str]]:
    """(dotted key, value, comment behind it) of the entries of a configuration file.

    A node that is an object without settings of its own is an entry with its class as the value.
    """
    result: list[tuple[str, str, str]] = []
    outer: list[tuple[int, str, str]] = []
    for line in text.splitlines():
        found = re.match(r"""( *)(\w+): *('[^']*'|"[^"]*"|.*?)(?: +# ?(.*))?$""", line)
        if not found or line.lstrip().startswith(("#", "-")):
            continue
        indent, key, value, remark = len(found[1]), found[2], found[3], found[4] or ""
        while outer and outer[-1][0] >= indent:
            outer.pop()
        path = ".".join([name for _, name, _ in outer] + [key])
        if key == "_target_":
            if outer:  # replaced by the settings of the object, if it has any
                result.append(
                    (path.removesuffix("._target_"), value.rpartition(".")[2], outer[-1][2])
                )
        elif not value or value.startswith("#"):
            outer.append((indent, key, remark or value.lstrip("# ")))
        else:  # without blanks, as a shell passes it on in one word
            result.append((path, value.replace(", ", ","), remark))
    keys = [key for key, _, _ in result]
    return [
        entry
        for entry in result
        if not any(key.startswith(f"{entry[0]}.") for key in keys) and entry[0] != "defaults"
    ]
