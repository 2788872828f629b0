"""Searches, damping, the quadratic model; KFAC and KFAC* steps against dense algebra."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from curvatures import Directed, uphill
from nets import FLOAT, linear, net_for
from oracles import (
    assert_close,
    conjugate_gradients,
    flat,
    jacobian,
    kronecker,
    layer_blocks,
    random_direction,
    random_spd,
    unflat,
)
from problems import allen_cahn, flow, inverse, points_for, poisson
from stepping import situation, take
from torch import nn

from pinnkfac import UserError
from pinnkfac.curvature.factors import Factors, factors
from pinnkfac.curvature.kfac import InverseSettings, KroneckerFactors
from pinnkfac.curvature.kronecker import merge
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Scale
from pinnkfac.step.base import Batch
from pinnkfac.step.damping import Constant, Exponential, LevenbergMarquardt, Steps
from pinnkfac.step.lengths import Automatic, Past
from pinnkfac.step.methods import Kfac
from pinnkfac.step.model import minimise
from pinnkfac.step.search import Accepted, Backtracking, Fixed, Grid, Quadratic

SEARCHES = [Grid(), Backtracking(), Quadratic()]
each_search = pytest.mark.parametrize("search", SEARCHES, ids=lambda s: type(s).__name__)


# -- searches ------------------------------------------------------------------------------------
class Counted:
    """A function of the length that counts its calls."""

    def __init__(self, function):
        self.function = function
        self.lengths = []

    def __call__(self, length):
        self.lengths.append(length)
        return self.function(length)


def parabola(best, depth=1.0):
    """1 + depth · ((α/best − 1)² − 1): slope −2 depth / best, its minimum at ``best``."""
    return lambda a: 1.0 + depth * ((a / best - 1.0) ** 2 - 1.0)


def test_fixed_takes_its_length_and_evaluates_nothing():
    loss = Counted(parabola(0.3))
    accepted = Fixed(0.7).run(loss, 1.0, -1.0, 0.1)
    assert accepted.length == 0.7 and math.isnan(accepted.loss)
    assert accepted.trials == 0 and loss.lengths == []


@pytest.mark.parametrize(
    ("best", "expected"), [(0.26, 0.25), (1.0, 1.0), (40.0, 1.0), (2e-9, 2**-29)]
)
def test_grid_takes_the_best_power(best, expected):
    loss = Counted(parabola(best))
    accepted = Grid().run(loss, 1.0, -2.0 / best, None)
    assert accepted.length == expected and accepted.loss == loss.function(expected)
    assert accepted.trials == len(loss.lengths) == 31
    assert sorted(loss.lengths) == [2.0**k for k in range(-30, 1)]


def test_steps_are_guarded_where_their_search_evaluates_losses():
    class Silent:
        def run(self, loss, loss_0, slope, last):
            return Accepted(1.0, math.nan, 0)

    class Blind(Silent):
        evaluates = False

    for search, guarded in ((Fixed(), False), (Blind(), False), (Grid(), True), (Silent(), True)):
        method = Kfac().start(System(poisson(), net_for(poisson())), search, Constant(), None)
        assert method.guarded == guarded


def test_grid_of_other_powers():
    loss = Counted(parabola(0.011))
    accepted = Grid(base=10.0, low=-3, high=1).run(loss, 1.0, -1.0, None)
    assert accepted.length == pytest.approx(0.01) and len(loss.lengths) == 5


def test_backtracking_halves_until_the_loss_falls():
    loss = Counted(parabola(0.1))  # falls below its start for α < 0.2
    accepted = Backtracking().run(loss, 1.0, -20.0, None)
    assert loss.lengths == [1.0, 0.5, 0.25, 0.125]
    assert (accepted.length, accepted.trials) == (0.125, 4)
    assert accepted.loss == loss.function(0.125) < 1.0


def test_backtracking_starts_from_the_last_length():
    loss = Counted(parabola(0.1))
    assert Backtracking(grow=2.0).run(loss, 1.0, -20.0, 0.05).length == 0.1
    assert loss.lengths == [0.1]
    far = Counted(parabola(10.0))
    assert Backtracking(grow=4.0).run(far, 1.0, -0.2, 0.5).length == 1.0
    assert Backtracking(grow=4.0, longest=8.0).run(far, 1.0, -0.2, 0.5).length == 2.0


def test_backtracking_asks_for_a_sufficient_decrease():
    """At α = 1 the loss falls by 0.01 of what the slope promises."""
    loss = Counted(lambda a: 1.0 - a + 0.99 * a * a)
    assert Backtracking(sufficient=1e-4).run(loss, 1.0, -1.0, None).length == 1.0
    assert Backtracking(sufficient=0.1).run(loss, 1.0, -1.0, None).length == 0.5


def test_quadratic_jumps_to_the_minimum_of_the_parabola():
    loss = Counted(parabola(0.3))
    accepted = Quadratic().run(loss, 1.0, -2.0 / 0.3, None)
    assert loss.lengths == [1.0, pytest.approx(0.3)]
    assert accepted.loss == pytest.approx(0.0, abs=1e-15) and accepted.trials == 2


def test_quadratic_keeps_within_a_tenth_and_a_half_of_the_last_trial():
    short, long = Counted(parabola(0.02)), Counted(parabola(0.499))
    Quadratic().run(short, 1.0, -100.0, None)
    assert short.lengths[:3] == [1.0, 0.1, pytest.approx(0.02)]
    Quadratic().run(long, 1.0, -2 / 0.499, None)
    assert long.lengths[1] == pytest.approx(0.499)
    wall = Counted(lambda a: math.inf if a > 0.03 else 1.0 - a)
    assert Quadratic().run(wall, 1.0, -1.0, None).length <= 0.03


@each_search
def test_nothing_is_accepted_where_the_loss_only_rises(search):
    loss = Counted(lambda a: 1.0 + a)
    accepted = search.run(loss, 1.0, -1.0, None)
    assert accepted.length == 0.0 and accepted.loss == 1.0
    assert accepted.trials == len(loss.lengths) <= 31


@each_search
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_lengths_without_a_loss_are_passed_over(search, bad):
    loss = Counted(lambda a: bad if a > 0.3 else 1.0 - a)
    accepted = search.run(loss, 1.0, -1.0, None)
    assert 0.0 < accepted.length <= 0.3 and accepted.loss == 1.0 - accepted.length


@each_search
def test_all_trials_without_a_loss_leave_the_start(search):
    accepted = search.run(lambda a: math.nan, 1.0, -1.0, None)
    assert accepted.length == 0.0 and accepted.loss == 1.0


@each_search
def test_an_uphill_direction_is_taken_only_where_the_loss_falls(search):
    assert search.run(lambda a: 1.0 + a, 1.0, 1.0, None).length == 0.0
    assert search.run(lambda a: 1.0 - 0.1 * a, 1.0, 1.0, None).length > 0.0


@each_search
def test_a_fall_within_rounding_is_none(search):
    """A loss that rises, evaluated one unit in the last place too low."""
    for last in (None, 1e-12):
        accepted = search.run(lambda a: (1.0 + a) * (1.0 - 2.0**-53), 1.0, 1.0, last)
        assert accepted.length == 0.0


@each_search
def test_an_accepted_loss_is_below_the_start(search):
    for best in (1e-6, 1e-3, 0.4, 3.0):
        function = parabola(best)
        accepted = search.run(function, 1.0, -2.0 / best, None)
        assert accepted.loss < 1.0 and accepted.loss == function(accepted.length)


# -- damping -------------------------------------------------------------------------------------
def run(schedule, ratios):
    damping, result = schedule.start, []
    for step, ratio in enumerate(ratios):
        damping = schedule.after(damping, ratio, step)
        result.append(damping)
    return result


def test_constant_damping():
    assert run(Constant(1e-3), [0.1, math.nan, 2.0]) == [1e-3] * 3


def test_exponential_damping():
    assert run(Exponential(1.0, 0.5, 0.1), [math.nan] * 5) == [0.5, 0.25, 0.125, 0.1, 0.1]


def test_damping_in_steps():
    found = run(Steps(1.0, 0.1, every=3, lowest=0.05), [math.nan] * 9)
    assert found == pytest.approx([1, 1, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05])


def test_levenberg_marquardt_trusts_a_good_model_and_distrusts_a_bad_one():
    schedule = LevenbergMarquardt(start=1.0, lower=0.5, higher=3.0, lowest=0.2, highest=5.0)
    assert run(schedule, [0.9]) == [0.5]
    assert run(schedule, [0.5]) == [1.0]
    assert run(schedule, [0.1]) == [3.0]
    assert run(schedule, [-2.0]) == [3.0]
    assert run(schedule, [math.nan]) == [3.0]  # a rejected step
    assert run(schedule, [1.0] * 4)[-1] == 0.2
    assert run(schedule, [0.0] * 4)[-1] == 5.0
    assert run(schedule, [0.75, 0.25]) == [1.0, 1.0]


# -- the quadratic model -------------------------------------------------------------------------
def model(number, seed=0, size=6):
    """b, M and D of random directions, and the directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(number, size, generator=generator, dtype=FLOAT)
    gradient = torch.randn(size, generator=generator, dtype=FLOAT)
    gramian = random_spd(size, seed + 1)
    products = directions @ gramian @ directions.T
    return directions @ gradient, products, directions @ directions.T


