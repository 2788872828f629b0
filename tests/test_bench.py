"""bench: suites, published figures, jobs and their folders, tables and pictures."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import PATIENCE, start, wait_for
from rich.console import Console
from scripts import experiment

from pinnkfac import Box, Solution, UserError
from pinnkfac.bench.folder import is_new, locked, make
from pinnkfac.bench.pictures import draw, write_pictures
from pinnkfac.bench.published import best_by_source, published
from pinnkfac.bench.results import as_dict, flat, middle, read_report, write_results
from pinnkfac.bench.running import Job, is_complete, jobs_of, run_jobs
from pinnkfac.bench.suites import SUITES, suite_of
from pinnkfac.bench.tables import as_markdown, main_columns, notes, show, verdicts
from pinnkfac.commands.bench import main
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import bundled, find
from pinnkfac.problem.signature import Signature
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.store.run_folder import RunFolder

WIDTHS = {
    "small": [64],
    "medium": [64, 64, 48, 48],
    "big": [256, 256, 128, 128],
    "huge": [768, 768, 512, 512],
}


def command(words, folder, **more):
    return subprocess.run(
        [sys.executable, "-m", "pinnkfac", "bench", *words],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE, **more,
    )  # fmt: skip


# -- suites ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("case", SUITES["paper"].cases, ids=lambda case: case.name)
def test_cases_of_the_paper_have_its_nets_and_its_measure(case):
    size = case.name.rpartition("_")[2]
    problem = find(case.pde).problem({})
    config = compose(case.pde, {}, case.settings)
    assert list(config.net.widths) == WIDTHS[size]
    assert case.error_points == 10 * problem.terms[0].points
    assert case.seconds == (600 if size in ("big", "huge") else 300)
    assert published(case.name)


def test_every_case_has_a_bundled_pde_and_a_name_of_its_own():
    for suite in SUITES.values():
        names = [case.name for case in suite.cases]
        assert len(set(names)) == len(names)
        assert {case.pde for case in suite.cases} <= set(bundled())
    assert len(SUITES["paper"].cases) == 15
    assert {c.name for c in SUITES["problems"].cases} == {
        *("helmholtz", "burgers", "kovasznay", "wave", "kdv", "biharmonic", "allen_cahn")
    }


def test_the_goal_is_that_of_the_time_that_is_given():
    case = suite_of("paper").case("poisson5d_medium")
    assert [case.goal(s) for s in (20, 300, 301, 3600, 9999)] == [
        2e-6,
        2e-6,
        2.6e-7,
        2.6e-7,
        2.6e-7,
    ]
    assert suite_of("paper").case("heat4d_small").goal(300) is None


# -- published figures -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("case", "number", "best"),
    [  # optimizer, seconds, steps, errors after a tenth, at the end and the best on the way
        ("poisson2d_medium", 9, ("KFAC*", 1000, 11567, 1.096e-05, 7.888e-07, 7.888e-07)),
        ("heat1d_small", 9, ("ENGD full", 1000, 4323, 5.206e-07, 3.047e-08, 2.749e-08)),
        ("heat4d_big", 14, ("KFAC*", 3000, 7515, 1.883e-04, 1.265e-06, 1.265e-06)),
    ],
)
def test_published_figures_are_those_of_the_paper(case, number, best):
    paper = [f for f in published(case) if f.source.where == "arXiv:2405.15603"]
    assert len(paper) == number
    found = best_by_source(case)[0]
    told = (found.optimizer, found.seconds, found.steps, found.error_at_tenth)
    assert (*told, found.error_final, found.error_best) == best
    assert "RTX 6000" in found.source.hardware and "float64" in found.source.hardware


def test_later_papers_stand_behind_the_one_to_pass():
    first, newer = best_by_source("poisson5d_medium")
    assert (first.error_best, first.net) == (1.144e-04, "64-48-32-16")
    assert (newer.error_best, newer.seconds, newer.source.where) == (
        2.6e-7,
        7000,
        "arXiv:2505.12149",
    )
    assert first.by == "ENGD full, 3014 s, net 64-48-32-16"
    assert published("no such case") == [] == best_by_source("no such case")


def test_all_rows_of_the_paper_are_there_and_belong_to_a_case():
    cases = [case.name for suite in SUITES.values() for case in suite.cases]
    rows = [figure for case in cases for figure in published(case)]
    assert sum(f.source.where == "arXiv:2405.15603" for f in rows) == 139
    assert len(rows) == 139 + 5 + 4
    assert all(f.error_best <= f.error_final for f in rows)


# -- synthetic jobs --------------------------------------------------------------------------------
CONFIG: list = []


def stored(job: Job, errors, *, status="finished", every=1.0, parameters=65):
    """The folder of a job as its process leaves it, with these errors at steps 10, 20 …"""
    if not CONFIG:
        CONFIG.append(compose("poisson2d", {}, []))
    with RunFolder(job.folder) as own:
        told = {"settings": list(job.settings), "seconds": job.seconds, "seed": job.seed}
        own.write_json("job.json", told)
        if status == "failed":
            summary = {"pde": job.case.pde, "status": status, "stop_reason": "no memory is left"}
            own.write_summary(summary)
            return
        own.write_config(CONFIG[0])
        own.write_problem(job.case.pde, None, Signature(("u",), Box(x=(0, 1))), [])
        records = [
            {
                "step": 10 * (k + 1),
                "seconds": every * (k + 1),
                "loss": 1.0,
                "rms_error": error,
                "relative_l2_error": None if error is None else 2 * error,
            }
            for k, error in enumerate(errors)
        ]
        own.restart_metrics(records)
        if status:
            summary = {"pde": job.case.pde, "status": status, "stop_reason": "time is up"}
            summary |= {k: records[-1][k] for k in ("rms_error", "relative_l2_error", "loss")}
            summary |= {"steps": records[-1]["step"], "seconds": records[-1]["seconds"]}
            summary |= {"parameters": parameters, "threads": 1, "device": "cpu", "seed": job.seed}
            summary |= {"dtype": "float64", "versions": {"pinnkfac": "1"}}
            own.write_summary(summary | {"machine": {"processor": "a CPU"}})
            measured = {"peak_memory": 2**20 * (100 + job.seed), "measurements": len(records)}
            own.write_json("measured.json", measured | {"seconds_a_measurement": 0.05 * every})


@pytest.fixture
def paper(tmp_path):
    """Two steps on poisson2d_small from three seeds, one of them on another case that failed."""
    suite = suite_of("paper")
    make(tmp_path, suite, ())
    jobs = jobs_of(suite, tmp_path, ["kfac", "adam"], [0, 1, 2], ["poisson2d_small"])
    histories = [
        [0.5, 1e-3, 5e-4, 2e-5, 4e-8],
        [0.5, 2e-3, 9e-4, 3e-6, 1e-8],
        [0.5, 5e-4, 2e-3, 5e-4, 9e-8],
        [0.5, 0.4],
        [0.5, 0.3],
    ]
    for job, errors in zip(jobs[:5], histories, strict=True):
        stored(job, errors)
    stored(jobs[5], [0.5, 0.2], status=None)
    for job in jobs_of(suite, tmp_path, ["kfac"], [0, 1], ["heat1d_big"]):
        stored(job, [0.5, 1.9e-8], status="finished" if job.seed else "failed")
    return tmp_path


def test_medians_spread_and_times_are_those_by_hand(paper):
    adam, kfac, heat = read_report(suite_of("paper"), paper).entries
    assert (kfac.case.name, kfac.step, adam.step) == ("poisson2d_small", "kfac", "adam")
    assert kfac.error == 4e-8 and kfac.errors == [1e-8, 4e-8, 9e-8]
    assert [kfac.median(name) for name in ("steps", "seconds", "parameters")] == [50, 5.0, 65]
    assert kfac.reached(1e-3) == (2.0, 20)  # 2, 3 and 2 seconds; at most counts
    assert kfac.reached(1e-4) == (4.0, 40)  # 4, 4 and 5
    assert kfac.reached(1e-5) == (5.0, 50)  # 5, 4 and 5
    assert kfac.reached(1e-7) == (5.0, 50)
    assert kfac.reached(1e-8) is None  # one of three gets there
    assert kfac.peak_memory == 2**20 * 102
    assert kfac.measuring == pytest.approx(0.05)
    assert kfac.lower == [True] and kfac.goal == 6e-8 and kfac.goal_met
    # Of two seeds that have ended, the median is the mean; the unfinished third one says nothing.
    assert adam.error == pytest.approx(0.35) and len(adam.outcomes) == 3 and len(adam.counted) == 2
    assert adam.lower == [False] and adam.goal_met is False and adam.reached(1e-3) is None
    # A failed job is infinitely wrong.
    assert heat.errors == [1.9e-8] and heat.error is None
    assert heat.lower == [False] and heat.reached(1e-3) is None


def test_the_median_counts_what_is_missing_as_infinite():
    assert middle([]) is None and middle([None]) is None
    assert middle([3.0, None, 1.0]) == 3.0 and middle([None, None, 1.0]) is None
    assert middle([1.0, None]) is None and middle([4.0, 1.0]) == 2.5


def test_tables_say_what_was_missed_and_why(paper):
    report = read_report(suite_of("paper"), paper)
    console = Console(width=200, record=True, file=io.StringIO())
    show(report, console)
    text = console.export_text()
    for line in (
        "kfac: lower than the best published error on 1 of 2 cases; not on heat1d_big",
        "kfac: goal met on 1 of 2 cases; not on heat1d_big",
        "adam: goal met on 0 of 1 case; not on poisson2d_small",
        "kfac on heat1d_big, seed 0: failed: no memory is left",
        "adam on poisson2d_small, seed 2: unfinished",
        "at most 5.0 % of them",
        "threads: 1",
        "2.0 (20)",
        "ENGD layer-wise, 1000 s",
        "1.0e-08 – 9.0e-08",
    ):
        assert line in text, line
    cells = {column.header: column.cells for column in main_columns(report.entries)}
    assert "newer" not in cells  # no case has such a figure
    assert list(cells["lower"]) == ["no", "yes", "no"]
    assert len(verdicts(report)) == 4 and any("medians" in line for line in notes(report))


def test_records_without_seconds_are_left_out_and_told_of(paper):
    metrics = paper / "poisson2d_small/kfac/0/metrics.jsonl"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:3], '{"step": 40, "rms_error": 1e-9}', lines[4], ""]))
    (paper / "poisson2d_small/kfac/1/measured.json").write_text('{"peak_memory": 1}')
    report = read_report(suite_of("paper"), paper)
    (told,) = [line for line in notes(report) if "left out" in line]
    assert told.startswith(f"{metrics}, line 4: damaged")
    job = next(j for j in as_dict(report)["jobs"] if (j["step"], j["seed"]) == ("kfac", 0))
    assert job["history"]["step"] == [10, 20, 30, 50]
    write_results(report)


def test_what_is_written_can_be_read_back(paper):
    report = read_report(suite_of("paper"), paper)
    write_results(report)
    write_pictures(report)
    read = json.loads((paper / "results.json").read_text())
    assert read["measure"] == "rms_error" and len(read["jobs"]) == 8
    first = next(j for j in read["jobs"] if (j["step"], j["seed"]) == ("kfac", 0))
    assert first["history"]["rms_error"] == [0.5, 1e-3, 5e-4, 2e-5, 4e-8]
    assert first["history"]["step"] == [10, 20, 30, 40, 50]
    assert first["budget"] == 300 and "net.widths=[64]" in first["settings"]
    assert first["versions"] == {"pinnkfac": "1"} and first["peak_memory"] == 2**20 * 100
    assert read["published"]["heat1d_big"][0]["source"]["where"] == "arXiv:2405.15603"
    with open(paper / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert float(rows[1]["error"]) == 4e-8 and float(rows[1]["seconds_to_1e-04"]) == 4.0
    assert rows[1]["lower_than_published"] == "True" and rows[2]["error"] == ""
    text = as_markdown(report)
    assert "| poisson2d_small | kfac | 65 | 50 | 5.0 | 102 | 4.0e-08 |" in text
    assert "one RTX 6000 (24 GiB), float64" in text and "error_over_steps.png" in text
    assert "KFAC\\*" in text  # no emphasis
    for name in ("error_over_seconds.png", "error_over_steps.png"):
        assert (paper / name).stat().st_size < 200_000
        assert Image.open(paper / name).width > 600


def test_numbers_that_are_not_finite_are_null(tmp_path):
    suite = suite_of("smoke")
    make(tmp_path, suite, ())
    (job,) = jobs_of(suite, tmp_path, ["sgd"], [0], ["heat1d_tiny"])
    stored(job, [0.5, math.nan, None], status="diverged")
    report = read_report(suite, tmp_path)
    json.dumps(as_dict(report), allow_nan=False)
    assert flat(report.entries[0])["error"] is None
    assert draw(report, "step").axes


def test_published_lines_and_one_line_a_step(paper):
    report = read_report(suite_of("paper"), paper)
    picture = draw(report, "seconds")
    small, big = (a for a in picture.axes if a.get_title())
    assert small.get_title() == "poisson2d_small" and big.get_title() == "heat1d_big"
    dashed = [line for line in small.lines if len(set(line.get_ydata())) == 1]
    assert [line.get_ydata()[0] for line in dashed] == [6.125e-08]
    assert len(small.lines) == 1 + 3 + 3  # an unfinished job has a line too
    thick = [line for line in small.lines if line.get_linewidth() > 1.5]
    assert [line.get_ydata()[-1] for line in thick] == [0.4, 4e-8]
    assert "ENGD layer-wise, 1000 s: 6.1e-08" in [text.get_text() for text in small.texts]


# -- folders and settings --------------------------------------------------------------------------
def test_settings_of_a_job_are_those_of_its_case_and_the_users(tmp_path):
    jobs = jobs_of(
        suite_of("paper"), tmp_path, ["kfac", "kfac"], [1], ["heat1d_big"], None, ["threads=1"]
    )
    (job,) = jobs
    assert job.folder == tmp_path / "heat1d_big" / "kfac" / "1"
    config = compose(job.case.pde, {}, job.settings)
    assert (config.choices.step, config.seed, config.threads) == ("kfac", 1, 1)
    assert (config.stop.seconds, config.run.error_points) == (600, 9000)
    assert not config.run.plot
    (short,) = jobs_of(suite_of("paper"), tmp_path, ["kfac"], [1], ["heat1d_big"], 7.0)
    assert "stop.seconds=7" in short.settings
    assert len(jobs_of(suite_of("paper"), tmp_path, ["kfac", "adam"], [0, 1])) == 15 * 4


def test_a_folder_of_another_benchmark_is_refused(tmp_path):
    smoke, root = suite_of("smoke"), tmp_path / "b"
    assert is_new(root, smoke, ())
    make(root, smoke, ["threads=1"])
    assert not is_new(root, smoke, ["threads=1"])
    for suite, overrides, culprit in (
        (smoke, (), "holds jobs with threads=1"),
        (suite_of("paper"), ["threads=1"], "suite smoke, not paper"),
    ):
        with pytest.raises(UserError, match=culprit):
            is_new(root, suite, overrides)
    (root / "bench.json").write_text('{"format": 99}')
    with pytest.raises(UserError, match="format 99"):
        is_new(root, smoke, ())
    (root / "bench.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        is_new(root, smoke, ())


def test_one_process_at_a_time_runs_jobs(tmp_path):
    with locked(tmp_path):
        code = "import sys; from pathlib import Path; from pinnkfac.bench.folder import locked\n"
        code += "with locked(Path(sys.argv[1])): pass"
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True
        )
    assert "another process is running jobs" in done.stderr


@pytest.mark.parametrize(
    ("status", "complete"),
    [("finished", True), ("diverged", True), ("failed", False), ("interrupted", False),
     (None, False)],
)  # fmt: skip
def test_only_jobs_that_ended_by_themselves_are_complete(tmp_path, status, complete):
    (job,) = jobs_of(suite_of("smoke"), tmp_path, ["adam"], [0], ["heat1d_tiny"])
    assert not is_complete(job)
    stored(job, [0.5], status=status)
    assert is_complete(job) is complete


def test_a_result_of_another_time_is_not_thrown_away(tmp_path):
    before, now = (
        jobs_of(suite_of("smoke"), tmp_path, ["adam"], [0], ["heat1d_tiny"], s)[0] for s in (2, 1)
    )
    stored(before, [0.5])
    with pytest.raises(UserError, match=r"finished job with stop\.seconds=2"):
        run_jobs([now], "rms_error")
    assert (before.folder / "summary.json").is_file()


# -- the record ------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def record():
    return experiment("results")


def test_the_record_tells_all_seeds_where_cases_have_unequal_numbers(paper, record):
    report = read_report(suite_of("paper"), paper)
    assert record.seeds(report) == [
        "adam on poisson2d_small: 4.0e-01 with seed 0, 3.0e-01 with seed 1",
        "kfac on poisson2d_small: 4.0e-08 with seed 0, 1.0e-08 with seed 1, 9.0e-08 with seed 2",
        "kfac on heat1d_big: failed with seed 0, 1.9e-08 with seed 1",
        "the others have one seed at most; with the first seed alone, the goal is met on 1 of 3 "
        "cases",
    ]
    equal = replace(report, entries=report.entries[1:2])
    assert record.seeds(equal) == []


def test_the_record_says_what_limits_a_miss_in_the_time_of_its_case(paper, record, monkeypatch):
    report = read_report(suite_of("paper"), paper)
    assert record.limits(report) == []  # it has no words for these cases
    monkeypatch.setattr(record, "LIMITS", {"poisson2d_small": "why"})
    assert record.limits(report) == ["poisson2d_small: why"]  # of adam; kfac met its goal
    jobs = [replace(o, budget=5.0) for o in report.entries[0].outcomes]
    shorter = replace(report, entries=[replace(report.entries[0], outcomes=tuple(jobs))])
    assert record.limits(shorter) == []


def test_the_record_is_made_of_what_is_there(paper, tmp_path, record, monkeypatch, capsys):
    folder = tmp_path / "bench"
    folder.mkdir()
    paper_folder = folder / "paper"
    shutil.copytree(paper, paper_folder, ignore=lambda *_: ["bench"])
    (folder / "step_rate.txt").write_text("a table\n")

    def make(*words):
        monkeypatch.setattr(sys, "argv", ["results.py", "--folder", str(folder), *words])
        return record.main()

    out = tmp_path / "pages" / "page.md"
    assert make("--report", "--out", str(out)) == 0
    page = out.read_text()
    assert page.startswith("# Results\n\nMade by `python experiments/results.py`;")
    assert "\n* kfac: goal met on 1 of 2 cases; not on heat1d_big\n" in page
    assert "```text\na table\n```" in page and "## What a step costs" not in page
    assert "![Errors over seconds](results_paper.png)" in page
    assert {file.name for file in out.parent.iterdir()} == {"page.md", "results_paper.png"}
    told = capsys.readouterr().out
    assert f"left out, as {folder / 'problems'} is missing: problems" in told
    assert f"left out, as {folder / 'kernel_cost.txt'} is missing: What a step costs" in told
    for words, message in (
        (["--report", "threads=2"], "--report is of all jobs in the folder"),
        (["--report", "--out", str(tmp_path)], "that is a folder"),
        (["--report", "--folder", str(tmp_path / "none")], "there is no benchmark in it"),
        (["threads=2", "--out", str(out)], "holds jobs with no overrides"),
    ):
        with pytest.raises(UserError, match=message):
            make(*words)
    assert out.read_text() == page


# -- the real command ------------------------------------------------------------------------------
SETTINGS = ["--seconds", "0.3", "threads=1", "--folder", "runs"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """The smoke suite with the cheapest step, and what was printed."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, command(["smoke", "--step", "adam", *SETTINGS], folder)


