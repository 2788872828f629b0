"""Everything that the README shows is run, and so is every script in experiments/ (shortened)."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LONG = [pytest.mark.slow, pytest.mark.ci]
SHORT = ["stop.steps=2", "net.widths=[8]", "threads=1", "run.plot=false"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.S)


def commands() -> list[str]:
    lines = [line.split("#")[0].strip() for block in blocks("sh") for line in block.splitlines()]
    return [line for line in lines if line.startswith("python -m pinnkfac")]


def run(arguments: list[str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_has_the_blocks_that_are_tested_here():
    assert len(blocks("python")) == 2
    assert len(commands()) == 12
    assert len(re.findall(r"```(\w*)", README)) == 2 * (2 + 4)  # python and sh, and their ends
    assert not re.findall(r"@[A-Z]+@|TODO", README)


def test_commands_of_the_readme_run_one_after_the_other(tmp_path):
    name = re.search(r"# (\w+\.py)\n", blocks("python")[0])
    assert name is not None
    (tmp_path / name.group(1)).write_text(blocks("python")[0])
    for line in commands():
        words = shlex.split(line)[1:]
        short = SHORT if "solve" in words else ["stop.steps=4"] if "resume" in words else []
        given = {o.split("=")[0] for o in words if "=" in o}
        run([*words, *(o for o in short if o.split("=")[0] not in given)], tmp_path)
    written = {p.name for p in tmp_path.rglob("*")}
    assert {"my_pde.py", "solution.pdf", "solution.csv", "sweep.csv", "compare.png"} <= written


def test_links_and_pictures_of_the_readme_are_there():
    found = re.findall(r"\]\(([^)]+)\)", README)
    assert len(found) >= 7
    for link in found:
        assert (ROOT / link).is_file(), link


def test_the_python_example_of_the_readme_runs(tmp_path):
    code = blocks("python")[1]
    assert "stop.seconds=5" in code
    (tmp_path / "example.py").write_text(code.replace("stop.seconds=5", "stop.seconds=1"))
    output = run(["example.py"], tmp_path)
    error, reason = re.search(r"^([\d.e+-]+) (1 seconds passed.*)$", output, flags=re.M).groups()
    assert float(error) < 1.0
    assert "stop.seconds" in reason
    assert (tmp_path / "poisson.npz").is_file()


@pytest.mark.parametrize(
    ("script", "arguments", "expected"),
    [
        ("step_rate.py", ["--short", "--repeats", "1"], "engd_w_nystrom    deep"),
        ("accuracy.py", ["--seconds", "0.2", "--pde", "heat1d", *SHORT], "heat1d"),
        ("taylor_cost.py", ["--points", "3", "--repeats", "1", "--widths", "8", "8"], "products"),
        (
            "step_cost.py",
            ["--repeats", "1", "--warm-up", "0", "--case", "poisson2d_medium"],
            "kfac_star",
        ),
        pytest.param(
            *("kernel_cost.py", ["--short"], "one multiplication of an exact step takes"),
            marks=LONG,
        ),
        pytest.param(*("crossing.py", ["--short"], "written to crossing.png"), marks=LONG),
        pytest.param(
            *("results.py", ["--short", "--seconds", "0.5", "--out", "R.md"], "written to R.md"),
            marks=LONG,
        ),
        (
            "replay_trajectory.py",
            [str(ROOT / "tests/golden/kfac_poisson2d.npz")],
            "kfac_poisson2d: parameters",
        ),
    ],
)
def test_scripts_in_experiments_run(script, arguments, expected, tmp_path):
    output = run([str(ROOT / "experiments" / script), *arguments], tmp_path)
    assert expected in output
    deviation = re.search(r"deviation from nested autodiff: (\S+)", output)
    assert deviation is None or float(deviation.group(1)) < 1e-11


def test_every_script_in_experiments_is_run_here():
    source = Path(__file__).read_text(encoding="utf-8")
    for script in (ROOT / "experiments").glob("*.py"):
        assert f'"{script.name}"' in source