@pytest.mark.parametrize("damping", [0.0, 1e-3, 10.0])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_the_model_is_minimised(number, damping):
    b, m, d = model(number)
    minimiser, predicted = minimise(b, m, d, damping)
    c = torch.linalg.solve(m + damping * d, -b)
    assert_close(minimiser, c, 1e-10)
    assert predicted == pytest.approx(float(-(b @ c) - 0.5 * c @ m @ c), rel=1e-10)
    assert predicted > 0


def test_badly_scaled_directions_make_no_difference():
    b, m, d = model(3)
    scale = torch.tensor([1e-9, 1.0, 1e7], dtype=FLOAT)
    outer = torch.outer(scale, scale)
    minimiser, predicted = minimise(scale * b, outer * m, outer * d, 1e-3)
    expected, of_expected = minimise(b, m, d, 1e-3)
    assert_close(scale * minimiser, expected, 1e-9)
    assert predicted == pytest.approx(of_expected, rel=1e-9)


@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("factor", [2.0, -1.0, 1e-6])
def test_collinear_directions_count_once(factor, damping):
    b, m, d = model(1)
    both = torch.tensor([1.0, factor], dtype=FLOAT)
    outer = torch.outer(both, both)
    minimiser, predicted = minimise(b * both, m * outer, d * outer, damping)
    alone, of_alone = minimise(b, m, d, damping)
    assert torch.isfinite(minimiser).all()
    assert float(both @ minimiser) == pytest.approx(float(alone[0]), rel=1e-9)
    assert predicted == pytest.approx(of_alone, rel=1e-9)


