"""A table of mistakes, each given to the real command in a folder of its own.

Every one ends in one line that names the culprit, with a non-zero exit code, no traceback, and
nothing written where there was nothing before.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

SMALL = ("net.widths=[8]", "stop.steps=2", "threads=1", "run.plot=false")

PLATE = """
from pinnkfac import Box, Problem, Term, lap


def plate(load: float = 1.0) -> Problem:
    box = Box(x=(0, 1), y=(0, 1))
    return Problem(
        fields=("u",),
        terms=[
            Term("plate", box.interior, lambda u, at: lap(u) + load, points=20),
            Term("edge", box.boundary, lambda u, at: u, points=8),
        ],
    )
"""


def plate(*changes: tuple[str, str]) -> dict[str, str]:
    """plate.py with some of its text replaced."""
    text = PLATE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return {"plate.py": text}


@dataclass(frozen=True)
class Case:
    """Words of the command, what the message must hold, and the files that it finds.

    ``run`` is what happens to a copy of a finished run in the folder 'run' first.
    """

    words: str
    culprits: tuple[str, ...]
    files: dict[str, str] = field(default_factory=dict)
    run: Callable[[Path], None] | None = None


def case(words, *culprits, files=None, run=None):
    return Case(words, culprits, files or {}, run)


def nothing(run: Path) -> None:
    pass


def rewrite(name: str, old: str, new: str, run: Path) -> None:
    text = (run / name).read_text()
    assert old in text
    (run / name).write_text(text.replace(old, new))


def rewritten(name: str, old: str, new: str) -> Callable[[Path], None]:
    return functools.partial(rewrite, name, old, new)


def emptied(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).write_bytes(b"") and None


def removed(name: str) -> Callable[[Path], None]:
    return lambda run: (run / name).unlink()


def halved(run: Path) -> None:
    path = run / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Hostile:
    def __reduce__(self):
        return (os.mkdir, ("executed",))


def hostile(run: Path) -> None:
    torch.save({"format": 1, "net": Hostile()}, run / "checkpoint.pt")


def hostile_pickle(run: Path) -> None:
    (run / "checkpoint.pt").write_bytes(pickle.dumps(Hostile()))


def newer(run: Path) -> None:
    torch.save({"format": 7, "pinnkfac": "9.9"}, run / "checkpoint.pt")


def sweep(run: Path) -> None:
    inside = run.parent / "moved"
    run.rename(inside)
    run.mkdir()
    inside.rename(run / "0")


POISSON = Path(__file__).resolve().parent.parent / "pdes" / "poisson2d.py"
SOLVE = [
    case("solve", "no PDE was named"),
    case("solve poisson2d heat1d", "2 PDEs"),
    case("solve poison2d", "'poison2d'", "Did you mean 'poisson2d'? Known: allen_cahn, "),
    case("solve missing.py", "missing.py", "no such file"),
    case("solve .", "'.'", "its path"),
    case("solve notes.txt", "notes.txt", files={"notes.txt": "u_t = u_xx"}),
    case("solve plate.py:plat", "'plat'", "Did you mean 'plate'", files=plate()),
    case("solve two.py", "several public functions", "one, two", files={
        "two.py": "def one(): pass\n\n\ndef two(): pass\n"}),
    case("solve none.py", "no public function", files={"none.py": "x = 3\n"}),
    case("solve empty.py", "no public function", files={"empty.py": ""}),
    case("solve plate.py", "line 5", "SyntaxError", files=plate(("-> Problem:", "-> Problem"))),
    case("solve plate.py", "line 2", "cannot import name 'Bux'", files=plate(("Box, P", "Bux, P"))),
    case("solve plate.py", "line 2", "No module named 'pinkfac'",
         files=plate(("pinnkfac", "pinkfac"))),
    case("solve plate.py", "must return a pinnkfac.Problem", "NoneType",
         files=plate(("return Problem", "Problem"))),
    case("solve plate.py", "load", "default", files=plate(("load: float = 1.0", "load"))),
    case("solve plate.py", "'load'", "NameError", "residual",
         files=plate(("load: float = 1.0", ""))),
    case("solve plate.py", "two terms", "'plate'", files=plate(('"edge"', '"plate"'))),
    case("solve plate.py", "Problem", "feilds", files=plate(("fields=", "feilds="))),
    case("solve plate.py", "vectors", "'v'", "u", files=plate(
        ('fields=("u",),', 'fields=("u",), vectors={"velocity": ("u", "v")},'))),
    case("solve plate.py", "units", "'z'", files=plate(
        ('fields=("u",),', 'fields=("u",), units={"z": "m"},'))),
    case("solve plate.py", "NaN or infinite", "term 'plate'", files=plate(("+ load", "/ (0 * u)"))),
    case("solve plate.py pde.laod=3", "pde.laod", "Did you mean 'pde.load'", files=plate()),
    case("solve plate.py pde.load=heavy", "pde.load=heavy", "a number", files=plate()),
    case("solve plate.py problem=other.py", "problem", files=plate()),
    case("solve poisson2d stp.seconds=1", "'stp.seconds'", "Did you mean 'stop.seconds'"),
    case("solve poisson2d stop.second=1", "Did you mean 'stop.seconds'"),
    case("solve poisson2d width=[8]", "'width'", "Did you mean 'net.widths'"),
    case("solve poisson2d step=kfac step.momentun=0.5", "Did you mean 'step.momentum'"),
    case("solve poisson2d step=adam damping.start=1", "damping.start", "step=adam brings"),
    case("solve poisson2d step=kfak", "step=kfak", "Did you mean 'kfac'"),
    case("solve poisson2d points=random", "points=random", "grid, rad, sobol, uniform"),
    case("solve poisson2d stop.seconds=soon", "stop.seconds=soon", "a number above 0"),
    case("solve poisson2d stop.seconds=-5", "stop.seconds=-5", "above 0"),
    case("solve poisson2d stop.steps=1.5", "stop.steps=1.5", "whole number"),
    case("solve poisson2d stop.steps=0", "stop.steps=0", "at least 1"),
    case("solve poisson2d stop.seconds=null", "stop.seconds=null", "stop.steps=null"),
    case("solve poisson2d stop=60", "stop"),
    case("solve poisson2d net.widths=8", "net.widths=8", "a list"),
    case("solve poisson2d net.widths=[0]", "net.widths=[0]", "at least 1"),
    case("solve poisson2d net.widths=[big]", "net.widths=['big']", "whole number"),
    case("solve poisson2d net.widths=[30000000,30000000]", "net.widths", "GiB"),
    case("solve poisson2d net.activation=relu", "net.activation=relu", "tanh"),
    case("solve poisson2d net.residual=perhaps", "net.residual=perhaps", "true or false"),
    case("solve poisson2d net.periodic=[z]", "net.periodic", "'z'", "x, y"),
    case("solve poisson2d net.fourier_features=3", "net.fourier_features=3", "even"),
    case("solve poisson2d points.interior=-10", "points.interior=-10", "at least 1"),
    case("solve poisson2d points.scale=0", "points.scale=0", "above 0"),
    case("solve poisson2d points.every=often", "points.every=often"),
    case("solve poisson2d points.numbers.wall=5", "points.numbers.wall", "poisson, boundary"),
    case("solve poisson2d points.numbers.poisson=0", "points.numbers.poisson=0", "at least 1"),
    case("solve poisson2d step=kfac points.numbers.poisson=1000000000000", "term 'poisson'", "GiB"),
    case("solve poisson2d damping.start=-1", "damping.start=-1", "above 0"),
    case("solve poisson2d search.shrink=1.5", "search.shrink=1.5", "below 1"),
    case("solve poisson2d search=none", "search=none"),
    case("solve poisson2d step=adam search=grid", "search=Grid", "no effect"),
    case("solve poisson2d step=null", "step=null", "options"),
    case("solve poisson2d pde=null", "pde=null", "no setting"),
    case("solve poisson2d run=5", "run=5", "no setting"),
    case("solve poisson2d ~seed", "~seed"),
    case("solve poisson2d =1", "=1"),
    case("solve poisson2d ++foo=1", "'foo' does not exist"),
    case("solve poisson2d seed=99999999999999999999", "seed=", "at most"),
    case("solve poisson2d seed=${foo}", "foo"),
    case("solve poisson2d -m seed=glob(*)", "glob(*)", "choice"),
    case("solve poisson2d --cfg everything", "--cfg everything", "job"),
    case("solve poisson2d run.dir=x/${seed}", "${...}"),
    case("solve ends.py", "SystemExit", files={"ends.py": "raise SystemExit(3)\n"}),
    case("solve poisson2d -m seed=1,2 run.dir=run", "holds a run", run=nothing),
    case("solve poisson2d step=kfac_cg step.iterations=-1", "step.iterations=-1", "at least 0"),
    case("solve poisson2d step=kfac step.factors.sharing=extend", "sharing=extend", "expand"),
    case("solve poisson2d step=kfac_cg step.factors.decay=1.5", "step.factors.decay=1.5"),
    case("solve poisson2d step=adam step.beta1=1", "step.beta1=1", "below 1"),
    case("solve poisson2d step._target_=os.system", "step._target_=os.system", "class"),
    case("solve poisson2d step._target_=no.such.Thing", "no.such.Thing"),
    case("solve heat1d step=kfac_published", "step.inverse.terms", "at most two terms"),
    case("solve poisson2d balance.most=0", "balance.most=0", "at least 1"),
    case("solve poisson2d seed=-1", "seed=-1", "at least 0"),
    case("solve poisson2d threads=0", "threads=0", "at least 1"),
    case("solve poisson2d memory=none", "memory=none", "above 0"),
    case("solve poisson2d dtype=float16", "dtype=float16", "float64"),
    case("solve poisson2d device=tpu", "device=tpu", "cpu"),
    case("solve poisson2d device=cuda:77", "device=cuda:77"),
    case("solve poisson2d run.error_points=0", "run.error_points=0"),
    case("solve poisson2d run.plot=perhaps", "run.plot=perhaps", "true or false"),
    case("solve poisson2d stop.steps=[2", "stop.steps=[2 cannot be read"),
    case("solve poisson2d -m seed=range(3,0) run.dir=s", "seed=range(3,0) is empty", "END"),
    case("solve poisson2d seed=0,1", "seed=0,1", "-m"),
    case("solve poisson2d device=gpu", "device=gpu is not supported", "cuda"),
    case("solve poisson2d --seed=3", "--seed=3", "no option", "KEY=VALUE"),
    case("solve poisson2d -m seed=0,1 step=kfac,kfak", "step=kfak", "Did you mean 'kfac'"),
    case("solve poisson2d -m sead=0,1", "'sead'", "Did you mean 'seed'"),
    case("solve poisson2d run.dir=file/inside", "file/inside", files={"file": ""}),
    case("solve poisson2d run.dir=run", "run.dir=", "a finished run", "resume", run=nothing),
]  # fmt: skip

RESUME = [
    case("resume", "RUN_FOLDER"),
    case("resume one two", "one two"),
    case("resume --fast run", "--fast", run=nothing),
    case("resume nowhere", "nowhere", "no such folder"),
    case("resume empty", "empty", "no run", files={"empty/notes.txt": ""}),
    case("resume run", "a sweep of 1 runs", "run/0", run=sweep),
    case("resume run", "nothing is left to do", "stop.steps=4", run=nothing),
    case("resume run stop.stepps=9", "Did you mean 'stop.steps'", run=nothing),
    case("resume run stop.steps=3,4", "stop.steps=3,4", "one value", run=nothing),
    case("resume run net.widths=[9] stop.steps=9", "net: the weights", run=nothing),
    case("resume run points.numbers.wall=5 stop.steps=9", "points.numbers.wall", run=nothing),
    case("resume run problem=nowhere.py", "nowhere.py", run=nothing),
    case("resume run problem=kovasznay stop.steps=9", "does not fit", run=nothing),
    case("resume run", "config.yaml is missing", run=removed("config.yaml")),
    case("resume run", "problem.json is missing", run=removed("problem.json")),
    case("resume run stop.steps=4", "is damaged", run=emptied("config.yaml")),
    case("resume run stop.steps=4", "is damaged", run=emptied("problem.json")),
    case("resume run stop.steps=4", "is damaged", run=rewritten(
        "config.yaml", "seed: 0", "seed: ${oc.env:HOME}")),
    case("resume run stop.steps=4", "of its own", "problem=", run=rewritten(
        "problem.json", json.dumps(str(POISSON)), '"run/pde.py"')),
    case("resume run stop.steps=4", "damaged", run=rewritten(
        "problem.json", '"fields"', '"felds"')),
    case("resume run stop.steps=4", "format 7", "use the version", run=rewritten(
        "problem.json", '"format": 1', '"format": 7')),
    case("resume run stop.steps=4", "is gone", "pde.py", run=rewritten(
        "problem.json", "poisson2d", "gone")),
    case("resume run stop.steps=4", "outside pinnkfac", "os.system", run=rewritten(
        "config.yaml", "pinnkfac.step.search.Backtracking", "os.system")),
    case("resume run stop.steps=4", "checkpoint.pt", "truncated", run=halved),
    case("resume run stop.steps=4", "checkpoint.pt", "truncated", run=emptied("checkpoint.pt")),
    case("resume run stop.steps=4", "checkpoint.pt", "never executed", run=hostile),
    case("resume run stop.steps=4", "checkpoint.pt", "never executed", run=hostile_pickle),
    case("resume run stop.steps=4", "checkpoint.pt", "format 7", "9.9", run=newer),
]  # fmt: skip

OTHERS = [
    case("", "usage"),
    case("slove poisson2d", "'slove'", "Did you mean 'solve'"),
    case("list stepz", "stepz", "step"),
    case("list steps nets", "nets"),
    case("show", "show"),
    case("show poison2d", "Did you mean 'poisson2d'"),
    case("show poisson2d net.with=[8]", "net.with"),
    case("check missing.py", "missing.py", "no such file"),
    case("check plate.py pde.load=heavy", "pde.load=heavy", files=plate()),
    case("check plate.py", "must return", files=plate(("return Problem", "Problem"))),
    case("new", "new"),
    case("new heat", "heat", ".py"),
    case("new plate.py", "plate.py", "there already", files=plate()),
    case("new nowhere/heat.py", "nowhere"),
    case("new 2d.py", "2d"),
    case("plot", "plot"),
    case("plot nowhere", "nowhere", "no such folder"),
    case("plot run --format gif", "gif", run=nothing),
    case("plot run --animate", "time", run=nothing),
    case("plot run --checkpoint worst", "worst", run=nothing),
    case("plot run", "checkpoint.pt", "truncated", run=halved),
    case("compare", "compare"),
    case("compare run nowhere", "nowhere", run=nothing),
    case("compare run --output here.doc", "here.doc", run=nothing),
    case("export run", "FILE", run=nothing),
    case("export nowhere u.csv", "nowhere", "no such folder"),
    case("export run u.xlsx", "u.xlsx", ".csv", run=nothing),
    case("export run u.csv --grid z=3", "'z'", run=nothing),
    case("export run u.csv --grid x=many", "x=many", run=nothing),
    case("export run nowhere/u.csv", "nowhere", run=nothing),
    case("export run u.npz", "checkpoint.pt", "never executed", run=hostile),
]

CHECKS = [c.words for c in OTHERS if c.words.startswith("check plate.py")]
CASES = [*SOLVE, *RESUME, *OTHERS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run that every case gets a copy of."""
    folder = tmp_path_factory.mktemp("finished")
    done = execute(("solve", "poisson2d", *SMALL, "run.dir=run"), folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def execute(words, folder):
    return subprocess.run(
        [sys.executable, "-m", "pinnkfac", *words],
        cwd=folder, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


OFTEN = list(range(0, len(CASES), 8))
"""The cases of the default run; the others are slow, as each starts a process."""
SELDOM = [number for number in range(len(CASES)) if number not in OFTEN]


@pytest.fixture(scope="module")
def outcomes(finished, tmp_path_factory):
    return all_outcomes(OFTEN, finished, tmp_path_factory)


@pytest.fixture(scope="module")
def other_outcomes(finished, tmp_path_factory):
    return all_outcomes(SELDOM, finished, tmp_path_factory)


def all_outcomes(numbers, finished, tmp_path_factory):
    """What comes of the cases of these numbers, run two at a time."""

    def one(number):
        this = CASES[number]
        folder = tmp_path_factory.mktemp(f"case{number}")
        for name, text in this.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text)
        if this.run is not None:
            shutil.copytree(finished, folder / "run")
            this.run(folder / "run")
        before = contents(folder)
        words = this.words.split()
        given = {w.partition("=")[0] for w in words}
        if words[:1] == ["solve"]:
            words += [s for s in SMALL if s.partition("=")[0] not in given | {"stop.steps"}]
            words += ["stop.steps=2"] if not any(g.startswith("stop") for g in given) else []
        return folder, execute(words, folder), before, contents(folder)

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(numbers, pool.map(one, numbers), strict=True))


