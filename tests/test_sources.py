"""When points are exchanged: checks, unseen points for the search, growth."""

from __future__ import annotations

import math

import pytest
import torch
from nets import net_for
from problems import inverse, points_for, poisson
from torch import Generator

from pinnkfac.domain import Points
from pinnkfac.linearisation.balance import Balance
from pinnkfac.linearisation.direction import combine
from pinnkfac.linearisation.system import System
from pinnkfac.points.numbers import Allocation
from pinnkfac.points.source import HOTTEST, PointSettings, PointSource
from pinnkfac.run.loop import Progress, Stop, run
from pinnkfac.step.base import Report
from pinnkfac.step.damping import Constant
from pinnkfac.step.gauss_newton import Guard
from pinnkfac.step.search import Accepted, Backtracking
from pinnkfac.step.spring import Spring


def source_of(**settings):
    problem = poisson()
    system = System(problem, net_for(problem))
    given = {"interior": 12, "lower": 6, **settings}
    return PointSource(system, PointSettings(**given), Generator().manual_seed(1))


def coordinates(points):
    return torch.cat([own.points.coordinates for own in points])


def exchanges(source, losses):
    """The steps at which the points change, for the loss that was reached before every step."""
    changed = []
    last = coordinates(source.at(0))
    for step, loss in enumerate(losses, start=1):
        now = coordinates(source.at(step, loss))
        if not torch.equal(now, last):
            changed.append(step)
        last = now
    return changed


def test_checks_become_rare_where_the_net_does_not_fit_its_points():
    source = source_of(check=8)
    unseen = []
    fair = source._fair
    source._fair = lambda: unseen.append(step_now[0]) or fair()
    step_now = [0]
    source.at(0)
    for step in range(1, 40):
        step_now[0] = step
        source.at(step, math.inf)
    assert unseen == [1, 3, 7, 15, 23, 31, 39]
    assert source.exchanged == 0 and source.drawn == 1


def test_a_loss_far_below_that_of_the_last_check_is_checked_at_once():
    """Points that are fitted to 0 are exchanged, whatever the interval was."""
    source = source_of(check=8)
    assert exchanges(source, [math.inf] * 17 + [0.0] * 5) == [18, 19, 20, 21, 22]
    assert source.interval == 1 and source.exchanged == 5


def test_checks_become_frequent_where_the_net_fits_its_points():
    """Half as many steps from one to the next after every exchange."""
    source = source_of(check=8)
    exchanges(source, [math.inf] * 16)
    intervals = []
    for step in range(17, 21):
        source.at(step, 0.0)
        intervals.append(source.interval)
    assert intervals == [4, 2, 1, 1]


def test_every_counts_steps_whatever_the_losses():
    assert exchanges(source_of(every=3, gap=None), [0.0] * 9) == [3, 6, 9]
    assert exchanges(source_of(gap=None), [0.0] * 9) == []


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"every": 1}, True),
        ({"every": 1, "gap": None}, True),
        ({"every": 2}, False),
        ({"gap": None}, False),
        ({}, True),
    ],
)
def test_unseen_points_are_given_where_points_change_at_every_step(settings, given):
    source = source_of(**settings)
    source.at(0)
    unseen = source.unseen()
    assert (unseen is not None) == given
    if given:
        assert [len(own) for own in unseen] == [12, 6]
        assert not torch.equal(coordinates(unseen), coordinates(source.current))


def judged(source, step, *, fits_its_own):
    """A step of which that is so; whether its unseen points came next."""
    points = source.unseen()
    assert points is not None
    source.judge(step, points, reached=1.0, unseen=3.1 if fits_its_own else 2.9)
    return source.at(step + 1) is points


def test_points_come_where_a_step_fits_its_own_and_in_every_step_where_many_do():
    source = source_of(gap=3.0, interior=3, lower=2)  # fewer residuals than parameters
    source.at(0)
    pattern = [False, True, False, False, True, True, False, False, False]
    taken = [judged(source, step, fits_its_own=fits) for step, fits in enumerate(pattern)]
    # heat:     0     3     2      1      4     7     6     5      4
    assert taken == [False, True, False, False, True, True, True, False, False]
    assert source.exchanged == 3 and source.drawn == 5
    for step in range(9, 30):
        judged(source, step, fits_its_own=True)
    assert source.heat == HOTTEST


