"""step=auto: what it begins with, when it changes its mind, and that it does so repeatably."""

from __future__ import annotations

import json
import math
import time

import pytest
import torch
from nets import net_for
from oracles import flat
from problems import points_for, poisson
from torch import Generator

from pinnkfac import Box, Points, Problem, Term, lap, resume, solve
from pinnkfac.config.build import build
from pinnkfac.config.compose import compose
from pinnkfac.curvature import cost
from pinnkfac.curvature.cost import exact_bytes, exact_step
from pinnkfac.linearisation.system import System
from pinnkfac.run.assembly import assemble
from pinnkfac.step.auto import (
    EARLY,
    EXACT,
    FACTORED,
    GROWTH,
    TIMES,
    Auto,
    AutoStepper,
    Window,
    level,
    total,
)
from pinnkfac.step.base import Report
from pinnkfac.step.damping import ByLength
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


def numbered(*numbers):
    """These numbers of points, as a function of the share of them."""
    return lambda share: [max(1, round(share * n)) for n in numbers]


def small():
    problem = poisson()
    return System(problem, net_for(problem, (8, 7)))


def started(system, step, numbers=NUMBERS):
    search, damping = Backtracking(), ByLength()
    stepper = step.start(system, search, damping, Generator().manual_seed(0))
    return stepper, points_for(system, *numbers)


def play(stepper, falls, monkeypatch, unseen=math.nan):
    """Replace both methods by ones whose losses fall by ``falls[method]`` decades a step, from 1,
    and are ``unseen`` times that on other points."""
    loss = [1.0]
    system = stepper.system
    weights = [t.residual.term.weight for t in system.terms]

    def update_of(name):
        def update(points, **others):
            now = loss[0]
            loss[0] *= 10.0 ** -falls[name]
            losses = [now / weights[0], now]
            return Report(losses, now, length=1.0, reached=loss[0], unseen=unseen * loss[0])

        return update

    for name, method in stepper.methods.items():
        monkeypatch.setattr(method, "update", update_of(name))


def notes_of(stepper, points, steps):
    """The notes of so many steps, with their numbers, and the method of each step."""
    notes, methods = {}, []
    for step in range(1, steps + 1):
        report = stepper.update(points)
        methods.append(stepper.current)
        if report.request.note:
            notes[step] = report.request.note
    return notes, methods


# -- the choice at the start -----------------------------------------------------------------------
def test_a_small_problem_begins_with_exact_steps_on_all_points():
    system = small()
    assert Auto().share_of_points(system, numbered(*NUMBERS)) == 1.0
    stepper, points = started(system, Auto())
    report = stepper.update(points)
    assert stepper.current == EXACT
    assert report.request.note.startswith("exact steps: an exact step costs about 0.")
    assert report.request.growth == 1.0 and report.length > 0


def test_a_kernel_beyond_the_memory_leaves_factored_steps():
    system = small()
    system.memory = exact_bytes(system, NUMBERS) * 0.99
    stepper, points = started(system, Auto())
    note = stepper.update(points).request.note
    assert stepper.current == FACTORED
    assert "KFAC with conjugate gradients" in note and "does not fit into memory" in note
    system.memory = exact_bytes(system, NUMBERS)
    stepper, points = started(system, Auto())
    stepper.update(points)
    assert stepper.current == EXACT


def test_an_exact_step_that_is_too_dear_leaves_factored_steps(monkeypatch):
    costs = {EXACT: 30.0, FACTORED: 10.0}
    monkeypatch.setattr(AutoStepper, "_costs", lambda self, numbers: costs)
    stepper, points = started(small(), Auto(multiplications=20.0))
    note = stepper.update(points).request.note
    assert stepper.current == FACTORED
    assert note.startswith(
        "KFAC with conjugate gradients: an exact step costs about 3 of the other kind"
    )
    stepper, points = started(small(), Auto(multiplications=30.0))
    stepper.update(points)
    assert stepper.current == EXACT


def test_an_exact_step_is_not_too_dear_where_a_factored_one_costs_more():
    """Wide nets with few points: eigendecompositions cost more than the kernel."""
    system = small()
    stepper, points = started(system, Auto(multiplications=1.0))
    costs = stepper._costs(list(NUMBERS))
    assert costs[EXACT] < costs[FACTORED]
    stepper.update(points)
    assert stepper.current == EXACT


