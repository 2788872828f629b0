"""Rows of sweeps and runs, their tables, and the commands plot and compare."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import pinnkfac.plots
from pinnkfac import Box, UserError, solve
from pinnkfac.commands.compare import main as compare
from pinnkfac.commands.plot import main as plot
from pinnkfac.compare.rows import Row, rows
from pinnkfac.compare.runs import Compared, notes, seconds_to
from pinnkfac.compare.sweep import finish_sweep, show, write_rows
from pinnkfac.config.compose import compose
from pinnkfac.problem.signature import Signature
from pinnkfac.store.run_folder import RunFolder

PDE = """
from torch import exp, sin
from pinnkfac import Box, Problem, Term, lap

def decay(kappa: float = 0.5) -> Problem:
    box = Box(t=(0, 1), x=(0, 3))
    return Problem(
        fields=("u",),
        terms=[Term("heat", box.interior, lambda u, at: u.t - kappa * lap(u), points=20)],
        solution=lambda at: exp(-kappa * at.t) * sin(at.x),
    )
"""


def history(errors, seconds=1.0):
    return [
        {
            "step": k + 1,
            "seconds": seconds * (k + 1),
            "loss": 1e-3,
            "losses": {"heat": 1e-3},
            "relative_l2_error": error,
        }
        for k, error in enumerate(errors)
    ]


def stored(path, errors=(0.5, 1e-3), *, name="heat", status="finished", overrides=(), pde=None):
    """The folder of a run, as solve writes it, without its net; no summary for status None."""
    config = compose(name, pde or {}, list(overrides))
    with RunFolder(path) as folder:
        folder.write_config(config)
        folder.write_problem(name, None, Signature(("u",), Box(x=(0, 1))), [])
        for record in history(errors):
            folder.append_metrics(record)
        if status:
            summary = {"pde": name, "status": status, "stop_reason": "time is up"}
            summary |= {"overrides": list(overrides), "step": config.choices.step}
            summary |= {"relative_l2_error": errors[-1], "rms_error": 0.5, "loss": 1e-3}
            summary |= {"seconds": float(len(errors)), "steps": len(errors)}
            summary |= {"parameters": 337, "seed": config.seed}
            folder.write_summary(summary)
    return path


def failed(path, message, overrides):
    with RunFolder(path) as folder:
        summary = {"pde": "heat", "status": "failed", "stop_reason": message}
        folder.write_summary({**summary, "overrides": list(overrides)})


@pytest.fixture
def sweep(tmp_path):
    """Six jobs: two finished, one failed, one that was killed, two with damaged summaries."""
    path = tmp_path / "sweep"
    own = [
        [f"step={step}", f"seed={seed}", "threads=1"]
        for step in ("kfac", "adam")
        for seed in (0, 1)
    ]
    stored(path / "0", (0.5, 1e-3), overrides=own[0])
    stored(path / "1", (0.5, 1e-5), overrides=own[1])
    failed(path / "2", "net.widths=[0]: a width is at least 1", own[2])
    stored(path / "3", (0.5, 0.25), status=None, overrides=own[3])
    stored(path / "10", overrides=["step=sgd", "seed=0"])
    (path / "10" / "summary.json").write_text('{"status": "finished", "loss": "small"}')
    (path / "11").mkdir()
    (path / "11" / "summary.json").write_text('{"status"')
    return path


def table_of(read, width=80):
    console = Console(file=io.StringIO(), width=width)
    show(read, console)
    return console.file.getvalue().splitlines()


# -- rows ------------------------------------------------------------------------------------------
def test_rows_are_the_jobs_in_the_order_of_their_numbers(sweep):
    read = rows(sweep)
    assert [row.folder.name for row in read] == ["0", "1", "2", "3", "10", "11"]
    assert [row.status for row in read] == [
        "finished",
        "finished",
        "failed",
        "unfinished",
        "unreadable",
        "unreadable",
    ]
    first, _, third = read[:3]
    assert first == Row(
        "step=kfac seed=0",
        sweep / "0",
        "finished",
        "time is up",
        {"step": "kfac", "seed": "0", "threads": "1"},
        "heat",
        "kfac",
        1e-3,
        0.5,
        1e-3,
        2.0,
        2,
        337,
        0,
    )
    assert (third.message, third.error) == ("net.widths=[0]: a width is at least 1", None)
    assert "loss is 'small'" in read[4].message
    assert "summary.json is damaged" in read[5].message


def test_a_job_without_a_summary_is_labelled_from_its_configuration(sweep):
    killed = rows(sweep)[3]
    assert killed.label == "step=adam seed=1"
    assert killed.overrides == {"step": "adam", "seed": "1"}
    (sweep / "3" / "config.yaml").write_text("a: [")
    assert rows(sweep)[3].label == "3"


def test_an_interrupted_sweep_shows_what_it_was_to_vary(tmp_path, capsys):
    """One job has run, so that nothing differs yet."""
    path = tmp_path / "sweep"
    stored(path / "0", status="interrupted", overrides=["step=kfac", "seed=0", "threads=1"])
    (path / "multirun.yaml").write_text(
        "hydra: {overrides: {task: ['step=kfac,adam', 'seed=range(0,2)', 'threads=1']}}\n"
    )
    (row,) = rows(path)
    assert row.label == "step=kfac seed=0"
    finish_sweep(path)
    header, line = (text.split() for text in capsys.readouterr().out.splitlines()[:3:2])
    assert header[:4] == ["job", "step", "seed", "status"]
    assert line[:4] == ["0", "kfac", "0", "interrupted"]
    (path / "multirun.yaml").write_text("hydra: [")
    assert rows(path)[0].label == "0"


def test_several_folders_are_told_apart_and_come_once(sweep, tmp_path):
    one = stored(tmp_path / "x" / "run")
    two = stored(tmp_path / "y" / "run")
    labels = [row.label for row in rows([one, two, one, sweep])]
    jobs = f"{tmp_path.name}/sweep"
    assert labels[:3] == ["x/run", "y/run", f"{jobs}/0 step=kfac seed=0"]
    assert labels[-1] == f"{jobs}/11"
    assert len(set(labels)) == len(labels) == 8
    assert [row.label for row in rows([one, sweep / "0"])] == ["x/run", "sweep/0"]
    assert len(rows([one, tmp_path / "y" / ".." / "x" / "run"])) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [("nowhere", "nowhere: there is no such folder"), ("empty", "empty holds no run of pinnkfac")],
)
def test_a_folder_that_holds_nothing_is_said(tmp_path, name, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message):
        rows(tmp_path / name)


# -- tables ----------------------------------------------------------------------------------------
def test_the_table_shows_what_was_swept_and_why_jobs_failed(sweep):
    lines = table_of(rows(sweep))
    header = lines[0].split()
    assert header == ["job", "step", "seed", "status", "error", "loss", "seconds", "steps"]
    assert lines[2].split() == ["0", "kfac", "0", "finished", "1.0e-03", "1.0e-03", "2.0", "2"]
    assert lines[4].split() == ["2", "adam", "0", "failed", "-", "-", "-", "-"]
    assert lines[5].split() == ["3", "adam", "1", "unfinished", "-", "-", "-", "-"]
    assert "job 2 failed: net.widths=[0]: a width is at least 1" in lines
    assert all(len(line.rstrip()) <= 80 for line in lines)


def test_jobs_with_the_same_message_share_a_line():
    read = [Row("", Path(i), "failed", "no room " * 40, {"a": i}) for i in ("0", "1")]
    text = " ".join(" ".join(table_of(read)).split())
    assert "jobs 0, 1 failed: no room no room" in text
    assert text.endswith("…")
    assert text.count("no room") < 20


def test_a_wide_table_keeps_all_digits_in_a_file(sweep, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    show(rows(sweep))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "kfac", "0", "finished", "1.0e-03", "1.0e-03", "2.0", "2"] in lines


def test_the_csv_holds_all_jobs_and_every_column_once(sweep, tmp_path):
    read = rows(sweep)
    path = write_rows(read, tmp_path / "table.csv", {"extra": [1.5, None, None, None, None, 2]})
    with open(path, newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 6
    names = path.read_text().splitlines()[0].split(",")
    assert len(names) == len(set(names))
    assert names[:5] == ["label", "folder", "step", "seed", "threads"]
    assert lines[1]["error"] == repr(1e-5)
    assert (lines[2]["status"], lines[2]["error"]) == ("failed", "")
    assert lines[2]["message"] == "net.widths=[0]: a width is at least 1"
    assert (lines[3]["step"], lines[3]["seed"]) == ("adam", "1")
    assert [line["extra"] for line in lines] == ["1.5", "", "", "", "", "2"]
    with pytest.raises(UserError, match="nowhere"):
        write_rows(read, tmp_path / "nowhere" / "table.csv")


def test_a_sweep_ends_with_its_table_and_picture(sweep, capsys):
    read = finish_sweep(sweep)
    assert [row.status for row in read].count("finished") == 2
    printed = capsys.readouterr().out
    assert "job 2 failed" in printed
    assert str(sweep / "sweep.csv") in printed
    assert len((sweep / "sweep.csv").read_text().splitlines()) == 7
    with Image.open(sweep / "sweep.png") as picture:
        assert picture.format == "PNG"


# -- compare ---------------------------------------------------------------------------------------
def test_seconds_to_an_error_are_those_of_the_first_record_below_it():
    records = history([None, 0.5, 1e-2, 0.2, 1e-4], seconds=0.5)
    assert seconds_to(records, 1e-2) == 1.5
    assert seconds_to(records, 1e-3) == 2.5
    assert seconds_to(records, 1e-6) is None
    assert seconds_to([{"step": 1}], 1e-2) is None
    assert seconds_to([{**record, "window": 1} for record in records], 1e-2) is None


def test_runs_are_compared_in_a_table_and_a_picture(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stored(tmp_path / "one", (0.5, 1e-3, 1e-5), overrides=["step=kfac"])
    stored(tmp_path / "two", (0.5, 0.4, 1e-2), overrides=["step=adam"])
    drawn = {}
    monkeypatch.setattr(
        pinnkfac.plots, "draw_comparison", lambda curves: drawn.update(curves) or figure()
    )
    assert compare(["one", "two", "--csv", "table.csv"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "all runs: pde heat, 337 parameters"
    start = next(i for i, line in enumerate(printed) if line.startswith("run"))
    header = ["run", "step", "error", "loss", "seconds", "steps", "1e-02", "1e-04"]
    assert printed[start].split() == header
    cells = ["one", "kfac", "1.0e-05", "1.0e-03", "3.0", "3", "2.0", "3.0"]
    assert printed[start + 2].split() == cells
    cells = ["two", "adam", "1.0e-02", "1.0e-03", "3.0", "3", "3.0", "-"]
    assert printed[start + 3].split() == cells
    assert printed[-2:] == ["table.csv", "compare.png"]
    assert {name: len(records) for name, records in drawn.items()} == {"one": 3, "two": 3}
    with open("table.csv", newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["seconds_to_1e-04"] for line in lines] == ["3.0", ""]


def figure():
    from pinnkfac.plots import draw_history

    return draw_history([], "")


def test_a_sweep_stands_for_its_jobs_and_a_killed_run_for_its_last_record(sweep, capsys, tmp_path):
    assert compare([str(sweep), "--output", str(tmp_path / "c.pdf")]) == 0
    out = capsys.readouterr().out
    assert (tmp_path / "c.pdf").read_bytes().startswith(b"%PDF")
    killed = next(line for line in out.splitlines() if "step=adam seed=1" in line)
    assert killed.split()[-6:-2] == ["2.5e-01", "1.0e-03", "2.0", "2"]
    assert (
        "337 parameters" not in out
    )  # the configured net is another one than that of the summaries
    assert killed.split()[-7] == "9809"
    joined = " ".join(out.split())
    assert "step=adam seed=0 failed: net.widths=[0]: a width is at least 1" in joined
    assert "step=adam seed=1 unfinished" in joined


def test_long_labels_are_numbered(tmp_path, capsys):
    names = [f"a_folder_with_a_rather_long_name_for_a_table_of_eighty_columns_{i}" for i in "ab"]
    for name in names:
        stored(tmp_path / name)
    arguments = [*(str(tmp_path / name) for name in names), "--output", str(tmp_path / "c.png")]
    assert compare(arguments) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"run 1: {names[0]}", f"run 2: {names[1]}"]
    assert [line.split()[0] for line in printed if line.startswith(("1 ", "2 "))] == ["1", "2"]
    assert all(len(line) <= 80 for line in printed[2:-1])


def test_differences_of_the_problem_are_said():
    def run(name, kappa):
        row = Row(name, None, "finished", pde=name)  # type: ignore[arg-type]
        return Compared(row, history([0.1]), {"kappa": kappa, "speed": 1})

    assert notes([run("heat", 0.1), run("heat", 0.1)]) == []
    assert notes([run("heat", 0.1), run("heat", 0.25)]) == [
        "note: the runs of heat differ in pde.kappa (0.1, 0.25)"
    ]
    (note,) = notes([run("heat", 0.1), run("wave", 0.25)])
    assert "different problems (heat, wave)" in note


def test_a_run_with_damaged_records_keeps_its_row(tmp_path, capsys):
    stored(tmp_path / "good")
    stored(tmp_path / "bad")
    (tmp_path / "bad" / "metrics.jsonl").write_text("no record\n{}\n")
    arguments = [str(tmp_path / "good"), str(tmp_path / "bad")]
    assert compare([*arguments, "--output", str(tmp_path / "c.png")]) == 0
    out, err = capsys.readouterr()
    assert "bad" in out and "Traceback" not in err


def test_without_any_record_there_is_no_picture(tmp_path, capsys):
    failed(tmp_path / "0", "no such net", [])
    assert compare([str(tmp_path / "0"), "--output", str(tmp_path / "c.png")]) == 0
    out, err = capsys.readouterr()
    assert f"run {tmp_path.name}/0 failed: no such net" in " ".join(out.split())
    assert "no picture" in err
    assert not (tmp_path / "c.png").exists()


# -- plot ------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two steps, with its PDE file beside it."""
    home = tmp_path_factory.mktemp("run")
    (home / "decay.py").write_text(PDE)
    settings = ("stop.steps=2", "net.widths=[8]", "threads=1", "run.plot=false", "pde.kappa=0.25")
    solve(str(home / "decay.py"), *settings, folder=home / "run")
    return home / "run"


