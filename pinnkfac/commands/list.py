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
    group = parser.parse_args(arguments).group
    say(details(group, width()) if group else overview(width()))
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
        options = catalog.options(folder)
        lines += table([(o.name, o.text + " (default)" * o.is_default) for o in options], columns)
    names = ", ".join(_groups())
    return [*lines, "", *paragraph(f"All settings of a group: list GROUP, one of {names}", columns)]


def details(group: str, columns: int) -> list[str]:
    """Every setting of a group's options, with its default and what it means; raises UserError for
    an unknown group."""
    if group in ("pde", "pdes"):
        return [line for option in catalog.pdes() for line in _option(option, columns)][:-1]
    if group == SETTINGS:
        return [bold("Settings of every run: KEY=VALUE"), *_settings(catalog.general(), columns)]
    for name, folder in catalog.groups().items():
        if group in (name, folder.name, f"{folder.name}s"):
            blocks = [_option(option, columns, folder.name) for option in catalog.options(folder)]
            return [line for block in blocks for line in block][:-1]
    raise UserError(f"list {group}: there is no such group. {suggest(group, _groups())}")


def _option(option: catalog.Option, columns: int, group: str = "") -> list[str]:
    head = bold(f"{group}={option.name}" if group else option.name)
    texts = [option.text]
    texts += [f"Source: {option.source}"] if option.source else []
    texts += [f"Chooses too: {', '.join(option.brings)}"] if option.brings else []
    about = [line for text in texts for line in paragraph(text, columns, "  ")]
    settings = _settings(option.settings(), columns)
    return [head + " (default)" * option.is_default, *about, *settings, ""]


def _settings(settings: Sequence[catalog.Setting], columns: int) -> list[str]:
    rows = [(f"{s.key}={s.value}", s.remark) for s in settings if not s.is_object]
    return table(rows, columns, "    ")