def test_points_are_thinned_until_an_exact_step_is_cheap_enough():
    system = small()
    numbers = (9000, 600)
    limit = 0.3 * exact_step(system, numbers)
    step = Auto(multiplications=limit, fewest=10, per_parameter=1e9)
    share = step.share_of_points(system, numbered(*numbers))
    thinned = [round(share * n) for n in numbers]
    before = [round(share / 0.95 * n) for n in numbers]
    assert exact_step(system, thinned) <= limit < exact_step(system, before)
    assert share < 0.95


def test_points_are_thinned_to_a_few_for_each_parameter():
    system = small()
    numbers = (9000, 600)
    share = Auto(per_parameter=4.0).share_of_points(system, numbered(*numbers))
    residuals = share * sum(numbers) / system.parameter_number
    assert 0.94 * 4.0 < residuals <= 4.0


def test_points_are_thinned_until_the_kernel_fits():
    system = small()
    numbers = (90, 20)
    system.memory = exact_bytes(system, (45, 10))
    share = Auto(fewest=10).share_of_points(system, numbered(*numbers))
    thinned = [round(share * n) for n in numbers]
    assert exact_bytes(system, thinned) <= system.memory
    assert 0.9 * 55 < sum(thinned) <= 55


def test_points_are_not_thinned_below_the_fewest_residuals():
    system = small()
    numbers = (9000, 600)
    limit = exact_step(system, (90, 6))
    share = Auto(multiplications=limit, fewest=970).share_of_points(system, numbered(*numbers))
    assert 900 <= 9600 * share <= 970
    assert Auto(multiplications=limit, fewest=80).share_of_points(system, numbered(*numbers)) < 0.02


def test_single_points_cannot_be_thinned_further():
    system = small()
    assert Auto(multiplications=1.0, fewest=1).share_of_points(system, numbered(1, 1)) == 1.0


# -- given points, which are never thinned ---------------------------------------------------------
def beside(given, number):
    """That many given points, and a number of others by the share of them."""
    return lambda share: [given, max(1, round(share * number))]


def limited(system, residuals):
    """As many residuals as cost what an exact step may."""
    return Auto(multiplications=exact_step(system, (residuals, 0)), fewest=1, per_parameter=1e9)


def test_a_few_given_points_take_their_part_of_what_exact_steps_can_afford():
    system = small()
    step, numbers = limited(system, 1000), beside(300, 2000)
    now = numbers(step.share_of_points(system, numbers))
    assert now[0] == 300 and 0.85 < exact_step(system, now) / step.multiplications <= 1.0


def test_no_term_pays_for_given_points_with_more_than_half_of_its_points():
    """Up to what the rounding of thinned points may cost beyond the limit."""
    system = small()
    step, numbers = limited(system, 1000), beside(950, 1000)
    share = step.share_of_points(system, numbers)
    alike = step.share_of_points(system, numbered(950, 1000))
    assert share == 0.5 * alike
    assert step.multiplications < exact_step(system, numbers(share)) <= 1.2 * step.multiplications


@pytest.mark.parametrize("given", [1100, 5000])
def test_where_given_points_alone_are_too_dear_none_are_thinned(given):
    """Those that KFAC then begins with."""
    system = small()
    step, numbers = limited(system, 1000), beside(given, 4000)
    assert step.share_of_points(system, numbers) == 1.0
    assert exact_step(system, numbers(1.0)) > 1.2 * step.multiplications


def test_given_points_that_are_many_for_the_parameters_leave_others_a_fair_share():
    """Where exact steps can afford them."""
    system = small()
    step = Auto(per_parameter=1.0, multiplications=1e12)
    share = step.share_of_points(system, beside(2 * system.parameter_number, 5000))
    alike = step.share_of_points(system, numbered(2 * system.parameter_number, 5000))
    assert share == 0.5 * alike


@pytest.mark.parametrize(("given", "others"), [(100, 228), (200, 129), (400, 400), (3000, 400)])
def test_a_run_with_given_points_begins_with_a_fair_share_of_all_others(given, others):
    box, g = Box(x=(0, 1), y=(0, 1)), Generator().manual_seed(0)
    x, y = torch.rand(2, given, generator=g)
    terms = [
        Term("plate", Points({"x": x, "y": y}), lambda u, at: lap(u) + 1),
        Term("edge", box.boundary, lambda u, at: u, points=400),
    ]
    settings = ("step.multiplications=2e8", "net.widths=[16,16]", "threads=1")
    parts = assemble(compose("thin", {}, settings), Problem(fields=("u",), terms=terms))
    assert parts.source.numbers() == {"plate": given, "edge": others}
    note = parts.stepper.update(parts.source.at(0)).request.note
    assert note.startswith("exact steps:" if others < 400 else "KFAC with conjugate gradients:")