def test_a_zero_direction_is_left_out():
    b, m, d = model(2)
    for x in (b, m, d):
        x[1:] = 0.0
    m[:, 1:] = d[:, 1:] = 0.0
    minimiser, _ = minimise(b, m, d, 1e-3)
    assert minimiser[1] == 0.0
    assert_close(minimiser[:1], minimise(b[:1], m[:1, :1], d[:1, :1], 1e-3)[0], 1e-12)
    nothing, predicted = minimise(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2, 2), 0.0)
    assert not nothing.any() and predicted == 0.0


# -- KFAC steps ----------------------------------------------------------------------------------
def started(problem, *, search=Fixed(1.0), damping=Constant(1e-3), net=None, number=8, **settings):  # noqa: B008
    system = System(problem, net_for(problem) if net is None else net)
    points = points_for(system, number)
    stepper = Kfac(**settings).start(system, search, damping, torch.Generator().manual_seed(0))
    return system, points, stepper


def curvature(system, points, settings, damping, terms="merged", kind="exact"):
    """The damped approximate curvature as dense blocks, one a layer (and the dense one)."""
    linearisation = system.linearise(points)
    by_term = factors(linearisation, settings)
    blocks = []
    for layer in range(len(system.graph.linears)):
        weights = [t.weight for t in system.problem.terms]
        pairs = [
            (own[layer][0], w * own[layer][1]) for own, w in zip(by_term, weights, strict=True)
        ]
        if terms == "merged":
            pairs = [merge(pairs)]
        if kind == "exact":
            matrix = kronecker(*pairs[0])
            matrix = matrix + damping * torch.eye(len(matrix), dtype=FLOAT)
        else:
            matrix = sum(
                kronecker(
                    a + damping * torch.eye(len(a), dtype=FLOAT),
                    b + damping * torch.eye(len(b), dtype=FLOAT),
                )
                for a, b in pairs
            )
        blocks.append(matrix)
    if system.layout.dense:
        j = jacobian(system, points)
        exact = layer_blocks(j.T @ j, system)[-1]
        blocks.append(exact + damping * torch.eye(len(exact), dtype=FLOAT))
    return torch.block_diag(*blocks)


