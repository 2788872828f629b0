"""Damped least squares near the rounding of JᵀJ, and paths that they keep near the linear model,
against singular values of the dense Jacobian."""

from __future__ import annotations

import math

import pytest
import torch
from examples import allen_cahn, flow, net_for, points_for
from oracles import assert_close, flat, jacobian
from torch import Generator

from pinnkfac.curvature.least_squares import REACH, Dual, Primal
from pinnkfac.direction import combine, norm
from pinnkfac.linearise import System
from pinnkfac.nets import Mlp
from pinnkfac.step import path as paths
from pinnkfac.step.damping import Constant
from pinnkfac.step.gauss_newton import NEAR
from pinnkfac.step.path import CurvedPath, Path
from pinnkfac.step.search import Backtracking
from pinnkfac.step.spring import Spring

FORMS = [(Dual, 60, (20, 20)), (Primal, 300, (10, 10))]


def near_singular(form, number, widths):
    """A linearisation whose J has singular values down to the rounding of the largest."""
    torch.manual_seed(0)
    problem = allen_cahn()
    system = System(problem, Mlp(2, 1, widths, initialisation="torch"))
    points = points_for(system, number, number // 3)
    linearisation = system.linearise(points)
    u, s, vh = torch.linalg.svd(jacobian(system, points), full_matrices=False)
    assert float(s[-1] / s[0]) < 1e-8  # its square is below rounding
    return system, points, linearisation, form(linearisation), (u, s, vh)


@pytest.mark.parametrize("form", FORMS, ids=["dual", "primal"])
def test_the_squared_condition_number_does_not_show(form):
    """At the smallest damping, where the factor alone is far off."""
    _, _, linearisation, solver, (u, s, vh) = near_singular(*form)
    r = linearisation.residual
    damping = solver.least_damping
    expected = vh.T @ ((u.T @ r) * s / (s * s + damping))
    found = flat(solver.solve(r, damping))
    rough = flat(solver.solve(r, damping, refined=False))
    assert float((rough - expected).norm() / expected.norm()) > 0.3
    assert float((found - expected).norm() / expected.norm()) < 0.05
    j = u @ torch.diag(s) @ vh

    def left(x):
        return float((j @ x - r).square().sum() + damping * x.square().sum())

    assert left(found) == pytest.approx(left(expected), rel=1e-2)
    assert left(rough) > 1.1 * left(expected)


@pytest.mark.parametrize("form", FORMS, ids=["dual", "primal"])
def test_a_smaller_damping_is_taken_for_the_least(form):
    _, _, linearisation, solver, (_, s, _) = near_singular(*form)
    r, least = linearisation.residual, solver.least_damping
    assert 0 < least < 1e-10 * float(s[0]) ** 2
    assert_close(flat(solver.solve(r, 0.0)), flat(solver.solve(r, least)), 1e-13)
    rough = flat(solver.solve(r, 0.0, refined=False))
    assert_close(rough, flat(solver.solve(r, REACH * least, refined=False)), 1e-13)


@pytest.mark.parametrize("form", FORMS, ids=["dual", "primal"])
@pytest.mark.parametrize("damping", [1e-2, 1e-5])
def test_larger_dampings_are_exact(form, damping):
    _, _, linearisation, solver, (u, s, vh) = near_singular(*form)
    r = linearisation.residual
    expected = vh.T @ ((u.T @ r) * s / (s * s + damping))
    for refined in (True, False):
        assert_close(flat(solver.solve(r, damping, refined=refined)), expected, 1e-7)


def test_no_residual_at_all_is_no_step():
    _, _, linearisation, solver, _ = near_singular(*FORMS[0])
    assert norm(solver.solve(0.0 * linearisation.residual, 1e-3)) == 0.0


# -- paths -----------------------------------------------------------------------------------------
def curved(corrections, scale=1.0, relative=1e-3):
    """A path along a Gauss-Newton direction, and how far it is from its model."""
    system, points, linearisation, solver, _ = near_singular(*FORMS[0])
    damping = 1e-4 * solver.mean_diagonal()
    direction = [scale * v for v in solver.solve(-linearisation.residual, damping)]
    solved = []

    def solve(right):
        solved.append(right)
        return solver.solve(right, relative * solver.mean_diagonal(), refined=False)

    path = CurvedPath(linearisation, points, direction, solve, bent=False, corrections=corrections)

    def away(length):
        model = linearisation.residual + length * linearisation.jvp(direction)
        return float((system.weighted_residual(points) - model).norm())

    return system, points, path, away, solved


def test_corrections_lead_back_to_the_linear_model(monkeypatch):
    monkeypatch.setattr(paths, "CLOSE", 0.0)
    found = []
    for corrections in (0, 1, 2, 4):
        system, points, path, away, solved = curved(corrections)
        loss = path.go(0.5, math.inf)
        assert loss == pytest.approx(system.loss(points), rel=1e-12)
        assert len(solved) == corrections
        found.append(away(0.5))
    plain, one, two, four = found
    assert one < 0.2 * plain and two < 0.5 * one and four < 0.5 * two
    system, points, path, _, _ = curved(0)
    straight = Path(system, points, path.direction)
    assert path.go(0.5, math.inf) == straight.go(0.5, math.inf)
    assert_close(flat(system.get_parameters()), flat(path.at(0.5)), 0.0)


def test_corrections_end_where_they_are_small_or_cannot_lead_below_the_limit(monkeypatch):
    *_, path, _, solved = curved(8)
    path.go(0.25, math.inf)
    assert not solved
    path.go(0.5, math.inf)
    assert len(solved) == 1
    monkeypatch.setattr(paths, "CLOSE", 0.0)
    path.go(0.5, 0.0)
    assert len(solved) == 2
    path.go(0.5, math.inf)
    assert len(solved) == 10


def test_a_correction_that_leads_away_is_taken_back(monkeypatch):
    monkeypatch.setattr(paths, "CLOSE", 0.0)
    system, points, path, _, solved = curved(8, relative=1e-9)
    loss = path.go(0.5, math.inf)
    assert len(solved) == 1 and loss == pytest.approx(system.loss(points), rel=1e-12)
    assert_close(flat(system.get_parameters()), flat(path.at(0.5)), 0.0)


def test_a_length_of_zero_is_the_start():
    system, points, path, _, solved = curved(8)
    before = flat(system.get_parameters())
    assert path.go(0.0, 0.0) == system.loss(points) and not solved
    assert_close(flat(system.get_parameters()), before, 0.0)


def test_a_path_into_infinity_has_an_infinite_loss():
    system, _, path, _, _ = curved(8, scale=1e200)
    with torch.no_grad():
        assert path.go(1.0, 1.0) == math.inf
    assert not all(bool(torch.isfinite(v).all()) for v in [system.weighted_residual(path.points)])


def test_steps_are_corrected_near_the_least_damping_only():
    problem = flow()
    for factor, corrected in ((0.5 * NEAR, True), (2.0 * NEAR, False)):
        system = System(problem, net_for(problem))
        points = points_for(system, 6, 5)
        step = Spring(decay=0.0, relative=False, corrections=3)
        solver = Dual(system.linearise(points))
        damping = Constant(factor * solver.least_damping)
        stepper = step.start(system, Backtracking(), damping, Generator().manual_seed(0))
        made = []
        make = stepper._path
        stepper._path = lambda *given, make=make, made=made: made.append(make(*given)) or made[-1]
        before = system.get_parameters()
        report = stepper.update(points)
        assert isinstance(made[0], CurvedPath) == corrected
        straight = combine((1.0, before), (report.length, made[0].direction))
        if not corrected:
            assert_close(flat(system.get_parameters()), flat(straight), 1e-14)


def test_the_damping_goes_no_lower_than_the_step_knows_apart():
    problem = allen_cahn()
    system = System(problem, net_for(problem))
    points = points_for(system, 6, 5)
    step = Spring(decay=0.0, relative=True)
    stepper = step.start(system, Backtracking(), Constant(0.0), Generator().manual_seed(0))
    solver = Dual(system.linearise(points))
    report = stepper.update(points)
    assert report.damping == pytest.approx(solver.least_damping / solver.mean_diagonal(), rel=1e-9)


def test_the_last_length_keeps_its_distance_in_powers_of_two():
    problem = allen_cahn()
    system = System(problem, net_for(problem))
    step = Spring(decay=0.0)
    stepper = step.start(system, Backtracking(), Constant(1e-3), Generator().manual_seed(0))
    assert stepper._last_length(2.0) is None
    stepper.last_length = 0.25
    assert stepper._last_length(2.0) == 0.25
    assert stepper._last_length(7.0) == 0.125  # 2/7 of it, and at least that
    assert stepper._last_length(0.0) is None
    assert stepper._last_length(1.0) is None
