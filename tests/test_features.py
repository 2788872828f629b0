"""Random features: drawn, solved by least squares, chosen, and as the start of a run."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from omegaconf import OmegaConf
from oracles import assert_close, deviation, jacobian
from problems import allen_cahn, flow, heat, poisson
from torch import Generator, nn, sin

from pinnkfac import (
    Box,
    Parameter,
    Points,
    Problem,
    Solution,
    Term,
    Uniform,
    UserError,
    dot,
    grad,
    lap,
    resume,
    solve,
)
from pinnkfac.config.compose import compose
from pinnkfac.features import search as searching
from pinnkfac.features import solve as solving
from pinnkfac.features.search import Search
from pinnkfac.linearisation.system import System
from pinnkfac.nets import FeatureSettings, MlpSettings, OutputScaling
from pinnkfac.run.assembly import assemble
from pinnkfac.run.start import find_start
from pinnkfac.solution import stored

ENOUGH = "stop.steps=2000"
QUICK = ("threads=1", "points.interior=60", "points.lower=20", "net.widths=[8]")


def net_of(problem, features, seed=0):
    coordinates, fields = len(problem.coordinates.names), len(problem.fields)
    return nn.Sequential(features.make(coordinates, fields, seed), OutputScaling(fields))


def search_for(problem, budget=1e12):
    """Features of the coordinates as they are: boxes of these tests are about [−1, 1]."""
    return Search(problem, lambda s: net_of(problem, s), lambda net: System(problem, net), budget)


def system_of(problem, features, number=40):
    system = System(problem, net_of(problem, features))
    generator = Generator().manual_seed(1)
    points = [t.where.draw(number, Uniform(), generator) for t in problem.terms]
    return system, system.prepare(points)


def waves(k):
    """Δu = f in a square, of which u = sin kx sin ky is the solution."""
    box = Box(x=(-1, 1), y=(-1, 1))

    def u(at):
        return sin(k * at.x) * sin(k * at.y)

    terms = [
        Term("poisson", box.interior, lambda v, at: lap(v) + 2 * k**2 * u(at)),
        Term("edge", box.boundary, lambda v, at: v - u(at)),
    ]
    return Problem(fields=("u",), terms=terms, solution=u)


def start_of(config, problem):
    return find_start(config, assemble(config, problem).system)


# -- the features ----------------------------------------------------------------------------------
def test_fewer_features_are_the_first_of_more():
    few, many = (FeatureSettings(n, "tanh", 3.0).make(2, 1, 5) for n in (70, 200))
    assert torch.equal(few.map.weight, many.map.weight[:70])
    assert torch.equal(few.map.bias, many.map.bias[:70])
    other = FeatureSettings(70, "tanh", 3.0).make(2, 1, 6)
    assert not torch.equal(few.map.weight, other.map.weight)


def test_features_have_their_scale_and_their_middles_in_the_box():
    features = FeatureSettings(4000, "sin", 8.0).make(3, 2, 0)
    slopes = features.map.weight.norm(dim=1)
    assert math.sqrt(float(slopes.square().mean())) == pytest.approx(8.0, rel=0.03)
    shift = features.map.bias.abs() / features.map.weight.abs().sum(1)
    assert float(shift.max()) <= 1.0
    assert not features(torch.rand(5, 3, dtype=torch.float64)).any(), "nothing at first"


# -- least squares ---------------------------------------------------------------------------------
@pytest.mark.parametrize("problem", [poisson(), heat(), allen_cahn(), flow()], ids=repr)
def test_the_jacobian_is_that_of_nested_differentiation(problem):
    system, points = system_of(problem, FeatureSettings(9, "tanh", 1.5), 12)
    start = [0.3 * torch.randn_like(v) for v in system.get_parameters()]
    system.set_parameters(start)
    j, r = solving.jacobian(system, points)
    assert_close(r.square().sum(), system.residual(points).square().sum(), 1e-12)
    expected = jacobian(system, points)
    assert j.shape == expected.shape
    assert_close(j.T @ j, expected.T @ expected, 1e-10)  # rows stand in another order
    assert_close(j.T @ r, expected.T @ system.residual(points), 1e-10)


def test_linear_equations_are_solved_in_one_step():
    system, points = system_of(poisson(), FeatureSettings(30, "sin", 2.0), 60)
    j, r = solving.jacobian(system, points)
    expected = torch.linalg.lstsq(j, -r[:, None], driver="gelsd").solution[:, 0]
    solved = solving.solve(system, points)
    assert solved == solving.Solved(1, linear=True)
    least = 0.5 * float((j @ expected + r).square().sum())
    assert system.loss(points) == pytest.approx(least, rel=1e-8)


def test_newton_solves_equations_that_are_not_linear():
    box = Box(x=(-1, 1))

    def u(at):
        return torch.cos(2 * at.x)

    terms = [
        Term("ode", box.interior, lambda v, at: v.xx - v**3 + 4 * u(at) + u(at) ** 3),
        Term("ends", box.boundary, lambda v, at: v - u(at)),
    ]
    problem = Problem(fields=("u",), terms=terms, solution=u)
    system, points = system_of(problem, FeatureSettings(40, "sin", 2.0), 200)
    solved = solving.solve(system, points)
    assert 2 <= solved.steps <= solving.ITERATIONS
    assert not solved.linear
    assert system.loss(points) < 1e-13
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)[:, None]
    assert deviation(system.net(x).detach(), torch.cos(2 * x)) < 1e-6


def test_a_step_that_lowers_nothing_is_not_taken():
    """No v fulfils it: at 0 the derivative of the residual vanishes."""
    box = Box(x=(-1, 1))
    problem = Problem(fields=("u",), terms=[Term("ode", box.interior, lambda v, at: v**2 + 1)])
    system, points = system_of(problem, FeatureSettings(5, "tanh", 1.0))
    assert solving.solve(system, points).steps == 1
    assert not any(v.any() for v in system.get_parameters())


# -- the search ------------------------------------------------------------------------------------
def oscillation(k):
    """u'' = f on [−1, 1], of which u = sin kx is the solution."""
    box = Box(x=(-1, 1))

    def u(at):
        return sin(k * at.x)

    terms = [
        Term("ode", box.interior, lambda v, at: v.xx + k**2 * u(at)),
        Term("ends", box.boundary, lambda v, at: v - u(at)),
    ]
    return Problem(fields=("u",), terms=terms, solution=u)


def test_waves_are_found_by_sin_of_their_length():
    found = search_for(oscillation(300.0)).found()
    assert set(found.few) == {"tanh", "sin"}
    best = found.best
    assert best.settings.activation == "sin"
    assert best.residual < 1e-6 < 1e-2 < found.few["tanh"].residual
    assert 150 <= best.settings.scale <= 900
    assert best.linear
    x = torch.linspace(-1, 1, 777, dtype=torch.float64)[:, None]
    assert deviation(best.net(x).detach(), torch.sin(300 * x)) < 1e-5


def test_the_budget_is_kept():
    assert search_for(oscillation(2.0), 1e9).found() is None
    small, large = (search_for(oscillation(400.0), budget) for budget in (1.6e10, 1e11))
    least, most = small.found().best, large.found().best
    assert least.settings.number < most.settings.number
    assert small.budget >= 0
    assert large.budget >= 0


def test_what_helps_much_has_the_reserve():
    plain, more = search_for(oscillation(500.0), 1.7e10), search_for(oscillation(500.0), 1.7e10)
    more.reserve = 1e11
    fewer, larger = plain.found().best, more.found().best
    assert larger.settings.number > fewer.settings.number
    assert larger.residual < fewer.residual


def test_fields_far_beyond_their_scale_are_no_solution(monkeypatch):
    """Beside a large enough field every condition holds: its residual is small in such units."""
    problem = waves(1.0)
    search, settings = search_for(problem), FeatureSettings(20, "sin", 1.0)
    assert search.candidate(settings) is not None

    def blown_up(system, points, most):
        system.set_parameters([1e6 + v for v in system.get_parameters()])
        return solving.Solved(1, linear=True)

    monkeypatch.setattr(searching, "solve", blown_up)
    assert search.candidate(settings) is None


def with_a_spot(width):
    """u'' + f = 0, where f has a spot between the points that candidates are compared on."""
    box = Box(x=(-1, 1))

    def f(at):
        return sin(3 * at.x) + torch.where((at.x + 0.4).abs() < width, 1.0 / width, 0.0 * at.x)

    terms = [
        Term("ode", box.interior, lambda u, at: u.xx + f(at)),
        Term("ends", box.boundary, lambda u, at: u),
    ]
    return Problem(fields=("u",), terms=terms)


def test_features_that_miss_a_small_part_of_the_domain_are_no_solution():
    problem = with_a_spot(5e-4)
    search = search_for(problem)
    best = search.found().best
    assert best.residual < 1e-9, "the spot lies between the points"
    assert search.checked(best).residual > 0.5
    start = start_of(configuration("stop.seconds=60"), problem)
    assert start is not None
    assert not start.solved
    assert start.net.features is None
    smooth = search_for(waves(2.0))
    best = smooth.found().best
    assert smooth.checked(best).residual < 10 * best.residual


# -- the start of a run ----------------------------------------------------------------------------
def configuration(*overrides):
    return compose("x", {}, [*QUICK, *overrides])


def test_a_net_begins_with_features_that_solve_the_problem():
    config, problem = configuration("stop.seconds=60"), waves(3.0)
    start = start_of(config, problem)
    assert start is not None
    assert start.solved
    chosen = OmegaConf.to_container(start.config.net)
    assert chosen["features"]["rest"] < 1e-9
    assert chosen["features"]["_target_"] == "pinnkfac.nets.features.FeatureSettings"
    assert start.config.net.activation in ("sin", "tanh")
    x = problem.domain.interior.draw(100, Uniform(), Generator().manual_seed(3)).coordinates
    exact = (torch.sin(3 * x[:, 0]) * torch.sin(3 * x[:, 1]))[:, None]
    assert deviation(start.net(x).detach(), exact) < 1e-9
    assert all(not p.requires_grad for p in start.net.features.parameters())
    assert config.net.features is None, "the user's configuration stays"


@pytest.mark.parametrize(
    "overrides",
    [
        ("step=kfac", "stop.seconds=60"),
        ("step.features=0", "stop.seconds=60"),
        ("stop.seconds=1",),
        ("stop.steps=3",),
    ],
)
def test_no_features_are_looked_for(overrides):
    assert start_of(configuration(*overrides), waves(2.0)) is None


def test_none_with_unknown_coefficients():
    box = Box(x=(-1, 1))
    k = Parameter("k", 1.0)
    terms = [
        Term("ode", box.interior, lambda u, at: k * u.xx + 1),
        Term("ends", box.boundary, lambda u, at: (u, u)),
    ]
    problem = Problem(fields=("u",), terms=terms, parameters=(k,))
    assert start_of(configuration("stop.seconds=60"), problem) is None


def test_what_features_leave_chooses_the_activation():
    from pinnkfac.run.start import _activation

    def candidate(name, residual, scale=1.0):
        settings = FeatureSettings(9, name, scale)
        return searching.Candidate(settings, nn.Sequential(), residual, linear=True)

    sin, tanh = candidate("sin", 1e-4), candidate("tanh", 1e-2)
    more, shorter = candidate("sin", 1e-9), candidate("sin", 1e-9, 16.0)
    alike = candidate("tanh", 4e-4)
    assert _activation(searching.Found({"sin": sin, "tanh": tanh}, sin)) == "sin"
    assert _activation(searching.Found({"sin": sin, "tanh": alike}, more)) == "tanh"
    assert _activation(searching.Found({"sin": sin, "tanh": alike}, shorter)) == "sin"
    assert _activation(searching.Found({"sin": sin}, sin)) == "sin"
    assert _activation(searching.Found({"tanh": tanh}, tanh)) == "tanh"


def test_a_run_with_features_is_stored_loaded_and_resumed(tmp_path):
    result = solve(waves(3.0), *QUICK, "stop.seconds=60", "run.plot=false", folder=tmp_path / "run")
    assert result.status == "finished"
    assert "random features" in result.stop_reason
    assert result.errors.relative_l2 < 1e-9
    assert result.summary["warnings"] == []
    again = Solution.load(tmp_path / "run")
    x = torch.rand(9, 2, dtype=torch.float64)
    assert torch.equal(again(x), result.solution(x))
    with pytest.raises(UserError, match="nothing is left to do"):
        resume(tmp_path / "run", "stop.seconds=600", pde=waves(3.0))


def test_a_net_trains_what_features_leave(monkeypatch, tmp_path):
    from pinnkfac.run import start as starting

    monkeypatch.setattr(starting, "_work", lambda *_: 1e11)
    monkeypatch.setattr(starting, "ROUNDED", 0.0)
    monkeypatch.setattr(searching, "ROUNDED", 1e-4)
    monkeypatch.setattr(starting, "SOLVED", 1.0)
    monkeypatch.setattr(searching, "COLUMNS", 100)
    words = (*QUICK, "stop.steps=12", "net.widths=[16]")
    result = solve(waves(6.0), *words, "run.plot=false", folder=tmp_path / "run")
    first, *_, last = result.history
    assert result.summary["steps"] == 12
    assert last["relative_l2_error"] < 1e-3, "nothing of the features is lost"
    assert last["losses"]["poisson"] < first["losses"]["poisson"] < 1e-4
    twice = resume(tmp_path / "run", "stop.steps=14", pde=waves(6.0))
    assert twice.summary["steps"] == 14


def test_steps_that_better_nothing_are_taken_back(monkeypatch):
    from pinnkfac.run import start as starting

    monkeypatch.setattr(starting, "_work", lambda *_: 1e11)
    monkeypatch.setattr(starting, "SOLVED", 1.0)
    monkeypatch.setattr(searching, "ROUNDED", 1e-4)
    monkeypatch.setattr(starting, "ROUNDED", 0.0)
    monkeypatch.setattr(searching, "COLUMNS", 100)
    # the start claims to leave nothing, so that whatever steps do is worse
    claimed = Search.checked
    monkeypatch.setattr(Search, "checked", lambda *a: replace(claimed(*a), residual=0.0))
    result = solve(waves(6.0), *QUICK, "stop.steps=4", "net.widths=[16]")
    assert result.stop_reason.endswith("the net is that of the start")
    net = result.solution.net
    assert not any(p.any() for p in net.layers[-1].parameters())
    x = torch.rand(9, 2, dtype=torch.float64)
    assert_close(result.solution(x), net.output(net.features(net.embedding[0](x))).detach(), 1e-12)


def test_stored_features_are_checked():
    net = {"_target_": "pinnkfac.nets.MlpSettings", "features": {"number": -3}}
    with pytest.raises(UserError, match=r"net\.features\.number"):
        stored.stored_settings(net)
    net["features"] = {"_target_": "x.y", "number": 30, "scale": 2.0}
    settings = stored.stored_settings(net)
    assert settings == MlpSettings(features=FeatureSettings(30, scale=2.0))


def nothing():
    """u = 0."""
    box = Box(x=(-1, 1))
    terms = [
        Term("ode", box.interior, lambda u, at: u.xx - u),
        Term("ends", box.boundary, lambda u, at: u),
    ]
    return Problem(fields=("u",), terms=terms)


def test_a_run_whose_features_leave_exactly_nothing_can_be_loaded(tmp_path):
    words = (*QUICK, "stop.seconds=60", "run.plot=false")
    result = solve(nothing(), *words, folder=tmp_path / "run")
    assert max(result.summary["relative_residuals"].values()) == 0.0
    assert not Solution.load(tmp_path / "run")(torch.rand(5, 1, dtype=torch.float64)).any()


def test_features_of_another_problem_are_told_when_its_run_is_resumed(tmp_path):
    file = tmp_path / "line.py"
    file.write_text(
        "from pinnkfac import Box, Problem, Term\n"
        "def line(k: float = 1.0) -> Problem:\n"
        "    box = Box(x=(-1, 1))\n"
        "    ode = Term('ode', box.interior, lambda u, at: u.xx + k)\n"
        "    ends = Term('ends', box.boundary, lambda u, at: u)\n"
        "    return Problem(fields=('u',), terms=[ode, ends])\n"
    )
    words = (*QUICK, "stop.seconds=60", "run.plot=false", "run.quiet=true")
    solve(str(file), *words, folder=tmp_path / "run")
    with pytest.raises(UserError, match="solved the problem as it was"):
        resume(tmp_path / "run", "pde.k=2")


def test_mistakes_are_told_before_features_are_looked_for(monkeypatch, tmp_path):
    from pinnkfac.run import solving as runs

    monkeypatch.setattr(runs, "find_start", lambda *_: pytest.fail("too late"))
    with pytest.raises(UserError, match="no such term"):
        solve(waves(3.0), *QUICK, "stop.seconds=60", "points.numbers.foo=3")
    (tmp_path / "problem.json").write_text("{}")
    with pytest.raises(UserError, match="a run that was stopped"):
        solve(waves(3.0), *QUICK, "stop.seconds=60", folder=tmp_path)


# -- what features must not hide -------------------------------------------------------------------
def test_a_missing_condition_is_told():
    """u_xx + u_yy = f with slopes on the boundary: u is known up to a constant."""
    box = Box(x=(-1, 1), y=(-1, 1))
    terms = [
        Term("poisson", box.interior, lambda u, at: lap(u) - 4),
        Term("slope", box.boundary, lambda u, at: dot(grad(u), at.normal) - 2),
    ]
    problem = Problem(fields=("u",), terms=terms)
    start = start_of(configuration("stop.seconds=60"), problem)
    assert not start.solved
    assert "do not determine 'u'" in start.doubts[0]
    words = (*QUICK, "stop.seconds=20", "run.quiet=true")
    assert "do not determine 'u'" in solve(problem, *words).summary["warnings"][0]
    fixed = [*terms, Term("corner", box.at(x=-1, y=-1), lambda u, at: u)]
    start = start_of(configuration("stop.seconds=60"), Problem(fields=("u",), terms=fixed))
    assert start.solved
    assert start.doubts == []


def test_values_that_were_measured_are_not_fitted_by_features():
    box = Box(x=(0, 1))
    data = Points({"x": [0.2, 0.5, 0.7]}, v=[1.0, 1.1, 0.9])
    terms = [
        Term("ode", box.interior, lambda u, at: u.xx),
        Term("data", data, lambda u, at: u - at.v),
    ]
    problem = Problem(fields=("u",), terms=terms)
    assert start_of(configuration("stop.seconds=60"), problem) is None


def test_given_points_without_values_stand_for_a_region():
    x, y = 2 * torch.rand(2, 3000, dtype=torch.float64) - 1

    def u(at):
        return sin(2 * at.x) * sin(2 * at.y)

    box = Box(x=(-1, 1), y=(-1, 1))
    terms = [
        Term("poisson", Points({"x": x, "y": y}), lambda v, at: lap(v) + 8 * u(at)),
        Term("edge", box.boundary, lambda v, at: v - u(at)),
    ]
    problem = Problem(fields=("u",), terms=terms, solution=u, domain=box)
    found = search_for(problem).found()
    assert found.best.residual < 1e-8
    assert search_for(problem).undetermined(found.best) is None


def test_a_field_that_is_zero_hides_nothing():
    """Beside itself it has no digit that is right."""
    box = Box(x=(-1, 1))
    terms = [
        Term("ode", box.interior, lambda u, v, at: (u.xx + sin(at.x), v.xx)),
        Term("ends", box.boundary, lambda u, v, at: (u - sin(at.x), v)),
    ]
    problem = Problem(fields=("u", "v"), terms=terms)
    start = start_of(configuration("stop.seconds=60"), problem)
    assert start.solved
    assert start.doubts == []
