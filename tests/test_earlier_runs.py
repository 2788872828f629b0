"""Run folders of earlier versions: they are read, and to go on with them is refused in one line."""

from __future__ import annotations

import pytest
import torch
from omegaconf import OmegaConf

from pinnkfac import Solution, UserError, resume, solve
from pinnkfac.__main__ import main

CONFIG = """
pde: {}
net:
  _target_: pinnkfac.nets.MlpSettings
  widths: [8]
  activation: tanh
  initialisation: auto
  residual: false
  input_scaling: true
  fourier_features: 0
  fourier_scale: 1.0
  periodic: []
  harmonics: 1
points:
  _target_: pinnkfac.sources.PointSettings
  sampling: {_target_: pinnkfac.domain.Uniform}
  faces: 0.0
  every: 0
  gap: 3.0
  check: 10
  interior: 1000
  lower: 200
  scale: 0.1
  numbers: {}
  adaptive: null
  growth: {_target_: pinnkfac.sources.Growth, factor: 1.0, most: 10.0}
  allocation: {_target_: pinnkfac.allocation.Allocation, rate: 0.1, least: 0.05}
search: {}
damping: {}
balance: {_target_: pinnkfac.balance.Balance, every: 20, most: 100000000.0}
problem: poisson2d
seed: 0
device: cpu
dtype: float64
threads: 1
published_rows: false
memory: 4.0
stop: {seconds: 60.0, steps: 2, loss: 0.0, error: 0.0, rejections: 30}
run: {dir: null, error_points: 10000, checkpoint: 30.0, plot: false, quiet: true}
debug: false
step:
  _target_: pinnkfac.step.first_order.Adam
  learning_rate: 0.001
  beta1: 0.9
  beta2: 0.999
  epsilon: 1.0e-08
choices: {net: mlp, points: uniform, search: none, damping: none, balance: sensitivity, step: adam}
"""
"""As pinnkfac 0.1 wrote it before its modules moved into folders."""


@pytest.fixture
def earlier(tmp_path):
    """A run whose configuration, in config.yaml and in both checkpoints, is that text."""
    words = ("net.widths=[8]", "points=uniform", "points.scale=0.1", "step=adam", "stop.steps=2")
    folder = tmp_path / "earlier"
    solve("poisson2d", *words, "threads=1", "run.plot=false", "run.quiet=true", folder=folder)
    (folder / "config.yaml").write_text(CONFIG)
    for name in ("checkpoint.pt", "best.pt"):
        state = torch.load(folder / name, weights_only=True)
        state["config"] = OmegaConf.to_container(OmegaConf.create(CONFIG))
        torch.save(state, folder / name)
    return folder


def test_its_solution_is_read(earlier, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for which in ("last", "best"):
        assert float(Solution.load(earlier, which).u(x=0.5, y=0.5)) < 10
    for words in (["plot", str(earlier)], ["compare", str(earlier)]):
        assert main(words) == 0
    assert main(["export", str(earlier), "u.npz"]) == 0


@pytest.mark.parametrize("overrides", [(), ("stop.steps=4",), ("step=kfac", "stop.steps=4")])
def test_to_go_on_with_it_is_refused_in_one_line(earlier, overrides, capsys):
    before = {path: path.read_bytes() for path in earlier.iterdir()}
    with pytest.raises(UserError, match=r"made by an earlier version.*have moved.*a new run"):
        resume(earlier, *overrides)
    assert main(["resume", str(earlier), *overrides]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert {path: path.read_bytes() for path in earlier.iterdir()} == before


def lacks_a_part(state):
    del state["equation_sizes"]


def lacks_a_scale_of_the_net(state):
    for name in [name for name in state["net"] if name.startswith("output.")]:
        del state["net"][name]
    del state["config"]["net"]["output_scaling"]


def has_another_form(state):
    state["points"] = {"points": state["points"]["points"], "exchanged": 0}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lacks_a_part, "it lacks equation_sizes"),
        (lacks_a_scale_of_the_net, "of the net"),
        (has_another_form, "or of another problem or step"),
    ],
)
def test_a_checkpoint_of_an_earlier_form_is_told_and_still_read(tmp_path, change, words):
    """What an earlier version stored otherwise, beside settings that are as they were."""
    folder = tmp_path / "run"
    words_of_it = ("net.widths=[8]", "points.scale=0.1", "step=adam", "stop.steps=2", "threads=1")
    solve("poisson2d", *words_of_it, "run.plot=false", "run.quiet=true", folder=folder)
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    change(state)
    torch.save(state, folder / "checkpoint.pt")
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(state["config"])))
    with pytest.raises(UserError) as found:
        resume(folder, "stop.steps=4")
    message = str(found.value)
    assert "of an earlier version of pinnkfac" in message and words in message
    assert message.endswith("start a new one; plot, compare and export still read it")
    assert float(Solution.load(folder).u(x=0.5, y=0.5)) < 10
    assert main(["export", str(folder), str(tmp_path / "u.npz")]) == 0
