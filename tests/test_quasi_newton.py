"""Quasi-Newton matrices against the textbook, the strong Wolfe search, and the steps of a run."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from nets import FLOAT, net_for
from oracles import assert_close, flat, jacobian, random_spd
from problems import PROBLEMS, points_for
from stepping import take
from torch import nn

from pinnkfac import Box, Problem, Term, UserError, lap, solve
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.system import System
from pinnkfac.step import quasi_newton
from pinnkfac.step.base import Batch
from pinnkfac.step.damping import Constant, NoDamping
from pinnkfac.step.quasi_newton import (
    Ssbfgs,
    Ssbroyden,
    bfgs_rule,
    broyden_rule,
    update_inverse,
)
from pinnkfac.step.search import Backtracking, NoSearch
from pinnkfac.step.wolfe import Wolfe

SIZE = 7
RULES = {
    "bfgs": bfgs_rule("none"),
    "ssbfgs": bfgs_rule("al-baali"),
    "oren-luenberger": bfgs_rule("oren-luenberger"),
    "ssbroyden": broyden_rule,
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def pair(seed):
    """H, s, and y of positive curvature that has nothing to do with H."""
    g = generator(seed)
    inverse, hessian = random_spd(SIZE, seed), random_spd(SIZE, seed + 100)
    s = torch.randn(SIZE, generator=g, dtype=FLOAT)
    return inverse, s, hessian @ s * float(torch.rand(1, generator=g) * 4 + 0.1)


def numbers(inverse, s, y):
    """(b, h) from the dense inverse of H."""
    ys = float(y @ s)
    return float(s @ torch.linalg.solve(inverse, s)) / ys, float(y @ inverse @ y) / ys


def updated(inverse, s, y, tau, phi):
    result = inverse.clone()
    update_inverse(result, s, y, inverse @ y, tau, phi)
    return result


# -- the formulas ----------------------------------------------------------------------------------
@pytest.mark.parametrize("seed", range(5))
def test_phi_and_tau_one_are_the_textbook_bfgs_matrix(seed):
    """H⁺ = (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ (Nocedal & Wright 2006, eq. 6.17)."""
    inverse, s, y = pair(seed)
    rho = 1 / (y @ s)
    left = torch.eye(SIZE, dtype=FLOAT) - rho * torch.outer(s, y)
    expected = left @ inverse @ left.T + rho * torch.outer(s, s)
    assert RULES["bfgs"](3.0, 5.0, SIZE) == (1.0, 1.0)
    assert_close(updated(inverse, s, y, 1.0, 1.0), expected, 1e-12)
    assert_close(updated(inverse, s, y, *bfgs_rule("al-baali")(0.8, 5.0, SIZE)), expected, 1e-12)
    scaled = updated(inverse, s, y, *bfgs_rule("al-baali")(1.7, 5.0, SIZE))
    assert_close(scaled, left @ (1.7 * inverse) @ left.T + rho * torch.outer(s, s), 1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_phi_zero_is_the_textbook_dfp_matrix(seed):
    """H⁺ = H − H y yᵀ H / yᵀHy + s sᵀ / yᵀs (Nocedal & Wright 2006, eq. 6.15)."""
    inverse, s, y = pair(seed)
    hy = inverse @ y
    expected = inverse - torch.outer(hy, hy) / (y @ hy) + torch.outer(s, s) / (y @ s)
    assert_close(updated(inverse, s, y, 1.0, 0.0), expected, 1e-12)
    assert_close(
        updated(inverse, s, y, 0.5, 0.0) - torch.outer(s, s) / (y @ s),
        2 * (expected - torch.outer(s, s) / (y @ s)),
        1e-11,
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("theta", [-0.01, 0.0, 0.3, 1.0, 2.5])
def test_theta_mixes_the_hessians_of_bfgs_and_dfp(seed, theta):
    """(1 − θ) B_BFGS + θ B_DFP is the inverse of the matrix with φ = (1 − θ) / (1 + a θ)."""
    inverse, s, y = pair(seed)
    b, h = numbers(inverse, s, y)
    hessian = torch.linalg.inv(inverse)
    bs, ys = hessian @ s, y @ s
    bfgs = hessian - torch.outer(bs, bs) / (s @ bs) + torch.outer(y, y) / ys
    left = torch.eye(SIZE, dtype=FLOAT) - torch.outer(y, s) / ys
    dfp = left @ hessian @ left.T + torch.outer(y, y) / ys
    phi = (1 - theta) / (1 + (b * h - 1) * theta)
    expected = torch.linalg.inv((1 - theta) * bfgs + theta * dfp)
    assert_close(updated(inverse, s, y, 1.0, phi), expected, 1e-8)


@each_rule
def test_the_secant_equation_holds_and_matrices_stay_positive_definite(rule):
    for seed in range(40):
        inverse, s, y = pair(seed)
        tau, phi = rule(*numbers(inverse, s, y), SIZE)
        new = updated(inverse, s, y, tau, phi)
        assert_close(new @ y, s, 1e-12)
        assert_close(new, new.T, 1e-12)
        assert float(torch.linalg.eigvalsh(new).min()) > 0


def published(inverse, s, y):
    """θ, τ and φ of SSBroyden as the paper writes them; σ = det B(θ) / det B · sᵀBs / yᵀs from the
    dense Hessian B(θ)."""
    b, h = numbers(inverse, s, y)
    a = h * b - 1
    rho = min(1, h * (1 - math.sqrt(a / (a + 1))))
    theta = max((rho - 1) / a, min(1 / rho, (1 - b) / b))
    hessian = torch.linalg.inv(inverse)
    bs, ys, yhy = hessian @ s, y @ s, y @ inverse @ y
    w = (s @ bs).sqrt() * (y / ys - bs / (s @ bs))
    new = hessian - torch.outer(bs, bs) / (s @ bs) + theta * torch.outer(w, w)
    new += torch.outer(y, y) / ys
    sigma = float(torch.linalg.det(new) / torch.linalg.det(hessian)) * b
    root = sigma ** (1 / (1 - len(s)))
    one = min(1, float(ys / (s @ bs)))
    tau = one * min(root, 1 / theta) if theta > 0 else min(one * root, sigma)
    v = yhy.sqrt() * (s / ys - inverse @ y / yhy)
    rest = torch.linalg.inv(new) - torch.outer(s, s) / ys - inverse
    rest += torch.outer(inverse @ y, inverse @ y) / yhy
    return theta, tau, float(v @ rest @ v / (v @ v) ** 2)


def test_ssbroyden_takes_theta_tau_and_phi_of_the_paper():
    """In steps that were too short and too long, with θ of both signs, at its bounds and between
    them."""
    kinds = set()
    for seed in range(60):
        inverse, s, y = pair(seed)
        b, h = numbers(inverse, s, y)
        theta, tau, phi = published(inverse, s, y)
        assert broyden_rule(b, h, SIZE) == pytest.approx((tau, phi), rel=1e-8)
        kinds.add((theta > 0, math.isclose(theta, (1 - b) / b)))
    assert kinds >= {(True, True), (False, True), (False, False)}


@each_rule
@pytest.mark.parametrize("h", [0.2, 1.0, 4.0])
def test_a_step_that_was_newtons_is_no_special_case(rule, h):
    """a = 0: s and H y are parallel, and φ plays no role."""
    tau, phi = rule(1 / h, h, SIZE)
    assert math.isfinite(tau) and tau > 0 and math.isfinite(phi)
    s = torch.randn(SIZE, generator=generator(), dtype=FLOAT)
    inverse = h * torch.eye(SIZE, dtype=FLOAT)
    new = updated(inverse, h * s, h * s, tau, phi)
    assert_close(new @ s, s, 1e-7)


# -- a convex quadratic ----------------------------------------------------------------------------
def exact_descent(rule, hessian, x, steps):
    """Gradient norms and points of a quasi-Newton method with exact line searches."""
    inverse = torch.eye(len(x), dtype=FLOAT)
    norms, places = [], [x]
    for _ in range(steps):
        gradient = hessian @ x
        norms.append(float(gradient.norm()))
        direction = -inverse @ gradient
        length = float(-(gradient @ direction) / (direction @ hessian @ direction))
        s = length * direction
        y = hessian @ s
        x = x + s
        places.append(x)
        ys = float(y @ s)
        b, h = -length * float(gradient @ s) / ys, float(y @ inverse @ y) / ys
        update_inverse(inverse, s, y, inverse @ y, *rule(b, h, len(x)))
    return [*norms, float((hessian @ x).norm())], places


@each_rule
def test_exact_searches_end_after_as_many_steps_as_parameters(rule):
    """All methods of the family make the steps of conjugate gradients on a quadratic (Dixon 1972),
    whatever the scaling; steepest descent does not."""
    hessian = random_spd(SIZE, 1)
    x = torch.randn(SIZE, generator=generator(2), dtype=FLOAT)
    norms, places = exact_descent(rule, hessian, x, SIZE)
    assert norms[-1] < 1e-9 * norms[0] < norms[-2]
    residual, direction, point = -hessian @ x, -hessian @ x, x
    for place in places[1:-1]:
        length = residual @ residual / (direction @ hessian @ direction)
        point = point + length * direction
        after = residual - length * hessian @ direction
        direction = after + after @ after / (residual @ residual) * direction
        residual = after
        assert_close(place - x, point - x, 1e-8)


# -- the search ------------------------------------------------------------------------------------
class Line:
    """A function along a direction, which counts how often it and its derivative are wanted."""

    def __init__(self, f, derivative):
        self.f, self.slope = f, derivative
        self.losses, self.slopes = [], []

    def loss(self, length):
        self.losses.append(length)
        return self.f(length)

    def derivative(self, length):
        assert length == self.losses[-1]  # so that one pass can serve both
        self.slopes.append(length)
        return self.slope(length)

    def run(self, wolfe, first=1.0):
        return wolfe.run(self.loss, self.derivative, self.f(0.0), self.slope(0.0), first)


LINES = {
    "quadratic": (lambda x: (x - 0.3) ** 2, lambda x: 2 * (x - 0.3)),
    "far minimum": (lambda x: (x / 50 - 1) ** 2, lambda x: (x / 50 - 1) / 25),
    "near minimum": (lambda x: (1e3 * x - 1) ** 2, lambda x: 2e3 * (1e3 * x - 1)),
    "very near minimum": (lambda x: (1e7 * x - 1) ** 2, lambda x: 2e7 * (1e7 * x - 1)),
    "pole": (
        lambda x: 1 / (0.5 - x) + 9 * (x - 0.5) ** 2 if x < 0.5 else math.inf,
        lambda x: 1 / (0.5 - x) ** 2 + 18 * (x - 0.5),
    ),
}


@pytest.mark.parametrize("curvature", [0.9, 0.1])
@pytest.mark.parametrize("first", [1.0, 1e-3])
@pytest.mark.parametrize("name", LINES)
def test_the_length_satisfies_the_strong_wolfe_conditions(name, first, curvature):
    f, derivative = LINES[name]
    line = Line(f, derivative)
    found = line.run(Wolfe(curvature=curvature), first)
    a = found.length
    assert found.exact and found.trials == len(line.losses)
    assert line.losses[0] == first
    assert f(a) <= f(0.0) + 1e-4 * a * derivative(0.0)
    assert abs(derivative(a)) <= curvature * abs(derivative(0.0))
    assert len(line.slopes) <= len(line.losses) <= 40


def test_a_search_that_fails_takes_the_lowest_known_loss_or_none():
    falling = Line(lambda x: -x, lambda x: -1.0)  # no length is flat enough
    found = falling.run(Wolfe(most=4))
    assert not found.exact
    assert found.length == max(falling.slopes) > 0
    rising = Line(lambda x: x, lambda x: -1.0)  # the derivative is wrong
    found = rising.run(Wolfe())
    assert (found.length, found.exact) == (0.0, False)
    nan = Line(lambda x: 0.0 if x == 0 else math.nan, lambda x: -1.0)
    assert nan.run(Wolfe()).length == 0.0
    flat_line = Line(lambda x: 1.0, lambda x: -1e-30)  # which allows no fall that can be seen
    assert flat_line.run(Wolfe(most=3)).length == 0.0
    assert flat_line.slopes


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(UserError, match="must be below"):
        Wolfe(sufficient=0.2, curvature=0.1)
    with pytest.raises(UserError, match="Known: al-baali"):
        Ssbfgs(scaling="other")
    system = system_of("poisson")
    with pytest.raises(UserError, match="search=none"):
        Ssbfgs().start(system, Backtracking(), NoDamping(), generator())
    with pytest.raises(UserError, match="damping=none"):
        Ssbroyden().start(system, NoSearch(), Constant(), generator())


# -- in a run --------------------------------------------------------------------------------------
STEPS = [Ssbfgs(), Ssbfgs(scaling="oren-luenberger"), Ssbroyden()]
each_step = pytest.mark.parametrize("step", STEPS, ids=["al-baali", "oren-luenberger", "broyden"])


def system_of(name):
    problem = PROBLEMS[name]()
    return System(problem, net_for(problem))


def started(step, system):
    return step.start(system, NoSearch(), NoDamping(), generator())


def line_fit():
    """A residual that is linear in all parameters: u = w x + c, on a line."""
    box = Box(x=(0, 2))
    inside = Term("inside", box.interior, lambda u, at: u.x + 0.5 * u - torch.sin(3 * at.x))
    problem = Problem(
        fields=("u",), terms=[inside, Term("end", box.at(x=0), lambda u, at: u - 4.0)]
    )
    return System(problem, nn.Linear(1, 1, dtype=FLOAT))


@each_step
def test_a_linear_least_squares_problem_is_solved_and_its_hessian_is_learned(step):
    system = line_fit()
    points = points_for(system, 20, 1)
    stepper = started(step, system)
    theta = flat(system.get_parameters())
    dense = jacobian(system, points)
    residual = system.linearise(points).residual
    expected = theta - torch.linalg.lstsq(dense, residual[:, None]).solution[:, 0]
    for _ in range(3):
        report = take(stepper, system, points)
    assert_close(flat(system.get_parameters()), expected, 1e-7)
    assert stepper.updates >= 2 or report.length == 0.0


RULE_OF = {Ssbfgs: lambda step: bfgs_rule(step.scaling), Ssbroyden: lambda step: broyden_rule}


@each_step
@pytest.mark.parametrize("name", ["allen-cahn", "flow", "inverse"])
def test_every_iteration_satisfies_the_conditions_on_the_trained_loss(name, step):
    """Losses and gradients behind the search are those of the system, with the scales of its
    equations, and H is updated by the formula."""
    system = system_of(name)
    scales = [torch.full((t.equations,), 1.5, dtype=FLOAT) for t in system.terms]
    points = with_scales(points_for(system), scales)
    stepper = started(dataclasses.replace(step, iterations=1), system)
    rule = RULE_OF[type(step)](step)

    def evaluated():
        linearisation = system.linearise(points)
        return linearisation.loss, flat(linearisation.gradient()), flat(system.get_parameters())

    for _ in range(step.iterations):
        loss_0, gradient_0, here = evaluated()
        inverse = stepper.inverse.clone()
        take(stepper, system, points)
        loss, gradient, there = evaluated()
        slope = float(gradient_0 @ (there - here))
        assert loss <= loss_0 + 1e-4 * slope < loss_0
        assert abs(float(gradient @ (there - here))) <= 0.9 * abs(slope) * (1 + 1e-9)
        direction = -inverse @ gradient_0
        cosine = direction @ (there - here) / (direction.norm() * (there - here).norm())
        assert float(cosine) == pytest.approx(1.0, abs=1e-9)
        s, y = there - here, gradient - gradient_0
        assert_close(stepper.inverse @ y, s, 1e-9)
        assert float(torch.linalg.eigvalsh(stepper.inverse).min()) > 0
        expected = updated(inverse, s, y, *rule(*numbers(inverse, s, y), len(s)))
        assert_close(stepper.inverse, expected, 1e-6)


@each_step
def test_a_step_is_so_many_iterations(step):
    """Bit for bit as many steps of one iteration each."""
    system = system_of("flow")
    points, start = points_for(system), system.get_parameters()
    whole = started(step, system)
    report = take(whole, system, points)
    expected = system.get_parameters()
    system.set_parameters(start)
    single = started(dataclasses.replace(step, iterations=1), system)
    reports = [take(single, system, points) for _ in range(step.iterations)]
    assert torch.equal(flat(system.get_parameters()), flat(expected))
    assert torch.equal(single.inverse, whole.inverse) and whole.updates == step.iterations
    assert report.trials == sum(each.trials for each in reports)
    assert report.trained_loss == reports[0].trained_loss


def test_the_report_is_of_the_place_before_the_step():
    system = system_of("allen-cahn")
    points = points_for(system)
    before = flat(system.get_parameters())
    losses, loss = system.losses(points), system.loss(points)
    report = take(started(Ssbroyden(iterations=3), system), system, points)
    assert report.losses.written == pytest.approx(losses.written, rel=1e-12)
    assert report.trained_loss == pytest.approx(loss, rel=1e-12)
    moved = flat(system.get_parameters()) - before
    assert report.direction_norm == pytest.approx(float(moved.norm()), rel=1e-12)
    assert report.length == 1.0 and report.trials >= 3
    assert system.loss(points) < loss


def test_the_first_step_is_downhill_from_the_identity():
    """A first trial of length 1 at most, and then the textbook's matrix from b I."""
    system = system_of("allen-cahn")
    points = points_for(system)
    before, first = flat(system.get_parameters()), system.linearise(points).gradient()
    stepper = started(Ssbfgs(iterations=1), system)
    report = take(stepper, system, points)
    s = flat(system.get_parameters()) - before
    y = flat(system.linearise(points).gradient()) - flat(first)
    assert_close(s / s.norm(), -flat(first) / flat(first).norm(), 1e-12)
    assert report.direction_norm <= 1 or report.trials > 1
    eye = torch.eye(len(s), dtype=FLOAT)
    left = eye - torch.outer(s, y) / (y @ s)
    scaled = max(1.0, float(s @ s / (y @ s))) * eye
    expected = left @ scaled @ left.T + torch.outer(s, s) / (y @ s)
    assert_close(stepper.inverse, expected, 1e-9)


def test_where_nothing_lowers_the_loss_the_net_stays_and_the_matrix_begins_anew():
    system = system_of("poisson")
    points = points_for(system)
    stepper = started(Ssbfgs(), system)
    take(stepper, system, points)
    stepper.inverse.neg_()  # every direction climbs
    before = system.loss(points)
    assert take(stepper, system, points).length == 1.0
    assert system.loss(points) < before
    lowest = system.get_parameters()
    linearise = system.linearise

    def bumpy(points, at):
        linearisation = linearise(points, at)
        same = all(torch.equal(a, b) for a, b in zip(at, lowest, strict=True))
        linearisation.loss += 0.0 if same else 1.0
        return linearisation

    system.linearise = bumpy
    report = stepper.update(lowest, Batch(points))
    assert report.length == 0.0 and report.direction_norm == 0.0
    assert all(torch.equal(a, b) for a, b in zip(report.parameters, lowest, strict=True))
    assert torch.equal(stepper.inverse, torch.eye(len(stepper.inverse), dtype=FLOAT))


@each_step
def test_a_stepper_goes_on_from_its_state_bit_for_bit(step):
    system = system_of("flow")
    points = points_for(system)
    stepper = started(step, system)
    take(stepper, system, points)
    state, theta = copy.deepcopy(stepper.state_dict()), system.get_parameters()
    reports = [take(stepper, system, points) for _ in range(2)]
    system.set_parameters(theta)
    other = started(step, system)
    other.load_state_dict(state)
    for expected in reports:
        report = take(other, system, points)
        for a, b in zip(report.parameters, expected.parameters, strict=True):
            assert torch.equal(a, b)
        report, expected = (dataclasses.replace(r, parameters=[]) for r in (report, expected))
        assert report == expected
    assert not torch.equal(other.inverse, state["inverse"])  # the state is a copy of its own


def test_recovery_begins_anew():
    system = system_of("poisson")
    stepper = started(Ssbfgs(), system)
    take(stepper, system, points_for(system))
    assert "anew" in stepper.recover()
    assert stepper.updates == 0
    assert torch.equal(stepper.inverse, torch.eye(len(stepper.inverse), dtype=FLOAT))


def test_a_loss_that_is_not_finite_is_reported_and_nothing_is_moved():
    system = system_of("poisson")
    points = points_for(system)
    stepper = started(Ssbroyden(), system)
    with torch.no_grad():
        next(system.net.parameters())[0, 0] = math.nan
    before = system.get_parameters()
    report = stepper.update(before, Batch(points))
    assert not math.isfinite(report.trained_loss) and report.length == 0.0
    assert torch.equal(flat(report.parameters).nan_to_num(7.0), flat(before).nan_to_num(7.0))


def test_too_many_parameters_are_refused_at_once(monkeypatch):
    def small(number, what, setting, device):
        asked.append(number)
        raise UserError(f"{what}: lower {setting}")

    asked = []
    monkeypatch.setattr(quasi_newton, "check_fits", small)
    system = system_of("poisson")
    with pytest.raises(UserError, match=r"inverse Hessian of \d+ parameters: lower net.widths"):
        started(Ssbfgs(), system)
    assert asked == [8 * system.layout.number**2]


def plate():
    box = Box(x=(0, 1), y=(0, 1))

    def solution(at):
        return torch.sin(math.pi * at.x) * torch.sin(math.pi * at.y)

    return Problem(
        fields=("u",),
        terms=[
            Term("inside", box.interior, lambda u, at: lap(u) + 2 * math.pi**2 * solution(at)),
            Term("edge", box.boundary, lambda u, at: u),
        ],
        solution=solution,
    )


def test_self_scaled_methods_go_below_lbfgs_in_as_many_iterations():
    settings = ("net.widths=[10]", "points.interior=60", "points.lower=40", "stop.steps=8")
    losses = {
        step: solve(plate, *settings, f"step={step}", "threads=1").summary["loss"]
        for step in ("lbfgs", "ssbfgs", "ssbroyden")
    }
    assert losses["ssbfgs"] < losses["lbfgs"] and losses["ssbroyden"] < losses["lbfgs"]
