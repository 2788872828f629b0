"""When points are exchanged, and how many there are: decisions, and a source that does them."""

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
from pinnkfac.linearisation.linearisation import TermLosses
from pinnkfac.linearisation.system import System
from pinnkfac.points.exchange import HOTTEST, Decision, Exchange
from pinnkfac.points.functions import functions_of
from pinnkfac.points.numbers import Allocation, Numbered, Numbers
from pinnkfac.points.selection import ImportanceSampling, ResidualAdaptive
from pinnkfac.points.settings import PointSettings
from pinnkfac.points.source import PointSource
from pinnkfac.run.loop import run
from pinnkfac.run.progress import Progress, Stop
from pinnkfac.step.base import Batch, Report, Request
from pinnkfac.step.damping import Constant
from pinnkfac.step.guard import Guard, Watch
from pinnkfac.step.lengths import Projection
from pinnkfac.step.methods import Spring
from pinnkfac.step.search import Accepted, Backtracking

KEEP, FIRST, DRAW, CHECK = Decision.KEEP, Decision.FIRST, Decision.DRAW, Decision.CHECK
TAKE, REPLACE = Decision.TAKE, Decision.REPLACE


# -- when ------------------------------------------------------------------------------------------
def play(settings, losses):
    """What is due before steps 1, 2, …, where the last one reached these losses and that on unseen
    points is 1, and the exchange after it."""
    exchange = Exchange(drawn=1)
    for step, loss in enumerate(losses, start=1):
        due = exchange.due(settings, step, loss)
        if due is CHECK:
            exchange, due = exchange.checked(settings, step, loss, unseen=1.0)
            assert due in (KEEP, REPLACE)
            due = CHECK if due is KEEP else REPLACE
        elif due is DRAW:
            exchange = exchange.renewed(step)
        yield step, due, exchange


def steps_of(decision, settings, losses):
    return [step for step, due, _ in play(settings, losses) if due is decision]


def test_the_first_points_are_drawn_before_the_first_step_and_again_where_every_step_is_due():
    assert Exchange().due(PointSettings(), 0, math.inf) is FIRST
    drawn = Exchange().renewed(0)
    assert (drawn.drawn, drawn.taken) == (1, 0)
    assert drawn.due(PointSettings(gap=None), 0, math.inf) is KEEP
    assert drawn.due(PointSettings(every=3), 0, math.inf) is FIRST
    assert drawn.due(PointSettings(), 1, math.inf, missing=True) is DRAW


def test_checks_become_rare_where_the_net_does_not_fit_its_points():
    settings = PointSettings(check=8)
    assert steps_of(CHECK, settings, [math.inf] * 39) == [1, 3, 7, 15, 23, 31, 39]
    *_, (_, _, last) = play(settings, [math.inf] * 39)
    assert last.exchanged == 0 and last.drawn == 1


def test_a_loss_far_below_that_of_the_last_check_is_checked_at_once():
    """Points that are fitted to 0 are exchanged, whatever the interval was, and checks are half as
    many steps apart after every exchange."""
    settings, losses = PointSettings(check=8), [math.inf] * 17 + [0.0] * 5
    assert steps_of(REPLACE, settings, losses) == [18, 19, 20, 21, 22]
    after = [exchange for _, _, exchange in play(settings, losses)][-5:]
    assert [exchange.interval for exchange in after] == [4, 2, 1, 1, 1]
    assert after[-1].exchanged == 5 and after[-1].taken == 22


def test_every_counts_steps_whatever_the_losses():
    assert steps_of(DRAW, PointSettings(every=3, gap=None), [0.0] * 9) == [3, 6, 9]
    assert steps_of(KEEP, PointSettings(gap=None), [0.0] * 9) == list(range(1, 10))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"gap": None}, [4, 8]),  # ``check`` steps are all that there is
        ({"gap": None, "every": 5}, [5, 10]),  # that alone counts
        ({"gap": None, "adaptive": ResidualAdaptive()}, []),  # without weights
    ],
)
def test_points_chosen_by_their_residuals_are_renewed_without_a_gap(settings, steps):
    settings = {"adaptive": ImportanceSampling(), "check": 4, **settings}
    assert steps_of(DRAW, PointSettings(**settings), [1e-9] * 10) == steps