# -- windows ---------------------------------------------------------------------------------------
def window_of(*losses, cost=1.0):
    window = Window()
    for loss in losses:
        window.add([loss], cost, False)
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
    window = Window()
    for k, other in enumerate((0.0, 1e-33, 1e-28, 0.0)):
        window.add([10.0**-k, other], 1.0, False)
    assert window.decades == pytest.approx(window_of(1.0, 1e-1, 1e-2, 1e-3).decades, rel=1e-6)


def test_a_window_counts_every_term_alike():
    """Where one term falls and another, much larger one stays."""
    window = Window()
    for k in range(4):
        window.add([100.0, 10.0**-k], 1.0, False)
    assert window.decades == pytest.approx(window_of(1.0, 1e-1, 1e-2, 1e-3).decades / 2)


def test_a_window_knows_whether_points_were_exchanged_in_every_step():
    window = Window()
    window.add([1.0], 1.0, False)
    assert not window.guarded
    window.add([1.0], 1.0, True)
    window.add([1.0], 1.0, False)
    assert window.guarded


# -- changing its mind -----------------------------------------------------------------------------
def cheap(patience=4, multiplications=1.0, **changes):
    """Judged after so many steps, whatever they cost, with residuals enough for the parameters."""
    changes = {"per_parameter": 1e-3, "stalled": 0.05, **changes}
    return Auto(patience=patience, multiplications=multiplications, **changes)


def test_a_loss_that_falls_is_left_alone(monkeypatch):
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.1, FACTORED: 9.0}, monkeypatch)
    notes, methods = notes_of(stepper, points, 60)
    assert list(notes) == [1] and set(methods) == {EXACT}


def test_stalled_exact_steps_first_ask_for_more_points(monkeypatch):
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.01, FACTORED: 0.0}, monkeypatch)
    growths = [stepper.update(points, unseen=points).request.growth for _ in range(4 * TIMES + 1)]
    asked = [i for i, growth in enumerate(growths, 1) if growth != 1.0]
    assert asked == [4 * k for k in range(1, TIMES + 1)]
    assert {growths[i - 1] for i in asked} == {GROWTH}
    assert stepper.current == EXACT and stepper.grown == TIMES


def test_few_residuals_for_the_parameters_grow_without_a_sign_of_overfitting(monkeypatch):
    stepper, points = started(small(), cheap(per_parameter=1.0))
    play(stepper, {EXACT: 0.01, FACTORED: 0.0}, monkeypatch)
    assert [stepper.update(points).request.growth for _ in range(4)] == [1.0, 1.0, 1.0, GROWTH]


def test_a_cheaper_method_is_tried_before_more_points_are_taken(monkeypatch):
    stepper, points = started(small(), cheap(per_parameter=1.0, multiplications=30.0))
    play(stepper, {EXACT: 0.0, FACTORED: 0.0}, monkeypatch)
    monkeypatch.setattr(stepper, "_costs", lambda numbers: {EXACT: 30.0, FACTORED: 10.0})
    notes, _ = notes_of(stepper, points, 20)
    words = [note.split()[0] for step, note in notes.items() if step > 1]
    assert words == ["trying", "back", "1.5"]  # the next trial waits for two windows


@pytest.mark.parametrize(("fall", "unseen", "grown"), [(0.05, 3, 1), (0.05, 1.5, 0), (0.1, 3, 0)])
def test_steps_that_fit_their_own_points_only_take_more_before_they_stall(
    fall, unseen, grown, monkeypatch
):
    """0.2 decades in 4 steps are no stall, but little; and before the other method is tried, though
    it is the cheaper one."""
    stepper, points = started(small(), cheap(multiplications=30.0))
    play(stepper, {EXACT: fall, FACTORED: 0.0}, monkeypatch, unseen)
    monkeypatch.setattr(stepper, "_costs", lambda numbers: {EXACT: 30.0, FACTORED: 10.0})
    stepper.first = 2.0, 2.0  # the run began far from here
    for _ in range(4):
        stepper.update(points, unseen=points)
    assert stepper.grown == grown and stepper.current == EXACT


