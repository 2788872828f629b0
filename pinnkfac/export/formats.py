"""The formats that a solution can be written in.

A format is a module of this folder: its name is the ending of its files, its text says what they
hold, ``write(content, path)`` makes them and returns their paths. A new one is such a module.
"""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pinnkfac.common.errors import UserError, suggest

if TYPE_CHECKING:
    from pinnkfac.export.content import Content

OTHERS = ("__init__", "content", "formats")
FORMATS = tuple(
    sorted(path.stem for path in Path(__file__).parent.glob("*.py") if path.stem not in OTHERS)
)
ENDINGS = tuple(f".{name}" for name in FORMATS)


def listed() -> str:
    return f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"


def texts() -> dict[str, str]:
    """What a file of each ending holds, read without importing the formats."""
    files = (Path(__file__).with_name(f"{name}.py") for name in FORMATS)
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    lines = (" ".join((ast.get_docstring(tree) or "").split()) for tree in trees)
    return dict(zip(ENDINGS, lines, strict=True))


def export(content: Content, path: Path) -> list[Path]:
    """Write a file of the kind that its ending says; see ``Solution.export``."""
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        what = f"the ending '{path.suffix}' is unknown" if path.suffix else "it has no ending"
        raise UserError(f"export to {path}: {what}. {suggest(ending, ENDINGS)}")
    written: list[Path] = import_module(f"{__package__}{ending}").write(content, path)
    return written
