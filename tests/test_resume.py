"""A run that was stopped at any moment goes on as if it had not been."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
from processes import PATIENCE, start, wait_for
from torch import nn

from pinnkfac import Box, Parameter, Problem, Solution, Term, UserError, lap, resume, solve
from pinnkfac.__main__ import main
from pinnkfac.config.compose import compose
from pinnkfac.run.assembly import Carried, assemble
from pinnkfac.run.progress import Progress
from pinnkfac.store.run_folder import RunFolder
from pinnkfac.store.stored_run import StoredRun

SMALL = ("net.widths=[8,8]", "points.scale=0.1", "threads=1", "run.plot=false", "run.quiet=true")
QUICK = (*SMALL, "run.checkpoint=0")


def sha(result):
    return result.summary["parameters_sha256"]


def solved(folder, *overrides, pde="poisson2d"):
    return solve(pde, *QUICK, *overrides, folder=folder)


STEPS = ("kfac_cg", "kfac", "spring", "engd_full", "ekfac", "adam")
MORE_STEPS = (
    "kfac_star",
    "spring_published",
    "engd_w",
    "engd_w_nystrom",
    "engd_layerwise",
    "engd_diagonal",
    "cg_fac",
    "gauss_newton_cg",
    "ssbfgs",
    "ssbroyden",
    "sgd",
    "lbfgs",
)
LONG = [pytest.mark.slow, pytest.mark.ci]


@pytest.mark.parametrize("step", [*STEPS, *(pytest.param(s, marks=LONG) for s in MORE_STEPS)])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path, step):
    choice = (f"step={step}", "points.every=7", "balance=sensitivity", "balance.every=5")
    whole = solved(tmp_path / "whole", *choice, "stop.steps=24")
    solved(tmp_path / "parts", *choice, "stop.steps=3")
    for steps in (11, 24):
        parts = resume(tmp_path / "parts", f"stop.steps={steps}")
    assert sha(parts) == sha(whole)
    assert parts.summary["steps"] == 24
    assert parts.summary["resumed"] == [
        "at step 3: stop.steps: 3 → 11", "at step 11: stop.steps: 11 → 24"
    ]  # fmt: skip
    assert parts.summary["best"]["loss"] == pytest.approx(whole.summary["best"]["loss"], rel=1e-12)


def test_records_go_on_without_a_gap_or_a_double(tmp_path):
    solved(tmp_path, "stop.steps=10")
    # What a run that was killed leaves behind: records after its last checkpoint, one of them cut.
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 12, "seconds": 9.0, "loss": 1.0, "losses": {}}\n{"step": 1')
    resume(tmp_path, "stop.steps=20")
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines]
    assert steps == sorted(set(steps))
    assert 12 not in steps and {10, 16, 20} <= set(steps)


def test_a_run_without_a_checkpoint_starts_again(tmp_path):
    whole = solved(tmp_path / "whole", "stop.steps=6")
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("checkpoint.pt", "best.pt", "summary.json"):
        (tmp_path / "killed" / name).unlink()
    assert sha(resume(tmp_path / "killed")) == sha(whole)


def inverse_problem():
    box = Box(x=(0, 1))
    kappa = Parameter("kappa", initial=2.0)
    return Problem(
        fields=("u",),
        terms=[
            Term("heat", box.interior, lambda u, at: kappa * lap(u) + 2.0, points=30),
            Term("ends", box.boundary, lambda u, at: u, points=2),
            Term("measured", box.at(x=0.5), lambda u, at: u - 0.25, points=1),
        ],
        parameters=(kappa,),
    )


def test_unknown_coefficients_and_problems_from_python_go_on(tmp_path):
    whole = solved(tmp_path / "whole", "stop.steps=12", pde=inverse_problem)
    solved(tmp_path / "parts", "stop.steps=5", pde=inverse_problem)
    with pytest.raises(UserError, match=r"given from Python"):
        resume(tmp_path / "parts", "stop.steps=12")
    parts = resume(tmp_path / "parts", "stop.steps=12", pde=inverse_problem)
    assert sha(parts) == sha(whole)
    assert parts.coefficients == whole.coefficients != {"kappa": 2.0}


class OwnNet(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first = nn.Linear(2, 7, dtype=torch.float64)
        self.second = nn.Linear(7, 1, dtype=torch.float64)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_a_net_of_ones_own_is_asked_for_and_goes_on(tmp_path):
    whole = solve("poisson2d", *QUICK, "stop.steps=9", folder=tmp_path / "whole", net=OwnNet())
    solve("poisson2d", *QUICK, "stop.steps=4", folder=tmp_path / "parts", net=OwnNet())
    with pytest.raises(UserError, match=r"OwnNet.*net="):
        resume(tmp_path / "parts", "stop.steps=9")
    fresh = OwnNet()
    nn.init.zeros_(fresh.first.weight)  # what is stored comes from the checkpoint
    assert sha(resume(tmp_path / "parts", "stop.steps=9", net=fresh)) == sha(whole)


# -- overrides ---------------------------------------------------------------------------------


def test_another_step_brings_its_search_along_and_keeps_the_net(tmp_path, capsys):
    first = solved(tmp_path, "stop.steps=5", "run.quiet=false")
    capsys.readouterr()
    second = resume(tmp_path, "step=adam", "stop.steps=6", "step.learning_rate=1e-9")
    said = capsys.readouterr().out
    assert "resumed poisson2d at step 5" in said
    assert "net, coefficients, counters" in said and "state of the step" in said.split(";")[1]
    changes = [line for line in said.splitlines() if " → " in line]
    assert changes == [
        "  search: backtracking → none",
        "  damping: by_length → none",
        "  step: auto → adam",
        "  stop.steps: 5 → 6",
        "  step.learning_rate: – → 1e-09",
    ]
    config = StoredRun.open(tmp_path).config
    assert dict(config.choices)["search"] == "none" and config.search._target_.endswith("NoSearch")
    # One Adam step of length 1e-9 leaves the net where it was.
    x = torch.rand(20, 2, dtype=torch.float64)
    torch.testing.assert_close(first.solution(x), second.solution(x), rtol=0, atol=1e-7)
    third = resume(tmp_path, "step=kfac", "stop.steps=7")
    assert StoredRun.open(tmp_path).config.search._target_.endswith("Backtracking")
    assert third.summary["steps"] == 7


def test_changed_damping_starts_at_its_new_value(tmp_path):
    solved(tmp_path, "stop.steps=5")
    result = resume(tmp_path, "damping=constant", "damping.start=0.125", "stop.steps=6")
    assert result.history[-1]["damping"] == 0.125


def test_changed_points_are_drawn_anew_and_other_things_kept(tmp_path, capsys):
    solved(tmp_path, "stop.steps=5", "run.quiet=false")
    capsys.readouterr()
    resume(tmp_path, "points.numbers.poisson=33", "stop.steps=6")
    said = capsys.readouterr().out
    assert "; points anew" in said
    assert "points: poisson 33" in said
    assert "points.numbers.poisson: – → 33" in said


PLATE = """
from pinnkfac import Box, Problem, Term, lap