@pytest.mark.parametrize(
    ("first", "unseen", "anew"), [(0.5, 3, True), (2.0, 3, False), (0.5, 1, False)]
)
def test_steps_that_fitted_their_own_points_only_from_the_start_begin_anew_with_kfac(
    first, unseen, anew, monkeypatch
):
    stepper, points = started(small(), cheap())
    start = flat(stepper.system.get_parameters())
    methods = dict(stepper.methods)
    play(stepper, {EXACT: 0.01, FACTORED: 0.1}, monkeypatch, unseen)
    stepper.first = first, first
    for _ in range(3):
        assert not stepper.update(points, unseen=points).request.note.startswith("from the first")
    stepper.system.set_parameters([v + 1.0 for v in stepper.system.get_parameters()])
    report = stepper.update(points, unseen=points)
    assert (
        report.request.note.startswith("from the first parameters again, with KFAC") is report.anew
    )
    assert report.anew is anew
    assert (stepper.current == FACTORED) is anew
    assert (stepper.origin is None) is (anew or first > 1.0), "kept as long as they may go astray"
    assert bool((flat(stepper.system.get_parameters()) == start).all()) is anew
    for name, method in stepper.methods.items():
        assert (method is methods[name]) is not anew, "nothing is known of where they had been"
    for _ in range(20):  # once only
        assert not stepper.update(points, unseen=points).request.note.startswith("from the first")


def test_a_term_that_began_at_nothing_hides_no_progress():
    stepper, _ = started(small(), cheap())
    stepper.first = level([1.0, 1e-8]), total([1.0, 1e-8])
    window = Window()
    for _ in range(4):
        window.add([5e-5, 5e-5], 1.0, False)
    assert stepper._fallen(window) == pytest.approx(4.0)


def test_steps_go_astray_early_or_not_at_all(monkeypatch):
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.01, FACTORED: 0.0}, monkeypatch, 1.0)
    stepper.waits[FACTORED] = 100
    kept = []
    for _ in range(EARLY + 1):
        for _ in range(4):
            stepper.update(points, unseen=points)
        kept.append(stepper.origin is not None)
    assert kept == [True] * EARLY + [False] and stepper.current == EXACT


def test_a_run_that_begins_anew_forgets_its_best_state_and_goes_on_bit_for_bit(
    monkeypatch, tmp_path
):
    judge = AutoStepper._judge

    def astray(stepper, numbers, costs):
        if stepper.window.steps == 5 and stepper.origin is not None:
            stepper._begin_anew()
            return "from the first parameters again", 1.0
        return judge(stepper, numbers, costs)

    monkeypatch.setattr(AutoStepper, "_judge", astray)
    settings = (*QUICK, "run.quiet=true")
    whole = solve("poisson2d", *settings, "stop.steps=8", folder=tmp_path / "whole")
    assert whole.summary["best"]["step"] >= 5
    assert [r["length"] for r in whole.history][-1] > 0
    for stop in (4, 6):  # before that and after it
        folder = tmp_path / str(stop)
        solve("poisson2d", *settings, f"stop.steps={stop}", folder=folder)
        parts = resume(folder, "stop.steps=8", "run.quiet=true")
        assert parts.summary["parameters_sha256"] == whole.summary["parameters_sha256"]


def test_a_net_that_was_trained_is_not_where_a_run_begins(tmp_path):
    solve("poisson2d", *QUICK, "run.quiet=true", "stop.steps=3", "step=spring", folder=tmp_path)
    seen = []
    begin = AutoStepper._begin

    def watched(stepper, costs):
        note = begin(stepper, costs)
        seen.append((stepper.current, stepper.origin))
        return note

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AutoStepper, "_begin", watched)
        resume(tmp_path, "stop.steps=4", "step=auto")
    assert seen == [(EXACT, None)]


def test_where_a_run_began_is_part_of_its_state(monkeypatch):
    stepper, points = started(small(), cheap())
    stepper.update(points)
    other, _ = started(small(), cheap())
    other.load_state_dict(stepper.state_dict())
    assert other.first == stepper.first and torch.equal(flat(other.origin), flat(stepper.origin))


def test_more_points_do_not_help_steps_that_do_not_fit_their_own_only(monkeypatch):
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.01, FACTORED: 0.0}, monkeypatch)
    notes, _ = notes_of(stepper, points, 4)
    assert stepper.grown == 0 and notes[4].startswith("trying KFAC")


def test_a_stall_is_judged_after_steps_that_cost_enough(monkeypatch):
    """Many cheap steps, not ``patience`` of them."""
    stepper, points = started(small(), cheap(multiplications=100.0))
    play(stepper, {EXACT: 0.0, FACTORED: 0.0}, monkeypatch)
    monkeypatch.setattr(stepper, "_costs", lambda numbers: {EXACT: 10.0, FACTORED: 10.0})
    notes, _ = notes_of(stepper, points, 12)
    assert list(notes) == [1, 10]  # 4 · 100 / 4 = 10 · 10


