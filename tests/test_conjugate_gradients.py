"""Conjugate gradients, their stop and backtracking, and Gauss-Newton-CG against dense algebra."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from nets import FLOAT, net_for
from oracles import (
    assert_close,
    conjugate_gradients,
    flat,
    jacobian,
    random_direction,
    random_spd,
    unflat,
)
from problems import flow, inverse, points_for, poisson
from stepping import situation, take

from pinnkfac import UserError
from pinnkfac.config.build import build
from pinnkfac.config.compose import compose
from pinnkfac.curvature import conjugate_gradients as cg
from pinnkfac.curvature.base import Situation
from pinnkfac.curvature.conjugate_gradients import (
    Identity,
    Iterate,
    Truncated,
    TruncatedState,
    best_of,
    damped_gramian,
    has_stalled,
    iterates,
    truncated,
)
from pinnkfac.curvature.diagonal import Diagonal
from pinnkfac.curvature.kfac import Factors, InverseSettings, KroneckerFactors
from pinnkfac.curvature.nystrom import NystromSketch
from pinnkfac.curvature.two_level import TwoLevel
from pinnkfac.linearisation.products import (
    gramian_products,
    gramian_times,
    jvps,
    kernel_products,
    vjps,
)
from pinnkfac.linearisation.system import System
from pinnkfac.step.damping import Constant, LevenbergMarquardt
from pinnkfac.step.lengths import Automatic
from pinnkfac.step.methods import EngdWNystrom, GaussNewtonCg
from pinnkfac.step.search import Backtracking, Fixed

PRECONDITIONERS = {
    "none": Identity(),
    "diagonal": Diagonal(),
    "kfac": KroneckerFactors(),
    "nystrom": NystromSketch(rank=9, every=3),
    "two_level": TwoLevel(coarse=7, refresh=2),
}
every_preconditioner = pytest.mark.parametrize("name", PRECONDITIONERS)


def drawn(size, seed=0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def prepared(settings, system, linearisation, damping, seed=0):
    """A preconditioner in the first step."""
    return settings.at(situation(linearisation, damping, seed=seed), settings.start(system))


def times(matrix):
    return lambda v: [matrix @ v[0]]


# -- the method ------------------------------------------------------------------------------------
def test_as_many_iterations_as_unknowns_solve():
    matrix, right = random_spd(8, 0) + torch.eye(8, dtype=FLOAT), drawn(8)
    run = list(zip(range(9), iterates(times(matrix), [right], lambda v: v), strict=False))
    solution = torch.linalg.solve(matrix, right)
    assert_close(run[8][1].solution[0], solution, 1e-12)
    assert float((run[4][1].solution[0] - solution).norm()) > 1e-6


@every_preconditioner
def test_iterates_are_those_of_the_textbook(name):
    damping = 0.05
    system = System(poisson(), net_for(poisson()))
    points = points_for(system, 9)
    linearisation = system.linearise(points)
    preconditioner = prepared(PRECONDITIONERS[name], system, linearisation, damping, seed=1)
    right = linearisation.gradient()
    j = jacobian(system, points)
    assert j.shape == (18, system.layout.number)
    matrix = j.T @ j + damping * torch.eye(j.shape[1], dtype=FLOAT)

    def precondition(v):
        return flat(preconditioner.apply(unflat(v, right)))

    run = iterates(damped_gramian(linearisation, damping), right, preconditioner.apply)
    for number, found in zip(range(7), run, strict=False):
        expected = conjugate_gradients(matrix, flat(right), precondition, number)
        assert found.number == number
        assert_close(flat(found.solution), expected, 1e-8, number)
        model = 0.5 * expected @ matrix @ expected - flat(right) @ expected
        assert found.model == pytest.approx(float(model), rel=1e-9, abs=1e-300)


def test_a_start_vector_is_where_iterates_begin():
    matrix, right = random_spd(7, 2) + torch.eye(7, dtype=FLOAT), drawn(7)
    start = torch.linalg.solve(matrix, right) + 0.1 * drawn(7, 3)
    left = right - matrix @ start
    run = iterates(times(matrix), [right], lambda v: v, [start.clone()])
    for number, found in zip(range(5), run, strict=False):
        expected = start + conjugate_gradients(matrix, left, lambda v: v, number)
        assert_close(found.solution[0], expected, 1e-10)
        model = 0.5 * expected @ matrix @ expected - right @ expected
        assert found.model == pytest.approx(float(model), rel=1e-10)


def test_a_start_that_is_worse_than_nothing_is_dropped():
    matrix, right = random_spd(7, 2) + torch.eye(7, dtype=FLOAT), drawn(7)
    bad = -torch.linalg.solve(matrix, right)
    plain = iterates(times(matrix), [right], lambda v: v)
    dropped = iterates(times(matrix), [right], lambda v: v, [bad])
    for _, a, b in zip(range(4), plain, dropped, strict=False):
        assert_close(a.solution[0], b.solution[0], 0.0)
        assert a.model == b.model


@pytest.mark.parametrize("entry", [math.nan, math.inf, -1.0, 0.0])
def test_no_positive_curvature_ends_the_iterates(entry):
    matrix = entry * torch.eye(3, dtype=FLOAT)
    found = list(iterates(times(matrix), [torch.ones(3, dtype=FLOAT)], lambda v: v))
    assert len(found) == 1 and not found[0].solution[0].any()


def test_nothing_on_the_right_is_solved_by_nothing():
    found = truncated(iterates(times(torch.eye(3)), [torch.zeros(3)], lambda v: v), 5, 0.0)
    assert [i.number for i in found] == [0] and not found[0].solution[0].any()


# -- stopping, storing, choosing -------------------------------------------------------------------
def stalls_at(models, progress):
    """The formula of Martens 2010, section 4.4, term by term; None where it never holds."""
    for i in range(1, len(models)):
        k = max(10, math.ceil(i / 10))
        if i > k and models[i] < 0 and (models[i] - models[i - k]) / models[i] < k * progress:
            return i
    return None


@pytest.mark.parametrize("progress", [5e-4, 1e-2, 0.0])
def test_the_stop_is_that_of_martens(progress):
    falling = [-(1.0 - 0.8**i) for i in range(80)]
    found = next((i for i in range(1, 80) if has_stalled(falling[: i + 1], progress)), None)
    assert found == stalls_at(falling, progress)
    assert found == {5e-4: 34, 1e-2: 20, 0.0: None}[progress]


def test_the_stop_waits_for_a_window_and_for_progress():
    flat_models = [-1.0] * 200
    assert [has_stalled(flat_models[: i + 1], 1e-3) for i in (5, 10, 11)] == [False, False, True]
    assert not has_stalled([0.0] * 50, 1e-3)
    step = [-1.0] * 139 + [-1.02] * 62  # the window has 10 entries at 100, 20 at 200
    assert has_stalled([*step[:139], *[-1.02] * 12], 1e-4) is False  # i = 150: 135 is before
    assert has_stalled([*step[:139], *[-1.02] * 17], 1e-4) is True  # i = 155: 139 is not


def scripted(models):
    return (Iterate(i, [torch.tensor([float(i)])], m) for i, m in enumerate(models))


def test_stored_iterates_grow_apart_and_end_with_the_last():
    models = [-float(i) for i in range(200)]
    numbers = [i.number for i in truncated(scripted(models), 50, 0.0)]
    assert numbers == [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 31, 40, 50]
    assert numbers[:-1] == sorted({math.ceil(cg.SPACING**j) for j in range(15)})
    assert [i.number for i in truncated(scripted(models), 5, 0.0)] == [1, 2, 3, 4, 5]
    assert [i.number for i in truncated(scripted(models), 1, 0.0)] == [1]
    assert [i.number for i in truncated(scripted(models[:4]), 50, 0.0)] == [1, 2, 3]


def test_truncation_ends_where_the_model_stalls():
    models = [-(1.0 - 0.8**i) for i in range(80)]
    found = truncated(scripted(models), 70, 5e-4)
    assert found[-1].number == stalls_at(models, 5e-4) == 34


@pytest.mark.parametrize(
    ("losses", "best"),
    [
        ([3.0, 1.0, 2.0], 1),
        ([3.0, 2.0, 1.0], 2),
        ([1.0, 2.0, 3.0], 0),
        ([1.0, 5.0, 2.0], 0),
        ([1.0, math.inf, math.nan], 0),
        ([math.nan, math.nan, math.nan], 2),
        ([math.inf, math.inf, math.inf], 2),
    ],
)
def test_backtracking_takes_the_best_stored_iterate(losses, best):
    kept = list(scripted([0.0, 0.0, 0.0]))
    assert best_of(kept, lambda d: losses[int(d[0])]) is kept[best]


# -- products --------------------------------------------------------------------------------------
@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"memory": 1.0}], ids=str)
@pytest.mark.parametrize("make", [poisson, flow, inverse])
def test_products_with_several_vectors(make, options):
    system = System(make(), net_for(make()), chunk_bytes=2000, **options)
    points = points_for(system, 40, 7)
    linearisation = system.linearise(points)
    assert len(linearisation.blocks) > len(points)
    j = jacobian(system, points)
    vs = [random_direction(system, seed) for seed in range(19)]
    columns = torch.stack([flat(v) for v in vs], dim=1)
    ws = drawn(3 * len(j)).view(3, -1)
    assert_close(jvps(linearisation, vs), (j @ columns).T, 1e-11)
    assert_close(torch.stack([flat(v) for v in vjps(linearisation, ws)]), ws @ j, 1e-11)
    found = torch.stack([flat(v) for v in gramian_products(linearisation, vs)], dim=1)
    assert_close(found, j.T @ (j @ columns), 1e-11)
    assert_close(gramian_times(linearisation, columns), found, 0.0)
    assert_close(kernel_products(linearisation, ws), ws @ (j @ j.T), 1e-11)


# -- steps -----------------------------------------------------------------------------------------
def started(problem, settings, *, search=Fixed(1.0), damping=Constant(1e-2), net=None):  # noqa: B008
    system = System(problem, net_for(problem) if net is None else net)
    points = points_for(system, 8)
    stepper = settings.start(system, search, damping, torch.Generator().manual_seed(0))
    return system, points, stepper


@every_preconditioner
@pytest.mark.parametrize("make", [poisson, flow, inverse])
def test_many_iterations_solve_the_damped_system(make, name):
    settings = GaussNewtonCg(
        PRECONDITIONERS[name], 400, progress=0.0, backtracking=False, lengths=None
    )
    system, points, stepper = started(make(), settings)
    before, j = flat(system.get_parameters()), jacobian(system, points)
    gradient = flat(system.linearise(points).gradient())
    take(stepper, system, points)
    matrix = j.T @ j + 1e-2 * torch.eye(j.shape[1], dtype=FLOAT)
    expected = -torch.linalg.solve(matrix, gradient)
    assert_close(flat(system.get_parameters()) - before, expected, 1e-8)


def test_a_few_iterations_do_not():
    settings = GaussNewtonCg(KroneckerFactors(), 3, backtracking=False, lengths=None)
    system, points, stepper = started(poisson(), settings)
    before, j = flat(system.get_parameters()), jacobian(system, points)
    gradient = flat(system.linearise(points).gradient())
    take(stepper, system, points)
    matrix = j.T @ j + 1e-2 * torch.eye(j.shape[1], dtype=FLOAT)
    left = matrix @ (flat(system.get_parameters()) - before) + gradient
    assert float(left.norm()) > 1e-3 * float(gradient.norm())


def run_of(system, points, settings, damping, start=None):
    """The stored iterates of a step, by a preconditioner of its own."""
    linearisation = system.linearise(points)
    preconditioner = prepared(settings.preconditioner, system, linearisation, damping)
    product = damped_gramian(linearisation, damping)
    right = [-v for v in linearisation.gradient()]
    run = iterates(product, right, preconditioner.apply, start)
    return truncated(run, settings.iterations, settings.progress)


def test_the_loss_chooses_among_the_stored_iterates():
    """With little damping, far iterates are too long for the loss."""
    settings = GaussNewtonCg(Identity(), 40, lengths=None)
    system, points, stepper = started(poisson(), settings, damping=Constant(1e-10))
    start = system.get_parameters()
    losses = []
    kept = run_of(system, points, settings, 1e-10)
    for iterate in kept:
        moved = [a + b for a, b in zip(start, iterate.solution, strict=True)]
        losses.append(system.loss(points, moved))
    system.set_parameters(start)
    take(stepper, system, points)
    assert min(losses) < 0.9 * losses[-1]
    assert system.loss(points) == pytest.approx(min(losses), rel=1e-12)
    assert_close(flat(stepper.memory.curvature.solution), flat(kept[-1].solution), 0.0)


def test_a_step_looks_from_half_to_twice_as_far_as_the_last():
    settings = GaussNewtonCg(Identity(), 30, progress=0.0, decay=0.0)
    system = System(poisson(), net_for(poisson()))
    points = points_for(system, 8)
    curvature = Truncated(Identity(), 30, progress=0.0, decay=0.0)
    for last, numbers in (
        (None, [1, 2, 3, 4, 5, 7, 9, 11, 14, 18, 24, 30]),
        (1, [1, 2, 3, 4, 5, 7, 9, 10]),
        (8, [4, 5, 7, 9, 11, 14, 16]),
        (25, [14, 18, 24, 30]),
    ):
        kept = {i.number: i for i in run_of(system, points, settings, 1e-3)}
        for number in (10, 16):
            shorter = dataclasses.replace(settings, iterations=number)
            kept[number] = run_of(system, points, shorter, 1e-3)[-1]
        seen = []
        linearisation = system.linearise(points)
        at = Situation(
            *(linearisation, 1e-3, 0, torch.Generator()),
            lambda direction, seen=seen: seen.append(flat(direction)) or 1.0,
        )
        solver = curvature.at(at, TruncatedState(None, None, last))
        solver.direction(linearisation.gradient())
        assert len(seen) == len(numbers)
        for found, number in zip(reversed(seen), numbers, strict=True):
            assert_close(found, flat(kept[number].solution), 0.0, number)
        assert solver.state.taken == numbers[-1]


def test_cg_starts_from_a_part_of_its_last_solution():
    settings = GaussNewtonCg(Diagonal(), 2, decay=0.7, backtracking=False, lengths=None)
    system, points, stepper = started(poisson(), settings, search=Fixed(1e-3))
    take(stepper, system, points)
    last = [0.7 * v for v in stepper.memory.curvature.solution]
    (*_, expected) = run_of(system, points, settings, 1e-2, last)
    (*_, without) = run_of(system, points, settings, 1e-2)
    take(stepper, system, points)
    assert_close(flat(stepper.memory.curvature.solution), flat(expected.solution), 0.0)
    assert float((flat(without.solution) - flat(expected.solution)).norm()) > 1e-3


STEPS = {
    **{name: GaussNewtonCg(p, 12) for name, p in PRECONDITIONERS.items()},
    "as published": GaussNewtonCg(lengths=None),
    "lengths": GaussNewtonCg(lengths=Automatic(by_layer=False, memory=2)),
    "kfac every 2": GaussNewtonCg(KroneckerFactors(Factors(every=2), InverseSettings(every=3))),
    "two levels of others": GaussNewtonCg(TwoLevel(NystromSketch(5), coarse=4, refresh=1)),
    "kernel": EngdWNystrom(rank=6),
    "sketched kernel": EngdWNystrom(rank=6, iterations=0),
}
every_step = pytest.mark.parametrize("name", STEPS)


@every_step
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(name, tmp_path):
    choice = {"search": Backtracking(), "damping": LevenbergMarquardt()}
    system, points, stepper = started(poisson(), STEPS[name], **choice)
    for _ in range(2):
        take(stepper, system, points)
    drawn_so_far = stepper.generator.get_state()
    torch.save(stepper.state_dict(), tmp_path / "state.pt")
    net = copy.deepcopy(system.net)
    for _ in range(3):
        take(stepper, system, points)
    other, same_points, resumed = started(poisson(), STEPS[name], net=net, **choice)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    resumed.generator.set_state(drawn_so_far)
    for _ in range(3):
        take(resumed, other, same_points)
    assert_close(flat(other.get_parameters()), flat(system.get_parameters()), 0.0)
    assert resumed.memory.damping == stepper.memory.damping
    assert resumed.memory.steps == stepper.memory.steps == 5


@every_step
def test_rank_deficient_curvature_gives_finite_steps(name):
    """Fewer residuals than parameters, and hardly any damping."""
    system, points, stepper = started(
        poisson(), STEPS[name], search=Backtracking(), damping=Constant(1e-14)
    )
    assert len(system.linearise(points).residual) < system.layout.number
    start = system.loss(points)
    for _ in range(6):
        report = take(stepper, system, points)
        assert math.isfinite(report.direction_norm) and report.direction_norm > 0
    # A sketch that stands in for the kernel leaves r/λ beside it: too long for any search.
    assert system.loss(points) < start or name == "sketched kernel"


@every_step
def test_recovery_forgets_and_raises_the_damping(name):
    system, points, stepper = started(poisson(), STEPS[name], search=Backtracking())
    fresh = copy.deepcopy(stepper.state_dict()["curvature"])
    for _ in range(2):
        take(stepper, system, points)
    said = stepper.recover()
    assert stepper.memory.damping == 1.0 and "momentum" in said
    assert str(stepper.state_dict()["curvature"]) == str(fresh)
    assert take(stepper, system, points).length > 0
    if "two" in name:
        assert "coarse space" in said


@every_step
def test_random_numbers_come_from_the_passed_generator(name):
    before = torch.get_rng_state()
    ends = []
    net = net_for(poisson())
    torch.set_rng_state(before)
    for _ in range(2):
        system, points, stepper = started(poisson(), STEPS[name], net=copy.deepcopy(net))
        for _ in range(3):
            take(stepper, system, points)
        ends.append(flat(system.get_parameters()))
    assert_close(*ends, 0.0)
    assert torch.equal(torch.get_rng_state(), before)


# -- settings --------------------------------------------------------------------------------------
@every_preconditioner
def test_every_preconditioner_is_an_option(name):
    config = compose("any", {}, ["step=gauss_newton_cg", f"preconditioner={name}"])
    settings = build(config.step, "step")
    assert type(settings.preconditioner) is type(PRECONDITIONERS[name])
    assert settings == GaussNewtonCg(type(PRECONDITIONERS[name])())


def test_defaults_of_the_configuration_are_those_of_the_classes():
    assert build(compose("any", {}, ["step=gauss_newton_cg"]).step, "step") == GaussNewtonCg()
    assert build(compose("any", {}, ["step=engd_w_nystrom"]).step, "step") == EngdWNystrom()


@pytest.mark.parametrize("wrong", [None, "nystrom"])
def test_a_preconditioner_that_is_none_is_refused(wrong):
    with pytest.raises(UserError, match=r"step.preconditioner=.*list preconditioner"):
        GaussNewtonCg(preconditioner=wrong)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("step.preconditioner.rank=0", "step.preconditioner.rank=0: give a whole number at least"),
        ("step.iterations=0", "step.iterations=0"),
        ("step.decay=1.5", "step.decay=1.5: give a number at least 0 and at most 1"),
    ],
)
def test_settings_out_of_range_are_refused(override, words):
    config = compose("any", {}, ["step=gauss_newton_cg", "preconditioner=nystrom", override])
    with pytest.raises(UserError) as caught:
        build(config.step, "step")
    assert words in str(caught.value)
