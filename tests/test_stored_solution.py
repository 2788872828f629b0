"""Solutions that are read back from run folders, and folders that are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from pinnkfac import Box, UserError
from pinnkfac.nets import MlpSettings
from pinnkfac.problem.signature import Signature
from pinnkfac.solution import Solution
from pinnkfac.store.run_folder import NODES, RunFolder
from pinnkfac.store.stored_run import StoredRun

INVERSE = Signature(("u",), Box(x=(0, 1), y=(0, 2)), {"u": "K"}, {}, ("kappa", "a"))
CONFIG = {
    **{key: {} for key in NODES},
    "seed": 3,
    "dtype": "float64",
    "net": {"_target_": "pinnkfac.nets.MlpSettings", "widths": [5, 4], "fourier_features": 2},
}


def stored(folder, *, config=CONFIG, net=None, own=None, last=None, signature=INVERSE):
    """A run folder as ``solve`` leaves it, with a PDE file that cannot be run."""
    net = net or MlpSettings(widths=(5, 4), fourier_features=2).make(signature, 3)
    pde = folder / "mine.py"
    pde.parent.mkdir(parents=True, exist_ok=True)
    pde.write_text("raise RuntimeError('this file was run')")
    state = {"net": net.state_dict(), "coefficients": torch.tensor([0.25, -1.0]).double()}
    with RunFolder(folder / "run") as run:
        run.write_text("config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        run.write_problem("mine", pde, signature, [], net=own)
        run.write_checkpoint({**state, **(last or {})})
        best = {name: 2 * value for name, value in net.state_dict().items()}
        run.write_checkpoint({**state, "net": best}, "best")
    return folder / "run", net


def test_a_stored_run_is_read_back_without_its_pde_file(tmp_path):
    folder, net = stored(tmp_path)
    (tmp_path / "mine.py").unlink()
    x = torch.rand(6, 2, dtype=torch.float64)
    for given in (folder, str(folder), StoredRun.open(folder)):
        solution = Solution.load(given)
        assert torch.equal(solution(x), net(x).detach())
        assert solution.coefficients == {"kappa": 0.25, "a": -1.0}
        assert solution.signature.as_dict() == INVERSE.as_dict()
    state = Solution.load(folder, "best").net.state_dict()
    assert all(torch.equal(state[name], 2 * value) for name, value in net.state_dict().items())
    with pytest.raises(UserError, match="choose 'last' or 'best'"):
        Solution.load(folder, "first")


def test_a_run_in_single_precision_stays_so(tmp_path):
    net = MlpSettings(widths=(5, 4), fourier_features=2).make(INVERSE, 3).float()
    folder, _ = stored(tmp_path, config={**CONFIG, "dtype": "float32"}, net=net)
    assert Solution.load(folder).on_grid(x=3, y=3).values["u"].dtype == np.float32


class Own(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.a = nn.Linear(2, width)
        self.b = nn.Linear(width, 1)

    def forward(self, x):
        return self.b(torch.tanh(self.a(x)))


def test_a_net_of_the_users_own_must_be_given(tmp_path):
    trained = Own().double()
    folder, _ = stored(tmp_path, net=trained, own="Own")
    with pytest.raises(UserError, match=r"user's own \(Own\).*Solution.load\(folder, net=...\)"):
        Solution.load(folder)
    given = Own()
    solution = Solution.load(folder, net=given)
    x = torch.rand(4, 2, dtype=torch.float64)
    assert solution.net is given and torch.equal(solution(x), trained(x).detach())
    with pytest.raises(UserError) as caught:
        Solution.load(folder, net=Own(7))
    message = str(caught.value)
    assert all(part in message for part in ("checkpoint.pt", "'a.weight'", "(4, 2)", "(7, 2)"))


def test_a_net_that_maps_other_coordinates_is_refused(tmp_path):
    folder, _ = stored(tmp_path, net=nn.Sequential(nn.Linear(2, 3)).double(), own="Sequential")
    with pytest.raises(UserError, match=r"problem.json.*to 1 fields \(\[batch, 3\]\)"):
        Solution.load(folder, net=nn.Sequential(nn.Linear(2, 3)))


def changed(name, value=None, drop=False):
    state = dict(MlpSettings(widths=(5, 4), fourier_features=2).make(INVERSE, 3).state_dict())
    if drop:
        del state[name]
    else:
        state[name] = value
    return {"net": state}


@pytest.mark.parametrize(
    ("last", "culprits"),
    [
        (changed("layers.1.bias", drop=True), ["lacks 'layers.1.bias'"]),
        (changed("extra", torch.zeros(1)), ["it has 'extra'"]),
        (changed("layers.0.weight", torch.zeros(5, 3).double()), ["(5, 3)", "(5, 2)"]),
        (changed("layers.0.bias", torch.zeros(5)), ["'layers.0.bias' is torch.float32"]),
        (changed("layers.0.bias", [0.0] * 5), ["'layers.0.bias' is list"]),
        ({"net": None}, ["no weights under 'net'"]),
        ({"net": torch.zeros(3)}, ["no weights under 'net'"]),
        ({"coefficients": torch.zeros(3)}, ["'coefficients'", "(3,)", "kappa, a"]),
        ({"coefficients": torch.zeros(2, dtype=torch.int64)}, ["int64"]),
        ({"coefficients": None}, ["NoneType"]),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named(tmp_path, last, culprits):
    folder, _ = stored(tmp_path, last=last)
    with pytest.raises(UserError) as caught:
        Solution.load(folder)
    message = str(caught.value)
    assert str(folder / "checkpoint.pt") in message
    assert all(culprit in message for culprit in culprits), message


def node(**changes):
    return {"config": {**CONFIG, "net": {**CONFIG["net"], **changes}}}


@pytest.mark.parametrize(
    ("changes", "culprits"),
    [
        (node(_target_="os.system"), ["os.system", "pinnkfac.nets.MlpSettings"]),
        (node(_target_="pinnkfac.nets.Mlp"), ["pinnkfac.nets.Mlp "]),
        (node(_target_="pinnkfac.netsevil.MlpSettings"), ["netsevil"]),
        (node(_target_=3), ["_target_"]),
        (node(widths=[5, 0]), ["net.widths=[5, 0]", "at least 1"]),
        (node(widths="${oc.env:HOME}"), ["interpolation"]),
        (node(depth=3), ["net.depth"]),
        (node(activation="tan"), ["tan", "tanh"]),
        ({"config": {**CONFIG, "net": None}}, ["_target_"]),
        ({"config": {**CONFIG, "net": "mlp"}}, ["_target_"]),
        ({"config": {**CONFIG, "dtype": "float16"}}, ["dtype=float16", "float64"]),
        ({"config": {**CONFIG, "dtype": "${nothing}"}}, ["interpolation"]),
        ({"config": {**CONFIG, "dtype": None}}, ["dtype=None"]),
    ],
)
def test_a_configuration_that_is_no_net_is_refused(tmp_path, changes, culprits):
    folder, _ = stored(tmp_path, **changes)
    with pytest.raises(UserError) as caught:
        Solution.load(folder)
    message = str(caught.value)
    assert "config.yaml" in message or "checkpoint.pt" in message
    assert all(culprit in message for culprit in culprits), message


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="holds no run of pinnkfac"):
        Solution.load(tmp_path)
    with pytest.raises(UserError, match="there is no such folder"):
        Solution.load(tmp_path / "nowhere")