@pytest.mark.parametrize(
    ("settings", "interval", "guards_few", "guards_many"),
    [
        ({}, 1, True, True),
        ({}, 2, True, False),  # where there are more residuals than parameters, only if often
        ({"gap": None}, 1, False, False),
        ({"every": 1, "gap": None}, 4, True, True),
        ({"every": 2}, 1, False, False),
        ({"adaptive": ImportanceSampling()}, 2, True, False),
        ({"adaptive": ResidualAdaptive()}, 1, False, False),
    ],
)
def test_steps_are_guarded_where_they_may_fit_their_own_points_only(
    settings, interval, guards_few, guards_many
):
    exchange = Exchange(interval=interval)
    assert exchange.guards(PointSettings(**settings), few=True) == guards_few
    assert exchange.guards(PointSettings(**settings), few=False) == guards_many


def test_points_come_where_a_step_fits_its_own_and_in_every_step_where_many_do():
    settings, exchange = PointSettings(gap=3.0), Exchange(drawn=1)
    decisions, heats = [], []
    for step, fits in enumerate([False, True, False, False, True, True, False, False, False]):
        unseen = 3.1 if fits else 2.9
        exchange, decision = exchange.guarded(settings, step, 1.0, unseen)
        decisions.append(decision)
        heats.append(exchange.heat)
    assert heats == [0, 3, 2, 1, 4, 7, 6, 5, 4]
    assert decisions == [KEEP, REPLACE, KEEP, KEEP, REPLACE, REPLACE, TAKE, KEEP, KEEP]
    assert exchange.exchanged == 3 and exchange.drawn == 5 and exchange.taken == 7
    assert exchange.interval == 2 and exchange.unseen == 2.9
    for step in range(9, 30):
        exchange, _ = exchange.guarded(settings, step, 1.0, 3.1)
    assert exchange.heat == HOTTEST and exchange.interval == 1


@pytest.mark.parametrize("settings", [{"every": 1}, {"gap": None}])
def test_where_no_gap_is_looked_at_unseen_points_of_a_step_come_next(settings):
    exchange, decision = Exchange().guarded(PointSettings(**settings), 4, 1.0, 9.0)
    assert decision is TAKE and exchange.exchanged == 0 and exchange.taken == 5


# -- how many --------------------------------------------------------------------------------------
def cost(numbers):
    """A point of the first term costs 8, one of the second 2."""
    return 8.0 * numbers[0] + 2.0 * sum(numbers[1:])


def numbers_of(*terms, rate=1.0, least=0.05):
    return Numbers(tuple(terms), Allocation(rate, least))


TERMS = Numbered(400), Numbered(200, weight=4.0)


def test_points_go_to_terms_by_the_root_of_loss_over_price():
    """To n ∝ √(weight · L / c) at an equal cost."""
    first, second = numbers_of(*TERMS).learned([1.0, 9.0], [400, 200], cost).now()
    assert second / first == pytest.approx(math.sqrt(4.0 * 9.0 / 2.0) / math.sqrt(1.0 / 8.0), 0.02)
    assert cost([first, second]) == pytest.approx(cost([400, 200]), rel=0.02)


def test_no_term_is_left_without_points_and_steps_towards_the_best_are_small():
    first, second = numbers_of(*TERMS, least=0.25).learned([1.0, 0.0], [400, 200], cost).now()
    assert second / first == pytest.approx(0.25, rel=0.02)
    learned = numbers_of(*TERMS, rate=0.1).learned([1.0, 0.0], [400, 200], cost)
    assert learned.parts[1] == pytest.approx(1 / 3 + 0.1 * (0.05 / 1.05 - 1 / 3))


@pytest.mark.parametrize("losses", [[], [0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0]])
def test_nothing_is_allocated_by_losses_that_say_nothing(losses):
    numbers = numbers_of(*TERMS)
    assert numbers.learned(losses, [400, 200], cost) is numbers


def test_numbers_that_the_user_gave_stay():
    """One term alone has nothing to share."""
    numbers = numbers_of(Numbered(7, exchangeable=False), Numbered(200))
    assert numbers.learned([1.0, 9.0], [7, 200], cost) is numbers


