"""Points where the residual is large, and more of them: distributions, counts, states."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from nets import FLOAT, net_for
from oracles import assert_close
from problems import PROBLEMS
from regions import Quarter
from torch import Generator

from pinnkfac import Box, Points, Problem, Sobol, Term, Uniform, UserError, resume, solve
from pinnkfac.common.errors import Diverged
from pinnkfac.config.compose import compose
from pinnkfac.domain import Even, Grid, PointSet
from pinnkfac.domain.sampling import Clustered, subset
from pinnkfac.linearisation.balance import Balance
from pinnkfac.linearisation.system import System
from pinnkfac.points.functions import functions_of
from pinnkfac.points.selection import (
    ImportanceSampling,
    ResidualAdaptive,
    affordable,
    at_most_once,
    smooth,
    z_order,
)
from pinnkfac.points.settings import Growth, PointSettings
from pinnkfac.points.source import PointSource
from pinnkfac.run.assembly import check_settings
from pinnkfac.run.loop import run
from pinnkfac.run.progress import Stop
from pinnkfac.step.base import Report, Stepper


def generator(seed=0):
    return Generator().manual_seed(seed)


def chi_square(counts, expected):
    return float(((counts - expected).square() / expected).sum())


# -- drawing by weight -----------------------------------------------------------------------------
def test_one_entry_is_drawn_with_probability_in_proportion_to_its_weight():
    weights = torch.tensor([1.0, 2.0, 0.0, 5.0, 0.5], dtype=FLOAT)
    g, number = generator(), 20_000
    found = torch.stack([subset(weights, 1, g)[0] for _ in range(number)])
    counts = torch.bincount(found, minlength=5).double()
    assert counts[2] == 0
    used = weights > 0
    expected = number * weights[used] / weights.sum()
    assert chi_square(counts[used], expected) < 16.3  # 3 degrees of freedom, probability 1e-3
    assert chi_square(counts[used], expected.mean().expand(4)) > 1000


def test_entries_are_drawn_one_after_the_other_without_replacement():
    """Ordered pairs (i, j) have the probability p_i p_j / (1 − p_i)."""
    p = torch.tensor([0.5, 0.3, 0.2], dtype=FLOAT)
    g, number = generator(1), 20_000
    pairs = torch.stack([subset(7.0 * p, 2, g) for _ in range(number)])
    counts = torch.bincount(3 * pairs[:, 0] + pairs[:, 1], minlength=9).double().view(3, 3)
    expected = number * p[:, None] * p[None, :] / (1 - p[:, None])
    others = ~torch.eye(3, dtype=torch.bool)
    assert counts.diagonal().sum() == 0
    assert chi_square(counts[others], expected[others]) < 20.5  # 5 degrees, probability 1e-3
    independent = number * p[:, None] * p[None, :]
    assert chi_square(counts[others], independent[others]) > 1000


def test_where_there_are_fewer_entries_than_wanted_all_are_taken():
    weights = torch.tensor([1.0, 0.0, 3.0], dtype=FLOAT)
    assert sorted(subset(weights, 9, generator()).tolist()) == [0, 1, 2]
    assert len(subset(weights, 0, generator())) == 0
    assert 1 not in subset(weights, 2, generator()).tolist()


def test_weights_are_those_of_the_paper():
    r = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0]], dtype=FLOAT)
    size = torch.tensor([5.0, 1.0, 0.0], dtype=FLOAT)
    for power, constant in ((1.0, 1.0), (2.0, 0.0), (0.5, 3.0)):
        expected = size**power / (size**power).mean() + constant
        assert_close(ResidualAdaptive(power=power, constant=constant).weights(r), expected, 1e-14)
    tiny = ResidualAdaptive(power=3.0).weights(1e-150 * r)
    assert_close(tiny, ResidualAdaptive(power=3.0).weights(r), 1e-14)


@pytest.mark.parametrize(
    ("settings", "residual"),
    [
        (ResidualAdaptive(power=0.0), torch.arange(5.0)[:, None]),
        (ResidualAdaptive(power=2.0, constant=0.0), torch.full((5, 1), -3.0)),
        (ResidualAdaptive(constant=1e16), torch.arange(5.0)[:, None]),
        (ResidualAdaptive(constant=0.0), torch.zeros(5, 1)),
        (ResidualAdaptive(), torch.tensor([1.0, math.nan, 2.0, 3.0, 4.0])[:, None]),
        (ResidualAdaptive(), torch.tensor([1.0, math.inf, 2.0, 3.0, 4.0])[:, None]),
    ],
    ids=["power 0", "constant residual", "large constant", "no residual", "nan", "infinite"],
)
def test_weights_are_all_equal_where_nothing_is_to_be_preferred(settings, residual):
    weights = settings.weights(residual)
    assert_close(weights / weights.mean(), torch.ones(5, dtype=FLOAT), 1e-14)


# -- importance sampling ---------------------------------------------------------------------------
def unit_points(number, dimension=1, weights=None):
    return PointSet(
        torch.rand(number, dimension, dtype=FLOAT, generator=generator(5)), weights=weights
    )


def numbered(number, dimension):
    """Points of the unit cube that know their row, and may be moved."""
    ranges = torch.tensor([0.0, 1.0], dtype=FLOAT).expand(number, dimension, 2)
    points = unit_points(number, dimension)
    return replace(points, ranges=ranges, values={"row": torch.arange(number, dtype=FLOAT)})


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
@pytest.mark.parametrize("power", [0.0, 1.0, 3.0])
def test_numbers_sum_to_that_of_points_and_follow_the_residual(share, power):
    residual = torch.randn(300, 2, dtype=FLOAT, generator=generator(2)) ** 3
    found = ImportanceSampling(share=share, power=power).numbers(residual, 100)
    size = residual.norm(dim=1) ** power
    expected = (1.0 - share) * size / size.mean() + share
    assert_close(found, expected / 3, 1e-12)


@pytest.mark.parametrize("value", [0.0, math.nan, math.inf])
def test_where_no_residual_is_known_all_are_taken_as_often(value):
    residual = torch.ones(50, 1, dtype=FLOAT)
    residual[7] = value
    found = ImportanceSampling().numbers(0.0 * residual if value == 0 else residual, 10)
    assert_close(found, torch.full((50,), 0.2, dtype=FLOAT), 1e-14)


def test_candidates_are_taken_as_often_as_their_numbers_say():
    points, number, rounds = numbered(60, 2), 15, 4000
    rule, g = ImportanceSampling(factor=2, share=0.2), generator(3)
    residual = 0.1 + 90.0 * points.coordinates[:, :1] ** 20
    order = z_order(points.coordinates)
    expected = torch.empty(60, dtype=FLOAT)
    expected[order] = rule.numbers(smooth(residual[order], 2), number)
    counts = torch.zeros(60, dtype=FLOAT)
    for _ in range(rounds):
        chosen = rule.choose(points, residual, number, g)
        assert len(chosen) == number
        rows = chosen.values["row"].long()
        counts += torch.bincount(rows, minlength=60)
        assert_close(chosen.weights, number / (60 * expected[rows]), 1e-13)
    part = expected % 1.0  # of a number, the whole part is certain
    deviation = (counts / rounds - expected).abs() / (part * (1 - part) / rounds + 1e-12).sqrt()
    assert float(deviation.max()) < 4.5
    assert float(expected.max()) > 1.2 and float(expected.min()) < 0.15


def test_weighted_means_are_those_over_all_candidates():
    """Also where the candidates have weights, which say nothing about what is chosen."""
    given = 0.5 + torch.rand(400, dtype=FLOAT, generator=generator(8))
    rule, g = ImportanceSampling(power=2.0, share=0.3), generator(4)
    for weights in (None, given):
        points = unit_points(400, 2, weights)
        factor = torch.ones(400, dtype=FLOAT) if weights is None else weights
        x, y = points.coordinates.unbind(1)
        residual = (x**2 * y)[:, None] * factor.sqrt()[:, None]
        means = []
        for _ in range(2000):
            chosen = rule.choose(points, residual, 40, g)
            own = chosen.coordinates
            means.append(float((chosen.weights * own[:, 0].exp() * own[:, 1]).mean()))
        expected = float((factor * x.exp() * y).mean())
        mean = sum(means) / len(means)
        error = (sum((m - mean) ** 2 for m in means) / len(means) / len(means)) ** 0.5
        assert abs(mean - expected) < 4.0 * error < 0.02 * expected


def test_chosen_points_are_even():
    """Without a residual, every sixteenth of a square has its sixteenth of the points, nearly, as
    those chosen one by one would not."""
    points = PointSet(Sobol().unit(2560, 2, generator(1)))
    chosen = ImportanceSampling().choose(points, torch.ones(2560, 1), 256, generator(2))
    cells = (chosen.coordinates * 4).long()
    counts = torch.bincount(4 * cells[:, 0] + cells[:, 1], minlength=16)
    assert int(counts.min()) >= 14 and int(counts.max()) <= 18


def estimate(front, region, number, rounds, seed=2, faces=0.9):
    """Means of a front² over chosen points, their standard error, and how many of these lie where
    the front is more than a tenth, all different from each other."""
    rule, g = ImportanceSampling(share=0.5), generator(seed)
    means, inside = [], []
    for _ in range(rounds):
        candidates = region.draw(10 * number, Clustered(Sobol(), faces), g)
        r = front(candidates.coordinates)[:, None] * candidates.weights.sqrt()[:, None]
        chosen = rule.choose(candidates, r, number, g)
        value = front(chosen.coordinates)
        hot = chosen.coordinates[value > 0.1]
        assert len({tuple(x) for x in hot.tolist()}) == len(hot)
        means.append(float((chosen.weights * value**2).mean()))
        inside.append(len(hot) / number)
    mean = sum(means) / rounds
    error = (sum((m - mean) ** 2 for m in means)) ** 0.5 / rounds
    return mean, error, sum(inside) / rounds


@pytest.mark.parametrize(("number", "rounds"), [(200, 200), (1000, 60)])
@pytest.mark.parametrize("faces", [0.0, 0.9])
def test_means_over_a_front_that_is_thinner_than_points_are_apart(number, rounds, faces):
    """sech⁴(d/w), whose integral is 4w/3: several times as many points are there as elsewhere."""
    box, width = Box(x=(-1, 1), y=(0, 1)), 0.02
    front = lambda x: torch.cosh(x[:, 0] / width) ** -2  # noqa: E731
    mean, error, inside = estimate(front, box.interior, number, rounds, faces=faces)
    expected = 4.0 / 3.0 * width / 2.0
    assert abs(mean / expected - 1.0) < 0.01 + 3.0 * error / expected < 0.1
    assert inside > 3 * 1.8 * width


def test_means_over_a_corner_and_over_faces_of_different_sizes():
    box = Box(x=(0, 1), y=(0, 4))
    corner = lambda x: torch.exp(-x.sum(dim=1) / 0.02)  # noqa: E731
    mean, error, _ = estimate(corner, box.interior, 400, 100)
    assert abs(mean / (1e-4 / 4) - 1.0) < 0.03 + 3.0 * error / (1e-4 / 4) < 0.1
    mean, error, inside = estimate(corner, box.boundary, 400, 100)
    expected = 2 * 0.01 / 10
    assert abs(mean / expected - 1.0) < 0.02 + 3.0 * error / expected < 0.06
    assert inside > 0.1


def test_moved_points_stay_in_their_ranges_and_take_their_links_along():
    box = Box(t=(0, 2), x=(-1, 1), y=(3, 7))
    points = box.opposite("x").draw(50, Sobol(), generator(1))
    by = 9.0 * (torch.rand(50, 3, dtype=FLOAT, generator=generator(2)) - 0.5)
    moved = points.moved(by)
    low, high = points.ranges.unbind(-1)
    assert bool(((moved.coordinates >= low) & (moved.coordinates <= high)).all())
    assert torch.equal(moved.coordinates[:, 1], points.coordinates[:, 1])  # on the face
    assert_close(moved.links["opposite"] - moved.coordinates,
                 points.links["opposite"] - points.coordinates, 1e-14)  # fmt: skip
    small = 1e-3 * by
    near = points.moved(small).coordinates - points.coordinates
    inner = ((points.coordinates - low > 0.01) & (high - points.coordinates > 0.01))[:, [0, 2]]
    assert_close(near[:, [0, 2]][inner], small[:, [0, 2]][inner], 1e-9)
    outside = points.coordinates[:1].clone()
    outside[:, 0] = 2.5  # by which one that is moved to 2.5 from inside is reflected
    start = replace(points[:1], coordinates=outside - torch.tensor([[1.0, 0, 0]], dtype=FLOAT))
    assert start.moved(torch.tensor([[1.0, 0, 0]], dtype=FLOAT)).coordinates[0, 0] == 1.5


def test_no_point_is_taken_twice_where_the_region_does_not_say_how_to_move_it():
    """At a hot spot more are wanted than there are candidates: all of these are taken."""
    rule, g = ImportanceSampling(share=0.05), generator(4)
    means = []
    for _ in range(40):
        candidates = Quarter().draw(4000, Sobol(), g)
        away = (candidates.coordinates - 0.5).norm(dim=1)
        chosen = rule.choose(candidates, torch.exp(-away / 0.01)[:, None], 400, g)
        assert len({tuple(x) for x in chosen.coordinates.tolist()}) == len(chosen) == 400
        near = (chosen.coordinates - 0.5).norm(dim=1) < 0.03
        assert int(near.sum()) == int((away < 0.03).sum())
        assert_close(chosen.weights[near], torch.full((int(near.sum()),), 0.1, dtype=FLOAT), 1e-13)
        means.append(float((chosen.weights * chosen.coordinates[:, 0]).mean()))
    assert sum(means) / 40 == pytest.approx(4 / (3 * math.pi), rel=0.01)


def test_numbers_above_one_are_one_and_the_others_as_many_more():
    found = at_most_once(torch.tensor([0.5, 3.0, 0.25, 0.25, 0.9, 0.1], dtype=FLOAT))
    expected = torch.tensor([1.0, 1.0, 2.5 / 3, 2.5 / 3, 1.0, 1 / 3], dtype=FLOAT)
    assert_close(found, expected, 1e-14)
    few = torch.tensor([0.5, 0.25], dtype=FLOAT)
    assert at_most_once(few) is few


@pytest.mark.parametrize("dimension", [1, 2, 3, 70])
def test_neighbours_on_the_curve_are_neighbours_in_space(dimension):
    x = torch.rand(500, dimension, dtype=FLOAT, generator=generator(6))
    x[:, 0] = x[:, 0] * 1e-3 + 5.0
    order = z_order(x)
    assert sorted(order.tolist()) == list(range(500))
    if dimension == 1:
        assert torch.equal(order, x[:, 0].argsort())
    if dimension > 3:
        return
    along, anyhow = ((y[1:] - y[:-1]).abs().mean(dim=0)[: min(dimension, 3)] for y in (x[order], x))
    assert bool((along < 0.75 * anyhow).all())


def test_residuals_are_averaged_over_neighbours_on_the_curve():
    residual = torch.randn(200, 2, dtype=FLOAT, generator=generator(7))
    found = smooth(residual, 3)
    squares = residual.square().sum(dim=1)
    expected = [squares[max(0, i - 3) : i + 4].mean().sqrt() for i in range(200)]
    assert_close(found[:, 0], torch.stack(expected), 1e-13)


@pytest.mark.parametrize("rule", [ImportanceSampling(), ResidualAdaptive()], ids=["weights", "rad"])
@pytest.mark.parametrize("weighted", [True, False])
def test_points_are_chosen_where_they_are(rule, weighted, device):
    rule_of = Clustered(Sobol(), 0.9) if weighted else Sobol()
    points = Box(x=(0, 1), y=(0, 2)).boundary.draw(40, rule_of, generator(3))
    here = points.to(device, torch.float32)
    found = rule.choose(here, here.coordinates, 10, generator(1))
    expected = rule.choose(points, points.coordinates.float(), 10, generator(1))
    assert found.coordinates.device.type == device.type and found.coordinates.dtype == torch.float32
    assert_close(found.coordinates.cpu(), expected.coordinates.float(), 1e-6)


def test_as_many_points_as_candidates_are_all_of_them():
    points = unit_points(9)
    assert ImportanceSampling().choose(points, torch.ones(9, 1), 9, generator()) is points


def test_important_points_come_at_checks():
    source = source_of(
        ramp(), ImportanceSampling(), sampling=Sobol(), faces=0.9, every=0, gap=3.0, check=4,
        interior=400, lower=60,
    )  # fmt: skip
    loss, first = source.functions.loss, source.at(0)
    fair = loss(first)
    assert all(source.at(step, fair) is first for step in range(1, 4))
    source.cost = math.inf
    later = source.at(4, fair)
    x = later[0].points.coordinates[:, 0]
    assert later is not first and source.exchange.exchanged == 0
    assert float((x > 0.8).double().mean()) > 1.4 * 0.2  # the residual is x²
    assert loss(later) == pytest.approx(fair, rel=0.1)


@pytest.mark.parametrize(
    ("evaluations", "factor"), [(math.nan, 2), (1.0, 1), (24.0, 4), (1e9, 10), (math.inf, 10)]
)
def test_candidates_with_weights_are_cheap_beside_a_step(evaluations, factor):
    """Those of published points are as many as they were."""
    dimensions = [2, 1, 0]
    assert affordable(ImportanceSampling(), dimensions, evaluations) == [factor, factor, 1]
    assert affordable(ResidualAdaptive(), dimensions, evaluations) == [10, 10, 1]


def test_a_step_that_is_guarded_looks_at_points_that_may_come_next():
    """Chosen by their residuals, with weights."""
    box = Box(x=(0, 1), y=(0, 1))
    problem = Problem(fields=("u",), terms=[Term("x", box.interior, lambda u, at: u - at.x**4)])
    system = System(problem, net_for(problem, (9, 9)))
    source = source_of(system, ImportanceSampling(), interior=60, every=0, gap=3.0)
    source.at(0)
    source.cost = math.inf
    (unseen,) = source.unseen()
    assert len(unseen) == 60 < system.layout.number
    assert float(unseen.points.weights.std()) > 0.1


def test_what_a_step_cost_that_failed_says_nothing_of_the_next_one():
    box = Box(x=(0, 1), y=(0, 1))
    problem = Problem(fields=("u",), terms=[Term("x", box.interior, lambda u, at: u - at.x**4)])
    system = System(problem, net_for(problem))
    source, costs = source_of(system, ImportanceSampling(), interior=60), []

    class FailsOnce(Stepper):
        def update(self, parameters, batch):
            costs.append(source.cost)
            if len(costs) == 3:
                raise Diverged("training diverged")
            losses = system.losses(batch.points, parameters)
            loss = system.loss(batch.points, parameters)
            return Report(parameters, losses, loss, 1.0, cost=7.0)

        def recover(self):
            return "nothing was changed"

    run(system, FailsOnce(), source, Stop(steps=4), Balance(every=0), lambda progress: None)
    assert [None if math.isnan(cost) else cost for cost in costs] == [None, 7.0, 7.0, None, 7.0]


@pytest.mark.parametrize(("dimension", "chosen"), [(6, [10, 10]), (7, [1, 10]), (8, [1, 1])])
def test_in_many_dimensions_points_are_taken_as_they_are_drawn(dimension, chosen):
    """On faces, which have one less, too."""
    box = Box.cube(dimension)
    terms = [
        Term("inside", box.interior, lambda u, at: u - at.x1),
        Term("faces", box.boundary, lambda u, at: u - at.x1),
    ]
    problem = Problem(fields=("u",), terms=terms)
    system = System(problem, net_for(problem))
    rule = ImportanceSampling()
    assert affordable(rule, [dimension, dimension - 1], math.inf) == chosen
    source = source_of(system, rule, 1, sampling=Even(), faces=0.9, interior=30, lower=200)
    first, g = source.at(0)[0].points, generator(1)
    rule = Sobol() if dimension == 6 else Uniform()
    drawn = box.interior.draw(30, Clustered(rule, 0.9), g)
    assert torch.equal(first.coordinates, drawn.coordinates)
    assert (dimension == 6) != bool((first.weights == 1.0).all())


def test_denser_faces_need_weights():
    with pytest.raises(UserError, match=r"points\.faces=0"):
        PointSettings(faces=0.5, adaptive=ResidualAdaptive())
    with pytest.raises(UserError, match=r"points\.faces=0"):
        check_settings(compose("any", {}, ("points=rad", "points.faces=0.5")))


# -- in a system -----------------------------------------------------------------------------------
def ramp():
    """A net that is 0 and the residual x² on the interior, and x on two faces, linked points."""
    box = Box(x=(0, 1), y=(0, 1))
    data = Points({"x": [0.1, 0.9], "y": [0.5, 0.5]}, measured=[1.0, 2.0])
    problem = Problem(
        fields=("u",),
        terms=[
            Term("inside", box.interior, lambda u, at: u + at.x**2),
            Term("faces", box.faces("y"), lambda u, at: u + at.x),
            Term("periodic", box.opposite("x"), lambda u, at: u - u(at.opposite) + at.y),
            Term("corner", box.at(x=0, y=0), lambda u, at: u - 1.0),
            Term("data", data, lambda u, at: u - at.measured),
        ],
    )
    net = net_for(problem)
    for p in net.parameters():
        p.data.zero_()
    return System(problem, net)


def source_of(system, adaptive, seed=0, **settings):
    settings = {"interior": 4000, "lower": 3000, "every": 5, "gap": None, **settings}
    settings = PointSettings(adaptive=adaptive, **settings)
    return PointSource(system.problem, settings, functions_of(system), generator(seed))


def coordinates(points):
    return [own.points.coordinates for own in points]


def kept_density(edges, density, factor):
    """The expected share of the kept points by bin of x where one of ``factor`` candidates is kept,
    from 1 − exp(−t w) with t for the right number (the limit of many points)."""
    x = (torch.arange(200_000, dtype=FLOAT) + 0.5) / 200_000
    w = density(x)
    low, high = 0.0, 1e4
    for _ in range(200):
        t = (low + high) / 2
        if float((1 - torch.exp(-t * w)).mean()) < 1 / factor:
            low = t
        else:
            high = t
    kept = 1 - torch.exp(-t * w)
    bins = torch.bucketize(x, edges[1:-1])
    return torch.zeros(len(edges) - 1, dtype=FLOAT).index_add_(0, bins, kept) / kept.sum()


@pytest.mark.parametrize("factor", [2, 30])
@pytest.mark.parametrize("term", [0, 1, 2])
def test_kept_points_are_distributed_as_the_weights_say(term, factor):
    """Interior, faces and linked faces; with few candidates the best of them run short."""
    system = ramp()
    source = source_of(system, ResidualAdaptive(share=0.0, factor=factor), sampling=Uniform())
    source.at(0)
    points = source.at(5)[term].points
    x = points.coordinates[:, 1 if term == 2 else 0]
    edges = torch.linspace(0, 1, 9, dtype=FLOAT)
    counts = torch.histogram(x, edges).hist
    size = (lambda x: x**2) if term == 0 else (lambda x: x)
    mean = 1 / 3 if term == 0 else 1 / 2
    expected = len(x) * kept_density(edges, lambda x: size(x) / mean + 1.0, factor)
    assert chi_square(counts, expected) < 24.3  # 7 degrees of freedom, probability 1e-3
    assert chi_square(counts, expected.mean().expand(8)) > 100


def test_the_share_stays_as_it_is_drawn_always():
    system = ramp()
    source = source_of(system, ResidualAdaptive(share=0.4, constant=0.0, power=8.0, factor=50))
    source.at(0)
    x = source.at(5)[0].points.coordinates[:, 0]
    assert len(x) == 4000
    # Of the chosen ones, hardly any lies below 1/2.
    below = int((x < 0.5).sum())
    assert below == pytest.approx(800, abs=100)
    plain = source_of(system, ResidualAdaptive(share=1.0))
    plain.at(0)
    x = plain.at(5)[0].points.coordinates[:, 0]
    counts = torch.histogram(x, torch.linspace(0, 1, 9, dtype=FLOAT)).hist
    assert chi_square(counts, counts.mean().expand(8)) < 24.3


@pytest.mark.parametrize("sampling", [Uniform(), Sobol(), Grid()], ids=lambda s: type(s).__name__)
def test_numbers_faces_links_and_given_points_are_kept(sampling):
    system = ramp()
    source = source_of(system, ResidualAdaptive(), interior=400, lower=90, sampling=sampling)
    first = source.at(0)
    second = source.at(5)
    assert source.at(6) is second is not first
    numbers = [len(own) for own in second]
    assert numbers[3:] == [1, 2]
    if not isinstance(sampling, Grid):  # which gives what it can
        assert numbers == [len(own) for own in first] == [400, 90, 90, 1, 2]
        assert source.numbers()["periodic"] == 90
    inside, faces, periodic, corner, data = (own.points for own in second)
    assert ((inside.coordinates >= 0) & (inside.coordinates <= 1)).all()
    y = faces.coordinates[:, 1]
    assert set(y.tolist()) == {0.0, 1.0}
    assert torch.equal(faces.normals[:, 1], 2 * y - 1)
    assert torch.equal(
        periodic.links["opposite"], periodic.coordinates + torch.tensor([1.0, 0.0], dtype=FLOAT)
    )
    assert corner.coordinates.tolist() == [[0.0, 0.0]]
    assert data.values["measured"].tolist() == [1.0, 2.0]
    for term, own in zip(system.terms, second, strict=True):  # what depends on the points alone
        expected = term.residual.remainder(own.points)
        assert (own.remainder is None) == (expected is None)
        assert own.remainder is None or torch.equal(own.remainder, expected)


def test_the_first_points_are_those_without_adaption():
    """Whether they are drawn once or twice before the first step."""
    system = ramp()
    for every in (0, 5):
        plain, adaptive = (
            source_of(system, a, interior=50, lower=9, every=every)
            for a in (None, ResidualAdaptive())
        )
        for _ in range(2):
            for a, b in zip(coordinates(plain.at(0)), coordinates(adaptive.at(0)), strict=True):
                assert torch.equal(a, b)


def test_scales_decide_between_the_equations_of_a_term():
    box = Box(x=(0, 1))
    both = Term("both", box.interior, lambda u, at: (u + at.x, u + 1 - at.x))
    problem = Problem(fields=("u",), terms=[both])
    means = []
    for scales in ([1.0, 0.01], [1.0, 1.0], [0.01, 1.0]):
        net = net_for(problem)
        for p in net.parameters():
            p.data.zero_()
        system = System(problem, net)
        source = source_of(system, ResidualAdaptive(constant=0.0, share=0.0, power=2.0))
        source.balanced([torch.tensor(scales, dtype=FLOAT)])
        source.at(0)
        means.append(float(source.at(5)[0].points.coordinates.mean()))
    assert means[0] > 0.65 > 0.55 > means[1] > 0.45 > 0.35 > means[2]


def test_points_in_many_dimensions_and_systems_can_be_adapted():
    for name in ("poisson 3d", "flow", "inverse", "linked", "high order"):
        problem = PROBLEMS[name]()
        system = System(problem, net_for(problem))
        source = source_of(system, ResidualAdaptive(), interior=30, lower=12)
        first, second = source.at(0), source.at(5)
        assert [len(a) for a in second] == [len(a) for a in first]
        for term, before, after in zip(system.terms, first, second, strict=True):
            same = torch.equal(before.points.coordinates, after.points.coordinates)
            assert same == (term.residual.term.where.dimension == 0)


# -- when, and how many ----------------------------------------------------------------------------
def test_the_gap_is_that_of_the_loss_on_all_candidates():
    """Points where the residual is large would exceed it at once."""
    system = ramp()
    adaptive = ResidualAdaptive(power=8.0, constant=0.0, share=0.0, factor=20)
    source = source_of(system, adaptive, every=0, gap=1.5, numbers={"inside": 2000})
    first = source.at(0)
    fair = system.loss(first)
    assert source.at(10, fair) is first
    assert source.exchange.exchanged == 0
    chosen = source.at(20, fair / 3)
    assert chosen is not first and source.exchange.exchanged == 1
    assert system.losses(chosen).written[0] > 2 * system.losses(first).written[0]


@pytest.mark.parametrize("adaptive", [None, ResidualAdaptive()], ids=["plain", "adaptive"])
def test_points_grow_where_the_net_fits_them(adaptive):
    system = ramp()
    growth = Growth(factor=1.5, most=2.0)
    source = source_of(system, adaptive, interior=100, lower=20, every=7, gap=3.0, growth=growth)
    fair = system.loss(source.at(0))
    sizes = []
    for step, loss in ((7, 0.0), (10, fair), (20, 1e-3 * fair), (30, 1e-3 * fair), (40, 0.0)):
        sizes.append(tuple(len(own) for own in source.at(step, loss)))
    assert sizes == [
        (100, 20, 20, 1, 2),  # due, which is not for the gap
        (100, 20, 20, 1, 2),
        (150, 30, 30, 1, 2),
        (200, 40, 40, 1, 2),
        (200, 40, 40, 1, 2),
    ]
    assert source.exchange.exchanged == 3 and source.plan.size == 2.0
    assert source.numbers() == dict(
        zip(("inside", "faces", "periodic", "corner", "data"), sizes[-1], strict=True)
    )
    assert tuple(len(own) for own in source.at(42)) == sizes[-1]


def test_without_growth_and_adaption_points_are_drawn_as_ever():
    """One draw of all terms a check, whether its points are taken or not."""
    system = ramp()
    source = source_of(system, None, interior=50, lower=9, every=0, gap=3.0)
    g = generator()

    def draw():
        return [t.where.draw(n, Uniform(), g) for t, n in numbers]

    numbers = list(zip(system.problem.terms, (50, 9, 9, 1, 2), strict=True))
    fair = system.loss(source.at(0))
    draw()
    source.at(10, fair)
    draw()
    for found, expected in zip(source.at(20, 1e-9 * fair), draw(), strict=True):
        assert torch.equal(found.points.coordinates, expected.coordinates)


def test_the_state_of_a_source_is_all_that_it_needs():
    system = ramp()
    growth = Growth(factor=2.0, most=8.0)

    def made(seed):
        return source_of(
            system, ResidualAdaptive(), seed, interior=40, lower=8, every=7, gap=2.0, growth=growth
        )

    source = made(1)
    source.at(0)
    source.at(20, 0.0)
    assert source.plan.size == 2.0
    state, drawn = source.state_dict(), source.generator.get_state()
    expected = [source.at(step, 1e-9) for step in (35, 40, 50, 56, 57)]
    other = made(2)
    other.load_state_dict(state)
    other.generator.set_state(drawn)
    found = [other.at(step, 1e-9) for step in (35, 40, 50, 56, 57)]
    for a, b in zip(found, expected, strict=True):
        for own, reference in zip(coordinates(a), coordinates(b), strict=True):
            assert torch.equal(own, reference)
    assert (other.plan.size, other.exchange.exchanged) == (
        source.plan.size,
        source.exchange.exchanged,
    )


SMALL = ("net.widths=[8]", "points.scale=0.05", "threads=1", "run.plot=false", "run.quiet=true")


def test_a_run_with_adapted_and_growing_points_goes_on_bit_for_bit(tmp_path):
    pde = PROBLEMS["allen-cahn"]
    choice = (
        *SMALL, "points=rad", "points.every=6", "points.check=4", "points.gap=1e-3",
        "points.growth.factor=1.2", "points.growth.most=1.7", "run.checkpoint=0",
    )  # fmt: skip
    whole = solve(pde, *choice, "stop.steps=20", folder=tmp_path / "whole")
    solve(pde, *choice, "stop.steps=9", folder=tmp_path / "parts")
    parts = resume(tmp_path / "parts", "stop.steps=20", pde=pde)
    assert parts.summary["parameters_sha256"] == whole.summary["parameters_sha256"]
    assert parts.history[-1]["points_exchanged"] == whole.history[-1]["points_exchanged"] > 1


# -- settings --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("points=rad", "points.adaptive.factor=1"), "points.adaptive.factor=1: give"),
        (("points=rad", "points.adaptive.share=1.5"), "points.adaptive.share=1.5: give"),
        (("points=rad", "points.adaptive.powr=2"), "points.adaptive.power"),
        (("points.growth.factor=0.5",), "points.growth.factor=0.5: give"),
        (("points.growth.most=0",), "points.growth.most=0: give"),
        (("points.adaptive=3",), "points.adaptive=3: give a Selection or null"),
    ],
)
def test_wrong_settings_are_named(overrides, message):
    with pytest.raises(UserError) as found:
        check_settings(compose("any", {}, overrides))
    assert message in str(found.value)


def test_options_have_the_same_keys_and_the_defaults_of_the_class():
    keys = {
        option: set(compose("any", {}, [f"points={option}"]).points)
        for option in ("uniform", "sobol", "grid", "adaptive")
    }
    assert len({frozenset(v) for v in keys.values()}) == 1
    nodes = compose("any", {}, ["points=rad"]).points
    weighted = compose("any", {}, ["points=adaptive"]).points.adaptive
    for node, settings in (
        (nodes.adaptive, ResidualAdaptive()),
        (weighted, ImportanceSampling()),
        (nodes.growth, Growth()),
    ):
        assert {k: v for k, v in node.items() if k != "_target_"} == vars(settings)


def test_too_many_candidates_are_refused_with_what_to_lower():
    system = ramp()
    source = source_of(system, ResidualAdaptive(factor=10**12), interior=40, lower=8)
    source.at(0)
    with pytest.raises(UserError, match=r"points of term 'inside'.*points\.adaptive\.factor"):
        source.at(5)


def test_a_subset_of_points_keeps_all_that_belongs_to_them():
    x = torch.rand(6, 2, dtype=FLOAT)
    points = PointSet(x, 2 * x, {"far": 3 * x}, {"value": x[:, 0]})
    part = points[torch.tensor([4, 1])]
    assert torch.equal(part.normals, 2 * part.coordinates)
    assert torch.equal(part.links["far"], 3 * x[[4, 1]])
    assert torch.equal(part.values["value"], part.coordinates[:, 0])