def test_a_rival_that_is_better_for_its_cost_goes_on_and_exact_steps_are_tried_again(monkeypatch):
    """Though it does not stall: near a solution, exact steps would be faster."""
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.001, FACTORED: 0.5}, monkeypatch)
    monkeypatch.setattr(stepper, "_costs", lambda numbers: {EXACT: 10.0, FACTORED: 10.0})
    notes, methods = notes_of(stepper, points, 4 + 4 * 15)
    assert notes[4] == (
        "trying KFAC with conjugate gradients: losses fell by 0.004 decades in 4 steps"
    )
    assert notes[8] == "going on with KFAC with conjugate gradients"
    assert notes[12] == "trying exact steps: losses fell by 2 decades in 4 steps"
    step, expected = 12, {1: "exact", 4: "trying", 8: "going", 12: "trying"}
    for windows in (2, 4):  # between trials that fail
        expected[step + 4] = "back"
        expected[step + 4 + 4 * windows] = "trying"
        step += 4 + 4 * windows
    assert {k: v.split()[0] for k, v in notes.items() if k <= step} == expected
    assert methods[:4] == [EXACT] * 3 + [FACTORED] and methods.count(EXACT) < 20


def test_a_rival_that_is_worse_is_left_and_the_next_trials_wait_twice_as_long(monkeypatch):
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.001, FACTORED: 0.0}, monkeypatch)
    stepper.update(points)
    costs = stepper._costs(list(NUMBERS))
    trial = max(4, math.ceil(4 * costs[EXACT] / costs[FACTORED]))
    expected = {1: "exact", 4: "trying"}
    step = 4
    for windows in (2, 4, 8):
        step += trial
        expected[step] = "back"
        step += 4 * windows
        expected[step] = "trying"
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.001, FACTORED: 0.0}, monkeypatch)
    notes, _ = notes_of(stepper, points, step)
    assert {k: v.split()[0] for k, v in notes.items()} == expected
    assert notes[4 + trial] == "back to exact steps: their losses fell faster for the cost"


def test_a_trial_costs_at_least_what_its_rival_did(monkeypatch):
    """A dear method has at least ``patience`` steps, a cheap one more steps for the same cost."""
    stepper, points = started(small(), cheap(patience=2, multiplications=35.0))
    play(stepper, {EXACT: 0.0, FACTORED: 0.0}, monkeypatch)
    monkeypatch.setattr(stepper, "_costs", lambda numbers: {EXACT: 35.0, FACTORED: 10.0})
    notes, _ = notes_of(stepper, points, 9)
    assert [k for k, v in notes.items() if v.startswith("trying")] == [2]
    assert [k for k, v in notes.items() if v.startswith("back")] == [2 + 7]


@pytest.mark.parametrize(("rise", "kept"), [(-0.01, True), (-1.0, False)])
def test_exact_steps_are_kept_after_a_trial_unless_the_loss_rose_much(rise, kept, monkeypatch):
    """By a hundredth or by one decade in every step."""
    stepper, points = started(small(), cheap())
    play(stepper, {EXACT: 0.0, FACTORED: 0.5}, monkeypatch)
    while stepper.current != FACTORED or stepper.rival is not None:
        stepper.update(points)
    play(stepper, {EXACT: rise, FACTORED: 0.0}, monkeypatch)
    notes, _ = notes_of(stepper, points, 60)
    trial = next(step for step, note in notes.items() if note.startswith("trying exact steps"))
    ended = next(note for step, note in notes.items() if step > trial)
    assert ended.startswith("going on" if kept else "back to KFAC")


def test_equal_progress_in_fewer_multiplications_wins(monkeypatch):
    stepper, points = started(small(), cheap(patience=2, multiplications=20.0))
    play(stepper, {EXACT: 0.01, FACTORED: 0.01}, monkeypatch)
    monkeypatch.setattr(stepper, "_costs", lambda numbers: {EXACT: 20.0, FACTORED: 10.0})
    notes, _ = notes_of(stepper, points, 6)
    assert notes[6].startswith("going on with KFAC with conjugate gradients")


