"""The tables of a benchmark, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from pinnkfac.bench.published import Figure, published, sources
from pinnkfac.bench.results import MIB, THRESHOLDS, Entry, Report
from pinnkfac.common.errors import counted
from pinnkfac.common.files import write_text
from pinnkfac.compare.rows import reasons
from pinnkfac.compare.tables import Column, in_digits, in_seconds, print_line, print_table

MEASURES = {"rms_error": "RMS error", "relative_l2_error": "relative L2 error"}
ANSWERS = {True: "yes", False: "no", None: "-"}


# -- columns ---------------------------------------------------------------------------------------
def main_columns(entries: Sequence[Entry]) -> list[Column]:
    """What came out, beside the best published figure and the goal; empty columns are left out."""
    columns = [
        _column("para-\nmeters", entries, lambda entry: _count(entry.median("parameters"))),
        _column("steps", entries, lambda entry: _count(entry.median("steps"))),
        _column("seconds", entries, lambda entry: in_seconds(entry.median("seconds"))),
        _column("MiB", entries, lambda entry: _count(entry.peak_memory, MIB)),
        _column("error", entries, lambda entry: in_digits(entry.error)),
        _column("lowest –\nhighest", entries, _spread),
        *_beside("published", entries, 0),
        *_beside("newer", entries, 1),
        _column("goal", entries, lambda entry: in_digits(entry.goal)),
        _column("met", entries, lambda entry: ANSWERS[entry.goal_met], number=False),
    ]
    told = [column for column in columns if any(cell not in ("-", "") for cell in column.cells)]
    return [*_names(entries), *told]


def threshold_columns(entries: Sequence[Entry]) -> list[Column]:
    """Seconds and, in brackets, steps to each error that any entry has reached."""
    columns = _names(entries)
    for threshold in THRESHOLDS:
        reached = [entry.reached(threshold) for entry in entries]
        if any(reached):
            columns.append(_column(f"{threshold:.0e}", reached, _reached))
    return columns


def published_columns(figures: Sequence[Figure]) -> list[Column]:
    return [
        _column("case", figures, lambda figure: figure.case, number=False),
        _column("optimizer", figures, lambda figure: figure.optimizer or "-", number=False),
        _column("seconds", figures, lambda figure: _count(figure.seconds)),
        _column("steps", figures, lambda figure: _count(figure.steps)),
        _column("after a tenth", figures, lambda figure: in_digits(figure.error_at_tenth)),
        _column("at the end", figures, lambda figure: in_digits(figure.error_final)),
        _column("best", figures, lambda figure: in_digits(figure.error_best)),
        _column("in", figures, lambda figure: figure.source.where, number=False),
        _column("note", figures, lambda figure: figure.note, number=False),
    ]


def _column(
    header: str, things: Sequence[Any], cell: Callable[[Any], str], *, number: bool = True
) -> Column:
    return Column(header, [cell(thing) for thing in things], number)


def _names(entries: Sequence[Entry]) -> list[Column]:
    return [
        _column("case", entries, lambda entry: entry.case.name, number=False),
        _column("step", entries, lambda entry: entry.step, number=False),
    ]


def _beside(header: str, entries: Sequence[Entry], source: int) -> list[Column]:
    """The best published error of a source, whose it is, and whether an entry is lower."""
    figures = [dict(enumerate(entry.published)).get(source) for entry in entries]
    return [
        _column(header, figures, lambda figure: in_digits(figure and figure.error_best)),
        _column("by", figures, lambda figure: figure.by if figure else "", number=False),
        _column("lower", entries, lambda e: ANSWERS[_lower(e, source)], number=False),
    ]


def _lower(entry: Entry, source: int) -> bool | None:
    """Whether the error is lower than the best one of a source; None where nothing says so."""
    return dict(enumerate(entry.lower)).get(source)


def _count(value: float | None, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:.0f}"


def _spread(entry: Entry) -> str:
    """Of several seeds; how many of them have no error is said too."""
    errors, number = entry.errors, len(entry.counted)
    if number < 2 or not errors:
        return "-"
    failed = number - len(errors)
    told = f", {failed} failed" if failed else ""
    return f"{in_digits(errors[0])} – {in_digits(errors[-1])}{told}"


def _reached(one: tuple[float, float] | None) -> str:
    return "-" if one is None else f"{in_seconds(one[0])} ({one[1]:.0f})"


# -- in words --------------------------------------------------------------------------------------
def verdicts(report: Report) -> list[str]:
    """For each step, on how many cases it is lower than what is published, and which it misses."""
    lines = []
    for step in dict.fromkeys(entry.step for entry in report.entries):
        entries = [entry for entry in report.entries if entry.step == step]
        answers: dict[str, dict[str, bool | None]] = {
            "lower than the best published error": {
                e.case.name: e.lower[0] for e in entries if e.lower
            },
            "lower than newer ones": {e.case.name: e.lower[1] for e in entries if len(e.lower) > 1},
            "goal met": {e.case.name: e.goal_met for e in entries},
        }
        for text, by_case in answers.items():
            yes = [case for case, answer in by_case.items() if answer]
            no = [case for case, answer in by_case.items() if answer is False]
            behind = f"; not on {', '.join(no)}" if no else ""
            if yes or no:
                cases = counted(len(yes) + len(no), "case")
                lines.append(f"{step}: {text} on {len(yes)} of {cases}{behind}")
    return lines


def notes(report: Report) -> list[str]:
    """What a reader has to know of the numbers: jobs that did not finish, costs, machines."""
    jobs = [(entry, outcome.row) for entry in report.entries for outcome in entry.outcomes]
    names = [f"{e.step} on {e.case.name}, seed {row.folder.name}" for e, row in jobs]
    unfinished = reasons([row for _, row in jobs], names)
    lines = [f"{'; '.join(whose)}: {reason}" for whose, reason in unfinished]
    if any(len(entry.counted) > 1 for entry in report.entries):
        lines.append("several seeds: medians; a job that failed counts as infinite")
    shares = {e.case.name: e.measuring for e in report.entries if e.measuring is not None}
    if shares:
        case, most = max(shares.items(), key=lambda share: share[1])
        lines.append(
            f"measuring errors is part of the seconds: at most {100 * most:.1f} % of them ({case})"
        )
    for what, values in _differing(report).items():
        if len(values) > 1:
            lines.append(f"jobs differ in {what}: {'; '.join(values)}")
        elif values:
            lines.append(f"{what}: {values[0]}")
    return lines


def _differing(report: Report) -> dict[str, list[str]]:
    """Machines, threads and versions of the jobs, each once."""
    summaries = [outcome.summary for outcome in report.outcomes]
    told = [s for s in summaries if s.get("machine") and s.get("versions")]
    values = {
        "machine": [_machine(s) for s in told],
        "threads": [str(s.get("threads")) for s in told],
        "versions": [", ".join(f"{k} {v}" for k, v in s["versions"].items()) for s in told],
    }
    return {what: list(dict.fromkeys(each)) for what, each in values.items()}


def _machine(summary: Mapping[str, Any]) -> str:
    processor = summary["machine"].get("gpu") or summary["machine"]["processor"]
    return f"{processor}, {summary.get('device')}, {summary.get('dtype')}"


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
