"""When points are exchanged: checks, unseen points for the search, growth."""

from __future__ import annotations

import math

import pytest
import torch
from examples import net_for, points_for, poisson
from oracles import flat
from torch import Generator

from pinnkfac.balance import Balance
from pinnkfac.linearise import System
from pinnkfac.loop import Progress, Stop, run
from pinnkfac.sources import PointSettings, PointSource
from pinnkfac.step.base import Report
from pinnkfac.step.damping import Constant
from pinnkfac.step.search import Backtracking
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
    residuals = source._residuals
    source._residuals = lambda points: unseen.append(step_now[0]) or residuals(points)
    step_now = [0]
    source.at(0)
    for step in range(1, 40):
        step_now[0] = step
        source.at(step, math.inf)
    assert unseen == [1, 3, 7, 15, 23, 31, 39]
    assert source.exchanged == 0 and source.drawn == 1


def test_checks_become_frequent_where_it_does():
    """Points that are fitted to 0 are exchanged at every check."""
    source = source_of(check=8)
    assert exchanges(source, [math.inf] * 15 + [0.0] * 16) == [23, 27, 29, 30, 31]
    assert source.interval == 1 and source.exchanged == 5


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


def test_a_searched_step_decides_whether_its_points_stay():
    source = source_of(gap=3.0, check=8)
    first = source.at(0)
    unseen = source.unseen()
    source.judge(0, unseen, reached=1.0, unseen=3.1)
    assert source.at(1) is unseen and source.exchanged == 1
    again = source.unseen()
    source.judge(1, again, reached=1.0, unseen=2.9)
    assert source.at(2) is unseen and source.interval == 2 and source.unseen() is None
    assert source.at(3, math.inf) is unseen and source.interval == 4
    assert first is not unseen and source.drawn == 2


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


def test_a_step_that_only_fits_its_own_points_is_rejected():
    """Two points fit by a step that helps nowhere else: the net stays as it was."""
    problem = poisson()
    system = System(problem, net_for(problem))
    points, unseen = points_for(system, 9, 5), points_for(system, 30, 20)
    stepper = Spring().start(system, Backtracking(), Constant(1e-8), Generator().manual_seed(0))
    direction = stepper.descent.direction
    gradient = system.linearise(unseen).gradient()
    stepper.geodesic = False
    stepper.descent.direction = lambda *_: [1e-3 * g for g in gradient]  # uphill on unseen points
    before = flat(system.get_parameters())
    report = stepper.update(points, unseen=unseen)
    assert report.length == 0.0 and torch.equal(flat(system.get_parameters()), before)
    assert report.unseen == pytest.approx(system.loss(unseen), rel=1e-12)
    assert direction is not None


def test_what_a_step_asks_for_is_done_by_the_loop():
    source = source_of(gap=None)

    class Greedy:
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
