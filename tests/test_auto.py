"""step=auto: what it begins with, when it changes its mind, and that it does so repeatably."""

from __future__ import annotations

import json
import math
import time
from dataclasses import replace

import pytest
import torch
from nets import net_for
from oracles import flat
from problems import points_for, poisson
from torch import Generator

from pinnkfac import Box, Points, Problem, Term, lap, resume, solve
from pinnkfac.common.errors import Diverged
from pinnkfac.config.build import build
from pinnkfac.config.compose import compose
from pinnkfac.curvature import cost
from pinnkfac.curvature.cost import exact_bytes, exact_step
from pinnkfac.linearisation.system import System
from pinnkfac.run.assembly import assemble
from pinnkfac.step.auto import Auto
from pinnkfac.step.base import Batch
from pinnkfac.step.damping import ByLength
from pinnkfac.step.referee import (
    EXACT,
    FACTORED,
    Circumstances,
    Grow,
    Referee,
    Restart,
    Standing,
    Stay,
    Switch,
    Trial,
    Window,
    level,
    other,
    total,
)
from pinnkfac.step.search import Backtracking

QUICK = (
    "net.widths=[8,8]",
    "points.scale=0.1",
    "points.gap=null",
    "threads=1",
    "run.plot=false",
    "run.checkpoint=0",
)
NUMBERS = (12, 6)
STALLED = 0.05


def numbered(*numbers):
    """These numbers of points, as a function of the share of them."""
    return lambda share: [max(1, round(share * n)) for n in numbers]


def small(memory=4 * 2**30):
    problem = poisson()
    return System(problem, net_for(problem, (8, 7)), memory=memory)


class Run:
    """A stepper with the parameters that it has reached."""

    def __init__(self, step, system=None, numbers=NUMBERS):
        self.system = system or small()
        search, damping = Backtracking(), ByLength()
        self.stepper = step.start(self.system, search, damping, Generator().manual_seed(0))
        self.points = points_for(self.system, *numbers)
        self.parameters = self.system.get_parameters()

    @property
    def standing(self):
        return self.stepper.contest.standing

    def step(self):
        report = self.stepper.update(self.parameters, Batch(self.points))
        self.parameters = report.parameters
        return report


# -- the choice at the start -----------------------------------------------------------------------
def test_a_small_problem_begins_with_exact_steps_on_all_points():
    assert Auto().share_of_points(small().workload, numbered(*NUMBERS)) == 1.0
    run = Run(Auto())
    report = run.step()
    assert run.standing.current == EXACT
    assert report.request.note.startswith("exact steps: an exact step costs about 0.")
    assert report.request.growth == 1.0 and report.length > 0


def test_a_kernel_beyond_the_memory_leaves_factored_steps():
    needed = exact_bytes(small().workload, NUMBERS)
    run = Run(Auto(), small(0.99 * needed))
    note = run.step().request.note
    assert run.standing.current == FACTORED
    assert "KFAC with conjugate gradients" in note and "does not fit into memory" in note
    run = Run(Auto(), small(needed))
    run.step()
    assert run.standing.current == EXACT


def test_an_exact_step_that_is_too_dear_leaves_factored_steps():
    many = (70, 30)
    costs = Run(Auto(), numbers=many).stepper.costs(many)
    assert costs[EXACT] > 1.2 * costs[FACTORED]
    run = Run(Auto(multiplications=0.8 * costs[EXACT]), numbers=many)
    note = run.step().request.note
    assert run.standing.current == FACTORED
    ratio = costs[EXACT] / costs[FACTORED]
    assert note.startswith(
        f"KFAC with conjugate gradients: an exact step costs about {ratio:.2g} of the other kind"
    )
    run = Run(Auto(multiplications=0.9 * costs[EXACT]), numbers=many)
    run.step()
    assert run.standing.current == EXACT


def test_an_exact_step_is_not_too_dear_where_a_factored_one_costs_more():
    """Wide nets with few points: eigendecompositions cost more than the kernel."""
    run = Run(Auto(multiplications=1.0))
    costs = run.stepper.costs(NUMBERS)
    assert costs[EXACT] < costs[FACTORED]
    run.step()
    assert run.standing.current == EXACT