def test_beyond_the_memory_parts_are_learned_and_the_total_stays():
    learned = numbers_of(*TERMS).learned([1.0, 9.0], [400, 200], lambda n: math.inf)
    assert learned.total in (0.0, 600)


def test_growth_multiplies_allocated_points():
    before = numbers_of(*TERMS).learned([1.0, 9.0], [400, 200], cost)
    for now, then in zip(before.grown(1.5).now(), before.now(), strict=True):
        assert now == pytest.approx(1.5 * then, abs=1)


def test_given_and_single_points_stay_as_many_as_they_are():
    """Whatever is thinned, grown or allocated: they are counted as what they are."""
    numbers = numbers_of(*TERMS, Numbered(30, 30, 30)).thinned(0.5)
    assert numbers.now() == [200, 100, 30]
    learned = numbers.learned([1.0, 1.0, 1.0], numbers.now(), cost)
    assert learned.grown(3.0).now()[2] == 30 and learned.parts[2] == 0.0


# -- a source --------------------------------------------------------------------------------------
def source_of(problem=None, **settings):
    problem = problem or poisson()
    functions = functions_of(System(problem, net_for(problem)))
    settings = {"interior": 12, "lower": 6, **settings}
    g = Generator().manual_seed(1)
    return PointSource(problem, PointSettings(**settings), functions, g)


def coordinates(points):
    return torch.cat([own.points.coordinates for own in points])


def report(unseen=math.nan, **request):
    losses = TermLosses([1.0, 9.0], [1.0, 9.0])
    return Report(
        [], losses, 1.0, length=1.0, reached=1.0, unseen=unseen, request=Request(**request)
    )


@pytest.mark.parametrize(("every", "unseen", "exchanged"), [(1, 1.0, 0), (0, 9.0, 1)])
def test_points_that_guarded_a_step_come_next_where_that_is_decided(every, unseen, exchanged):
    source = source_of(every=every)
    source.at(0)
    points = source.unseen()
    assert [len(own) for own in points] == [12, 6]
    assert not torch.equal(coordinates(points), coordinates(source.current))
    source.after(0, report(unseen), points, renewed=False)
    assert source.at(1) is points and source.exchange.exchanged == exchanged
    source.after(1, report(), None, renewed=False)  # of a step that did not search
    assert (source.at(2) is points) == (every == 0)


def test_points_that_guarded_a_step_go_where_it_did_not_fit_its_own_only():
    source = source_of()
    first, points = source.at(0), source.unseen()
    source.after(0, report(unseen=2.9), points, renewed=False)
    assert source.at(1) is first
    assert source_of(gap=None).unseen() is None


def test_the_numbers_of_terms_change_with_the_next_points():
    source = source_of(interior=400, lower=200, allocation=Allocation(rate=1.0))
    source.at(0)
    source.after(0, report(), None, renewed=False)
    assert source.plan.parts == ()
    source.after(0, report(), None, renewed=True)
    assert source.plan.parts and source.numbers() == {"interior": 400, "boundary": 200}
    source.after(1, report(growth=2.0), None, renewed=False)
    numbers = list(source.numbers().values())
    assert numbers[1] > 400 and numbers == [len(own) for own in source.at(2)]


def test_growth_takes_effect_with_the_next_step():
    source = source_of(gap=None)
    source.at(0)
    source.after(0, report(growth=1.5), None, renewed=False)
    other = source_of(gap=None)
    other.load_state_dict(source.state_dict())
    other.generator.set_state(source.generator.get_state())
    assert source.numbers() == other.numbers() == {"interior": 18, "boundary": 9}
    assert torch.equal(coordinates(source.at(1)), coordinates(other.at(1)))


def test_given_points_are_drawn_as_many_as_they_are():
    problem = inverse()
    source = source_of(problem, interior=40, lower=20)
    given = [t.where.number for t in problem.terms if isinstance(t.where, Points)]
    source.plan = source.plan.thinned(0.5).grown(3.0)
    numbers = [len(own) for own in source.at(0)]
    assert list(source.numbers().values()) == numbers
    is_given = [isinstance(t.where, Points) for t in problem.terms]
    assert given and [n for n, g in zip(numbers, is_given, strict=True) if g] == given