def test_the_smoke_suite_runs_from_end_to_end(smoke):
    folder, done = smoke
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  finished: ") == 2
    names = {path.name for path in (folder / "runs").iterdir() if path.is_file()}
    pictures = {"error_over_seconds.png", "error_over_steps.png"}
    assert {"results.json", "results.csv", "results.md", "bench.json"} | pictures <= names
    read = results(folder)
    assert [(j["case"], j["step"], j["seed"], j["status"]) for j in read["jobs"]] == [
        ("poisson2d_tiny", "adam", 0, "finished"),
        ("heat1d_tiny", "adam", 0, "finished"),
    ]
    for job in read["jobs"]:
        assert job["peak_memory"] > 50 * 2**20 and 0 < job["share_measuring"] < 1
        assert 0.3 <= job["seconds"] < 3 and job["threads"] == 1
        errors = job["history"]["relative_l2_error"]
        assert len(errors) > 3 and errors[-1] == job["relative_l2_error"]


def test_the_error_is_that_of_the_final_net_on_points_of_its_own(smoke):
    folder = smoke[0] / "runs/heat1d_tiny/adam/0"
    summary = json.loads((folder / "summary.json").read_text())
    case = suite_of("smoke").case("heat1d_tiny")
    meter = ErrorMeter(find(case.pde).problem({}), case.error_points)
    assert meter.points.shape == (case.error_points, 2)
    t, x = meter.points.T
    exact = torch.exp(-(math.pi**2) * t / 4) * torch.sin(math.pi * x)
    solution = Solution.load(folder)
    difference = solution(meter.points).squeeze(1) - exact
    assert summary["rms_error"] == pytest.approx(
        float(difference.square().mean().sqrt()), rel=1e-12
    )
    relative = float(difference.norm() / exact.norm())
    assert summary["relative_l2_error"] == pytest.approx(relative, rel=1e-12)