def plate(load: float = 1.0) -> Problem:
    box = Box(x=(0, 1), y=(0, 1))
    plate = Term("plate", box.interior, lambda u, at: lap(u) + load, points=20)
    edge = Term("edge", box.boundary, lambda u, at: u, points=80)
    return Problem(fields=("u",), terms=[plate, edge])
"""


def test_a_changed_file_keeps_the_net_and_says_what_is_new(tmp_path, capsys):
    path = tmp_path / "plate.py"
    path.write_text(PLATE)
    run = tmp_path / "run"
    first = solve(str(path), *QUICK, "stop.steps=5", "run.quiet=false", folder=run)
    capsys.readouterr()
    path.write_text(PLATE.replace("points=80", "points=90"))
    second = resume(run, "stop.steps=6")
    said = capsys.readouterr().out
    assert "the problem plate has changed" in said and "edge 9" in said
    assert first.summary["parameters"] == second.summary["parameters"]
    resume(run, "pde.load=2.0", "stop.steps=7")
    assert "pde.load: 1.0 → 2.0" in capsys.readouterr().out
    path.unlink()
    with pytest.raises(UserError, match=r"plate.py is gone.*problem=.*pde.py"):
        resume(run, "stop.steps=8")
    assert resume(run, f"problem={run / 'pde.py'}", "stop.steps=8").summary["steps"] == 8


def test_a_run_that_stood_still_or_diverged_goes_on_with_another_choice(tmp_path):
    """Its counters of failures begin anew, its step without what made it fail."""
    still = solved(
        *(tmp_path / "still", "search=grid", "search.low=60", "search.high=61"),
        *("stop.rejections=2", "step.features=0"),
    )
    assert "did not lower the loss" in still.stop_reason
    with pytest.raises(UserError, match="nothing is left to do"):
        resume(tmp_path / "still")
    steps = still.summary["steps"] + 3
    on = resume(tmp_path / "still", "search=backtracking", f"stop.steps={steps}")
    assert on.summary["steps"] == steps and on.summary["loss"] < still.summary["loss"]

    wild = solved(tmp_path / "wild", "step=sgd", "step.learning_rate=1e300", "stop.steps=90")
    assert wild.status == "diverged"
    steps = wild.summary["steps"] + 5
    for number, more in enumerate(("step.learning_rate=1e-6", "seed=0")):
        tame = resume(tmp_path / "wild", more, f"stop.steps={steps + number}")
        assert tame.status == "finished"
        assert tame.summary["loss"] <= wild.summary["loss"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ((), "nothing is left to do, 5 steps done"),
        (("stop.steps=4",), "nothing is left to do"),
        (("net.widths=[9]", "stop.steps=9"), "net: the weights"),
        (("stp.steps=9",), "Did you mean 'stop.steps'"),
        (("stop=9",), "group of settings"),
        (("stop.steps=6,7",), "one value"),
        (("stop.steps=many",), "stop.steps=many: give a whole number"),
        (("step=wrong",), "step=wrong does not exist"),
        (("stop.steps=[",), "cannot be read"),
        (("points.numbers.wall=5", "stop.steps=9"), "points.numbers.wall: no such term"),
        (("step=kfac", "search=none", "stop.steps=9"), "search=none"),
        (("seed=-1",), "seed=-1"),
    ],
)
def test_a_wrong_override_leaves_the_run_as_it_was(tmp_path, overrides, message):
    solved(tmp_path, "stop.steps=5")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError) as found:
        resume(tmp_path, *overrides)
    assert message in str(found.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# -- folders that are not what they should be -----------------------------------------------------


def test_two_processes_never_write_to_one_folder(tmp_path):
    solved(tmp_path, "stop.steps=3")
    with RunFolder(tmp_path), pytest.raises(UserError, match="another process is writing"):
        resume(tmp_path, "stop.steps=4")
    assert resume(tmp_path, "stop.steps=4").summary["steps"] == 4


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(self.target),))


def flip(path):
    """One bit of a weight, as a fault of the disk leaves it: torch reads the file none the less."""
    content = bytearray(path.read_bytes())
    net = torch.load(path, weights_only=True)["net"]
    weight = max(net.values(), key=lambda value: value.numel()).contiguous().numpy().tobytes()
    content[content.index(weight) + 6] ^= 1
    path.write_bytes(content)
    changed = torch.load(path, weights_only=True)["net"]
    assert any(not torch.equal(net[name], changed[name]) for name in net)


def damage(folder, how):
    path = folder / "checkpoint.pt"
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "foreign":
        path.write_text("not a checkpoint")
    elif how == "list":
        torch.save([1, 2], path)
    elif how == "hostile":
        evil = Evil()
        evil.target = str(folder / "executed")
        torch.save({"format": 1, "net": evil}, path)
    elif how == "bit":
        flip(path)
    else:
        content = torch.load(path, weights_only=True)
        if how == "newer":
            content["format"] = 99
        elif how == "without net":
            del content["net"]
        elif how == "other net":
            content["net"] = OwnNet().state_dict()
        elif how == "wrong types":
            content["stepper"] = 3
        elif how == "wrong points":
            content["points"] = {"points": [{}], "exchanged": 0}
        elif how == "wrong counters":
            content["progress"] = {"step": 3}
        torch.save(content, path)


DAMAGES = {
    "truncated": "is not a checkpoint that can be read",
    "empty": "is not a checkpoint that can be read",
    "foreign": "is not a checkpoint that can be read",
    "hostile": "never executed",
    "bit": "does not agree with its checksums",
    "list": "is not a checkpoint of pinnkfac",
    "newer": "format 99",
    "without net": "does not fit",
    "other net": "does not fit",
    "wrong types": "does not fit",
    "wrong points": "does not fit",
    "wrong counters": "does not fit",
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_bad_checkpoint_is_refused_and_nothing_of_it_is_run(tmp_path, how):
    solved(tmp_path, "stop.steps=3")
    damage(tmp_path, how)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(UserError) as found:
        resume(tmp_path, "stop.steps=4")
    assert DAMAGES[how] in str(found.value)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_a_flipped_bit_is_found_wherever_a_checkpoint_is_read(tmp_path, capsys):
    """The best state is the way out where it is sound, and only there."""
    solved(tmp_path / "run", "stop.steps=3")
    run, file = str(tmp_path / "run"), tmp_path / "run/checkpoint.pt"
    flip(file)
    for words in (["plot", run], ["export", run, str(tmp_path / "u.npz")], ["resume", run]):
        assert main([*words, *(["stop.steps=4"] if words[0] == "resume" else [])]) == 2
        said = capsys.readouterr().err
        assert f"{file} is damaged" in said and "--checkpoint best" in said
    assert main(["export", run, str(tmp_path / "u.npz"), "--checkpoint", "best"]) == 0
    assert Solution.load(run, "best").u(x=0.5, y=0.5) is not None
    flip(tmp_path / "run/best.pt")
    for which in ("last", "best"):
        with pytest.raises(UserError, match="is damaged") as found:
            Solution.load(run, which)
        assert "is sound" not in str(found.value)


def test_code_from_outside_is_not_called_unless_the_user_says_so(tmp_path):
    solved(tmp_path, "stop.steps=3")
    path = tmp_path / "config.yaml"
    text = path.read_text()
    path.write_text(text.replace("pinnkfac.step.search.Backtracking", "pathlib.Path"))
    with pytest.raises(UserError, match=r"outside pinnkfac \(search._target_=pathlib.Path\)"):
        resume(tmp_path, "stop.steps=4")
    path.write_text(text.replace("pinnkfac.step.search.Backtracking", "pinnkfac.run.solving.solve"))
    with pytest.raises(UserError, match="no class of settings"):
        resume(tmp_path, "stop.steps=4")


OWN_SEARCH = """
from dataclasses import dataclass

