"""The tables of a benchmark, on the terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from pinnkfac.bench.published import Figure, published, sources
from pinnkfac.bench.results import MIB, THRESHOLDS, Entry, Report
from pinnkfac.common.errors import counted
from pinnkfac.common.files import write_text
from pinnkfac.compare.rows import reasons
from pinnkfac.compare.tables import Column, in_digits, in_seconds, print_line, print_table

MEASURES = {"rms_error": "RMS error", "relative_l2_error": "relative L2 error"}
ANSWERS = {True: "yes", False: "no", None: "-"}


def main_columns(entries: Sequence[Entry]) -> list[Column]:
    """What came out, beside the best published figure and the goal; empty columns are left out."""
    columns = [
        Column("para-\nmeters", [_count(entry.median("parameters")) for entry in entries]),
        Column("steps", [_count(entry.median("steps")) for entry in entries]),
        Column("seconds", [in_seconds(entry.median("seconds")) for entry in entries]),
        Column("MiB", [_count(entry.peak_memory, MIB) for entry in entries]),
        Column("error", [in_digits(entry.error) for entry in entries]),
        Column("lowest –\nhighest", [_spread(entry) for entry in entries]),
        *_beside("published", entries, 0),
        *_beside("newer", entries, 1),
        Column("goal", [in_digits(entry.goal) for entry in entries]),
        Column("met", [ANSWERS[entry.goal_met] for entry in entries], number=False),
    ]
    told = [column for column in columns if any(cell not in ("-", "") for cell in column.cells)]
    return [*_names(entries), *told]


def threshold_columns(entries: Sequence[Entry]) -> list[Column]:
    """Seconds and, in brackets, steps to each error that any entry has reached."""
    columns = _names(entries)
    for threshold in THRESHOLDS:
        reached = [entry.reached(threshold) for entry in entries]
        cells = [f"{in_seconds(one[0])} ({one[1]:.0f})" if one else "-" for one in reached]
        if any(reached):
            columns.append(Column(f"{threshold:.0e}", cells))
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


def _beside(header: str, entries: Sequence[Entry], source: int) -> list[Column]:
    """The best published error of a source, whose it is, and whether an entry is lower."""
    figures = [dict(enumerate(entry.published)).get(source) for entry in entries]
    lower = [dict(enumerate(entry.lower)).get(source) for entry in entries]
    return [
        Column(header, [in_digits(f.error_best if f else None) for f in figures]),
        Column("by", [figure.by if figure else "" for figure in figures], number=False),
        Column("lower", [ANSWERS[answer] for answer in lower], number=False),
    ]


def _count(value: float | None, unit: float = 1) -> str:
    return "-" if value is None else f"{value / unit:.0f}"


def _spread(entry: Entry) -> str:
    """Of several seeds; how many of them have no error is said too."""
    errors, failed = entry.errors, len(entry.counted) - len(entry.errors)
    if len(entry.counted) < 2 or not errors:
        return "-"
    told = f", {failed} failed" if failed else ""
    return f"{in_digits(errors[0])} – {in_digits(errors[-1])}{told}"


def verdicts(report: Report) -> list[str]:
    """For each step, on how many cases it is lower than what is published, and which it misses."""
    lines = []
    for step in dict.fromkeys(entry.step for entry in report.entries):
        entries = [entry for entry in report.entries if entry.step == step]
        answers: dict[str, list[bool | None]] = {
            "lower than the best published error": [next(iter(e.lower), None) for e in entries],
            "lower than newer ones": [next(iter(e.lower[1:]), None) for e in entries],
            "goal met": [e.goal_met for e in entries],
        }
        for text, by_entry in answers.items():
            pairs = [*zip((e.case.name for e in entries), by_entry, strict=True)]
            yes = [case for case, answer in pairs if answer]
            no = [case for case, answer in pairs if answer is False]
            behind = f"; not on {', '.join(no)}" if no else ""
            if yes or no:
                cases = counted(len(yes) + len(no), "case")
                lines.append(f"{step}: {text} on {len(yes)} of {cases}{behind}")
    return lines


def notes(report: Report) -> list[str]:
    """What a reader has to know of the numbers: jobs that did not finish, damages, costs,
    machines."""
    jobs = [(entry, outcome.row) for entry in report.entries for outcome in entry.outcomes]
    names = [f"{e.step} on {e.case.name}, seed {row.folder.name}" for e, row in jobs]
    unfinished = reasons([row for _, row in jobs], names)
    lines = [f"{'; '.join(whose)}: {reason}" for whose, reason in unfinished]
    lines += [damage for outcome in report.outcomes for damage in outcome.damages]
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
    processors = [s["machine"].get("gpu") or s["machine"]["processor"] for s in told]
    kinds = [f"{s.get('device')}, {s.get('dtype')}" for s in told]
    values = {
        "machine": [", ".join(pair) for pair in zip(processors, kinds, strict=True)],
        "threads": [str(s.get("threads")) for s in told],
        "versions": [", ".join(f"{k} {v}" for k, v in s["versions"].items()) for s in told],
    }
    return {what: list(dict.fromkeys(each)) for what, each in values.items()}


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
    pictures = [
        n
        for n in ("error_over_seconds", "error_over_steps")
        if (report.root / f"{n}.png").is_file()
    ]
    if pictures:
        parts += ["## Pictures", *(f"![{name}]({name}.png)" for name in pictures)]
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown(columns: Sequence[Column]) -> str:
    """A table in Markdown, with numbers to the right."""
    headers = [column.header.replace("-\n", "").replace("\n", " ") for column in columns]
    lines = [headers, ["---:" if column.number else "---" for column in columns]]
    lines += [
        [cell.replace("|", "\\|").replace("*", "\\*") for cell in cells]
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
