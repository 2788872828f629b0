"""The command, run as a user runs it: in another process, from another folder."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
        timeout=120,
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
    assert summary["step"] == "kfac_cg"
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
    summaries = sorted(tmp_path.glob("sweep/*/summary.json"))
    assert sorted(json.loads(p.read_text())["seed"] for p in summaries) == [0, 1]


def test_list_and_help_say_what_there_is(tmp_path):
    done = command("list", cwd=tmp_path)
    assert done.returncode == 0
    for word in ("poisson100d", "kovasznay", "kfac_star", "backtracking", "levenberg_marquardt"):
        assert word in done.stdout
    for arguments in (("--help",), ("solve", "--help"), ("list", "--help")):
        done = command(*arguments, cwd=tmp_path)
        assert done.returncode == 0
        assert "example" in done.stdout


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


@pytest.mark.parametrize(
    ("old", "new", "culprit"),
    [
        ("x=(0, 1)", "x=(1, 0)", "reversed"),
        ("x=(0, 1)", "x=(1, 1)", "empty"),
        ("x=(0, 1)", "x=3", "two numbers"),
        ("points=20", "points=0", "term 'plate'"),
        ("box.boundary", "box.faces('z')", "unknown coordinate 'z'"),
        ("box.boundary", "'boundary'", "term 'edge'"),
        ("return Problem(", "return (", "must return"),
        ("import Box,", "import Bax,", "line 2"),
        ("load: float = 1.0", "load", "default"),
    ],
)
def test_a_mistake_in_a_file_says_what_to_do(tmp_path, old, new, culprit):
    path = write(tmp_path)
    text = path.read_text()
    assert old in text
    changed = text.replace(old, new)
    if new == "return (":
        changed = text[: text.index("    return Problem(")] + "    return 3\n"
    path.write_text(changed)
    done = command("solve", "plate.py", *QUICK, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert culprit in done.stderr


@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        (("solve",), "no PDE was named"),
        (("solve", "poison2d"), "Did you mean 'poisson2d'"),
        (("solve", "missing.py"), "no such file"),
        (("solve", "poisson2d", "heat1d"), "2 PDEs"),
        (("solve", "poisson2d", "stp.seconds=1"), "stp.seconds"),
        (("slove", "poisson2d"), "Did you mean 'solve'"),
        (("list", "all"), "no arguments"),
        (("solve", "poisson2d", "device=cuda:7"), "device=cuda:7"),
    ],
)
def test_a_wrong_command_line_ends_in_one_message(tmp_path, arguments, culprit):
    done = command(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert culprit in done.stderr
