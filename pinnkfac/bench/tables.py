"""The tables of a benchmark, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pinnkfac.bench.folder import write_text
from pinnkfac.bench.published import Figure, published, sources
from pinnkfac.bench.results import MIB, THRESHOLDS, Entry, Report
from pinnkfac.common.errors import counted
from pinnkfac.compare.sweep import (
    Column,
    in_digits,
    in_seconds,
    print_line,
    print_table,
    shortened,
)

MEASURES = {"rms_error": "RMS error", "relative_l2_error": "relative L2 error"}
ANSWERS = {True: "yes", False: "no", None: "-"}


# -- columns ---------------------------------------------------------------------------------------
def main_columns(entries: Sequence[Entry]) -> list[Column]:
    """What came out, beside the best published figure and the goal; empty columns are left out."""
    first = [entry.published[:1] for entry in entries]
    newer = [entry.published[1:2] for entry in entries]
    columns = [
        *_names(entries),
        Column("para-\nmeters", [_count(entry.median("parameters")) for entry in entries]),
        Column("steps", [_count(entry.median("steps")) for entry in entries]),
        Column("seconds", [in_seconds(entry.median("seconds")) for entry in entries]),
        Column("MiB", [_mebibytes(entry.peak_memory) for entry in entries]),
        Column("error", [in_digits(entry.error) for entry in entries]),
        Column("lowest –\nhighest", [_spread(entry) for entry in entries]),
        Column("published", [_error_of(figures) for figures in first]),
        Column("by", [_by(figures) for figures in first], number=False),
        Column("lower", [_answer(entry.lower, 0) for entry in entries], number=False),
        Column("newer", [_error_of(figures) for figures in newer]),
        Column("by", [_by(figures) for figures in newer], number=False),
        Column("lower", [_answer(entry.lower, 1) for entry in entries], number=False),
        Column("goal", [in_digits(entry.goal) for entry in entries]),
        Column("met", [ANSWERS[entry.goal_met] for entry in entries], number=False),
    ]
    return columns[:2] + [c for c in columns[2:] if any(cell not in ("-", "") for cell in c.cells)]


def threshold_columns(entries: Sequence[Entry]) -> list[Column]:
    """Seconds and, in brackets, steps to each error that any entry has reached."""
    columns = _names(entries)
    for threshold in THRESHOLDS:
        reached = [entry.reached(threshold) for entry in entries]
        if any(reached):
            columns.append(Column(f"{threshold:.0e}", [_reached(one) for one in reached]))
    return columns


def published_columns(figures: Sequence[Figure]) -> list[Column]:
    return [
        Column("case", [figure.case for figure in figures], number=False),
        Column("optimizer", [figure.optimizer or "-" for figure in figures], number=False),
        Column("seconds", [_count(figure.seconds) for figure in figures]),
        Column("steps", [_count(figure.steps) for figure in figures]),
        Column("after a tenth", [in_digits(figure.error_at_tenth) for figure in figures]),
        Column("at the end", [in_digits(figure.error_final) for figure in figures]),
        Column("best", [in_digits(figure.error_best) for figure in figures]),
        Column("in", [figure.source.where for figure in figures], number=False),
        Column("note", [figure.note for figure in figures], number=False),
    ]


def _names(entries: Sequence[Entry]) -> list[Column]:
    return [
        Column("case", [entry.case.name for entry in entries], number=False),
        Column("step", [entry.step for entry in entries], number=False),
    ]


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _mebibytes(value: float | None) -> str:
    return "-" if value is None else f"{value / MIB:.0f}"


def _spread(entry: Entry) -> str:
    """Of several seeds; how many of them have no error is said too."""
    errors, number = entry.errors, len(entry.counted)
    if number < 2 or not errors:
        return "-"
    failed = number - len(errors)
    told = f", {failed} failed" if failed else ""
    return f"{in_digits(errors[0])} – {in_digits(errors[-1])}{told}"


def _error_of(figures: Sequence[Figure]) -> str:
    return in_digits(figures[0].error_best) if figures else "-"


def _by(figures: Sequence[Figure]) -> str:
    return figures[0].by if figures else ""


def _answer(answers: Sequence[bool | None], number: int) -> str:
    return ANSWERS[answers[number]] if number < len(answers) else "-"


def _reached(one: tuple[float, float] | None) -> str:
    return "-" if one is None else f"{in_seconds(one[0])} ({one[1]:.0f})"


# -- in words --------------------------------------------------------------------------------------
def verdicts(report: Report) -> list[str]:
    """For each step, on how many cases it is lower than what is published, and which it misses."""
    lines = []
    for step in dict.fromkeys(entry.step for entry in report.entries):
        own = [entry for entry in report.entries if entry.step == step]
        first = {e.case.name: e.lower[0] for e in own if e.lower and e.lower[0] is not None}
        newer = {e.case.name: e.lower[1] for e in own if len(e.lower) > 1 and e.counted}
        goals = {e.case.name: e.goal_met for e in own if e.goal_met is not None}
        for text, found in (
            ("lower than the best published error", first),
            ("lower than newer ones", newer),
            ("goal met", goals),
        ):
            if found:
                missed = [case for case, answer in found.items() if not answer]
                behind = f"; not on {', '.join(missed)}" if missed else ""
                lines.append(
                    f"{step}: {text} on {len(found) - len(missed)} of "
                    f"{counted(len(found), 'case')}{behind}"
                )
    return lines


def notes(report: Report) -> list[str]:
    """What a reader has to know of the numbers: jobs that did not finish, costs, machines."""
    lines = _unfinished(report)
    several = any(len(entry.counted) > 1 for entry in report.entries)
    if several:
        lines.append("several seeds: medians; a job that failed counts as infinite")
    shares = {e.case.name: e.measuring for e in report.entries if e.measuring is not None}
    if shares:
        most = max(shares, key=lambda case: shares[case] or 0.0)
        lines.append(
            "measuring errors is part of the seconds: at most "
            f"{100 * (shares[most] or 0):.1f} % of them ({most})"
        )
    for what, found in _differing(report).items():
        if len(found) > 1:
            lines.append(f"jobs differ in {what}: {'; '.join(found)}")
        elif found:
            lines.append(f"{what}: {found[0]}")
    return lines


def _unfinished(report: Report) -> list[str]:
    """'kfac on heat1d_tiny, seed 0, failed: …', once for all jobs with the same reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for entry in report.entries:
        for one in entry.outcomes:
            if one.row.status != "finished":
                name = f"{entry.step} on {entry.case.name}, seed {one.row.folder.name}"
                reasons.setdefault((one.row.status, one.row.message), []).append(name)
    return [
        f"{'; '.join(names)}: {status}" + (f": {shortened(message, 140)}" if message else "")
        for (status, message), names in reasons.items()
    ]


