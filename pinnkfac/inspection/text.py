"""Text for a terminal, a pipe or a file: its width, emphasis, wrapped formulas, plain letters."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

PIPED_WIDTH = 100
NARROWEST, WIDEST = 40, 120
TIGHT = "\N{NO-BREAK SPACE}"
"""Between the factors of a product, so that lines break at sums first."""

PLAIN = {
    **{"✓": "ok", "✗": "FAILED", "−": "-", "–": "-", "—": "-", "…": "...", "→": "->", "·": "*"},
    **{"Δ²": "laplace^2 ", "Δ": "laplace ", "∂": "d_", "≤": "<=", "≥": ">=", "×": "x"},
    **{digit: f"^{i}" for i, digit in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
}
"""What stands for a sign where the output's encoding has none."""


def width() -> int:
    """The columns to fill: those of the terminal within bounds, 100 where there is none."""
    columns = shutil.get_terminal_size((PIPED_WIDTH, 24)).columns
    return max(NARROWEST, min(columns, WIDEST))


def say(lines: Iterable[str]) -> None:
    """Print lines, with plain letters for what the encoding of the output does not have."""
    encoding = getattr(sys.stdout, "encoding", None) or "ascii"
    for line in lines:
        print(plain(line, encoding), flush=True)


def plain(line: str, encoding: str) -> str:
    """The line, as far as the encoding has its letters."""
    try:
        line.encode(encoding)
        return line
    except UnicodeEncodeError:
        for sign, words in PLAIN.items():
            line = line.replace(sign, words)
        return line.encode(encoding, errors="replace").decode(encoding)


def bold(text: str) -> str:
    """Emphasis on a terminal, nothing elsewhere or where NO_COLOR is set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[1m{text}\033[0m"


def abbreviated(names: Sequence[str], most: int = 6, first: int = 2, separator: str = ", ") -> str:
    """A list of names; of more than ``most`` the ``first`` ones, and the last."""
    shown = names if len(names) <= most else [*names[:first], "…", names[-1]]
    return separator.join(shown)


def paragraph(text: str, columns: int, indent: str = "", further: str | None = None) -> list[str]:
    """Words in lines of at most that many columns; ``further`` indents all but the first."""
    return textwrap.wrap(
        text,
        columns,
        initial_indent=indent,
        subsequent_indent=indent if further is None else further,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [indent.rstrip()]


def table(rows: Sequence[tuple[str, str]], columns: int, indent: str = "  ") -> list[str]:
    """Names with explanations beside them, or below where a name is long or the space narrow."""
    if not rows:
        return []
    room = max(12, 2 * columns // 5)
    beside = max((len(name) for name, _ in rows if len(name) <= room), default=0)
    hanging = indent + " " * (beside + 2)
    lines = []
    for name, text in rows:
        wrapped = paragraph(text, columns, hanging) if text else []
        if wrapped and len(name) <= beside:
            first = wrapped.pop(0)[len(hanging) :]
            lines.append(f"{indent}{bold(name)}{' ' * (beside + 2 - len(name))}{first}".rstrip())
        else:
            lines.append(f"{indent}{bold(name)}")
        lines += wrapped
    return lines


def formula(text: str, columns: int, indent: str) -> list[str]:
    """A formula in lines that break in front of + and −, and inside a product only if need be."""
    pieces = re.split(r" (?=[+−=] )", text)
    lines, line = [], indent + pieces[0]
    for piece in pieces[1:]:
        if len(line) + 1 + len(piece) <= columns:
            line += f" {piece}"
        else:
            lines.append(line)
            line = f"{indent}    {piece}"
    lines.append(line)
    broken = []
    for line in lines:
        if len(line) <= columns:
            broken.append(line)
        else:
            start = line[: len(line) - len(line.lstrip())]
            words = line.strip().replace(TIGHT, " ")
            broken += paragraph(words, columns, start, f"{indent}      ")
    return [line.replace(TIGHT, " ") for line in broken]