def test_jobs_that_finished_are_kept_and_one_that_fails_is_a_row(smoke, monkeypatch, capsys):
    """heat1d has three terms, and the inverse of kfac_published can do two."""
    folder, _ = smoke
    monkeypatch.chdir(folder)
    before = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/*/*")}
    steps = ["--case", "heat1d_tiny", "--step", "adam", "kfac_published"]
    assert main(["smoke", *steps, *SETTINGS]) == 1
    said = capsys.readouterr().out
    assert "job 2 of 2: heat1d_tiny, step kfac_published" in said
    assert said.count("(kept from before)") == 1
    assert "kfac_published on heat1d_tiny, seed 0: failed: step.inverse.terms=sum" in said
    assert {path: path.stat().st_mtime_ns for path in before} == before
    (row,) = [e for e in results(folder)["entries"] if e["step"] == "kfac_published"]
    assert row["error"] is None and row["goal_met"] is False
    assert len(results(folder)["jobs"]) == 3


def results(folder):
    return json.loads((folder / "runs/results.json").read_text())


def test_a_report_runs_nothing(smoke, monkeypatch, capsys):
    folder, _ = smoke
    monkeypatch.chdir(folder)
    (folder / "runs/results.md").unlink()
    failed = (folder / "runs/heat1d_tiny/kfac_published").exists()
    jobs = {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/*/*")}
    assert main(["smoke", "--report", "--folder", "runs"]) == int(failed)
    assert (folder / "runs/results.md").is_file()
    assert "job 1 of" not in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/*/*")} == jobs


def test_a_process_that_dies_is_a_row(tmp_path, monkeypatch, capfd):
    """As when the system ends it for want of memory."""
    suite = suite_of("smoke")
    make(tmp_path, suite, ())
    (job,) = jobs_of(suite, tmp_path, ["adam"], [0], ["heat1d_tiny"], 1.0)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    (tmp_path / "python").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "python").chmod(0o755)
    assert run_jobs([job], suite.measure) == ""
    assert "ended by SIGKILL: memory may have run out" in capfd.readouterr().out
    (entry,) = read_report(suite, tmp_path).entries
    assert entry.outcomes[0].row.status == "failed" and entry.error is None


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="signals of POSIX")
def test_ctrl_c_keeps_what_has_finished(tmp_path):
    words = ["smoke", "--step", "adam", "--seconds", "4", "threads=1", "--folder", "runs"]
    process = start("bench", *words, cwd=tmp_path)
    wait_for(tmp_path / "runs/heat1d_tiny/adam/0/metrics.jsonl", process)
    process.send_signal(signal.SIGINT)
    out, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "the same command goes on" in said
    first, second = (
        tmp_path / "runs" / case / "adam/0" for case in ("poisson2d_tiny", "heat1d_tiny")
    )
    assert json.loads((second / "summary.json").read_text())["status"] == "interrupted"
    assert "heat1d_tiny, seed 0: interrupted" in out
    before = (first / "summary.json").stat().st_mtime_ns
    done = command(words, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (first / "summary.json").stat().st_mtime_ns == before
    assert json.loads((second / "summary.json").read_text())["status"] == "finished"


# -- mistakes --------------------------------------------------------------------------------------
MISTAKES = [
    ("smok", "smok", "Did you mean 'smoke'?"),
    ("", "SUITE"),
    ("smoke --case heat1d_tin", "heat1d_tin", "Did you mean 'heat1d_tiny'?"),
    ("smoke --step kfak", "kfak", "Did you mean 'kfac'?"),
    ("smoke --seconds 0", "--seconds 0", "above 0"),
    ("smoke --seconds -3", "--seconds -3"),
    ("smoke --seconds nan", "--seconds nan"),
    ("smoke --seconds soon", "soon"),
    ("smoke --seed -1", "--seed -1"),
    ("smoke --seed x", "x"),
    ("smoke heat1d_tiny", "heat1d_tiny is no setting"),
    ("smoke --folder other", "other holds no benchmark"),
    ("smoke --folder other/file.txt", "file.txt holds no benchmark"),
    ("smoke --folder other/file.txt/deep", "deep"),
    ("smoke --report", "outputs/bench/smoke does not exist"),
    ("smoke --report --seed 1", "give --folder only"),
    ("smoke step=kfac", "step=kfac is given with --step"),
    ("smoke stop.seconds=3", "given with --seconds"),
    ("smoke net.widths=[3]", "net.widths=[3] would change poisson2d_tiny"),
    ("smoke pde.kappa=1", "pde.kappa=1 would change"),
    ("smoke dampin.start=1", "dampin.start", "Did you mean 'damping.start'?"),
    ("smoke damping.start=-1", "damping.start=-1"),
    ("smoke threads=1,2", "threads=1,2 has several values"),
]


@pytest.mark.parametrize(("words", "culprits"), [(m[0], m[1:]) for m in MISTAKES])
def test_a_mistake_ends_in_one_clear_line(words, culprits, tmp_path, monkeypatch, capsys):
    from pinnkfac.__main__ import main as whole_command

    monkeypatch.chdir(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file.txt").write_text("mine")
    assert whole_command(["bench", *words.split()]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    for culprit in culprits:
        assert culprit in said
    assert [p.name for p in tmp_path.rglob("*")] == ["other", "file.txt"], "something was written"


def test_a_mistake_in_a_process_of_its_own(tmp_path):
    done = command(["papr"], tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "Did you mean 'paper'?" in done.stderr and "Traceback" not in done.stderr


def test_help_has_an_example_and_needs_no_torch(tmp_path):
    code = (
        "import sys; from pinnkfac.__main__ import main; main(['bench', '--help']);"
        "print([m for m in ('torch', 'numpy', 'matplotlib', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "python -m pinnkfac bench smoke" in done.stdout and done.stdout.endswith("[]\n")
    assert all(suite in done.stdout for suite in SUITES)


def test_the_wheel_has_the_published_figures(tmp_path):
    pytest.importorskip("hatchling")
    import zipfile

    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=Path(__file__).parent.parent, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "pinnkfac/bench/published.csv" in zipfile.ZipFile(wheel).namelist()
