"""Damped least squares near the rounding of JᵀJ, and paths that they keep near the linear model,
against singular values of the dense Jacobian."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field

import pytest
import torch
from curvatures import Directed, Recorded, uphill
from nets import net_for
from oracles import assert_close, flat, jacobian
from problems import allen_cahn, points_for
from stepping import situation, take
from torch import Generator

from pinnkfac import Box, Problem, Term
from pinnkfac.curvature import least_squares
from pinnkfac.curvature.least_squares import REACH, Dual, Exact, Primal
from pinnkfac.linearisation.direction import combine, norm
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp
from pinnkfac.step import path as paths
from pinnkfac.step.base import Batch
from pinnkfac.step.damping import ByLength, Constant
from pinnkfac.step.gauss_newton import GaussNewton
from pinnkfac.step.lengths import Automatic, Momentum
from pinnkfac.step.methods import Spring
from pinnkfac.step.path import CurvedPath, Line
from pinnkfac.step.search import Accepted, Backtracking, Fixed

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
    """A path along a Gauss-Newton direction, how far places are from its model, and what it has
    asked for solutions of."""
    system, points, linearisation, exact, _ = near_singular(*FORMS[0])
    damping = 1e-4 * exact.mean_diagonal()
    direction = [scale * v for v in exact.solve(-linearisation.residual, damping)]
    solver, solved = Exact().at(situation(linearisation, relative), None), []
    solve = solver.least_squares

    def noted(right, *, refined):
        solved.append(right)
        assert not refined
        return solve(right, refined=False)

    solver.least_squares = noted
    line = Line(system, points, system.get_parameters(), direction)
    path = CurvedPath(line, linearisation, solver, bent=False, corrections=corrections)

    def away(length, parameters):
        model = linearisation.residual + length * linearisation.jvp(direction)
        return float((system.residual(points, parameters) - model).norm())

    return system, points, path, away, solved


def test_corrections_lead_back_to_the_linear_model(monkeypatch):
    monkeypatch.setattr(paths, "CLOSE", 0.0)
    found = []
    for corrections in (0, 1, 2, 4):
        system, points, path, away, solved = curved(corrections)
        arrival = path.go(0.5, math.inf)
        assert arrival.loss == pytest.approx(system.loss(points, arrival.parameters), rel=1e-12)
        assert len(solved) == corrections
        found.append(away(0.5, arrival.parameters))
        assert_close(flat(path.end(0.5, math.inf)), flat(arrival.parameters), 0.0)
    plain, one, two, four = found
    assert one < 0.2 * plain and two < 0.5 * one and four < 0.5 * two
    system, points, path, _, _ = curved(0)
    arrival, straight = path.go(0.5, math.inf), path.line.go(0.5, math.inf)
    assert arrival.loss == straight.loss
    assert_close(flat(arrival.parameters), flat(path.at(0.5)), 0.0)
    assert_close(flat(arrival.parameters), flat(straight.parameters), 0.0)


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
    arrival = path.go(0.5, math.inf)
    assert len(solved) == 1
    assert arrival.loss == pytest.approx(system.loss(points, arrival.parameters), rel=1e-12)
    assert_close(flat(arrival.parameters), flat(path.at(0.5)), 0.0)


def test_a_length_of_zero_is_the_start():
    system, points, path, _, solved = curved(8)
    before = system.get_parameters()
    arrival = path.go(0.0, 0.0)
    assert arrival.loss == system.loss(points, before) and not solved
    assert_close(flat(arrival.parameters), flat(before), 0.0)


def test_a_path_into_infinity_has_an_infinite_loss_and_a_way_back():
    system, _, path, _, _ = curved(8, scale=1e200)
    before = flat(system.get_parameters())
    assert path.go(1.0, 1.0).loss == math.inf
    path.line.direction[0].fill_(math.inf)
    assert_close(flat(path.end(0.0)), before, 0.0)


def started(step, damping=1e-3, search=None, dtype=torch.float64):
    problem = allen_cahn()
    system = System(problem, net_for(problem).to(dtype))
    points = points_for(system, 6, 5)
    schedule = damping if hasattr(damping, "start") else Constant(damping)
    stepper = step.start(system, search or Backtracking(), schedule, Generator().manual_seed(0))
    return system, points, stepper


def test_a_rejected_step_leaves_the_parameters_as_they_were():
    def nowhere(gradient, step):
        return [torch.full_like(v, math.inf) for v in gradient]

    method = Spring(geodesic=True, corrections=8).parts()
    method = dataclasses.replace(method, curvature=Directed(method.curvature, nowhere))
    system, points, stepper = started(method)
    before = system.get_parameters()
    report = stepper.update(before, Batch(points))
    assert report.length == 0.0
    assert_close(flat(report.parameters), flat(before), 0.0)


def test_a_fixed_length_evaluates_no_loss(monkeypatch):
    system, points, stepper = started(Spring(), search=Fixed(0.1))
    monkeypatch.setattr(system, "loss", None)
    monkeypatch.setattr(system, "evaluate", None)
    monkeypatch.setattr(system, "residual", None)
    assert take(stepper, system, points).length == 0.1


def recorded(step):
    """A step, and the paths that it makes."""
    method = step.parts()
    path = Recorded(method.path)
    return dataclasses.replace(method, path=path), path.made


@pytest.mark.parametrize(("near", "corrected"), [(2e-4, True), (5e-5, False)])
def test_steps_are_corrected_at_small_dampings_only(near, corrected, monkeypatch):
    monkeypatch.setattr(paths, "CLOSE", 0.0)
    monkeypatch.setattr(least_squares, "NEAR", near)
    system, points, _, solver, _ = near_singular(*FORMS[0])
    method, made = recorded(Spring(decay=0.0, relative=False, corrections=3))
    damping = Constant(1e-4 * solver.mean_diagonal())
    stepper = method.start(system, Fixed(0.5), damping, Generator().manual_seed(0))
    before = system.get_parameters()
    take(stepper, system, points)
    (path,) = made
    line = path.line if corrected else path
    straight = flat(combine((1.0, before), (0.5, line.direction)))
    away = float((flat(system.get_parameters()) - straight).norm() / straight.norm())
    assert isinstance(path, CurvedPath) == (away > 1e-6) == corrected


def test_steps_in_single_precision_are_corrected_at_their_least_damping_only():
    for damping, corrections in ((1e-2, 0), (1e-12, 8)):
        method, made = recorded(Spring(corrections=8))
        system, points, stepper = started(method, damping, dtype=torch.float32)
        report = take(stepper, system, points)
        assert getattr(made[0], "corrections", 0) == corrections
        assert report.damping >= damping


def test_a_damping_that_adapts_goes_no_lower_than_the_step_knows_apart():
    for schedule, raised in ((ByLength(start=1e-30, lowest=1e-30), True), (Constant(1e-30), False)):
        system, points, stepper = started(Spring(decay=0.0), schedule)
        solver = Dual(system.linearise(points))
        least = solver.least_damping / solver.mean_diagonal()
        report = take(stepper, system, points)
        assert report.damping == pytest.approx(least, rel=1e-9)
        assert (stepper.memory.damping >= 0.2 * least) == raised
        assert raised or stepper.memory.damping == 1e-30


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
    assert take(stepper, system, points).length == 0.0


# -- where a search begins -------------------------------------------------------------------------
@dataclass(frozen=True)
class Noted:
    """A search that accepts the given lengths, and notes which last one it was told."""

    lengths: list
    told: list = field(default_factory=list)

    def run(self, loss, loss_0, slope, last):
        self.told.append(last)
        length = self.lengths.pop(0)
        return Accepted(length, 0.5 * loss_0 if length else loss_0, 1)


def of_norms(sizes):
    """Directions downhill of these norms, step by step."""

    def towards(gradient, step):
        return [-(sizes[step] / norm(gradient)) * v for v in gradient]

    return towards


@pytest.mark.parametrize(("lengths", "told"), [(Momentum(), True), (Automatic(), False)])
def test_the_last_length_keeps_its_distance_in_powers_of_two(lengths, told):
    """It is that of the last step that was accepted; where the model has chosen the length there
    is none."""
    curvature = Directed(Exact(), of_norms([2.0, 2.0, 7.0, 0.0, math.inf, 7.0, 2.0]))
    search = Noted([0.25, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0])
    system, points, stepper = started(GaussNewton(curvature, lengths), search=search)
    for number in range(7):
        take(stepper, system, points)
        if told:
            size = 2.0 if number < 5 else 7.0  # of an accepted step
            assert stepper.memory.length == (0.25 if number < 5 else 0.5)
            assert stepper.memory.size == pytest.approx(size, rel=1e-12)
    # 2/7 of 0.25, and at least that; then 7/2 of 0.5
    expected = [None, 0.25, 0.125, None, None, 0.125, 2.0]
    assert search.told == (expected if told else [None] * 7)


def test_a_rejected_step_is_no_last_one():
    method = Spring(decay=0.0).parts()
    method = dataclasses.replace(method, curvature=Directed(method.curvature, uphill))
    system, points, stepper = started(method)
    take(stepper, system, points)
    accepted = stepper.memory.length, stepper.memory.size
    assert take(stepper, system, points).length == 0.0
    assert (stepper.memory.length, stepper.memory.size) == accepted


def test_a_state_without_the_newest_entries_can_be_taken():
    system, points, stepper = started(Spring())
    take(stepper, system, points)
    state = stepper.state_dict()
    del state["size"]
    search = Noted([0.0])
    _, _, other = started(Spring(), search=search)
    other.load_state_dict(state)
    assert other.memory.length == stepper.memory.length
    take(other, system, points)
    assert search.told == [None]