def test_points_are_thinned_until_an_exact_step_is_cheap_enough():
    workload = small().workload
    numbers = (9000, 600)
    limit = 0.3 * exact_step(workload, numbers)
    step = Auto(multiplications=limit, fewest=10, per_parameter=1e9)
    share = step.share_of_points(workload, numbered(*numbers))
    thinned = [round(share * n) for n in numbers]
    before = [round(share / 0.95 * n) for n in numbers]
    assert exact_step(workload, thinned) <= limit < exact_step(workload, before)
    assert share < 0.95


def test_points_are_thinned_to_a_few_for_each_parameter():
    workload = small().workload
    numbers = (9000, 600)
    share = Auto(per_parameter=4.0).share_of_points(workload, numbered(*numbers))
    residuals = share * sum(numbers) / workload.parameters
    assert 0.94 * 4.0 < residuals <= 4.0


def test_points_are_thinned_until_the_kernel_fits():
    workload = small().workload
    numbers = (90, 20)
    workload = replace(workload, memory=exact_bytes(workload, (45, 10)))
    share = Auto(fewest=10).share_of_points(workload, numbered(*numbers))
    thinned = [round(share * n) for n in numbers]
    assert exact_bytes(workload, thinned) <= workload.memory
    assert 0.9 * 55 < sum(thinned) <= 55


def test_points_are_not_thinned_below_the_fewest_residuals():
    workload = small().workload
    numbers = (9000, 600)
    limit = exact_step(workload, (90, 6))
    share = Auto(multiplications=limit, fewest=970).share_of_points(workload, numbered(*numbers))
    assert 900 <= 9600 * share <= 970
    assert (
        Auto(multiplications=limit, fewest=80).share_of_points(workload, numbered(*numbers)) < 0.02
    )


def test_single_points_cannot_be_thinned_further():
    workload = small().workload
    assert Auto(multiplications=1.0, fewest=1).share_of_points(workload, numbered(1, 1)) == 1.0


# -- given points, which are never thinned ---------------------------------------------------------
def beside(given, number):
    """That many given points, and a number of others by the share of them."""
    return lambda share: [given, max(1, round(share * number))]


def limited(workload, residuals):
    """As many residuals as cost what an exact step may."""
    return Auto(multiplications=exact_step(workload, (residuals, 0)), fewest=1, per_parameter=1e9)


def test_a_few_given_points_take_their_part_of_what_exact_steps_can_afford():
    workload = small().workload
    step, numbers = limited(workload, 1000), beside(300, 2000)
    now = numbers(step.share_of_points(workload, numbers))
    assert now[0] == 300 and 0.85 < exact_step(workload, now) / step.multiplications <= 1.0


def test_no_term_pays_for_given_points_with_more_than_half_of_its_points():
    """Up to what the rounding of thinned points may cost beyond the limit."""
    workload = small().workload
    step, numbers = limited(workload, 1000), beside(950, 1000)
    share = step.share_of_points(workload, numbers)
    alike = step.share_of_points(workload, numbered(950, 1000))
    assert share == 0.5 * alike
    assert step.multiplications < exact_step(workload, numbers(share)) <= 1.2 * step.multiplications


@pytest.mark.parametrize("given", [1100, 5000])
def test_where_given_points_alone_are_too_dear_none_are_thinned(given):
    """Those that KFAC then begins with."""
    workload = small().workload
    step, numbers = limited(workload, 1000), beside(given, 4000)
    assert step.share_of_points(workload, numbers) == 1.0
    assert exact_step(workload, numbers(1.0)) > 1.2 * step.multiplications


def test_given_points_that_are_many_for_the_parameters_leave_others_a_fair_share():
    """Where exact steps can afford them."""
    workload = small().workload
    step = Auto(per_parameter=1.0, multiplications=1e12)
    share = step.share_of_points(workload, beside(2 * workload.parameters, 5000))
    alike = step.share_of_points(workload, numbered(2 * workload.parameters, 5000))
    assert share == 0.5 * alike


