"""Sensitivities, the scales made of them, and conjugate gradients, against the dense Jacobian."""

from __future__ import annotations

import pytest
import torch
from nets import net_for
from oracles import assert_close, flat, jacobian, unflat
from problems import PROBLEMS, points_for
from stepping import situation, take
from torch import Generator

from pinnkfac.curvature.conjugate_gradients import conjugate_gradients
from pinnkfac.curvature.kfac import KfacState, KroneckerFactors
from pinnkfac.linearisation.balance import Balance, mean_square_norms
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.system import System
from pinnkfac.points.functions import functions_of
from pinnkfac.points.settings import PointSettings
from pinnkfac.points.source import PointSource
from pinnkfac.run.loop import run
from pinnkfac.run.progress import Progress, Stop
from pinnkfac.step.damping import Constant, LevenbergMarquardt
from pinnkfac.step.lengths import Automatic
from pinnkfac.step.methods import Kfac
from pinnkfac.step.search import Backtracking, Fixed


def system_of(name: str, **options) -> System:
    problem = PROBLEMS[name]()
    return System(problem, net_for(problem), **options)


def dense_norms(system, points):
    """mean over points of ‖∂r_e/∂θ‖² from the rows of the dense Jacobian."""
    rows = jacobian(system, points).square().sum(1)
    result, start = [], 0
    for term, drawn in zip(system.terms, points, strict=True):
        n, e = len(drawn), term.equations
        block = rows[start : start + n * e].view(n, e)
        start += n * e
        result.append(block.sum(0) / term.weight)
    return result


@pytest.mark.parametrize("name", PROBLEMS)
def test_sensitivities_are_square_norms_of_rows_of_the_jacobian(name):
    system = system_of(name, chunk_bytes=1)
    points = points_for(system, 33, 20)
    expected = dense_norms(system, points)
    actual = mean_square_norms(system.linearise(points))
    assert len(points[0]) in (33, 30)  # or the given points
    for a, e in zip(actual, expected, strict=True):
        assert_close(a, e, 1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_scales_make_all_equations_equally_sensitive(name):
    system = system_of(name)
    points = points_for(system)
    balance = Balance()
    scales = balance.scales(system.linearise(points))
    scaled = system.linearise(with_scales(points, scales))
    norms = torch.cat(mean_square_norms(scaled))
    assert_close(norms, norms.max().expand_as(norms), 1e-10)
    assert min(float(s.min()) for s in scales) == pytest.approx(1.0, rel=1e-12)
    # A second look finds the same scales, since those in force are divided out.
    for a, b in zip(balance.scales(scaled), scales, strict=True):
        assert_close(a, b, 1e-10)


def test_scales_are_bounded():
    system = system_of("poisson")
    points = points_for(system)
    scales = Balance(most=1.5).scales(system.linearise(points))
    assert max(float(s.max()) for s in scales) <= 1.5**0.5 * (1 + 1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_scales_multiply_residual_and_jacobian_and_not_the_reported_losses(name):
    system = system_of(name)
    points = points_for(system)
    plain = system.linearise(points)
    dense = jacobian(system, points)
    scales = [torch.arange(2.0, 2.0 + t.equations).double() for t in system.terms]
    with_them = with_scales(points, scales)
    scaled = system.linearise(with_them)
    factor = torch.cat(
        [s.expand(len(p), -1).reshape(-1) for s, p in zip(scales, points, strict=True)]
    )
    assert_close(scaled.residual, factor * plain.residual, 1e-12)
    v = unflat(torch.randn(dense.shape[1], dtype=torch.float64), system.get_parameters())
    assert_close(scaled.jvp(v), factor * (dense @ flat(v)), 1e-10)
    assert scaled.losses == pytest.approx(plain.losses, rel=1e-12)
    assert system.losses(with_them) == system.losses(points)
    assert scaled.loss == pytest.approx(system.loss(with_them), rel=1e-12)
    assert scaled.loss != pytest.approx(plain.loss, rel=1e-2)


def test_conjugate_gradients_solve_the_damped_system():
    system = system_of("poisson")
    points = points_for(system, 9)
    linearisation = system.linearise(points)
    damping = 1e-1
    preconditioner = KroneckerFactors().at(situation(linearisation, damping), KfacState())
    gradient = linearisation.gradient()
    dense = jacobian(system, points)
    matrix = dense.T @ dense + damping * torch.eye(dense.shape[1], dtype=torch.float64)
    expected = torch.linalg.solve(matrix, -flat(gradient))
    downhill = [-v for v in gradient]
    many = conjugate_gradients(linearisation, downhill, preconditioner, damping, 200)
    assert_close(flat(many), expected, 1e-9)
    one = flat(conjugate_gradients(linearisation, downhill, preconditioner, damping, 1))
    first = -flat(preconditioner.apply(gradient))
    assert_close(one / one.norm(), first / first.norm(), 1e-10)
    few = flat(conjugate_gradients(linearisation, downhill, preconditioner, damping, 3))
    assert float((few - expected).norm()) > 1e-6 * float(expected.norm())


def test_conjugate_gradients_of_nothing_are_nothing():
    system = system_of("poisson")
    linearisation = system.linearise(points_for(system))
    preconditioner = KroneckerFactors().at(situation(linearisation, 1e-3), KfacState())
    result = conjugate_gradients(linearisation, system.layout.zeros(), preconditioner, 1e-3, 5)
    assert float(flat(result).abs().max()) == 0.0


def source_of(system, **settings):
    g = Generator().manual_seed(0)
    return PointSource(system.problem, PointSettings(**settings), functions_of(system), g)


def test_points_are_exchanged_where_the_net_fits_them_only():
    """With the loss on its points far below that on unseen ones, new points come; else not."""
    system = system_of("poisson")
    source = source_of(system, interior=20, lower=8)
    first = source.at(0)
    fair = system.loss(first)
    assert source.at(1, fair) is first
    assert source.at(2, 0.9 * fair) is first  # not a step at which it is checked
    assert source.at(3, 1e-9 * fair) is not first
    assert source.exchange.exchanged == 1


@pytest.mark.parametrize("search", [Fixed(), Backtracking()])
def test_losses_on_other_points_or_scales_do_not_judge_a_step(search):
    """The ratio of a step that was not searched is dropped where the loss changed its meaning."""
    system = system_of("poisson")
    step = Kfac(lengths=Automatic())
    damping = LevenbergMarquardt(start=0.1, good=0.5, bad=0.5)
    stepper = step.start(system, search, damping, Generator())
    points = points_for(system)
    take(stepper, system, points)
    before = stepper.memory.damping
    if isinstance(search, Fixed):
        assert before == 0.1  # judged by the next step
        take(stepper, system, points_for(system, 5), same_loss=False)
        assert stepper.memory.damping == 0.1
        take(stepper, system, points_for(system, 5))
        assert stepper.memory.damping != 0.1
    else:
        assert before != 0.1


def test_a_run_that_cannot_fall_stops_and_says_so():
    system = system_of("poisson")
    stepper = Kfac().start(system, _Never(), Constant(), Generator())
    source = source_of(system, interior=5, lower=5)
    progress, ending = run(
        system, stepper, source, Stop(rejections=4), Balance(every=0), lambda progress: None
    )
    assert progress.step == 4
    assert "4 steps in a row did not lower the loss" in ending.reason
    assert ending.status == "finished" and "points.scale" in ending.advice
    assert isinstance(progress, Progress)


class _Never:
    """A search that accepts nothing."""

    def run(self, loss, loss_0, slope, last):
        from pinnkfac.step.search import Accepted

        return Accepted(0.0, loss_0, 1)