@pytest.mark.parametrize(
    ("terms", "kind"), [("merged", "exact"), ("merged", "same"), ("sum", "same")]
)
def test_a_step_solves_with_the_damped_curvature(terms, kind):
    settings = InverseSettings(terms, kind)
    system, points, stepper = started(
        poisson(weight=5.0), search=Fixed(0.25), damping=Constant(0.01), inverse=settings
    )
    before = flat(system.get_parameters())
    matrix = curvature(system, points, Factors(), 0.01, terms, kind)
    gradient = flat(system.linearise(points).gradient())
    report = take(stepper, system, points)
    step = -torch.linalg.solve(matrix, gradient)
    assert_close(flat(system.get_parameters()) - before, 0.25 * step, 1e-9)
    assert report.length == 0.25 and report.damping == 0.01 and report.trials == 0
    assert report.direction_norm == pytest.approx(float(step.norm()), rel=1e-9)


def test_scales_and_coefficients_are_solved_with_their_exact_gramian():
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1))
    system, points, stepper = started(inverse(), damping=Constant(0.01), net=net)
    assert [len(p) for p in points] == [8, 7] and system.layout.dense == 6
    before = flat(system.get_parameters())
    matrix = curvature(system, points, Factors(), 0.01)
    gradient = flat(system.linearise(points).gradient())
    take(stepper, system, points)
    after = flat(system.get_parameters())
    assert_close(after - before, -torch.linalg.solve(matrix, gradient), 1e-9)


def test_momentum_adds_a_part_of_the_last_direction():
    system, points, stepper = started(poisson(), search=Fixed(0.1), momentum=0.7)
    plain, same_points, without = started(
        poisson(), search=Fixed(0.1), net=copy.deepcopy(system.net)
    )
    start = flat(system.get_parameters())
    take(stepper, system, points)
    take(without, plain, same_points)
    first = flat(system.get_parameters()) - start
    assert_close(flat(plain.get_parameters()) - start, first, 1e-14)
    take(stepper, system, points)
    take(without, plain, same_points)
    newton = flat(plain.get_parameters()) - start - first
    assert_close(flat(system.get_parameters()) - start - first, newton + 0.7 * first, 1e-9)


@pytest.mark.parametrize("build", [poisson, allen_cahn, flow, inverse])
@pytest.mark.parametrize("lengths", [None, Automatic(), Automatic(by_layer=False)], ids=str)
def test_a_few_steps_lower_the_loss(build, lengths, device):
    problem = build()
    net = net_for(problem).to(device)
    search = Backtracking()
    schedule = LevenbergMarquardt(start=1e-3)
    system, points, stepper = started(
        problem, search=search, damping=schedule, net=net, number=20, lengths=lengths
    )
    start = system.loss(points)
    losses = [start]
    for _ in range(8):
        report = take(stepper, system, points)
        losses.append(system.loss(points))
        assert system.weighted(report.losses.written) == pytest.approx(losses[-2], rel=1e-10)
        assert losses[-1] <= losses[-2] * (1 + 1e-12)
    assert losses[-1] < 0.5 * start