@pytest.mark.parametrize(
    ("given", "taken", "others"),
    [(100, 100, 228), (200, 200, 129), (400, 200, 129), (3000, 226, 90)],
)
def test_given_points_are_thinned_like_others_where_they_are_many(given, taken, others):
    """Where they stand for a region."""
    box, g = Box(x=(0, 1), y=(0, 1)), Generator().manual_seed(0)
    x, y = torch.rand(2, given, generator=g)
    terms = [
        Term("plate", Points({"x": x, "y": y}), lambda u, at: lap(u) + 1),
        Term("edge", box.boundary, lambda u, at: u, points=400),
    ]
    settings = ("step.multiplications=2e8", "net.widths=[16,16]", "threads=1")
    parts = assemble(compose("thin", {}, settings), Problem(fields=("u",), terms=terms))
    assert parts.source.asked() == {"plate": (taken, given), "edge": (others, 400)}
    batch = Batch(parts.source.at(0))
    note = parts.stepper.update(parts.system.get_parameters(), batch).request.note
    assert note.startswith("exact steps:")


@pytest.mark.parametrize(("given", "others"), [(100, 228), (200, 129), (400, 400), (3000, 400)])
def test_a_run_with_measurements_begins_with_a_fair_share_of_all_others(given, others):
    box, g = Box(x=(0, 1), y=(0, 1)), Generator().manual_seed(0)
    x, y = torch.rand(2, given, generator=g)
    terms = [
        Term("data", Points({"x": x, "y": y}, m=x), lambda u, at: lap(u) + at.m),
        Term("edge", box.boundary, lambda u, at: u, points=400),
    ]
    settings = ("step.multiplications=2e8", "net.widths=[16,16]", "threads=1")
    parts = assemble(compose("thin", {}, settings), Problem(fields=("u",), terms=terms))
    assert parts.source.numbers() == {"data": given, "edge": others}
    batch = Batch(parts.source.at(0))
    note = parts.stepper.update(parts.system.get_parameters(), batch).request.note
    assert note.startswith("exact steps:" if others < 400 else "KFAC with conjugate gradients:")


# -- windows ---------------------------------------------------------------------------------------
def window_of(*losses, cost=1.0, **marks):
    """Of steps that started from these losses, each a number or one for each term."""
    window = Window()
    for loss in losses:
        each = [loss] if isinstance(loss, float) else loss
        window = window.after(each, cost, **marks)
    return window


def test_a_window_counts_decades_and_their_rate():
    """Of a loss that falls steadily, and of one whose noise hides that."""
    window = window_of(1e-2, 1e-3, 1e-4, 1e-5, cost=10.0)
    assert window.steps == 4 and window.cost == 40.0
    assert window.decades == pytest.approx(4.0, rel=1e-14)
    assert window.rate == pytest.approx(4.0 / 40.0, rel=1e-14)
    assert window_of(1e-2, 1e-4, 1e-3, 1e-5).decades == pytest.approx(2.0)
    assert window_of(1e-2, 1e-4, 1e-4, 1e-2).decades == pytest.approx(0.0)


def test_a_window_of_a_loss_that_rises_is_negative():
    window = window_of(1e-3, 1e-1)
    assert window.decades == pytest.approx(-4.0) and window.rate == pytest.approx(-2.0)


def test_a_window_without_steps_or_loss():
    assert Window().decades == 0.0 and Window().rate == 0.0
    assert window_of(1.0).decades == 0.0
    assert window_of(1.0, 0.0).decades > 100
    assert window_of(0.0, 0.0).decades == 0.0


def test_a_term_that_is_nothing_follows_the_others():
    others = (0.0, 1e-33, 1e-28, 0.0)
    window = window_of(*([10.0**-k, other] for k, other in enumerate(others)))
    assert window.decades == pytest.approx(window_of(1.0, 1e-1, 1e-2, 1e-3).decades, rel=1e-6)


def test_a_window_counts_every_term_alike():
    """Where one term falls and another, much larger one stays."""
    window = window_of(*([100.0, 10.0**-k] for k in range(4)))
    assert window.decades == pytest.approx(window_of(1.0, 1e-1, 1e-2, 1e-3).decades / 2)


def test_a_window_knows_whether_points_were_exchanged_in_every_step():
    window = Window().after([1.0], 1.0)
    assert not window.guarded
    window = window.after([1.0], 1.0, guarded=True).after([1.0], 1.0)
    assert window.guarded


# -- changing its mind -----------------------------------------------------------------------------
def falling(decades, steps=4, cost=1.0, start=1.0, **marks):
    """A window of losses that fall by so many powers of ten a step."""
    losses = (start * 10.0 ** (-decades * k) for k in range(steps))
    return window_of(*losses, cost=cost, **marks)