from pinnkfac.step.search import Accepted


@dataclass(frozen=True)
class Half:
    def run(self, loss, loss_0, slope, last):
        return Accepted(0.5, loss(0.5), 1)
"""


def test_a_class_of_ones_own_goes_on_where_it_is_named_again(tmp_path, monkeypatch):
    (tmp_path / "half_of_it.py").write_text(OWN_SEARCH)
    monkeypatch.syspath_prepend(str(tmp_path))
    own = ("search=none", "+search._target_=half_of_it.Half")
    whole = solved(tmp_path / "whole", *own, "stop.steps=6")
    assert whole.summary["search"] == "half_of_it.Half"
    run = tmp_path / "run"
    solved(run, *own, "stop.steps=3")
    with pytest.raises(UserError, match=r"add this setting"):
        resume(run, "stop.steps=6")
    parts = resume(run, "stop.steps=6", "search._target_=half_of_it.Half")
    assert sha(parts) == sha(whole)


def test_what_was_set_at_the_start_is_known_after_a_resume(tmp_path):
    """A sweep's table names the jobs by it."""
    solved(tmp_path, "seed=3", "stop.steps=3")
    summary = resume(tmp_path, "stop.steps=4").summary
    assert "seed=3" in summary["overrides"] and "stop.steps=4" in summary["overrides"]
    assert "stop.steps=3" not in summary["overrides"]


