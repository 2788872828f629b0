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
    print("PDEs (solve NAME pde.ARGUMENT=VALUE)")
    files = bundled()
    width = max(map(len, files), default=0)
    for name, path in files.items():
        line, signature = summary(path)
        print(f"  {name:<{width}}  {line}" + (f"  [{signature}]" if signature else ""))
    groups = sorted(p for p in resource("conf").iterdir() if p.is_dir())
    for group in groups:
        print(f"\n{group.name} ({group.name}=NAME)")
        options = sorted(group.glob("*.yaml"))
        wide = max((len(p.stem) for p in options), default=0)
        for option in options:
            print(f"  {option.stem:<{wide}}  {_comment(option.read_text(encoding='utf-8'))}")
    return 0


def _comment(text: str) -> str:
    """The first comment of a configuration file that is not a directive."""
    for line in text.splitlines():
        if line.startswith("# @"):
            continue
        return line[2:].strip() if line.startswith("# ") else ""
    return ""
