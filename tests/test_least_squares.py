"""Damped least squares near the rounding of JᵀJ, and paths that they keep near the linear model,
against singular values of the dense Jacobian."""

from __future__ import annotations

import math

import pytest
import torch
from nets import net_for
from oracles import assert_close, flat, jacobian
from problems import allen_cahn, points_for
from torch import Generator

from pinnkfac import Box, Problem, Term
from pinnkfac.curvature.least_squares import REACH, Dual, Primal
from pinnkfac.linearisation.direction import combine, norm
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp
from pinnkfac.step import path as paths
from pinnkfac.step import spring
from pinnkfac.step.damping import ByLength, Constant
from pinnkfac.step.path import CurvedPath, Path
from pinnkfac.step.search import Backtracking, Fixed
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


def test_a_path_into_infinity_has_an_infinite_loss_and_a_way_back():
    system, _, path, _, _ = curved(8, scale=1e200)
    before = flat(system.get_parameters())
    assert path.go(1.0, 1.0) == math.inf
    path.direction[0].fill_(math.inf)
    path.move(0.0)
    assert_close(flat(system.get_parameters()), before, 0.0)


def started(step, damping=1e-3, search=None, dtype=torch.float64):
    problem = allen_cahn()
    system = System(problem, net_for(problem).to(dtype))
    points = points_for(system, 6, 5)
    schedule = damping if hasattr(damping, "start") else Constant(damping)
    stepper = step.start(system, search or Backtracking(), schedule, Generator().manual_seed(0))
    return system, points, stepper


def test_a_rejected_step_leaves_the_parameters_as_they_were(monkeypatch):
    system, points, stepper = started(Spring(geodesic=True, corrections=8))
    before = flat(system.get_parameters())
    direction = [torch.full_like(v, math.inf) for v in system.get_parameters()]
    monkeypatch.setattr(stepper.descent, "direction", lambda *given: direction)
    assert stepper.update(points).length == 0.0
    assert_close(flat(system.get_parameters()), before, 0.0)


def test_a_fixed_length_evaluates_no_loss(monkeypatch):
    system, points, stepper = started(Spring(), search=Fixed(0.1))
    monkeypatch.setattr(system, "loss", None)
    monkeypatch.setattr(system, "weighted_residual", None)
    assert stepper.update(points).length == 0.1


def recorded(stepper):
    """The paths that it makes from now on."""
    made, make = [], stepper._path
    stepper._path = lambda *given: made.append(make(*given)) or made[-1]
    return made


@pytest.mark.parametrize(("near", "corrected"), [(2e-4, True), (5e-5, False)])
def test_steps_are_corrected_at_small_dampings_only(near, corrected, monkeypatch):
    monkeypatch.setattr(paths, "CLOSE", 0.0)
    monkeypatch.setattr(spring, "NEAR", near)
    system, points, _, solver, _ = near_singular(*FORMS[0])
    step = Spring(decay=0.0, relative=False, corrections=3)
    damping = Constant(1e-4 * solver.mean_diagonal())
    stepper = step.start(system, Fixed(0.5), damping, Generator().manual_seed(0))
    made = recorded(stepper)
    before = system.get_parameters()
    stepper.update(points)
    (path,) = made
    straight = flat(combine((1.0, before), (0.5, path.direction)))
    away = float((flat(system.get_parameters()) - straight).norm() / straight.norm())
    assert isinstance(path, CurvedPath) == (away > 1e-6) == corrected


def test_steps_in_single_precision_are_corrected_at_their_least_damping_only():
    for damping, corrections in ((1e-2, 0), (1e-12, 8)):
        _, points, stepper = started(Spring(corrections=8), damping, dtype=torch.float32)
        made = recorded(stepper)
        report = stepper.update(points)
        assert getattr(made[0], "corrections", 0) == corrections
        assert report.damping >= damping


def test_a_damping_that_adapts_goes_no_lower_than_the_step_knows_apart():
    for schedule, raised in ((ByLength(start=1e-30, lowest=1e-30), True), (Constant(1e-30), False)):
        system, points, stepper = started(Spring(decay=0.0), schedule)
        solver = Dual(system.linearise(points))
        least = solver.least_damping / solver.mean_diagonal()
        report = stepper.update(points)
        assert report.damping == pytest.approx(least, rel=1e-9)
        assert (stepper.damping >= 0.2 * least) == raised
        assert raised or stepper.damping == 1e-30


def test_a_residual_that_no_parameter_changes_is_no_division_by_zero():
    box = Box(x=(0, 1))
    term = Term("cubic", box.interior, lambda u, at: u**3)
    problem = Problem(fields=("u",), terms=[term])
    net = Mlp(1, 1, (4,))
    for parameter in net.parameters():
        torch.nn.init.zeros_(parameter)
    system = System(problem, net)
    stepper = Spring().start(system, Backtracking(), ByLength(), Generator().manual_seed(0))
    points = points_for(system, 7)
    assert stepper.update(points).length == 0.0


def test_the_last_length_keeps_its_distance_in_powers_of_two():
    _, points, stepper = started(Spring(decay=0.0))
    assert stepper._last_length(2.0) is None
    stepper.last_length, stepper.last_norm = 0.25, 2.0
    assert stepper._last_length(2.0) == 0.25
    assert stepper._last_length(7.0) == 0.125  # 2/7 of it, and at least that
    assert stepper._last_length(0.0) is stepper._last_length(math.inf) is None
    stepper.descent.direction = lambda linearisation, gradient, damping: [
        100.0 * v for v in gradient
    ]  # uphill
    assert stepper.update(points).length == 0.0
    assert (stepper.last_length, stepper.last_norm) == (0.25, 2.0)  # of an accepted step


def test_a_state_without_the_newest_entries_can_be_taken():
    _, points, stepper = started(Spring())
    stepper.update(points)
    state = stepper.state_dict()
    del state["last_norm"]
    _, _, other = started(Spring())
    other.load_state_dict(state)
    assert other.last_length == stepper.last_length and other._last_length(1.0) is None