def test_a_run_does_not_move_when_it_goes_on(tmp_path):
    solved(tmp_path, "stop.steps=3")
    with pytest.raises(UserError, match=r"run\.dir=other.*own folder"):
        resume(tmp_path, "stop.steps=4", "run.dir=other")


def test_a_resume_that_is_killed_before_its_first_checkpoint_harms_nothing(tmp_path):
    """The configuration is the new one then, the checkpoint still the old one."""
    solved(tmp_path / "whole", "stop.steps=4")
    whole = resume(tmp_path / "whole", "step=adam", "points=sobol", "seed=3", "stop.steps=9")
    run = tmp_path / "run"
    solved(run, "stop.steps=4")
    old = {name: (run / name).read_bytes() for name in ("checkpoint.pt", "best.pt")}
    resume(run, "step=adam", "points=sobol", "seed=3", "stop.steps=9")
    for name, content in old.items():
        (run / name).write_bytes(content)
    (run / "summary.json").unlink()
    Solution.load(run)
    assert sha(resume(run)) == sha(whole)


def test_a_change_of_precision_that_is_killed_harms_nothing(tmp_path):
    solved(tmp_path, "stop.steps=4")
    old = (tmp_path / "checkpoint.pt").read_bytes()
    resume(tmp_path, "dtype=float32", "stop.steps=6")
    (tmp_path / "checkpoint.pt").write_bytes(old)
    assert Solution.load(tmp_path).net.layers[0].weight.dtype == torch.float64
    assert resume(tmp_path, "stop.steps=7").summary["dtype"] == "float32"