def judged(standing, window, costs=(1.0, 1.0), few=False, grown_cost=1.0, referee=None):
    """The verdict at the end of a window, and the standing after it; the run began at losses of 1
    where nothing else is said."""
    standing = replace(standing, window=window, first=standing.first or (0.0, 0.0))
    circumstances = Circumstances(dict(zip((EXACT, FACTORED), costs, strict=True)), grown_cost, few)
    return (referee or Referee()).judge(standing, circumstances, STALLED)


def test_a_loss_that_falls_is_left_alone():
    standing = Standing()
    for k in range(15):
        verdict, standing = judged(standing, falling(0.1, start=10.0 ** (-0.4 * k)))
        assert verdict == Stay() and standing.current == EXACT
    assert standing.windows == 15


def test_stalled_exact_steps_first_ask_for_more_points():
    standing, referee = Standing(), Referee()
    for k in range(referee.times):
        verdict, standing = judged(standing, falling(0.01, guarded=True), costs=(1.0, 9.0))
        assert verdict == Grow(
            referee.growth, "1.5 times the points: losses fell by 0.04 decades in 4 steps"
        )
        assert standing.grown == k + 1 and standing.current == EXACT
    verdict, standing = judged(standing, falling(0.01, guarded=True), costs=(1.0, 9.0))
    assert isinstance(verdict, Switch) and standing.current == FACTORED


def test_few_residuals_for_the_parameters_grow_without_a_sign_of_overfitting():
    verdict, _ = judged(Standing(), falling(0.01), costs=(1.0, 9.0), few=True)
    assert isinstance(verdict, Grow)
    verdict, _ = judged(Standing(), falling(0.01), costs=(1.0, 9.0), few=True, grown_cost=math.inf)
    assert isinstance(verdict, Switch), "more points would not fit"


def test_a_cheaper_method_is_tried_before_more_points_are_taken():
    words, standing = [], Standing()
    for _ in range(3):
        verdict, standing = judged(standing, falling(0.0), costs=(30.0, 10.0), few=True)
        words.append(verdict.note.split()[0])
    assert words == ["trying", "back", "1.5"]  # the next trial waits for two windows


@pytest.mark.parametrize(("fall", "fitted", "grows"), [(0.05, 4, 1), (0.05, 2, 0), (0.1, 4, 0)])
def test_steps_that_fit_their_own_points_only_take_more_before_they_stall(fall, fitted, grows):
    """0.2 decades in 4 steps are no stall, but little; and before the other method is tried, though
    it is the cheaper one. Two of four steps are not most of them."""
    window = replace(falling(fall, guarded=True), fitted=fitted)
    far = Standing(first=(2.0, 2.0))
    verdict, standing = judged(far, window, costs=(30.0, 10.0))
    assert standing.grown == grows and standing.current == EXACT
    assert isinstance(verdict, Grow) == bool(grows)


@pytest.mark.parametrize(
    ("first", "fitted", "anew"), [(0.5, 4, True), (2.0, 4, False), (0.5, 0, False)]
)
def test_steps_that_fitted_their_own_points_only_from_the_start_begin_anew_with_kfac(
    first, fitted, anew
):
    window = replace(falling(0.01, guarded=True), fitted=fitted)
    standing = Standing(first=(first, first), may_restart=True)
    verdict, standing = judged(standing, window)
    assert isinstance(verdict, Restart) is anew
    if anew:
        assert verdict.note == (
            "from the first parameters again, with KFAC with conjugate gradients: losses fell by "
            "0.5 decades since the start"
        )
        assert standing.current == FACTORED and standing.windows == 0
    assert standing.may_restart is (not anew and first < 1.0), "kept as long as they may go astray"


def test_a_term_that_began_at_nothing_hides_no_progress():
    """Neither may such a run begin anew: its losses have fallen by four powers of ten."""
    first = level([1.0, 1e-8]), total([1.0, 1e-8])
    window = replace(window_of(*[[5e-5, 5e-5]] * 4, guarded=True), fitted=4)
    verdict, standing = judged(Standing(first=first, may_restart=True), window)
    assert not isinstance(verdict, Restart) and not standing.may_restart


