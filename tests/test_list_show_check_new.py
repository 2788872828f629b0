"""The commands that look before anything is trained: list, show, check, new."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from pinnkfac.__main__ import main
from pinnkfac.commands import new
from pinnkfac.common.errors import UserError
from pinnkfac.config.compose import compose
from pinnkfac.config.pde_file import bundled
from pinnkfac.inspection import catalog

ROOT = Path(__file__).parent.parent
GROUPS = sorted(path.name for path in (ROOT / "conf").iterdir() if path.is_dir())
QUICK = ("net.widths=[8]", "stop.steps=3", "threads=1", "run.plot=false", "run.dir=r")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command; returns its exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        code = main(list(arguments))
        out, err = capsys.readouterr()
        return code, out, err

    return run


def command(*arguments, cwd, **environment):
    return subprocess.run(
        [sys.executable, "-m", "pinnkfac", *arguments],
        cwd=cwd,
        capture_output=True,
        timeout=120,
        env={"PATH": "/usr/bin:/bin", **environment},
    )


@pytest.mark.parametrize("name", ["list", "show", "check", "new"])
def test_help_has_an_example_and_does_nothing(run, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "example" in out
    assert f"python -m pinnkfac {name}" in out
    assert list(tmp_path.iterdir()) == []


# -- list ------------------------------------------------------------------------------------------
def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        elif not key.startswith("_"):
            yield f"{prefix}{key}", value


def test_the_overview_has_everything_and_fits(run):
    for columns in (40, 80, 120):
        code, out, _ = run("list", columns=columns)
        assert code == 0
        longest = max(out.splitlines(), key=len)
        assert len(longest) <= columns, longest
        assert "\033" not in out
        for name in bundled():
            assert re.search(rf"^  {name}\b", out, re.M), name
        for path in (ROOT / "conf").glob("*/*.yaml"):
            assert re.search(rf"^  {path.stem}\b", out, re.M), path
    assert "[kappa=0.25]" in out
    assert re.search(r"^  auto .*\(default\)", out, re.M)


def composed(group, option):
    """The settings of an option as a run has them."""
    if group == "preconditioner":
        config = compose("any", {}, ["step=gauss_newton_cg", f"preconditioner={option}"])
        return leaves({"step": {group: OmegaConf.to_container(config.step.preconditioner)}})
    config = compose("any", {}, [f"{group}={option}"])
    if option == "gauss_newton_cg":  # those of its preconditioner are listed there
        del config.step.preconditioner
    return leaves({group: OmegaConf.to_container(config[group])})


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_listed_with_all_of_its_settings(run, group):
    """Read from the classes as text; compared with what they are in a run, once imported."""
    code, out, _ = run("list", group)
    assert code == 0
    sections = dict(
        re.findall(rf"^{group}=(\w+)(?: \(default\))?\n((?:  .*\n|\n(?!\w))*)", out, re.M)
    )
    for path in (ROOT / "conf" / group).glob("*.yaml"):
        text = path.read_text(encoding="utf-8")
        named = OmegaConf.to_container(OmegaConf.create(text))
        beside = {k: v for k, v in named.items() if k not in ("defaults", group, "step")}
        others = leaves(beside if "@package _global_" in text else {})
        for key, value in (*composed(group, path.stem), *others):
            shown = re.search(rf"^    {re.escape(key)}=(\S+)", sections[path.stem], re.M)
            assert shown, (path.stem, key)
            assert OmegaConf.to_container(OmegaConf.create(f"v: {shown[1]}"))["v"] == value
    assert out.count("(default)") == (group != "preconditioner")  # a step brings its own


def test_all_names_of_a_group_mean_it(run):
    assert run("list", "searches") == run("list", "search")
    assert run("list", "steps") == run("list", "step")
    assert run("list", "pdes") == run("list", "pde")
    code, out, _ = run("list", "pdes")
    assert code == 0
    assert "pde.kappa=0.25" in out
    assert "Source: arXiv:2405.15603" in out


def test_general_settings_are_listed(run):
    code, out, _ = run("list", "settings")
    assert code == 0
    for key in ("seed=0", "stop.seconds=60.0", "run.error_points=10000", "dtype=float64"):
        assert key in out
    assert "hydra" not in out
    assert "net" not in [line.strip().partition("=")[0] for line in out.splitlines()]


def test_an_unknown_group_is_refused_with_the_nearest(run):
    code, _, err = run("list", "dampings_")
    assert code == 2
    assert "Did you mean 'damping'?" in err
    assert len(err.splitlines()) == 1
    assert run("list", "nets", "steps")[0] == 2


def test_a_new_file_appears_by_itself(run, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    shutil.copytree(ROOT / "pdes", tmp_path / "pdes")
    (tmp_path / "conf" / "search" / "golden.yaml").write_text(
        "# Golden sections.\n_target_: a.B\nratio: 0.618 # of lengths\ninner:\n  _target_: c.D\n"
    )
    (tmp_path / "conf" / "schedule").mkdir()
    (tmp_path / "conf" / "schedule" / "flat.yaml").write_text("# No change.\n{}\n")
    monkeypatch.setattr(catalog, "resource", lambda name: tmp_path / name)
    overview = run("list")[1]
    assert re.search(r"^  golden +Golden sections\.", overview, re.M)
    assert re.search(r"^  flat +No change\.", overview, re.M)
    details = run("list", "searches")[1]
    assert re.search(r"^    search\.ratio=0\.618 +of lengths", details, re.M)
    assert "search.inner=D" in details
    assert run("list", "schedules")[0] == 0


def test_list_does_not_import_torch(tmp_path):
    code = (
        "import sys; from pinnkfac.__main__ import main; main(['list']); main(['list', 'steps']);"
        "print([m for m in ('torch', 'numpy', 'hydra', 'omegaconf') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_settings_of_a_configuration_file():
    text = "# Title.\na: [1, 2] # two\nb:\n  _target_: x.Y\n  c: 'p # q'\nd: {}\nempty:\ne: ???\n"
    found = [(s.key, s.value, s.remark) for s in catalog.settings_of(text) if not s.is_object]
    assert found == [("a", "[1,2]", "two"), ("b.c", "'p # q'", ""), ("d", "{}", "")]


# -- show and check --------------------------------------------------------------------------------
def test_show_takes_the_overrides_of_solve(run):
    code, out, _ = run("show", "heat", "pde.kappa=0.1", "--full", "net.widths=[8,7]", "step=adam")
    assert code == 0
    assert "u_t − 0.1 u_xx = 0" in out
    assert "pde.kappa=0.1" in out
    assert "2 InputScaling → 8 Tanh → 7 Tanh → 1" in out
    assert re.search(r"step +adam: learning_rate=0\.001, beta1=0\.9", out)
    assert "widths=[8, 7], activation=auto" in out
    brief = run("show", "heat1d", "net.widths=[8,7]", "damping.start=0.5")[1]
    assert "widths=[8, 7]" in brief
    assert "by_length: start=0.5" in brief
    assert "activation" not in brief


def test_show_of_a_long_source_is_brief_unless_asked(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("waves.py")
    path.write_text(
        "from torch import sin\n"
        "from pinnkfac import Box, Problem, Term, lap\n"
        "def waves():\n"
        "    box = Box(x=(0, 1), y=(0, 1))\n"
        "    source = lambda at: sum(sin(k * at.x) * sin(k * at.y) for k in range(1, 16))\n"
        "    terms = [Term('all', box.interior, lambda u, at: lap(u) - source(at))]\n"
        "    return Problem(fields='u', terms=terms)\n"
    )
    code, out, _ = run("show", str(path))
    assert code == 0
    assert "Δu − f1(x, y) = 0" in out
    assert re.search(r"f1\(x, y\) has \d+ operations: show --full", out)
    full = run("show", str(path), "--full")[1]
    assert "sin(15 x) sin(15 y)" in full
    assert max(map(len, full.splitlines())) <= 100


@pytest.mark.parametrize("name", ["show", "check"])
@pytest.mark.parametrize(
    ("arguments", "culprit"),
    [
        ((), "PDE"),
        (("poison2d",), "Did you mean 'poisson2d'"),
        (("missing.py",), "no such file"),
        (("poisson2d", "heat1d"), "'heat1d' is not an override"),
        (("poisson2d", "net.widht=3"), "net.widht"),
        (("poisson2d", "net.widths=[0]"), "net.widths"),
        (("poisson2d", "--fast"), "--fast"),
    ],
)
def test_a_wrong_command_line_ends_in_one_line(run, name, arguments, culprit):
    code, _, err = run(name, *arguments)
    assert code == 2
    assert len(err.splitlines()) == 1
    assert culprit in err


def test_check_says_what_it_found_by_its_exit_code(run, tmp_path):
    code, out, _ = run("check", "heat1d", "net.widths=[4]")
    assert code == 0
    assert out.splitlines()[-1] == "all 15 checks passed"
    text = bundled()["heat1d"].read_text(encoding="utf-8")
    path = tmp_path / "heat1d.py"
    path.write_text(text.replace("u.t - kappa", "u.t + kappa"), encoding="utf-8")
    code, out, _ = run("check", str(path), "net.widths=[4]")
    assert code == 1
    (line,) = [line for line in out.splitlines() if line.startswith("✗")]
    assert line.startswith("✗ term 'heat': the exact solution leaves")
    assert out.splitlines()[-1] == "1 check failed"
    path.write_text(text.replace("import exp", "import exq"), encoding="utf-8")
    code, out, _ = run("check", str(path))
    assert code == 1
    assert out.startswith("✗ file: heat1d.py, line 9, could not be imported")
    hinted = text.replace('Term("start"', '# Term("start"')
    path.write_text(hinted, encoding="utf-8")
    code, out, _ = run("check", str(path), "net.widths=[4]")
    assert code == 0
    assert "! hint: u is differentiated once by t, and has no condition at the start" in out
    assert out.splitlines()[-1] == "all 11 checks passed, 1 hint"


def test_output_without_unicode(tmp_path):
    done = command("check", "heat1d", "net.widths=[4]", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.decode("ascii").splitlines()
    assert all(line.startswith("ok ") for line in lines[:-1])
    done = command("show", "heat1d", "net.widths=[4]", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert "u_t - 0.25 u_xx = 0" in done.stdout.decode("ascii")
    done = command("list", cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


# -- new -------------------------------------------------------------------------------------------
def test_a_new_file_is_checked_shown_and_solved(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, _ = run("new", "my_rod.py")
    assert code == 0
    next_commands = re.findall(r"python -m pinnkfac (.*)", out)
    assert [line.split()[0] for line in next_commands] == ["check", "show", "solve"]
    text = Path("my_rod.py").read_text(encoding="utf-8")
    assert "def my_rod(" in text
    assert all(line in text for line in next_commands)
    assert "my_pde" not in text
    for line in next_commands[:2]:
        code, out, _ = run(*line.split(), "net.widths=[8]")
        assert code == 0, out
    assert "✗" not in out
    done = command(*next_commands[2].split(), *QUICK, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"relative L2 error" in done.stdout


def test_the_optional_lines_of_a_new_file_are_right(run, tmp_path, monkeypatch):
    """Uncommented as its comments say, it is an inverse problem whose coefficient is known."""
    monkeypatch.chdir(tmp_path)
    run("new", "inverse.py")
    path = Path("inverse.py")
    text = path.read_text(encoding="utf-8")
    text, number = re.subn(r"^( *)# (.*  # data)$", r"\1\2", text, flags=re.M)
    assert number == 6
    path.write_text(text, encoding="utf-8")
    code, out, _ = run("check", "inverse.py", "net.widths=[8]")
    assert code == 0
    assert "unknown conductivity" in out
    assert "conductivity = 0.25, which fits it best" in out
    assert "✗" not in out
    assert re.search(r"term 'data': the exact solution leaves \de-0[789]", out)


def test_a_new_file_passes_the_linter(tmp_path):
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    if ruff is None:
        pytest.skip("ruff is not installed")
    path = tmp_path / "own.py"
    path.write_text(new.written(new.TEMPLATE.read_text(encoding="utf-8"), path), encoding="utf-8")
    config = ["--config", str(ROOT / "pyproject.toml")]
    done = subprocess.run([ruff, "check", *config, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_a_new_file_never_overwrites(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("precious")
    code, _, err = run("new", "mine.py")
    assert code == 2
    assert "mine.py is there already" in err
    assert Path("mine.py").read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "proposal"),
    [
        ("my-pde.py", "my_pde.py"),
        ("2d.py", "pde_2d.py"),
        ("lambda.py", "lambda_problem.py"),
        ("a b.py", "a_b.py"),
        ("rod", "rod.py"),
        ("rod.txt", "rod.py"),
        (".py", "my_pde.py"),
        ("__.py", "my_pde.py"),
        ("torch.py", "torch_problem.py"),
        ("math.py", "math_problem.py"),
        ("pinnkfac.py", "pinnkfac_problem.py"),
        ("nowhere/rod.py", "there is no folder nowhere"),
    ],
)
def test_names_that_cannot_be_are_refused_with_one_that_can(
    run, tmp_path, monkeypatch, name, proposal
):
    monkeypatch.chdir(tmp_path)
    code, _, err = run("new", name)
    assert code == 2
    assert proposal in err
    assert len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["sin.py", "Box.py", "exp.py", "_draft.py", "heat1d.py", "kappa.py"]
)
def test_names_of_things_in_the_file_make_no_trouble(run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert run("new", name)[0] == 0
    code, out, _ = run("check", name, "net.widths=[4]")
    assert code == 0, out


def test_a_folder_that_cannot_be_written_to(run, tmp_path, monkeypatch):
    original = Path.open

    def refuse(self, mode="r", *rest, **more):
        if mode == "x":
            raise PermissionError(13, "Permission denied")
        return original(self, mode, *rest, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match="cannot be written: Permission denied"):
        new.main([str(tmp_path / "rod.py")])