def test_a_file_without_an_argument_of_the_run_is_named_with_it(tmp_path):
    """The argument is the run's: another file may not have it."""
    file, other = tmp_path / "plate.py", tmp_path / "other.py"
    file.write_text(PLATE)
    other.write_text(PLATE.replace("load", "weight"))
    solved(tmp_path / "run", "stop.steps=2", "pde.load=2.0", pde=str(file))
    with pytest.raises(UserError) as found:
        resume(tmp_path / "run", f"problem={other}", "stop.steps=4")
    assert "other.py: plate() has no argument 'load', which the run set" in str(found.value)
    assert "Known: weight" in str(found.value)


def test_another_function_of_the_same_file_or_other_arguments_are_another_problem(tmp_path, capsys):
    path = tmp_path / "two.py"
    path.write_text(
        "from pinnkfac import Box, Problem, Term, lap\n\nBOX = Box(x=(0, 1))\n\n\n"
        "def _of(k):\n"
        "    terms = [Term('inside', BOX.interior, lambda u, at: lap(u) + k, points=30),\n"
        "             Term('ends', BOX.boundary, lambda u, at: u)]\n"
        "    return Problem(fields=('u',), terms=terms)\n\n\n"
        "def one(k: float = 1.0):\n    return _of(k)\n\n\n"
        "def other(k: float = 50.0):\n    return _of(k)\n"
    )
    quick = (*QUICK, "run.quiet=false")
    solve(f"{path}:one", *quick, "stop.steps=6", folder=tmp_path / "run")
    capsys.readouterr()
    other = resume(tmp_path / "run", f"problem={path}:other", "stop.steps=8")
    assert "the problem other has changed" in capsys.readouterr().out
    assert other.summary["best"]["step"] >= 6

    solved(tmp_path / "python", "stop.steps=5", "run.quiet=false", pde=inverse_problem)
    capsys.readouterr()
    resume(tmp_path / "python", "stop.steps=6", pde=inverse_problem)
    assert "state of the step, damping, points" in capsys.readouterr().out


def test_a_file_that_the_pde_file_imports_belongs_to_it(tmp_path, capsys):
    (tmp_path / "constants.py").write_text("K = 1.0\n")
    path = tmp_path / "plate.py"
    path.write_text(
        "from constants import K\n\nfrom pinnkfac import Box, Problem, Term, lap\n\n\n"
        "def plate():\n"
        "    box = Box(x=(0, 1))\n"
        "    inside = Term('inside', box.interior, lambda u, at: lap(u) + K, points=30)\n"
        "    return Problem(fields=('u',), terms=[inside])\n"
    )
    solve(str(path), *QUICK, "run.quiet=false", "stop.steps=4", folder=tmp_path / "run")
    capsys.readouterr()
    resume(tmp_path / "run", "stop.steps=5")
    assert "has changed" not in capsys.readouterr().out
    (tmp_path / "constants.py").write_text("K = 2.0\n")
    resume(tmp_path / "run", "stop.steps=6")
    assert "the problem plate has changed" in capsys.readouterr().out