def drawn_with(monkeypatch, name):
    """The arguments of the calls of a function of pinnkfac.plots, which goes on working."""
    calls, real = [], getattr(pinnkfac.plots, name)

    def watched(*arguments):
        calls.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(pinnkfac.plots, name, watched)
    return calls


def test_plot_draws_a_stored_run_with_its_exact_solution(run, tmp_path, capsys, monkeypatch):
    calls = drawn_with(monkeypatch, "draw_solution")
    assert plot([str(run), "--output", str(tmp_path / "new" / "folder")]) == 0
    names = ["history.png", "solution.png"]
    assert capsys.readouterr().out.split() == [str(tmp_path / "new" / "folder" / n) for n in names]
    assert sorted(p.name for p in (tmp_path / "new" / "folder").iterdir()) == names
    ((_, exact),) = calls
    points = torch.tensor([[0.5, 1.0], [1.0, 2.0]], dtype=torch.float64)
    expected = np.exp(-0.25 * np.array([0.5, 1.0])) * np.sin([1.0, 2.0])
    assert np.allclose(exact(points)[:, 0], expected, rtol=1e-12)


def test_plot_chooses_checkpoint_format_and_animation(run, tmp_path, capsys, monkeypatch):
    calls = drawn_with(monkeypatch, "draw_solution")
    run = shutil.copytree(run, tmp_path / "copy")
    best = torch.load(run / "best.pt", weights_only=True)
    best["net"] = {name: 2 * value for name, value in best["net"].items()}
    torch.save(best, run / "best.pt")
    arguments = ["--animate", str(run), "--output", str(tmp_path), "--checkpoint", "best"]
    quick = partial(pinnkfac.plots.animate, frames=2)
    monkeypatch.setattr(pinnkfac.plots, "animate", quick)
    assert plot([*arguments, "--format", "svg"]) == 0
    assert [p.rsplit("/")[-1] for p in capsys.readouterr().out.split()] == [
        "history.svg",
        "solution.svg",
        "solution.gif",
    ]
    ((solution, _),) = calls
    loaded = solution.net.state_dict()
    assert loaded.keys() == best["net"].keys()
    assert all(torch.equal(loaded[name], value) for name, value in best["net"].items())