def test_a_kernel_that_no_longer_fits_is_left(monkeypatch):
    """Where points are added in the course of a run."""
    system = small()
    stepper, points = started(system, cheap())
    stepper.update(points)
    assert stepper.current == EXACT
    system.memory = 1.0
    report = stepper.update(points)
    assert stepper.current == FACTORED and report.length > 0
    assert report.request.note.startswith("KFAC with conjugate gradients")
    assert "does not fit into memory" in report.request.note


def test_a_method_that_does_not_fit_is_not_tried(monkeypatch):
    system = small()
    system.memory = 1.0
    stepper, points = started(system, cheap())
    play(stepper, {EXACT: 1.0, FACTORED: 0.0}, monkeypatch)
    notes, methods = notes_of(stepper, points, 30)
    assert set(methods) == {FACTORED} and list(notes) == [1]


def test_decisions_do_not_depend_on_the_clock(monkeypatch):
    def decisions():
        torch.manual_seed(0)
        stepper, points = started(small(), cheap(patience=2, stalled=1e3))
        return notes_of(stepper, points, 14), flat(stepper.system.get_parameters())

    first, parameters = decisions()
    ticks = iter(range(0, 10**9, 10**4))
    for name in ("time", "perf_counter", "monotonic", "process_time"):
        monkeypatch.setattr(time, name, lambda: float(next(ticks)))
    second, again = decisions()
    assert first == second and len(first[0]) > 3
    assert torch.equal(parameters, again)


# -- what a method that rests knows ----------------------------------------------------------------
def test_a_method_forgets_its_momentum_when_it_takes_over():
    stepper, points = started(small(), cheap(patience=2, stalled=1e3))
    stepper.settings = cheap(patience=2, stalled=1e3)
    factored = stepper.methods[FACTORED]
    while stepper.current != FACTORED or not factored.past:
        stepper.update(points)
    assert factored.last_length is not None
    stepper.current = EXACT
    stepper._exchange()
    assert stepper.current == FACTORED
    assert factored.past == [] and factored.last_length is None and factored.pending is None
    assert factored.descent.average.updates > 0  # curvature is not forgotten, only averaged on


def test_recover_makes_the_present_method_more_careful():
    stepper, points = started(small(), Auto())
    assert stepper.recover() == "nothing was changed"
    stepper.update(points)
    exact = stepper.methods[EXACT]
    before, resting = exact.damping, stepper.methods[FACTORED].damping
    changed = stepper.recover()
    assert exact.damping > before and "damping" in changed
    assert stepper.methods[FACTORED].damping == resting
    assert stepper.window == Window() and stepper.current == EXACT


def test_a_divergence_ends_a_trial():
    stepper, points = started(small(), cheap(patience=2, stalled=1e3))
    while stepper.rival is None:
        stepper.update(points)
    assert stepper.current == FACTORED
    before = stepper.methods[FACTORED].damping
    changed = stepper.recover()
    assert stepper.current == EXACT and changed.startswith("back to exact steps")
    assert stepper.methods[FACTORED].damping > before
    assert stepper.rival is None and stepper.budget == 0.0
    assert stepper.waits == {EXACT: 1, FACTORED: 2} and stepper.windows == 0
    assert stepper.update(points).length > 0


# -- states ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("steps", [0, 1, 5, 8, 11])
def test_a_state_goes_on_bit_for_bit(steps, tmp_path):
    """At the start, with exact steps, and in the middle of a trial."""
    step = cheap(patience=3, stalled=1e3)
    stepper, points = started(small(), step)
    for _ in range(steps):
        stepper.update(points)
    torch.save(stepper.state_dict(), tmp_path / "state")
    parameters = stepper.system.get_parameters()
    whole = [stepper.update(points) for _ in range(12)]

    other, points = started(small(), step)
    other.system.set_parameters(parameters)
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    parts = [other.update(points) for _ in range(12)]
    assert [(r.losses, r.request.note, r.length) for r in parts] == [
        (r.losses, r.request.note, r.length) for r in whole
    ]
    assert any("trying" in r.request.note for r in whole)
    assert torch.equal(flat(other.system.get_parameters()), flat(stepper.system.get_parameters()))


def test_a_state_is_a_copy():
    stepper, points = started(small(), cheap(patience=3, stalled=1e3))
    stepper.update(points)
    state = stepper.state_dict()
    damping = stepper.methods[EXACT].damping
    stepper.update(points)
    stepper.load_state_dict(state)
    assert stepper.methods[EXACT].damping == damping and stepper.window.steps == 1


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
    assert any(f"{GROWTH:g} times the points" in note for note in result.summary["notes"])


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