def test_steps_go_astray_early_or_not_at_all():
    standing, referee = Standing(may_restart=True, waits={EXACT: 1, FACTORED: 100}), Referee()
    kept = []
    for _ in range(referee.early + 1):
        _, standing = judged(standing, falling(0.01, guarded=True))
        kept.append(standing.may_restart)
    assert kept == [True] * referee.early + [False] and standing.current == EXACT


def test_more_points_do_not_help_steps_that_do_not_fit_their_own_only():
    verdict, standing = judged(Standing(), falling(0.01))
    assert standing.grown == 0 and verdict.note.startswith("trying KFAC")


def test_a_rival_that_is_better_for_its_cost_goes_on_and_exact_steps_are_tried_again():
    """Though it does not stall: near a solution, exact steps would be faster."""
    notes, methods, standing = [], [], Standing()
    falls, reached = {EXACT: 0.001, FACTORED: 0.5}, 0.0
    for _ in range(12):
        methods.append(standing.current)
        window = falling(falls[standing.current], cost=10.0, start=10.0**-reached)
        reached += 4 * falls[standing.current]
        verdict, standing = judged(standing, window, costs=(10.0, 10.0))
        notes.append(verdict.note)
    assert notes[:3] == [
        "trying KFAC with conjugate gradients: losses fell by 0.004 decades in 4 steps",
        "going on with KFAC with conjugate gradients",
        "trying exact steps: losses fell by 2 decades in 4 steps",
    ]
    words = [note.split()[0] if note else "" for note in notes]
    waits = ["back", "", "trying", "back", "", "", "", "trying", "back"]  # twice as long each time
    assert words == ["trying", "going", "trying", *waits]
    assert methods.count(EXACT) == 4


def test_a_rival_that_is_worse_is_left_and_the_next_trials_wait_twice_as_long():
    words, standing = [], Standing()
    for _ in range(14):
        window = falling(0.001 if standing.current == EXACT else 0.0)
        verdict, standing = judged(standing, window)
        words.append(verdict.note.split(":")[0])
    back = "back to exact steps"
    tried = "trying KFAC with conjugate gradients"
    assert words == [tried, back, "", tried, back, "", "", "", tried, back, *[""] * 4]
    assert standing.waits == {EXACT: 1, FACTORED: 8}


def test_a_trial_has_the_rate_the_stall_and_the_cost_of_the_window_before_it():
    window = falling(0.001, cost=10.0)
    _, standing = judged(Standing(), window)
    assert standing.trial == Trial(window.rate, True, 40.0) and standing.window == Window()
    _, standing = judged(standing, falling(0.5))
    assert standing.trial is None


@pytest.mark.parametrize(("fall", "kept"), [(-0.01, True), (-1.0, False)])
def test_exact_steps_are_kept_after_a_trial_unless_the_loss_rose_much(fall, kept):
    """By a hundredth or by one decade in every step."""
    trial = Standing(EXACT, trial=Trial(rate=0.0, stuck=True, budget=4.0))
    verdict, standing = judged(trial, falling(fall))
    assert verdict.note.startswith("going on" if kept else "back to KFAC")
    assert standing.current == (EXACT if kept else FACTORED)
    verdict, _ = judged(replace(trial, trial=Trial(0.0, False, 4.0)), falling(-0.01))
    assert verdict.note.startswith("back to KFAC"), "where the other one had not stalled"


def test_equal_progress_in_fewer_multiplications_wins():
    _, standing = judged(Standing(), falling(0.01, cost=20.0))
    assert standing.current == FACTORED
    verdict, _ = judged(standing, falling(0.01, cost=10.0))
    assert verdict.note.startswith("going on with KFAC with conjugate gradients")


def test_a_method_that_does_not_fit_is_not_tried():
    standing = Standing(FACTORED)
    for _ in range(5):
        verdict, standing = judged(standing, falling(0.0), costs=(math.inf, 1.0))
        assert verdict == Stay() and standing.current == FACTORED


def test_the_methods_are_two():
    assert other(EXACT) == FACTORED and other(FACTORED) == EXACT


# -- in the course of a run ------------------------------------------------------------------------
def cheap(patience=4, multiplications=1.0, **changes):
    """Judged after so many steps, whatever they cost, with residuals enough for the parameters."""
    changes = {"per_parameter": 1e-3, "stalled": STALLED, **changes}
    return Auto(patience=patience, multiplications=multiplications, **changes)


