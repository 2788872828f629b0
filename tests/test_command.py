"""The command, run as a user runs it: in another process, from another folder."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
from processes import PATIENCE

QUICK = ("net.widths=[8]", "stop.steps=2", "threads=1", "run.plot=false")

PDE = """
from pinnkfac import Box, Problem, Term, lap

def plate(load: float = 1.0) -> Problem:
    box = Box(x=(0, 1), y=(0, 1))
    return Problem(
        fields=("u",),
        terms=[
            Term("plate", box.interior, lambda u, at: {residual}, points=20),
            Term("edge", box.boundary, lambda u, at: u, points=8),
        ],
    )
"""


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pinnkfac", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )


def write(folder: Path, residual: str = "lap(u) + load", name: str = "plate.py") -> Path:
    path = folder / name
    path.write_text(PDE.replace("{residual}", residual))
    return path


def test_a_bundled_problem_is_solved_from_an_empty_folder(tmp_path):
    done = command("solve", "poisson2d", *QUICK, "run.dir=here", "seed=5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "here/summary.json").read_text())
    assert summary["pde"] == "poisson2d"
    assert summary["step"] == "auto"
    assert summary["steps"] == 2
    assert summary["seed"] == 5
    assert "relative L2 error" in done.stdout


def test_a_name_without_dimension_is_the_smallest_problem(tmp_path):
    done = command("solve", "heat", *QUICK, "run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "r/summary.json").read_text())["pde"] == "heat1d"


def test_a_file_of_ones_own_with_an_argument(tmp_path):
    write(tmp_path)
    done = command("solve", "plate.py", *QUICK, "pde.load=3", "run.dir=r", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "load: 3" in (tmp_path / "r/config.yaml").read_text()
    done = command("solve", "plate.py:plate", *QUICK, "run.dir=s", cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_runs_without_a_folder_go_to_outputs(tmp_path):
    done = command("solve", "poisson2d", *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("outputs/poisson2d/*/summary.json"))) == 1


def test_a_multirun_gives_every_job_a_folder_and_goes_on_after_a_failure(tmp_path):
    done = command(
        "solve", "poisson2d", "-m", *QUICK, "seed=0,1", "net.activation=tanh,wrong",
        "run.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.count("net.activation=wrong is unknown") == 2
    summaries = [json.loads(p.read_text()) for p in tmp_path.glob("sweep/*/summary.json")]
    assert sorted(s["seed"] for s in summaries if s["status"] == "finished") == [0, 1]
    assert sum(s["status"] == "failed" for s in summaries) == 2


def test_a_sweep_over_steps_and_seeds_ends_with_a_table_of_all_jobs(tmp_path):
    """One of three steps fails in its jobs: they are rows like the others."""
    done = command(
        "solve", "heat1d", "-m", *QUICK, "step=kfac,adam,kfac_published", "seed=0,1",
        "run.dir=sweep", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1 and "Traceback" not in done.stderr
    with open(tmp_path / "sweep/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["step"], r["seed"]) for r in rows] == [
        (step, seed) for step in ("kfac", "adam", "kfac_published") for seed in "01"
    ]
    assert [r["status"] for r in rows] == ["finished"] * 4 + ["failed"] * 2
    assert all(float(r["error"]) > 0 and r["steps"] == "2" for r in rows[:4])
    assert "at most two terms" in rows[5]["message"]
    table = done.stdout[done.stdout.rindex("status") :]
    assert table.count("finished") == 4 and "warned: term" in table and "at most two terms" in table
    assert (tmp_path / "sweep/sweep.png").stat().st_size > 5000


def test_a_second_sweep_leaves_the_first_as_it_is(tmp_path):
    words = ("solve", "heat1d", "-m", *QUICK, "seed=0,1", "run.dir=sweep")
    assert command(*words, cwd=tmp_path).returncode == 0
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    done = command(*words, cwd=tmp_path)
    assert done.returncode == 2 and "holds 2 jobs of a sweep already" in done.stderr
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_value_out_of_range_stops_a_sweep_before_it_starts(tmp_path):
    done = command("solve", "heat1d", "-m", *QUICK, "step=kfac", "search.shrink=0.5,1.5",
                   cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2
    assert "in the sweep, search.shrink=1.5" in done.stderr and "below 1" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_sweep_of_one_pde_argument_is_a_sweep_of_problems(tmp_path):
    done = command(
        "solve", "heat1d", "-m", *QUICK, "pde.kappa=0.1,0.2", "run.dir=sweep", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    for number, kappa in enumerate(("0.1", "0.2")):
        assert f"kappa: {kappa}" in (tmp_path / f"sweep/{number}/config.yaml").read_text()


def test_parallel_starts_never_share_a_folder(tmp_path):
    """Three at once without a folder get three; of two with the same one, one is refused."""
    words = [sys.executable, "-m", "pinnkfac", "solve", "poisson2d", *QUICK]
    starts = [words] * 3 + [[*words, "run.dir=same"]] * 2
    running = [
        subprocess.Popen(w, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for w in starts
    ]
    ends = [(*process.communicate(timeout=PATIENCE), process.returncode) for process in running]
    assert [code for *_, code in ends[:3]] == [0, 0, 0]
    assert len(list(tmp_path.glob("outputs/poisson2d/*/summary.json"))) == 3
    assert sorted(code for *_, code in ends[3:]) == [0, 2]
    refused = next(err for _, err, code in ends[3:] if code)
    assert "same" in refused and ("holds a" in refused or "another process" in refused)


def test_the_printed_configuration_starts_nothing(tmp_path):
    done = command("solve", "heat1d", "--cfg", "job", "pde.kappa=0.7", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "kappa: 0.7" in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_run_goes_on_by_command(tmp_path):
    assert command("solve", "poisson2d", *QUICK, "run.dir=r", cwd=tmp_path).returncode == 0
    done = command("resume", "r", "stop.steps=4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "resumed poisson2d at step 2" in done.stdout and "4 steps done" in done.stdout


def test_debug_shows_where_a_mistake_happened(tmp_path):
    done = command("solve", "heat1d", *QUICK, "step=kfac_published", "debug=true", cwd=tmp_path)
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "at most two terms" in done.stderr


def test_every_command_has_help_with_an_example_at_once(tmp_path):
    from pinnkfac.__main__ import COMMANDS

    for name in COMMANDS:
        loaded = (
            "import sys; from pinnkfac.__main__ import main; code = main(sys.argv[1:]);"
            "print([m for m in ('torch', 'matplotlib', 'hydra') if m in sys.modules])"
            " or sys.exit(code)"
        )
        done = subprocess.run(
            [sys.executable, "-c", loaded, name, "--help"],
            cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"python -m pinnkfac {name}" in done.stdout and "example" in done.stdout
        assert done.stdout.splitlines()[-1] == "[]"


def test_list_says_what_there_is(tmp_path):
    done = command("list", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("poisson100d", "kovasznay", "kfac_star", "backtracking", "levenberg_marquardt"):
        assert word in done.stdout


@pytest.mark.parametrize(
    ("residual", "culprit"),
    [
        ("u.z", "'.z'"),
        ("lap(u) + at.z", "at.z"),
        ("(at.x * u.x).x", "product rule"),
        ("u if u > 0 else -u", "torch.where"),
        ("u if at.x > 0.5 else -u", "torch.where"),
        ("lap(u) > 0", "dtype"),
        ("[[u.x]] * 0", "returned nothing"),
        ("lap(u).reshape(1)", "term 'plate'"),
        ("at.x", "does not depend on any field"),
        ("u / 0", "zero"),
        ("lap(u, 2)", "argument"),
        ("u.x + dot", "dot"),
        ("u.x + at.normal", "normal"),
        ("__import__('math').sin(u)", "torch.sin"),
    ],
)
def test_a_mistake_in_a_residual_names_the_term_and_leaves_no_traceback(
    tmp_path, residual, culprit
):
    write(tmp_path, residual)
    done = command("solve", "plate.py", *QUICK, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert "term 'plate'" in done.stderr
    assert culprit in done.stderr
