"""ENGD-W and SPRING against the dense Jacobian of nested autodiff."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from curvatures import Directed, Recorded, uphill
from nets import deep_linear, linear, net_for
from oracles import assert_close, flat, jacobian, random_direction, residuals
from problems import PROBLEMS, allen_cahn, flow, inverse, points_for, poisson
from stepping import situation, take
from torch import Generator, nn

from pinnkfac import UserError
from pinnkfac.common.errors import Diverged
from pinnkfac.curvature.least_squares import Dual, Exact, Primal
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.direction import combine, norm
from pinnkfac.linearisation.system import System
from pinnkfac.step.damping import ByLength, Constant
from pinnkfac.step.lengths import Projected, Published
from pinnkfac.step.methods import Spring
from pinnkfac.step.path import CurvedPath, Line
from pinnkfac.step.search import Backtracking, Fixed

RTOL = 1e-10
LENGTH = 1e-3
"""Short steps: the net hardly moves while descents are compared."""


def started(problem, *numbers, step=None, damping=1e-3, search=None, net=None):
    system = System(problem, net or net_for(problem))
    points = points_for(system, *numbers)
    step = step or Spring(decay=0.0, relative=False)
    search = search or Fixed(LENGTH)
    stepper = step.start(system, search, Constant(damping), Generator().manual_seed(0))
    return system, points, stepper


def moved(system, stepper, points):
    """The change of the parameters by one step."""
    before = flat(system.get_parameters())
    report = take(stepper, system, points)
    return flat(system.get_parameters()) - before, report


def exact(linearisation, damping, *, relative=False):
    """The solver of a step."""
    return Exact(relative).at(situation(linearisation, damping), None)


def dense(system, points):
    j = jacobian(system, points)
    r = system.linearise(points).residual
    return j, r


# -- ENGD-W --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("numbers", [(4, 3), (60, 20)], ids=["dual", "primal"])
def test_engd_w_is_the_damped_gauss_newton_step(name, numbers, device):
    """With fewer and with more residuals than parameters."""
    problem = PROBLEMS[name]()
    system, points, stepper = started(problem, *numbers, net=net_for(problem).to(device))
    j, r = dense(system, points)
    gramian = j.T @ j + 1e-3 * torch.eye(j.shape[1]).to(j)
    expected = -LENGTH * torch.linalg.solve(gramian, j.T @ r)
    solver = exact(system.linearise(points), 1e-3)
    assert isinstance(solver.solver, Primal if j.shape[1] < j.shape[0] else Dual)
    assert_close(flat(solver.least_squares(-r, refined=False)), expected / LENGTH, RTOL)
    found, _ = moved(system, stepper, points)
    assert_close(found, expected, 1e-8)  # θ + δ − θ loses digits of a short step


@pytest.mark.parametrize("name", ["flow", "inverse", "linked"])
@pytest.mark.parametrize("damping", [1e-2, 1e-6])
def test_primal_and_dual_agree(name, damping):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem))
    points = points_for(system, 9, 8)
    linearisation = system.linearise(points)
    right = linearisation.residual
    primal, dual = Primal(linearisation), Dual(linearisation)
    assert primal.mean_diagonal() == pytest.approx(dual.mean_diagonal(), rel=1e-12)
    # the dual matrix has the squared condition number
    assert_close(flat(dual.solve(right, damping)), flat(primal.solve(right, damping)), 1e-9)


@pytest.mark.parametrize("name", ["flow", "inverse", "linked"])
def test_the_squared_condition_number_does_not_show_with_fewer_parameters(name):
    """Against a QR factorisation of J over √λ, at a condition number of about 1e5: the normal
    equations alone are right to 1e-8 to 1e-6."""
    problem = PROBLEMS[name]()
    system, damping = System(problem, net_for(problem)), 1e-10
    points = points_for(system, 60, 20)
    linearisation = system.linearise(points)
    j, r = dense(system, points)
    below = math.sqrt(damping) * torch.eye(j.shape[1]).to(j)
    q, upper = torch.linalg.qr(torch.cat([j, below]))
    projected = (q[: len(r)].T @ r)[:, None]
    expected = torch.linalg.solve_triangular(upper, projected, upper=True)[:, 0]
    assert_close(flat(Primal(linearisation).solve(r, damping)), expected, RTOL)


def test_directions_that_no_residual_sees_stay_zero():
    """λ = 0 and parameters without any effect: the step of least norm, not NaN."""
    system, points, _ = started(poisson(), 60, 20, net=deep_linear(2))
    linearisation = system.linearise(points)
    j, r = dense(system, points)
    assert int(torch.linalg.matrix_rank(j)) < min(j.shape)
    expected = torch.linalg.pinv(j, rtol=1e-12) @ r
    for solver in (Primal(linearisation), Dual(linearisation)):
        found = flat(solver.solve(r, 0.0))
        assert bool(torch.isfinite(found).all())
        assert_close(j @ found, j @ expected, 1e-4)


def test_a_residual_that_is_not_finite_is_a_divergence():
    system, points, _ = started(poisson(), 60, 20)
    linearisation = system.linearise(points)
    bad = linearisation.residual.clone()
    bad[3] = math.nan
    for solver in (Primal(linearisation), Dual(linearisation)):
        with pytest.raises(Diverged):
            solver.solve(bad, 1e-3)


def test_relative_damping_is_in_units_of_the_mean_diagonal():
    system, points, stepper = started(allen_cahn(), 6, 5, step=Spring(decay=0.0), damping=1e-3)
    j, r = dense(system, points)
    unit = float((j @ j.T).diagonal().mean())
    gramian = j.T @ j + 1e-3 * unit * torch.eye(j.shape[1]).to(j)
    for relative in (True, False):
        solver = exact(system.linearise(points), 1e-3, relative=relative)
        assert solver.unit == pytest.approx(unit if relative else 1.0, rel=1e-12)
        assert solver.damping == 1e-3 * solver.unit
    found, report = moved(system, stepper, points)
    assert_close(found, -LENGTH * torch.linalg.solve(gramian, j.T @ r), 1e-8)
    assert report.damping == 1e-3  # as it is set, not in absolute terms


# -- SPRING --------------------------------------------------------------------------------------
def closest(j, r, past, damping, decay):
    """The minimiser of ‖J δ + r‖² + λ ‖δ − μ φ‖²."""
    gramian = j.T @ j + damping * torch.eye(j.shape[1]).to(j)
    return torch.linalg.solve(gramian, damping * decay * past - j.T @ r)


@pytest.mark.parametrize("make", [allen_cahn, flow, inverse])
@pytest.mark.parametrize("numbers", [(5, 4), (60, 20)], ids=["dual", "primal"])
def test_spring_stays_close_to_the_last_step(make, numbers):
    """Where there is a choice: not with more residuals than parameters."""
    step = Spring(decay=0.7, least_length=0.0, relative=False)
    system, points, stepper = started(make(), *numbers, step=step)
    past = torch.zeros(system.layout.number).to(system.linearise(points).residual)
    for _ in range(3):
        j, r = dense(system, points)
        expected = LENGTH * closest(j, r, past, 1e-3, 0.7)
        found, _ = moved(system, stepper, points)
        assert_close(found, expected, 1e-7)
        assert_close(flat(stepper.memory.lengths.past), found, 1e-7)
        past = found if j.shape[0] <= j.shape[1] else 0.0 * found


def test_a_short_step_is_not_remembered():
    """Two steps of the same length: below and above what is asked for."""
    for least, kept in ((0.5, True), (0.50001, False)):
        step = Spring(decay=0.7, least_length=least)
        system, points, stepper = started(poisson(), 6, 5, step=step, search=Fixed(0.5))
        take(stepper, system, points)
        assert (stepper.memory.lengths.past is not None) == kept


def test_a_rejected_step_is_not_remembered():
    method = Spring(decay=0.7, least_length=0.0).parts()
    method = dataclasses.replace(method, curvature=Directed(method.curvature, uphill))
    search = Backtracking(longest=1e-3)
    system, points, stepper = started(poisson(), 6, 5, step=method, search=search)
    take(stepper, system, points)
    assert stepper.memory.lengths.past is not None
    report = take(stepper, system, points)
    assert report.length == 0.0 and stepper.memory.lengths.past is None


@pytest.mark.parametrize("correction", [True, False])
def test_published_spring_remembers_its_direction_and_bounds_its_step(correction):
    published = Published(learning_rate=0.3, norm_constraint=4e-4, bias_correction=correction)
    step = Spring(decay=0.9, relative=False, published=published)
    system, points, stepper = started(poisson(), 6, 5, step=step, search=Fixed(1.0))
    phi = torch.zeros(system.layout.number, dtype=torch.float64)
    bounded = []
    for k in range(1, 8):
        j, r = dense(system, points)
        phi = closest(j, r, phi, 1e-3, 0.9)
        corrected = phi / math.sqrt(1 - 0.9 ** (2 * k)) if correction else phi
        length = min(0.3, 0.02 / float(corrected.norm()))
        bounded.append(length < 0.3)
        found, _ = moved(system, stepper, points)
        assert_close(found, length * corrected, 1e-8)
    assert any(bounded)


# -- geodesic acceleration -----------------------------------------------------------------------
def quadratic():
    """A net that is linear in its inputs: residuals are polynomials of the parameters, of degree
    two in those of two layers."""
    return nn.Sequential(linear(2, 3), linear(3, 1))


def test_the_bend_cancels_the_second_derivative_of_the_residual():
    """Exact where the residual is a quadratic function of the parameters."""
    system, points, _ = started(poisson(), 4, 6, net=quadratic())
    linearisation = system.linearise(points)
    direction = random_direction(system, 1)
    start = system.get_parameters()
    theta = flat(start)

    def along(a):
        rs = residuals(system, theta + a * flat(direction), points)
        return torch.cat([r.reshape(-1) / math.sqrt(len(r)) for r in rs])

    zero = torch.tensor(0.0, dtype=torch.float64)
    first = lambda a: torch.func.jvp(along, (a,), (torch.ones_like(a),))[1]  # noqa: E731
    second = torch.func.jvp(first, (zero,), (torch.ones_like(zero),))[1]
    j, _ = dense(system, points)
    gramian = j.T @ j + 1e-3 * torch.eye(j.shape[1]).to(j)
    expected = -torch.linalg.solve(gramian, j.T @ second)
    limit = 1.5 * norm(direction)
    line = Line(system, points, start, direction)
    path = CurvedPath(line, linearisation, exact(linearisation, 1e-3))
    if float(expected.norm()) > limit:
        expected = limit / expected.norm() * expected
    assert_close(flat(path.bend), expected, 1e-9)
    assert_close(flat(path.end(0.0)), theta, 0.0)


def test_the_bend_is_at_most_as_long_as_allowed(monkeypatch):
    system, points, _ = started(poisson(), 6, 5)
    linearisation = system.linearise(points)
    direction = [100.0 * v for v in random_direction(system, 1)]
    line = Line(system, points, system.get_parameters(), direction)
    solver = exact(linearisation, 1e-14, relative=True)
    bend = CurvedPath(line, linearisation, solver).bend
    assert norm(bend) <= 1.5 * norm(direction) * (1 + 1e-12)
    monkeypatch.setattr(system, "residual", lambda points, at: linearisation.residual * math.nan)
    assert CurvedPath(line, linearisation, solver).bend is None


def test_steps_follow_the_bent_path():
    """θ + αδ + ½α²a at the length that the search accepted."""
    method = Spring(decay=0.5, least_length=0.0, geodesic=True).parts()
    recorded = Recorded(method.path)
    method = dataclasses.replace(method, path=recorded)
    search = Backtracking(longest=0.5)
    system, points, stepper = started(poisson(), 6, 5, step=method, search=search, damping=1e-6)
    before = system.get_parameters()
    report = take(stepper, system, points)
    a = report.length
    (path,) = recorded.made
    direction = path.line.direction
    assert 0 < a < 1 and norm(path.bend) > 0
    expected = combine((1.0, before), (a, direction), (0.5 * a * a, path.bend))
    assert_close(flat(system.get_parameters()), flat(expected), 1e-14)
    assert_close(flat(stepper.memory.lengths.past), a * flat(direction), 1e-12)


def test_geodesic_and_published_lengths_exclude_each_other():
    with pytest.raises(UserError, match=r"step\.geodesic=true needs a line search"):
        Spring(geodesic=True, published=Published())
    with pytest.raises(UserError, match=r"step\.corrections=8 needs a line search"):
        Spring(corrections=8, published=Published())


def test_the_residual_is_that_of_a_linearisation():
    problem = flow()
    system = System(problem, net_for(problem), chunk_bytes=1)
    scales = [torch.linspace(0.5, 2.0, t.equations, dtype=torch.float64) for t in system.terms]
    points = with_scales(points_for(system, 37, 18), scales)
    found = system.residual(points)
    assert_close(found, system.linearise(points).residual, 1e-13)
    assert 0.5 * float(found.square().sum()) == pytest.approx(system.loss(points), rel=1e-13)


# -- damping by length ---------------------------------------------------------------------------
def test_damping_follows_the_length():
    damping = ByLength(start=1e-2, lower=0.5, higher=4.0, long=0.25, short=0.01, lowest=1e-3)
    after = lambda value, length: damping.after(value, math.nan, 0, length)  # noqa: E731
    assert after(1e-2, 1.0) == after(1e-2, 0.25) == 5e-3
    assert after(1e-2, 0.1) == after(1e-2, 0.01) == 1e-2
    assert after(1e-2, 0.009) == after(1e-2, 0.0) == 4e-2
    assert after(1.5e-3, 1.0) == 1e-3
    assert after(5e3, 0.0) == 1e4
    with pytest.raises(UserError, match=r"damping\.short=0\.6 must not exceed damping\.long"):
        ByLength(short=0.6)
    with pytest.raises(UserError, match=r"damping\.lowest"):
        ByLength(lowest=1e5)


# -- a run ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("geodesic", [True, False])
def test_a_state_goes_on_bit_for_bit(geodesic):
    step = Spring(decay=0.9, geodesic=geodesic)
    make = lambda: started(  # noqa: E731
        poisson(), 6, 5, step=step, search=Backtracking(), damping=1e-6
    )
    system, points, stepper = make()
    for _ in range(3):
        take(stepper, system, points)
    other, same, fresh = make()
    other.set_parameters(system.get_parameters())
    fresh.load_state_dict(stepper.state_dict())
    for _ in range(3):
        reports = take(stepper, system, points), take(fresh, other, same)
        first, second = (dataclasses.replace(report, parameters=[]) for report in reports)
        assert first == second
    for a, b in zip(system.get_parameters(), other.get_parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_restart_forgets_the_last_step():
    step = Spring(decay=0.9, least_length=0.0)
    system, points, stepper = started(poisson(), 6, 5, step=step)
    take(stepper, system, points)
    assert stepper.memory.lengths.past is not None
    text = stepper.recover()
    assert "momentum" in text and stepper.memory.lengths == Projected()