def test_nets_that_cannot_fit_their_points_are_seldom_guarded():
    """With more residuals than parameters, and points that are kept: only where checks are due in
    every step."""
    source = source_of(gap=3.0, check=8, interior=100, lower=50)
    source.at(0)
    assert source.interval == 1 and not judged(source, 0, fits_its_own=False)
    assert source.interval == 2 and source.unseen() is None
    source.at(2, 0.0)
    assert source.interval == 1 and source.unseen() is not None


def test_with_new_points_in_every_step_those_of_the_search_come_next():
    source = source_of(every=1)
    source.at(0)
    unseen = source.unseen()
    source.judge(0, unseen, reached=1.0, unseen=1.0)
    assert source.at(1) is unseen and source.exchanged == 0
    assert source.at(2) is not unseen  # of a step that did not search


def test_growth_takes_effect_with_the_next_step():
    source = source_of(gap=None)
    source.at(0)
    source.grow(1.5)
    stored = source.state_dict()
    other = source_of(gap=None)
    other.load_state_dict(stored)
    other.generator.set_state(source.generator.get_state())
    assert source.numbers() == other.numbers() == {"interior": 18, "boundary": 9}
    assert torch.equal(coordinates(source.at(1)), coordinates(other.at(1)))


def test_a_search_on_unseen_points_lowers_their_loss_and_says_both():
    problem = poisson()
    system = System(problem, net_for(problem))
    points, unseen = points_for(system, 9, 5), points_for(system, 30, 20)
    stepper = Spring().start(system, Backtracking(), Constant(1e-8), Generator().manual_seed(0))
    for _ in range(3):
        before = system.loss(unseen)
        report = stepper.update(points, unseen=unseen)
        assert report.length > 0 and report.unseen < before
        assert report.unseen == pytest.approx(system.loss(unseen), rel=1e-12)
        assert report.reached == pytest.approx(system.loss(points), rel=1e-12)


class Along:
    """Stands for a search: takes the first of its lengths that lowers the loss."""

    def __init__(self, *lengths):
        self.lengths = lengths
        self.losses = []

    def run(self, loss, loss_0, slope, last):
        for trials, length in enumerate(self.lengths, start=1):
            self.losses.append(loss(length))
            if self.losses[-1] < loss_0:
                return Accepted(length, self.losses[-1], trials)
        return Accepted(0.0, loss_0, len(self.lengths))


def test_lengths_that_a_guard_does_not_allow_count_as_infinite(monkeypatch):
    monkeypatch.setattr(Guard, "allows", lambda self, length: length <= 0.125)
    problem = poisson()
    system = System(problem, net_for(problem))
    points = points_for(system, 9, 5)
    search = Along(1.0, 0.5, 0.25, 0.125, 0.0625)
    stepper = Spring().start(system, search, Constant(10.0), Generator().manual_seed(0))
    assert stepper.update(points, unseen=points_for(system, 30, 20)).length == 0.125
    assert search.losses[:3] == [math.inf] * 3 and math.isfinite(search.losses[3])


def test_a_guard_allows_twice_the_loss_on_unseen_points_but_not_more():
    problem = poisson()
    system = System(problem, net_for(problem))
    unseen = points_for(system, 30, 20)
    start, uphill = system.get_parameters(), system.linearise(unseen).gradient()
    before = system.loss(unseen)
    guard = Guard(system, unseen, math.inf)
    seen = set()
    for length in [0.01 * 1.2**i for i in range(40)]:
        system.set_parameters(combine((1.0, start), (length, uphill)))
        loss = system.loss(unseen)
        assert guard.allows(length) == (loss <= 2.0 * before)
        assert guard.reached(length) == loss
        seen.add(loss <= 2.0 * before)
    assert seen == {True, False} and math.isnan(guard.reached(123.0))


def test_rises_do_not_add_up():
    """The limit is twice the lowest loss, which is forgotten by a tenth a step."""
    problem = poisson()
    system = System(problem, net_for(problem))
    unseen = points_for(system, 30, 20)
    loss = system.loss(unseen)
    assert Guard(system, unseen, math.inf).limit == pytest.approx(2.0 * loss)
    later = Guard(system, unseen, 0.6 * loss)
    assert later.lowest == pytest.approx(0.66 * loss)
    assert later.limit == pytest.approx(1.32 * loss)
    assert Guard(system, unseen, 0.1 * loss).limit == loss