def test_a_stall_is_judged_after_steps_that_cost_enough():
    """Many cheap steps, not ``patience`` of them; and a trial costs as much as its rival did."""
    probe = Run(cheap())
    exact, factored = probe.stepper.costs(NUMBERS).values()
    run = Run(cheap(patience=4, multiplications=9.5 * exact, stalled=1e3))
    notes = {step: run.step().request.note for step in range(1, 31)}
    tried = next(step for step, note in notes.items() if note.startswith("trying"))
    assert tried == 10
    ended = next(s for s, n in notes.items() if s > tried and n)
    assert ended == tried + max(4, math.ceil(10 * exact / factored))


def test_a_run_that_goes_astray_begins_anew_from_its_first_parameters():
    class Astray(Referee):
        """Every window of exact steps is a sign of it."""

        def judge(self, standing, circumstances, stalled):
            window = replace(standing.window, fitted=standing.window.steps)
            window = replace(window, levels=(0.0,) * window.steps)
            standing = replace(standing, window=window, first=(0.0, -300.0))
            return super().judge(standing, circumstances, stalled)

    run = Run(cheap(referee=Astray()))
    start, methods = flat(run.parameters), dict(run.stepper.methods)
    for _ in range(3):
        assert not run.step().request.note.startswith("from the first")
    assert torch.equal(flat(run.stepper.contest.origin), start)
    report = run.step()
    assert report.request.note.startswith("from the first parameters again, with KFAC")
    assert report.request.anew and torch.equal(flat(report.parameters), start)
    assert run.standing.current == FACTORED and run.stepper.contest.origin is None
    for name, method in run.stepper.methods.items():
        assert method is not methods[name], "nothing is known of where they had been"
    for _ in range(20):  # once only
        assert not run.step().request.anew


def test_a_run_that_begins_anew_forgets_its_best_state_and_goes_on_bit_for_bit(
    monkeypatch, tmp_path
):
    judge = Referee.judge

    def astray(referee, standing, circumstances, stalled):
        if standing.may_restart:
            return Restart("from the first parameters again"), replace(
                standing, current=FACTORED, window=Window(), windows=0, may_restart=False
            )
        return judge(referee, standing, circumstances, stalled)

    monkeypatch.setattr(Referee, "judge", astray)
    settings = (*QUICK, "run.quiet=true", "step.patience=5", "step.multiplications=1")
    whole = solve("poisson2d", *settings, "stop.steps=8", folder=tmp_path / "whole")
    assert whole.summary["best"]["step"] >= 5
    assert [r["length"] for r in whole.history][-1] > 0
    for stop in (4, 6):  # before that and after it
        folder = tmp_path / str(stop)
        solve("poisson2d", *settings, f"stop.steps={stop}", folder=folder)
        parts = resume(folder, "stop.steps=8", "run.quiet=true")
        assert parts.summary["parameters_sha256"] == whole.summary["parameters_sha256"]


@pytest.mark.parametrize("fresh", [True, False])
def test_a_net_that_was_trained_is_not_where_a_run_begins(fresh):
    system = small()
    generator = Generator().manual_seed(0)
    stepper = Auto().start(system, Backtracking(), ByLength(), generator, fresh=fresh)
    stepper.update(system.get_parameters(), Batch(points_for(system, *NUMBERS)))
    assert (stepper.contest.origin is not None) is fresh
    assert stepper.contest.standing.may_restart is fresh


def test_a_resumed_run_with_another_step_did_not_begin_with_it(tmp_path, monkeypatch):
    solve("poisson2d", *QUICK, "run.quiet=true", "stop.steps=3", "step=spring", folder=tmp_path)
    seen = []
    start = Auto.start

    def watched(step, *parts, fresh=True):
        seen.append(fresh)
        return start(step, *parts, fresh=fresh)

    monkeypatch.setattr(Auto, "start", watched)
    resume(tmp_path, "stop.steps=4", "step=auto")
    assert seen[-1] is False


def test_a_kernel_that_no_longer_fits_is_left():
    """Where points are added in the course of a run."""
    run = Run(cheap(), small(exact_bytes(small().workload, NUMBERS)))
    run.step()
    assert run.standing.current == EXACT
    run.points = points_for(run.system, 24, 12)
    report = run.step()
    assert run.standing.current == FACTORED and report.length > 0
    assert report.request.note.startswith("KFAC with conjugate gradients")
    assert "does not fit into memory" in report.request.note


