"""The inverse of the factors: its settings, its dense block, saving and loading."""

from __future__ import annotations

import pytest
import torch
from nets import linear
from oracles import assert_close
from problems import inverse, points_for
from torch import nn

from pinnkfac import UserError
from pinnkfac.curvature import kronecker
from pinnkfac.curvature.kfac import Average, Factors
from pinnkfac.curvature.preconditioner import InverseSettings, Preconditioner
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Scale


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: InverseSettings(terms="merge"), ["step.inverse.terms=merge", "'merged'"]),
        (lambda: InverseSettings(damping="trace_norm"), ["step.inverse.damping", "'trace-norm'"]),
        (lambda: InverseSettings(terms=None), ["step.inverse.terms=None", "Known: merged, sum"]),
        (lambda: Factors(sharing="expanded"), ["step.factors.sharing=expanded", "'expand'"]),
        (lambda: Factors(backpropagated="type2"), ["step.factors.backpropagated", "'type-2'"]),
        (lambda: Factors(start="one"), ["step.factors.start=one", "bias-corrected, identity, ze"]),
    ],
)
def test_unknown_options_are_refused_with_the_known_ones(make, words):
    with pytest.raises(UserError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)


def parts():
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1))
    system = System(inverse(), net)
    linearisation = system.linearise(points_for(system, 6))
    average = Average(Factors())
    average.update(linearisation)
    return system, linearisation, average


def test_the_dense_block_is_inverted_exactly_and_at_updates_only(monkeypatch):
    system, linearisation, average = parts()
    preconditioner = Preconditioner(InverseSettings(), system, average)
    damping = 1e-2
    preconditioner.update(damping, 0)
    gradient = linearisation.gradient()

    def never(matrix):
        raise AssertionError("an eigendecomposition in apply")

    monkeypatch.setattr(kronecker, "symmetric_eigen", never)
    found = preconditioner.apply(gradient)
    dense = average.dense_block()
    damped = dense + damping * torch.eye(len(dense), dtype=dense.dtype)
    assert len(found) == len(gradient) and found[-1].shape == gradient[-1].shape
    assert_close(found[-1], torch.linalg.solve(damped, gradient[-1]), 1e-10)

    average.dense.mul_(3.0)
    assert_close(preconditioner.apply(gradient)[-1], found[-1], 0.0)
    average.dense = None
    assert_close(preconditioner.apply(gradient)[-1], found[-1], 0.0)


def test_the_last_dense_inverse_serves_until_the_average_has_its_next_update():
    system, linearisation, average = parts()
    preconditioner = Preconditioner(InverseSettings(), system, average)
    preconditioner.update(1e-2, 0)
    gradient = linearisation.gradient()
    found = preconditioner.apply(gradient)
    average.dense = None
    preconditioner.update(1e-2, 1)
    assert_close(preconditioner.apply(gradient)[-1], found[-1], 0.0)


def test_inverses_survive_saving_and_loading(tmp_path):
    system, linearisation, average = parts()
    preconditioner = Preconditioner(InverseSettings(every=100), system, average)
    preconditioner.update(1e-2, 0)
    gradient = linearisation.gradient()
    torch.save(preconditioner.state_dict(), tmp_path / "state.pt")
    other = Preconditioner(InverseSettings(every=100), system, Average(Factors()))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other.update(5.0, 1)
    assert other.damping == 1e-2
    for x, y in zip(other.apply(gradient), preconditioner.apply(gradient), strict=True):
        assert_close(x, y, 0.0)