def test_plot_without_the_pde_file_says_so(run, tmp_path, capsys, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    problem = json.loads((copy / "problem.json").read_text())
    problem["file"] = str(tmp_path / "gone.py")
    (copy / "problem.json").write_text(json.dumps(problem))
    calls = drawn_with(monkeypatch, "draw_solution")
    assert plot([str(copy)]) == 0
    assert (copy / "solution.png").exists()
    assert calls[0][1] is None
    err = capsys.readouterr().err
    assert "note: drawn without the exact solution" in err
    assert "gone.py" in err


def test_plot_draws_the_history_of_a_run_whose_net_is_missing(tmp_path):
    stored(tmp_path / "run")
    with pytest.raises(UserError, match=r"checkpoint\.pt"):
        plot([str(tmp_path / "run")])
    assert (tmp_path / "run" / "history.png").exists()


def test_plot_draws_a_sweep(sweep, capsys):
    assert plot([str(sweep), "--format", "pdf"]) == 0
    assert capsys.readouterr().out.split() == [str(sweep / "sweep.pdf")]
    with pytest.raises(UserError, match="is a sweep: give one of its runs"):
        plot([str(sweep), "--animate"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: there is no such folder"),
        (["."], "holds no run"),
        ([".", "--format", "jpg"], "invalid choice: 'jpg'"),
        (["--animate", "avi"], "invalid choice: 'avi'"),
        ([], "RUN_FOLDER"),
    ],
)
def test_mistakes_in_plot_are_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message):
        plot(arguments)


def test_compare_refuses_another_ending_before_it_reads(tmp_path):
    with pytest.raises(UserError, match=r"c\.jpg has the ending '\.jpg'"):
        compare([str(tmp_path), "--output", "c.jpg"])


@pytest.mark.parametrize("command", ["plot", "compare"])
def test_help_answers_without_torch(command):
    code = (
        f"import sys; from pinnkfac.__main__ import main; main(['{command}', '--help']); "
        "print([m for m in ('torch', 'matplotlib', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert f"python -m pinnkfac {command}" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