@pytest.mark.parametrize("search", SEARCHES[:2], ids=lambda s: type(s).__name__)
def test_where_no_length_helps_the_parameters_stay(search):
    """The direction is so wrong that no trial lowers the loss."""
    system, points, _ = started(poisson())
    method = Kfac().parts()
    method = dataclasses.replace(method, curvature=Directed(method.curvature, uphill))
    stepper = method.start(system, search, Constant(1e-3), torch.Generator().manual_seed(0))
    assert take(stepper, system, points).length > 0.0
    before = system.get_parameters()
    report = stepper.update(before, Batch(points))
    assert report.length == 0.0 and report.trials > 1
    assert_close(flat(report.parameters), flat(before), 0.0)


def test_ratio_is_the_reduction_over_the_predicted_one():
    search, schedule = Backtracking(longest=0.25), LevenbergMarquardt(start=0.1)
    system, points, stepper = started(poisson(), search=search, damping=schedule, number=12)
    before, theta = system.linearise(points), flat(system.get_parameters())
    report = take(stepper, system, points)
    step = unflat(flat(system.get_parameters()) - theta, system.get_parameters())
    slope = float(flat(before.gradient()) @ flat(step))
    predicted = -(slope + 0.5 * float(before.jvp(step).square().sum()))
    actual = before.loss - system.loss(points)
    assert report.length == 0.25 and predicted > 0
    assert report.ratio == pytest.approx(actual / predicted, rel=1e-9)


@dataclasses.dataclass(frozen=True)
class Logged(LevenbergMarquardt):
    """Notes the ratios that it is given."""

    ratios: list = dataclasses.field(default_factory=list)

    def after(self, damping, ratio, step):
        self.ratios.append(ratio)
        return damping


def test_a_step_whose_loss_was_not_evaluated_is_judged_by_the_next():
    schedule = Logged(start=0.1)
    system, points, stepper = started(poisson(), search=Fixed(0.25), damping=schedule)
    before, theta = system.linearise(points), flat(system.get_parameters())
    take(stepper, system, points)
    assert schedule.ratios == []
    step = unflat(flat(system.get_parameters()) - theta, system.get_parameters())
    slope = float(flat(before.gradient()) @ flat(step))
    predicted = -(slope + 0.5 * float(before.jvp(step).square().sum()))
    actual = before.loss - system.loss(points)
    take(stepper, system, points)
    assert schedule.ratios == [pytest.approx(actual / predicted, rel=1e-9)]


def test_three_terms_cannot_be_inverted_as_a_sum():
    with pytest.raises(UserError, match=r"phases, periodic, start.*merged"):
        started(allen_cahn(), inverse=InverseSettings("sum", "same"))