def contents(folder):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in folder.rglob("*")
        if p.is_file() and "__pycache__" not in p.parts
    }


def test_the_table_is_long_enough():
    assert len(CASES) >= 150
    assert sorted(OFTEN + SELDOM) == list(range(len(CASES)))


@pytest.mark.parametrize("number", OFTEN, ids=[CASES[n].words[:50] for n in OFTEN])
def test_a_mistake_ends_in_one_clear_line(outcomes, number):
    check(CASES[number], *outcomes[number])


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("number", SELDOM, ids=[CASES[n].words[:50] for n in SELDOM])
def test_another_mistake_ends_in_one_clear_line(other_outcomes, number):
    check(CASES[number], *other_outcomes[number])


def check(this, folder, done, before, after):
    said = done.stderr + (done.stdout if this.words in ("", *CHECKS) else "")
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    if this.words in CHECKS:  # what is wrong is what check reports
        assert said.count("✗") + len(errors) == 1, said
    else:
        assert len(errors) == (0 if this.words == "" else 1), done.stderr
    for culprit in this.culprits:
        assert culprit in said
    assert "mistake in pinnkfac" not in said, "a mistake of the user's is foreseen"
    assert not (folder / "executed").exists()
    drawn = {"run/history.png"} if this.words == "plot run" else set()  # needs no net
    assert {k: v for k, v in after.items() if k not in drawn} == before, "files were changed"


def test_nothing_of_a_sound_run_is_lost(finished):
    """The copies were damaged, not the run: it reads, and it has all its files."""
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["steps"] == 2
