"""The published trajectories of KFAC and KFAC*, replayed step by step."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

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
SKIPPED = {
    "engd_diagonal_poisson5d": "ENGD",
    "engd_full_poisson2d": "ENGD",
    "engd_layerwise_heat1d": "ENGD",
    "spring_poisson2d": "SPRING",
}
"""Optimizers that are not steps of this version."""


@pytest.fixture(scope="module")
def script():
    name = "replay_trajectory"
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_every_file_is_replayed_or_known_to_be_skipped():
    assert {path.stem for path in GOLDEN.glob("*.npz")} == {*KFAC, *SKIPPED}


@pytest.mark.parametrize("name", KFAC)
def test_published_steps_are_ours(script, name):
    found = script.replay(GOLDEN / f"{name}.npz")
    assert found.steps == KFAC[name]
    assert found.arrays == KFAC[name] * 3 * 2 * 2  # layers, terms, factors
    assert found.parameters < 1e-8 and found.factors < 1e-8


@pytest.mark.parametrize("name", SKIPPED)
def test_other_optimizers_are_refused_by_name(script, name):
    with pytest.raises(NotImplementedError, match=SKIPPED[name]):
        script.replay(GOLDEN / f"{name}.npz")


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
}


@pytest.mark.parametrize("name", CHANGES)
def test_one_changed_setting_is_noticed(script, tmp_path, name):
    file, change = CHANGES[name]
    with np.load(GOLDEN / f"{file}.npz") as archive:
        data = {key: archive[key] for key in archive.files}
    meta = json.loads(str(data["meta"]))
    assert all(meta["hyperparameters"].get(key) != value for key, value in change.items())
    meta["hyperparameters"].update(change)
    changed = tmp_path / f"{file}.npz"
    np.savez(changed, **{**data, "meta": np.array(json.dumps(meta))})
    found = script.replay(changed)
    assert max(found.parameters, found.factors) > 1e-5


def test_the_script_reports_every_file_and_fails_where_one_deviates(script, tmp_path, capsys):
    good, skipped = GOLDEN / "kfac_poisson2d.npz", GOLDEN / "spring_poisson2d.npz"
    assert script.main([str(good), str(skipped)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("kfac_poisson2d: parameters ")
    assert lines[1].startswith("spring_poisson2d: skipped")
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
