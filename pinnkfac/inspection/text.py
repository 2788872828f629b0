"""Text for a terminal, a pipe or a file: its width, emphasis, wrapped formulas, plain letters."""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

NARROWEST, PIPED, WIDEST = 40, 100, 120
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
    columns = shutil.get_terminal_size((PIPED, 24)).columns
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
    lines = []
    for line in paragraph(re.sub(r" (?![+−=] )", TIGHT, text), columns, indent, f"{indent}    "):
        body = line.lstrip(" ")
        start, words = line.removesuffix(body), body.replace(TIGHT, " ")
        lines += paragraph(words, columns, start, f"{indent}      ")
    return lines