def test_what_a_step_asks_for_is_done_by_the_loop():
    problem = poisson()
    system = System(problem, net_for(problem))
    settings = PointSettings(interior=12, lower=6, gap=None, allocation=None)
    source = PointSource(problem, settings, functions_of(system), Generator().manual_seed(1))

    class Greedy:
        guarded = False

        def update(self, parameters, batch):
            seen.append((sum(map(len, batch.points)), batch.same_loss))
            request = Request(growth=2.0, note="more") if len(seen) == 2 else Request()
            losses = TermLosses([1.0, 1.0], [1.0, 1.0])
            return Report(parameters, losses, 1.0, length=1.0, request=request)

        def recover(self):
            return ""

    seen = []
    progress, _ = run(
        system, Greedy(), source, Stop(steps=4), Balance(every=0), lambda progress: None
    )
    assert isinstance(progress, Progress)
    assert seen == [(18, False), (18, True), (36, False), (36, True)]
    assert progress.notes == ["step 2: more"]


# -- what a step does with unseen points -----------------------------------------------------------
def test_a_search_on_unseen_points_lowers_their_loss_and_says_both():
    problem = poisson()
    system = System(problem, net_for(problem))
    points, unseen = points_for(system, 9, 5), points_for(system, 30, 20)
    stepper = Spring().start(system, Backtracking(), Constant(1e-8), Generator().manual_seed(0))
    for _ in range(3):
        before = system.loss(unseen)
        report = stepper.update(system.get_parameters(), Batch(points, unseen))
        system.set_parameters(report.parameters)
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
    monkeypatch.setattr(Guard, "allows", lambda self, length, parameters: length <= 0.125)
    problem = poisson()
    system = System(problem, net_for(problem))
    points = points_for(system, 9, 5)
    search = Along(1.0, 0.5, 0.25, 0.125, 0.0625)
    stepper = Spring().start(system, search, Constant(10.0), Generator().manual_seed(0))
    batch = Batch(points, points_for(system, 30, 20))
    assert stepper.update(system.get_parameters(), batch).length == 0.125
    assert search.losses[:3] == [math.inf] * 3 and math.isfinite(search.losses[3])


def test_a_guard_allows_twice_the_loss_on_unseen_points_but_not_more():
    problem = poisson()
    system = System(problem, net_for(problem))
    unseen = points_for(system, 30, 20)
    start, uphill = system.get_parameters(), system.linearise(unseen).gradient()
    before = system.loss(unseen)
    guard = Guard(system, unseen, start, Watch())
    seen = set()
    for length in [0.01 * 1.2**i for i in range(40)]:
        place = combine((1.0, start), (length, uphill))
        loss = system.loss(unseen, place)
        assert guard.allows(length, place) == (loss <= 2.0 * before)
        assert guard.reached(length) == loss
        seen.add(loss <= 2.0 * before)
    assert seen == {True, False} and math.isnan(guard.reached(123.0))


def test_rises_do_not_add_up():
    """The limit is twice the lowest loss, which is forgotten by a tenth a step."""
    problem = poisson()
    system = System(problem, net_for(problem))
    unseen = points_for(system, 30, 20)
    loss, start = system.loss(unseen), system.get_parameters()
    assert Guard(system, unseen, start, Watch()).limit == pytest.approx(2.0 * loss)
    later = Guard(system, unseen, start, Watch(lowest=0.6 * loss))
    assert later.watch.lowest == pytest.approx(0.66 * loss)
    assert later.limit == pytest.approx(1.32 * loss)
    assert Guard(system, unseen, start, Watch(lowest=0.1 * loss)).limit == loss


def test_momentum_is_trusted_less_on_a_plateau_of_unseen_points():
    watch, lengths = Watch(), Projection()
    state, trust = lengths.start(), []
    for loss in [9.0, 8.0, 8.5, 9.0, 8.1, 9.0, 8.2, 7.0, 6.0, 5.0, 4.0]:
        watch, fell = watch.after(loss)
        if fell is not None:
            state = lengths.watched(state, fell=fell)
        trust.append(state.trust)
    assert trust == pytest.approx([1, 1, 1, 1, 1, 0.5, 0.5, 0.6, 0.72, 0.864, 1.0])