def test_decisions_do_not_depend_on_the_clock(monkeypatch):
    def decisions():
        torch.manual_seed(0)
        run = Run(cheap(patience=2, stalled=1e3))
        notes = [run.step().request.note for _ in range(14)]
        return notes, flat(run.parameters)

    first, parameters = decisions()
    ticks = iter(range(0, 10**9, 10**4))
    for name in ("time", "perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, lambda: float(next(ticks)))
    second, again = decisions()
    assert first == second and len([note for note in first if note]) > 3
    assert torch.equal(parameters, again)


# -- what a method that rests knows ----------------------------------------------------------------
def test_a_method_forgets_its_momentum_when_it_takes_over():
    run = Run(cheap(patience=2, stalled=1e3))
    factored = run.stepper.methods[FACTORED]
    while run.standing is None or run.standing.current != FACTORED or not past_of(factored):
        run.step()
    assert factored.memory.length is not None
    while run.standing.current == FACTORED:
        run.step()
    while run.standing.current != FACTORED:
        run.step()
    memory = factored.memory
    assert past_of(factored) == [] and memory.length is None and memory.pending is None
    average = memory.curvature.average
    assert average.factors.updates > 0  # curvature is not forgotten, only averaged on


def past_of(stepper):
    return stepper.memory.lengths.last


def test_recover_makes_the_present_method_more_careful():
    run = Run(Auto())
    assert run.stepper.recover() == "nothing was changed"
    run.step()
    exact, factored = run.stepper.methods.values()
    before, resting = exact.memory.damping, factored.memory.damping
    changed = run.stepper.recover()
    assert exact.memory.damping > before and "damping" in changed
    assert factored.memory.damping == resting
    assert run.standing.window == Window() and run.standing.current == EXACT


def test_recover_changes_the_method_whose_first_step_diverged(monkeypatch):
    run = Run(Auto())
    run.stepper.fresh = False  # as in a run that was resumed with this step
    exact = run.stepper.methods[EXACT]
    before = exact.memory.damping

    def diverge(*_):
        raise Diverged("the gradient is NaN")

    monkeypatch.setattr(exact, "update", diverge)
    with pytest.raises(Diverged):
        run.step()
    assert "damping" in run.stepper.recover() and exact.memory.damping > before


def test_a_divergence_ends_a_trial():
    run = Run(cheap(patience=2, stalled=1e3))
    while run.standing is None or run.standing.trial is None:
        run.step()
    assert run.standing.current == FACTORED
    before = run.stepper.methods[FACTORED].memory.damping
    changed = run.stepper.recover()
    assert run.standing.current == EXACT and changed.startswith("back to exact steps")
    assert run.stepper.methods[FACTORED].memory.damping > before
    assert run.standing.trial is None
    assert run.standing.waits == {EXACT: 1, FACTORED: 2} and run.standing.windows == 0
    assert run.step().length > 0


# -- states ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [0, 1, 5, 8, 11])
def test_a_state_goes_on_bit_for_bit(steps, tmp_path):
    """At the start, with exact steps, and in the middle of a trial."""
    step = cheap(patience=3, stalled=1e3)
    run = Run(step)
    for _ in range(steps):
        run.step()
    torch.save(run.stepper.state_dict(), tmp_path / "state")
    resumed = Run(step, run.system)
    resumed.parameters, resumed.points = [v.clone() for v in run.parameters], run.points
    whole = [run.step() for _ in range(12)]
    resumed.stepper.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    parts = [resumed.step() for _ in range(12)]
    assert [(r.losses, r.request, r.length) for r in parts] == [
        (r.losses, r.request, r.length) for r in whole
    ]
    assert any("trying" in r.request.note for r in whole)
    assert torch.equal(flat(resumed.parameters), flat(run.parameters))


def test_where_a_run_began_is_part_of_its_state():
    run, resumed = Run(cheap()), Run(cheap())
    run.step()
    resumed.stepper.load_state_dict(run.stepper.state_dict())
    assert resumed.standing == run.standing
    origins = [flat(r.stepper.contest.origin) for r in (run, resumed)]
    assert torch.equal(*origins)


def test_a_later_step_does_not_change_a_state():
    run = Run(cheap(patience=3, stalled=1e3))
    run.step()
    state = run.stepper.state_dict()
    damping = run.stepper.methods[EXACT].memory.damping
    run.step()
    run.stepper.load_state_dict(state)
    assert run.stepper.methods[EXACT].memory.damping == damping
    assert run.standing.window.steps == 1


# -- whole runs ------------------------------------------------------------------------------------
TRIALS = (
    "step=auto",
    "step.multiplications=1",
    "step.patience=3",
    "step.stalled=1e3",
    *QUICK,
)


def test_a_resumed_run_with_trials_ends_where_an_uninterrupted_one_does(tmp_path):
    whole = solve(
        "poisson2d", *TRIALS, "run.quiet=true", "stop.steps=26", folder=tmp_path / "whole"
    )
    parts = solve("poisson2d", *TRIALS, "run.quiet=true", "stop.steps=2", folder=tmp_path / "parts")
    for steps in (8, 11, 14, 26):
        parts = resume(tmp_path / "parts", f"stop.steps={steps}")
    assert parts.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert parts.summary["notes"] == whole.summary["notes"]
    assert any("trying KFAC" in note for note in whole.summary["notes"])


@pytest.fixture
def plain_costs(monkeypatch):
    """Without what exact steps take near a solution, which is much of the cost of a tiny net."""
    monkeypatch.setattr(cost, "REFINED", 0.0)
    monkeypatch.setattr(cost, "CORRECTED", 0.0)


def test_notes_are_printed_and_written(tmp_path, capsys, plain_costs):
    result = solve("poisson2d", *TRIALS, "stop.steps=12", folder=tmp_path)
    notes = json.loads((tmp_path / "summary.json").read_text())["notes"]
    assert notes == result.summary["notes"]
    assert notes[0].startswith("step 1: exact steps: an exact step costs about")
    assert any(": trying KFAC with conjugate gradients: losses fell by" in n for n in notes)
    printed = capsys.readouterr().out
    assert all(note in printed for note in notes)


def test_points_are_thinned_at_the_start_of_a_run_and_grow_where_exact_steps_stall(plain_costs):
    limit = ("step.multiplications=1e7", "step.fewest=20", "step.patience=2", "step.stalled=1e3")
    plain = [o for o in QUICK if not o.startswith("points.")]
    result = solve("poisson2d", "step=auto", *limit, *plain, "stop.steps=5")
    assert any(f"{Referee().growth:g} times the points" in note for note in result.summary["notes"])


@pytest.mark.parametrize("change", ["step.multiplications=1e9", "step=kfac_cg"])
def test_points_are_thinned_anew_where_a_resumed_run_affords_more(tmp_path, change):
    limit = ("step.multiplications=1e7", "step.fewest=20", "points.gap=null")
    limit = (*limit, "step.per_parameter=100", "net.widths=[8,8]")
    plain = ("threads=1", "run.plot=false", "stop.steps=2")
    first = solve("poisson2d", *limit, *plain, folder=tmp_path)
    few = sum(first.history[-1]["points"].values())
    more = resume(tmp_path, "stop.steps=4", change)
    assert few < 500 and sum(more.history[-1]["points"].values()) > 900
    assert resume(tmp_path, "stop.steps=5").history[-1]["points"] == more.history[-1]["points"]


def test_a_new_damping_reaches_exact_steps_on_resumption(tmp_path):
    solve("poisson2d", *QUICK, "step=auto", "run.quiet=true", "stop.steps=3", folder=tmp_path)
    parts = resume(tmp_path, "stop.steps=4", "damping.start=7.5")
    assert parts.history[-1]["damping"] == 7.5


def test_other_steps_have_no_notes():
    for step in ("adam", "spring", "kfac_cg"):
        result = solve("poisson2d", f"step={step}", *QUICK, "stop.steps=5")
        assert result.summary["notes"] == []


def test_the_option_is_the_default_of_the_settings():
    """conf/step/auto.yaml says what Auto() is, and it is what a run takes by default."""
    config = compose("poisson2d", {}, [])
    assert build(config.step, "step") == Auto()
    assert isinstance(build(config.damping, "damping"), ByLength)
