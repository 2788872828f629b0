"""The inverse of the factors: its settings, its dense block, saving and loading."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets import linear
from oracles import assert_close, deviation
from problems import PROBLEMS, inverse, points_for
from stepping import situation, take
from torch import Generator, nn

from pinnkfac import UserError
from pinnkfac.common.state import restore, state_of
from pinnkfac.curvature import kronecker
from pinnkfac.curvature.averaging import Average
from pinnkfac.curvature.conjugate_gradients import Truncated, TruncatedState
from pinnkfac.curvature.factors import Factors
from pinnkfac.curvature.gramian import ExactGramian
from pinnkfac.curvature.kfac import InverseSettings, KfacState, KroneckerFactors
from pinnkfac.curvature.least_squares import Exact
from pinnkfac.curvature.nystrom import SketchedKernel
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp, Scale
from pinnkfac.step.damping import Constant
from pinnkfac.step.gauss_newton import GaussNewton
from pinnkfac.step.lengths import Projection
from pinnkfac.step.path import Curved
from pinnkfac.step.search import Fixed


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


@pytest.mark.parametrize(
    ("curvature", "name"),
    [(Exact(), "Exact"), (ExactGramian(), "ExactGramian"), (SketchedKernel(), "SketchedKernel")],
)
def test_what_gives_directions_alone_is_refused_as_a_preconditioner(curvature, name):
    system, points, _ = parts()
    few = [part[:1] for part in points]
    here = situation(system.linearise(few))
    solver = Truncated(curvature).at(here, TruncatedState(curvature.start(system)))
    with pytest.raises(UserError, match=rf"{name}\b.*choose another.*KroneckerFactors"):
        solver.direction(here.linearisation.gradient())


@pytest.mark.parametrize("combined", [{"lengths": Projection()}, {"path": Curved(geodesic=True)}])
def test_what_solves_no_least_squares_is_refused_where_they_are_needed(combined):
    system, points, _ = parts()
    step = GaussNewton(KroneckerFactors(), **combined)
    stepper = step.start(system, Fixed(), Constant(), Generator())
    with pytest.raises(UserError, match=r"no least squares .*least_squares\.Exact"):
        take(stepper, system, points)


def test_a_sum_of_more_than_two_terms_is_refused_at_the_start():
    problem = PROBLEMS["allen-cahn"]()
    system = System(problem, Mlp(2, 1, (4,)))
    curvature = KroneckerFactors(inverse=InverseSettings(terms="sum", damping="same"))
    words = r"step\.inverse\.terms=sum .* 3 \(phases, periodic, start\).*terms=merged"
    with pytest.raises(UserError, match=words):
        curvature.start(system)
    assert KroneckerFactors().start(system) == KfacState()
    assert curvature.start(System(inverse(), Mlp(2, 1, (4,)))) == KfacState()


def parts():
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1))
    system = System(inverse(), net)
    points = points_for(system, 6)
    return system, points, system.linearise(points)


def seldom(factors, inverse):
    """Factors and inverses, each made anew after so many steps."""
    return KroneckerFactors(Factors(every=factors), InverseSettings(every=inverse))


def test_the_dense_block_is_inverted_exactly_and_at_updates_only(monkeypatch):
    _, _, linearisation = parts()
    curvature, damping = seldom(100, 100), 1e-2
    solver = curvature.at(situation(linearisation, damping), KfacState())
    gradient, average = linearisation.gradient(), solver.state.average
    later = situation(linearisation, damping, step=100)
    (dense,) = average.dense.values(0.8)
    tripled = replace(average, dense=Average([3.0 * v for v in average.dense.total], 1))
    changed = curvature.at(later, replace(solver.state, average=tripled)).apply(gradient)[-1]

    def never(matrix):
        raise AssertionError("an eigendecomposition in apply")

    monkeypatch.setattr(kronecker, "symmetric_eigen", never)
    found = solver.apply(gradient)
    damped = dense + damping * torch.eye(len(dense), dtype=dense.dtype)
    assert len(found) == len(gradient) and found[-1].shape == gradient[-1].shape
    assert_close(found[-1], torch.linalg.solve(damped, gradient[-1]), 1e-10)
    assert deviation(changed, found[-1]) > 1e-2

    for other in (tripled, replace(average, dense=Average())):
        state = replace(solver.state, average=other)
        same = curvature.at(situation(linearisation, damping, step=1), state)
        assert_close(same.apply(gradient)[-1], found[-1], 0.0)


def test_the_last_dense_inverse_serves_until_the_average_has_its_next_update():
    """New scales of the equations begin the average of the dense block anew."""
    system, points, linearisation = parts()
    curvature = seldom(3, 1)
    solver = curvature.at(situation(linearisation), KfacState())
    gradient = linearisation.gradient()
    found = solver.apply(gradient)
    scales = [torch.full((1,), s, dtype=torch.float64) for s in (2.0, 3.0)]
    scaled = system.linearise(with_scales(points, scales))
    for step in (1, 2):
        solver = curvature.at(situation(scaled, step=step), solver.state)
        assert solver.state.average.dense.values(0.8) == []
        assert_close(solver.apply(gradient)[-1], found[-1], 0.0)
        assert deviation(solver.apply(gradient)[0], found[0]) > 1e-2
    solver = curvature.at(situation(scaled, step=3), solver.state)
    assert deviation(solver.apply(gradient)[-1], found[-1]) > 1e-2


def test_inverses_survive_saving_and_loading(tmp_path):
    _, _, linearisation = parts()
    curvature = seldom(1, 100)
    solver = curvature.at(situation(linearisation), KfacState())
    gradient = linearisation.gradient()
    torch.save(state_of(solver.state), tmp_path / "state.pt")
    state = restore(KfacState(), torch.load(tmp_path / "state.pt", weights_only=True))
    other = curvature.at(situation(linearisation, 5.0, step=1), state)  # the damping is the old one
    for x, y in zip(other.apply(gradient), solver.apply(gradient), strict=True):
        assert_close(x, y, 0.0)
    renewed = curvature.at(situation(linearisation, 5.0, step=100), other.state)
    assert deviation(renewed.apply(gradient)[0], solver.apply(gradient)[0]) > 1e-2
