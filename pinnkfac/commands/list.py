"""python -m pinnkfac list: bundled PDEs, and the options of every configuration group."""

from __future__ import annotations

from pinnkfac.errors import UserError
from pinnkfac.loading import bundled, resource, summary

HELP = """usage: python -m pinnkfac list

List the bundled PDEs with their arguments, and the options of every configuration group.

example: python -m pinnkfac list"""


def main(arguments: list[str]) -> int:
    if any(a in ("-h", "--help") for a in arguments):
        print(HELP)
        return 0
    if arguments:
        raise UserError(f"list takes no arguments, but got {' '.join(arguments)}")
    files = bundled()
    _show(
        "PDEs: solve NAME pde.ARGUMENT=VALUE",
        [(name, *summary(path)) for name, path in files.items()],
    )
    for group in sorted(p for p in resource("conf").iterdir() if p.is_dir()):
        options = sorted(group.glob("*.yaml"))
        rows = [(p.stem, _comment(p.read_text(encoding="utf-8")), "") for p in options]
        _show(f"{group.name}: {group.name}=NAME", rows)
    return 0


def _show(title: str, rows: list[tuple[str, str, str]]) -> None:
    """A table of name, description and arguments."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(ratio=2)
    columns = 3 if any(row[2] for row in rows) else 2
    if columns == 3:
        table.add_column(ratio=1)
    for row in rows:
        table.add_row(*row[:columns])
    Console(highlight=False, markup=False).print(table)


def _comment(text: str) -> str:
    """The first comment of a configuration file that is not a directive."""
    for line in text.splitlines():
        if line.startswith("# @"):
            continue
        return line[2:].strip() if line.startswith("# ") else ""
    return ""
