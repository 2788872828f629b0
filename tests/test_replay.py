"""The published trajectories of KFAC, KFAC*, ENGD and SPRING, replayed step by step."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from scripts import experiment

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"

KFAC = {
    "kfac_heat1d_trace_norm": 5,
    "kfac_poisson2d": 5,
    "kfac_poisson2d_empirical": 5,
    "kfac_poisson2d_forward_only": 5,
    "kfac_poisson2d_reduce": 5,
    "kfac_poisson2d_zero_init": 5,
    "kfacstar_heat4d": 6,
    "kfacstar_logfokkerplanck3d": 6,
}
"""Files and their numbers of steps."""
EXACT = {
    "engd_diagonal_poisson5d": 4,
    "engd_full_poisson2d": 4,
    "engd_layerwise_heat1d": 4,
    "spring_poisson2d": 5,
}
"""The same for steps without factors."""


@pytest.fixture(scope="module")
def script():
    return experiment("replay_trajectory")


def test_every_file_is_replayed():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == {*KFAC, *EXACT}


@pytest.mark.parametrize("name", KFAC)
def test_published_steps_are_ours(script, name):
    found = script.replay(GOLDEN / f"{name}.npz")
    assert found.steps == KFAC[name]
    assert found.arrays == KFAC[name] * 3 * 2 * 2  # layers, terms, factors
    assert found.parameters < 1e-8 and found.factors < 1e-8


@pytest.mark.parametrize("name", EXACT)
def test_published_steps_with_exact_curvature_are_ours(script, name):
    found = script.replay(GOLDEN / f"{name}.npz")
    assert found.steps == EXACT[name] and found.arrays == 0
    assert found.parameters < 1e-8


def changed(path, name, optimizer=None, **hyperparameters):
    """A golden file with other settings in its description."""
    with np.load(GOLDEN / f"{name}.npz") as archive:
        data = {key: archive[key] for key in archive.files}
    meta = json.loads(str(data["meta"]))
    assert all(meta["hyperparameters"].get(k) != value for k, value in hyperparameters.items())
    meta["hyperparameters"].update(hyperparameters)
    meta["optimizer"] = optimizer or meta["optimizer"]
    np.savez(path, **{**data, "meta": np.array(json.dumps(meta))})
    return path


def test_other_optimizers_are_refused_by_name(script, tmp_path):
    other = changed(tmp_path / "other.npz", "spring_poisson2d", optimizer="MinSR")
    with pytest.raises(NotImplementedError, match="MinSR"):
        script.replay(other)


CHANGES = {
    "damping": ("kfac_poisson2d", {"damping": 2e-6}),
    "average": ("kfac_poisson2d", {"ema_factor": 0.61}),
    "momentum": ("kfac_poisson2d", {"momentum": 0.4}),
    "start of averages": ("kfac_poisson2d", {"initialize_to_identity": False}),
    "sharing": ("kfac_poisson2d", {"kfac_approx": "reduce"}),
    "backpropagated vectors": ("kfac_poisson2d", {"ggn_type": "empirical"}),
    "heuristic": ("kfac_heat1d_trace_norm", {"damping_heuristic": "same"}),
    "first length": ("kfacstar_heat4d", {"lr": ["auto", 1e-5]}),
    "damping of the model": ("kfacstar_heat4d", {"damping": 2e-4}),
    "damping of the Gramian": ("engd_full_poisson2d", {"damping": 1e-5}),
    "average of the Gramian": ("engd_full_poisson2d", {"ema_factor": 0.31}),
    "start of the Gramian": ("engd_diagonal_poisson5d", {"initialize_to_identity": False}),
    "part of the Gramian": ("engd_layerwise_heat1d", {"approximation": "diagonal"}),
    "memory of the last step": ("spring_poisson2d", {"decay_factor": 0.8}),
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_changed_setting_is_noticed(script, tmp_path, name):
    file, change = CHANGES[name]
    found = script.replay(changed(tmp_path / f"{file}.npz", file, **change))
    assert max(found.parameters, found.factors) > 1e-5


def test_the_script_reports_every_file_and_fails_where_one_deviates(script, tmp_path, capsys):
    good = GOLDEN / "kfac_poisson2d.npz"
    skipped = changed(tmp_path / "other.npz", "spring_poisson2d", optimizer="MinSR")
    assert script.main([str(good), str(skipped)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kfac_poisson2d: parameters ")
    assert lines[1].startswith("other: skipped")
    with np.load(good) as archive:
        data = {key: archive[key] for key in archive.files}
    data["step3_W1"] = data["step3_W1"] * (1 + 1e-6)
    bad = tmp_path / "bad.npz"
    np.savez(bad, **data)
    assert script.main([str(good), str(bad)]) == 1
    assert script.main([]) == 2
    assert script.main([str(tmp_path / "none.npz")]) == 2
    shutil.copy(good, tmp_path / "same.npz")
    assert script.main([str(tmp_path / "same.npz")]) == 0