def test_a_damaged_record_costs_that_record_only_and_is_said(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    solved(tmp_path / "run", "stop.steps=4")
    path = tmp_path / "run/metrics.jsonl"
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([first, first[:20] + rest[0], *rest]) + "\n")
    said = "run/metrics.jsonl, line 2: damaged, its record is left out"
    assert [r["step"] for r in StoredRun.open("run").history] == [1, 2, 4]
    assert StoredRun.open("run").damages == [said]
    for words in (["plot", "run"], ["compare", "run"], ["resume", "run", "stop.steps=6"]):
        assert main(words) == 0
        assert f"warning: {said}\n" in capsys.readouterr().err
    assert [r["step"] for r in StoredRun.open("run").history] == [1, 2, 4, 6]
    assert StoredRun.open("run").damages == []


def test_a_line_that_a_kill_cut_off_is_left_out_without_a_word(tmp_path):
    solved(tmp_path, "stop.steps=4")
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text()[:-9])
    stored = StoredRun.open(tmp_path)
    assert [r["step"] for r in stored.history] == [1, 2] and stored.damages == []


def test_numbers_that_were_set_hold_for_another_sampling(tmp_path):
    solved(tmp_path, "points.interior=37", "points.scale=1", "stop.steps=4", pde=inverse_problem)
    config = resume(
        tmp_path, "points=sobol", "stop.steps=5", pde=inverse_problem
    ) and StoredRun.open(tmp_path).config  # fmt: skip
    assert config.points.interior == 37
    assert config.points.sampling._target_.endswith("Sobol")


# -- killed --------------------------------------------------------------------------------------


KILLED = ("net.widths=[16,16]", "points.scale=0.2", "threads=1", "run.plot=false", "stop.steps=60")


def killed_and_resumed(folder, pde, step, kills, rng):
    """Kill a run ``kills`` times at random moments, resume it each time; (hashes, kills done)."""
    choice = (pde, f"step={step}", *KILLED, "run.checkpoint=0.02")
    whole = start("solve", *choice, "run.dir=whole", cwd=folder)
    assert whole.wait(PATIENCE) == 0, whole.communicate()[1]
    done, command = 0, ("solve", *choice, "run.dir=parts")
    summary = folder / "parts" / "summary.json"
    while True:
        process = start(*command, cwd=folder)
        wait_for(folder / "parts" / "problem.json", process)
        if done < kills:
            time.sleep(rng.uniform(0.0, 2.5))
            process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE)
        if summary.exists():
            break
        done += 1
        command = ("resume", "parts")
    hashes = [
        json.loads((folder / name / "summary.json").read_text())["parameters_sha256"]
        for name in ("whole", "parts")
    ]
    return hashes, done


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    hashes, _ = killed_and_resumed(tmp_path, "heat1d", "kfac", 2, random.Random(0))
    assert hashes[0] == hashes[1]


@pytest.mark.slow
def test_twenty_kills_over_three_problems_and_two_steps(tmp_path):
    rng, done, number = random.Random(1), 0, 0
    while done < 20:
        for pde in ("poisson2d", "heat1d", "kovasznay"):
            for step in ("kfac_cg", "adam"):
                folder = tmp_path / str(number)
                folder.mkdir()
                hashes, kills = killed_and_resumed(folder, pde, step, 4, rng)
                assert hashes[0] == hashes[1], (pde, step)
                done, number = done + kills, number + 1


@pytest.mark.parametrize("carried", [True, False])
def test_scales_of_the_equations_go_on_where_the_balance_is_what_it_was(carried):
    """Though the points go on in any case."""
    box = Box(x=(0, 1))
    problem = Problem(fields=("u",), terms=[Term("inside", box.interior, lambda u, at: lap(u))])
    config = compose("any", {}, [*SMALL])
    parts, other = assemble(config, problem), assemble(config, problem)
    points = parts.source.balanced([torch.full((1,), 2.0, dtype=torch.float64)])
    other.load_state_dict(parts.state_dict(Progress()), Carried(scales=carried))
    (now,) = other.source.current
    assert torch.equal(now.points.coordinates, points[0].points.coordinates)
    assert (other.source.scales is not None) == (now.scale is not None) == carried
