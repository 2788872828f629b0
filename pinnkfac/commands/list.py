"""python -m pinnkfac list [GROUP]"""

from __future__ import annotations

from collections.abc import Sequence

from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError, suggest
from pinnkfac.inspection import catalog
from pinnkfac.inspection.text import bold, paragraph, say, table, width

SETTINGS = "settings"


def main(arguments: list[str]) -> int:
    parser = Parser(
        "list",
        "List the bundled PDEs and the options of every configuration group; with a GROUP, all\n"
        f"of its settings with their defaults. Groups: {', '.join(_groups())}.",
        "list",
        "list pdes",
        "list steps",
    )
    parser.add_argument("group", metavar="GROUP", nargs="?", help="a group (all: an overview)")
    options = parser.read(arguments)
    if options is None:
        return 0
    say(details(options.group, width()) if options.group else overview(width()))
    return 0


def _groups() -> list[str]:
    return ["pdes", *catalog.groups(), SETTINGS]


def overview(columns: int) -> list[str]:
    """Everything by name, with a line each."""
    lines = [bold("PDEs") + "  (solve NAME pde.ARGUMENT=VALUE)"]
    rows = []
    for option in catalog.pdes():
        arguments = ", ".join(f"{s.key[4:]}={s.value}" for s in option.settings())
        rows.append((option.name, f"{option.text}{f' [{arguments}]' if arguments else ''}"))
    lines += table(rows, columns)
    for name, folder in catalog.groups().items():
        lines += ["", bold(name) + f"  ({folder.name}=NAME)"]
        rows = [(o.name, o.text + _default(o)) for o in catalog.options(folder)]
        lines += table(rows, columns)
    names = ", ".join(_groups())
    return [*lines, "", *paragraph(f"All settings of a group: list GROUP, one of {names}", columns)]


def _default(option: catalog.Option) -> str:
    return " (default)" if option.is_default else ""


def details(group: str, columns: int) -> list[str]:
    """Every setting of a group's options, with its default and what it means.

    Raises UserError for an unknown group.
    """
    if group in ("pde", "pdes"):
        return [line for option in catalog.pdes() for line in _option(option, columns)][:-1]
    if group == SETTINGS:
        return [bold("Settings of every run: KEY=VALUE"), *_settings(catalog.general(), columns)]
    for name, folder in catalog.groups().items():
        if group in (name, folder.name, f"{folder.name}s"):
            lines = [
                line for o in catalog.options(folder) for line in _option(o, columns, folder.name)
            ]
            return lines[:-1]
    raise UserError(f"list {group}: there is no such group. {suggest(group, _groups())}")


def _option(option: catalog.Option, columns: int, group: str = "") -> list[str]:
    head = f"{group}={option.name}" if group else option.name
    lines = [bold(head) + _default(option), *paragraph(option.text, columns, "  ")]
    if option.source:
        lines += paragraph(f"Source: {option.source}", columns, "  ")
    if option.brings:
        lines += paragraph(f"Chooses too: {', '.join(option.brings)}", columns, "  ")
    return [*lines, *_settings(option.settings(), columns), ""]


def _settings(settings: Sequence[catalog.Setting], columns: int) -> list[str]:
    rows = [(f"{s.key}={s.value}", s.remark) for s in settings if not s.is_object]
    return table(rows, columns, "    ")