def test_momentum_is_trusted_less_on_a_plateau_of_unseen_points():
    problem = poisson()
    system = System(problem, net_for(problem))
    stepper = Spring().start(system, Backtracking(), Constant(1e-8), Generator().manual_seed(0))
    trust = []
    for loss in [9.0, 8.0, 8.5, 9.0, 8.1, 9.0, 8.2, 7.0, 6.0, 5.0, 4.0]:
        stepper._watch(loss)
        trust.append(stepper.descent.trust)
    assert trust == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.5, 0.6, 0.72, 0.864, 1.0])


# -- allocation ------------------------------------------------------------------------------------
def test_points_go_to_terms_by_the_root_of_loss_over_price():
    """To n ∝ √(weight · L / c) at an equal cost, with c the rows of a point for a forward pass."""
    source = source_of(interior=400, lower=200, allocation=Allocation(rate=1.0))
    source.at(0)
    terms = source.system.terms
    source.allocate([1.0, 9.0])
    source.current = []
    first, second = source.numbers().values()
    weights = [t.residual.term.weight for t in terms]
    ratio = math.sqrt(weights[0] / terms[0].rows / (9.0 * weights[1] / terms[1].rows))
    assert first / second == pytest.approx(ratio, rel=0.02)
    assert source.plan.price([first, second]) == pytest.approx(
        source.plan.price([400, 200]), rel=0.02
    )


def test_no_term_is_left_without_points_and_steps_towards_the_best_are_small():
    source = source_of(interior=400, lower=200, allocation=Allocation(rate=1.0, least=0.25))
    source.at(0)
    source.allocate([1.0, 0.0])
    source.current = []
    first, second = source.numbers().values()
    assert second / first == pytest.approx(0.25, rel=0.02)
    source = source_of(interior=400, lower=200)
    source.at(0)
    source.allocate([1.0, 0.0])
    assert source.plan.parts[1] == pytest.approx(1 / 3 + 0.1 * (0.05 / 1.05 - 1 / 3))


@pytest.mark.parametrize("losses", [[], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_nothing_is_allocated_by_losses_that_say_nothing(losses):
    source = source_of()
    source.at(0)
    source.allocate(losses)
    assert source.plan.parts == []


def test_numbers_that_the_user_gave_stay():
    name = source_of().system.terms[0].residual.term.name
    source = source_of(numbers={name: 7})
    source.at(0)
    source.allocate([1.0, 9.0])
    assert source.plan.parts == []  # one term alone has nothing to share


def test_given_and_single_points_stay_as_many_as_they_are():
    """Whatever is thinned, grown or allocated: they are counted as what they are."""
    problem = inverse()
    system = System(problem, net_for(problem))
    terms = [t.residual.term for t in system.terms]
    given = [term.where.number if isinstance(term.where, Points) else None for term in terms]
    assert any(given)
    source = PointSource(system, PointSettings(interior=40, lower=20), Generator().manual_seed(1))
    source.plan.thin(0.5)
    source.at(0)
    source.allocate([1.0] * len(terms))
    source.grow(3.0)
    numbers = list(source.numbers().values())
    assert [n for n, g in zip(numbers, given, strict=True) if g] == [g for g in given if g]
    assert numbers == [len(own) for own in source.at(1)]


def test_growth_multiplies_allocated_points():
    source = source_of(interior=400, lower=200, gap=None)
    source.at(0)
    source.allocate([1.0, 9.0])
    source.current = []
    before = list(source.numbers().values())
    source.grow(1.5)
    for now, then in zip(source.numbers().values(), before, strict=True):
        assert now == pytest.approx(1.5 * then, abs=1)


def test_what_a_step_asks_for_is_done_by_the_loop():
    source = source_of(gap=None, allocation=None)

    class Greedy:
        guarded = False

        def update(self, points, *, same_loss=True, unseen=None):
            seen.append((sum(map(len, points)), same_loss))
            growth = 2.0 if len(seen) == 2 else 1.0
            return Report([1.0, 1.0], 1.0, length=1.0, growth=growth, note="more" * (growth > 1))

        def recover(self):
            return ""

    seen = []
    progress, _ = run(
        source.system, Greedy(), source, Stop(steps=4), Balance(every=0), lambda progress: None
    )
    assert isinstance(progress, Progress)
    assert seen == [(18, False), (18, True), (36, False), (36, True)]
    assert progress.notes == ["step 2: more"]