RESUMED = {
    "KFAC": {"momentum": 0.5, "search": Backtracking()},
    "KFAC*": {"lengths": Automatic(), "search": Backtracking(), "damping": LevenbergMarquardt()},
    "fixed length": {"search": Fixed(0.3), "damping": LevenbergMarquardt()},
    "factors every 2 steps": {"factors": Factors(every=2), "search": Grid()},
    "inverses every 3 steps": {"inverse": InverseSettings(every=3), "search": Grid()},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(name):
    settings = RESUMED[name]
    system, points, stepper = started(poisson(), **settings)
    for _ in range(2):
        take(stepper, system, points)
    state, net = copy.deepcopy(stepper.state_dict()), copy.deepcopy(system.net)
    for _ in range(3):
        take(stepper, system, points)
    other, same_points, resumed = started(poisson(), net=net, **settings)
    resumed.load_state_dict(state)
    for _ in range(3):
        take(resumed, other, same_points)
    assert_close(flat(other.get_parameters()), flat(system.get_parameters()), 0.0)
    assert resumed.memory.damping == stepper.memory.damping
    assert resumed.memory.steps == stepper.memory.steps == 5


# -- KFAC* ---------------------------------------------------------------------------------------
def test_kfac_star_without_momentum_is_one_preconditioned_cg_step():
    damping = 0.02
    lengths = Automatic(by_layer=False, memory=0, damped=True)
    system, points, stepper = started(
        poisson(weight=5.0), damping=Constant(damping), lengths=lengths
    )
    before = flat(system.get_parameters())
    matrix = curvature(system, points, Factors(), damping)
    j = jacobian(system, points)
    gramian = j.T @ j + damping * torch.eye(j.shape[1], dtype=FLOAT)
    gradient = flat(system.linearise(points).gradient())
    take(stepper, system, points)
    expected = conjugate_gradients(gramian, -gradient, lambda r: torch.linalg.solve(matrix, r), 1)
    assert_close(flat(system.get_parameters()) - before, expected, 1e-9)


@pytest.mark.parametrize("damped", [True, False])
@pytest.mark.parametrize("by_layer", [True, False])
@pytest.mark.parametrize("build", [poisson, inverse])
def test_kfac_star_minimises_the_model_over_its_directions(build, by_layer, damped):
    damping = 0.02
    system, points, stepper = started(
        build(),
        damping=Constant(damping),
        factors=Factors("expand", decay=0.95),
        lengths=Automatic(by_layer=by_layer, damped=damped),
    )
    start = flat(system.get_parameters())
    take(stepper, system, points)
    before = flat(system.get_parameters())
    last = before - start
    linearisation = system.linearise(points)
    j, gradient = jacobian(system, points), flat(linearisation.gradient())
    take(stepper, system, points)
    inverses = stepper.memory.curvature.inverses
    newton = flat(inverses.apply(unflat(gradient, system.get_parameters())))
    sources = []
    for source in (newton, last):
        pieces = source.split([v.numel() for v in system.get_parameters()])
        sources += [torch.block_diag(*pieces)] if by_layer else [source[None]]
    d = torch.cat(sources)
    image = d @ j.T
    m = image @ image.T + (damping if damped else 0.0) * d @ d.T
    expected = torch.linalg.lstsq(m, -(d @ gradient)[:, None], driver="gelsd").solution[:, 0] @ d
    assert_close(flat(system.get_parameters()) - before, expected, 1e-9)


def predicted_by(lengths, system, points, past):
    """The reduction of the loss that the model predicts with the given last steps."""
    linearisation = system.linearise(points)
    factors = KroneckerFactors()
    solver = factors.at(situation(linearisation, 1e-3), factors.start(system))
    state = Past(past, steps=len(past))
    return lengths.combine(solver, linearisation.gradient(), state).predicted


def test_lengths_by_layer_never_predict_less_than_one_length():
    for seed in range(5):
        torch.manual_seed(seed)
        system, points, _ = started(poisson())
        for memory in (0, 1, 3):
            past = [random_direction(system, seed + k) for k in range(memory)]
            one, each = (
                predicted_by(Automatic(by_layer, memory, damped=False), system, points, past)
                for by_layer in (False, True)
            )
            assert each >= one * (1 - 1e-10) > 0


@pytest.mark.parametrize("by_layer", [True, False])
def test_more_memory_never_predicts_less(by_layer):
    system, points, _ = started(poisson())
    predicted = []
    for memory in range(4):
        past = [random_direction(system, seed) for seed in range(memory)]
        lengths = Automatic(by_layer, memory, damped=False)
        predicted.append(predicted_by(lengths, system, points, past))
    assert predicted == sorted(predicted) and predicted[0] > 0


@pytest.mark.parametrize("memory", [0, 1, 3])
def test_memory_is_the_last_steps_newest_first(memory):
    lengths = Automatic(by_layer=False, memory=memory)
    system, points, stepper = started(poisson(), lengths=lengths)
    steps = []
    for _ in range(5):
        before = flat(system.get_parameters())
        take(stepper, system, points)
        steps.insert(0, flat(system.get_parameters()) - before)
        past = stepper.memory.lengths.last
        assert len(past) == min(memory, len(steps))
        for found, expected in zip(past, steps, strict=False):
            assert_close(flat(found), expected, 1e-10)


def test_the_first_step_can_be_scaled_as_published():
    lengths = Automatic(by_layer=False, first_length=1e-3)
    system, points, stepper = started(poisson(), lengths=lengths)
    plain, same_points, kfac = started(poisson(), net=copy.deepcopy(system.net), search=Fixed(1e-3))
    start = flat(system.get_parameters())
    take(stepper, system, points)
    take(kfac, plain, same_points)
    assert_close(flat(system.get_parameters()) - start, flat(plain.get_parameters()) - start, 1e-11)