def _differing(report: Report) -> dict[str, list[str]]:
    """Machines, threads and versions of the jobs, each once."""
    found: dict[str, list[str]] = {"machine": [], "threads": [], "versions": []}
    for one in report.outcomes:
        machine, versions = one.summary.get("machine"), one.summary.get("versions")
        if not machine or not versions:
            continue
        where = one.summary.get("device")
        own = {
            "machine": f"{machine.get('gpu') or machine['processor']}, {where}, "
            f"{one.summary.get('dtype')}",
            "threads": str(one.summary.get("threads")),
            "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        }
        for what, text in own.items():
            if text not in found[what]:
                found[what].append(text)
    return found


# -- out -------------------------------------------------------------------------------------------
def show(report: Report, console: Console | None = None) -> None:
    """The tables and what there is to say of them, on the terminal."""
    measure = MEASURES[report.suite.measure]
    overrides = f" with {' '.join(report.overrides)}" if report.overrides else ""
    print_line(f"suite {report.suite.name}{overrides}; error: {measure}", console)
    print_table(main_columns(report.entries), console)
    columns = threshold_columns(report.entries)
    if len(columns) > 2:
        print_line("seconds (steps) to an error", console)
        print_table(columns, console)
    for line in [*verdicts(report), *notes(report)]:
        print_line(line, console)


def write_markdown(report: Report) -> Path:
    """results.md: the tables, the verdicts, and all published figures with their sources."""
    return write_text(report.root / "results.md", as_markdown(report))


def as_markdown(report: Report) -> str:
    measure = MEASURES[report.suite.measure]
    cases = dict.fromkeys(entry.case.name for entry in report.entries)
    figures = [figure for case in cases for figure in published(case)]
    overrides = f" Overrides: `{' '.join(report.overrides)}`." if report.overrides else ""
    parts = [
        f"# Suite {report.suite.name}: {report.suite.text}",
        f"Errors are {measure}s of the final net.{overrides} A published error is the best on the "
        "way of the best optimizer.",
        markdown(main_columns(report.entries)),
        "\n".join(f"* {line}" for line in [*verdicts(report), *notes(report)]),
    ]
    columns = threshold_columns(report.entries)
    if len(columns) > 2:
        parts += ["## Seconds (steps) to an error", markdown(columns)]
    if figures:
        lines = [f"* {s.where}: {s.hardware}; {s.text}." for s in sources(figures)]
        table = markdown(published_columns(figures))
        parts += ["## Published figures", "\n".join(lines), table]
    pictures = [name for name in PICTURES if (report.root / name).is_file()]
    if pictures:
        parts += ["## Pictures", *(f"![{Path(name).stem}]({name})" for name in pictures)]
    return "\n\n".join(part for part in parts if part) + "\n"


PICTURES = ("error_over_seconds.png", "error_over_steps.png")


def markdown(columns: Sequence[Column]) -> str:
    """A table in Markdown, with numbers to the right."""
    headers = [column.header.replace("-\n", "").replace("\n", " ") for column in columns]
    lines = [headers, ["---:" if column.number else "---" for column in columns]]
    lines += [
        [cell.replace("|", "\\|").replace("*", "\\*") for cell in cells]
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
