"""How far points reach in one coordinate: where they begin, and when they go further."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Generator

from pinnkfac import Box, Points, Problem, Term, Uniform, resume, solve
from pinnkfac.domain import PointSet
from pinnkfac.points.horizon import Horizon, Reach, horizon_of

QUICK = (
    *("threads=1", "run.plot=false", "run.quiet=true", "step.features=0"),
    *("net.widths=[16,16]", "step.multiplications=3e8"),
)
LINE = Box(t=(0, 2), time=None)


def equation(u, at):
    return u.t + u * u


def condition(u, at):
    return u - 1


def decay(*terms):
    """u = 1 / (1 + t)."""
    terms = terms or (
        Term("ode", LINE.interior, equation),
        Term("start", LINE.at(t=0), condition),
    )
    return Problem(fields=("u",), terms=terms, solution=lambda at: 1 / (1 + at.t))


# -- points ----------------------------------------------------------------------------------------
def test_points_are_drawn_towards_the_origin_with_their_ranges():
    drawn = LINE.interior.draw(50, Uniform(), Generator().manual_seed(0))
    near = Horizon(Reach(), 1.5, 0.2).applied(drawn)
    expected = [1.5 + 0.2 * (x - 1.5) for x in drawn.coordinates.flatten().tolist()]
    assert near.coordinates.flatten().tolist() == pytest.approx(expected, rel=1e-14)
    assert near.ranges[0].flatten().tolist() == pytest.approx([1.2, 1.6])
    assert float(near.coordinates.min()) >= 1.2
    assert float(near.coordinates.max()) <= 1.6


def test_all_points_stay_where_they_are_once_they_reach_everything():
    points = PointSet(torch.rand(5, 1, dtype=torch.float64))
    assert Horizon(Reach(), 0.3).applied(points) is points


# -- going further ---------------------------------------------------------------------------------
def test_points_go_further_where_the_loss_has_fallen():
    reach = Reach(first=0.5, factor=1.5, solved=1e-3, patience=30)
    first = Horizon(reach, 0.0, 0.5).after(0, 2.0)
    assert (first.part, first.step, first.loss) == (0.5, 0, 2.0)
    assert first.after(1, 2.1e-3).part == 0.5
    second = first.after(7, 1.9e-3)
    assert (second.part, second.step, second.loss) == (0.75, 7, 2.0)
    assert second.after(8, 1e-9).part == 1.0, "never beyond everything"


def test_points_go_further_when_patience_is_at_its_end():
    now = Horizon(Reach(patience=30), 0.0, 0.1).after(0, 1.0)
    assert now.after(29, 1.0).part == 0.1
    later = now.after(30, 1.0)
    assert later.part == pytest.approx(0.15)
    assert later.after(59, 1.0).part == later.part
    assert later.after(60, 1.0).part == pytest.approx(0.225)


def test_points_that_reach_everything_stay_there():
    everything = Horizon(Reach(), 0.0, 1.0, step=3, loss=1.0)
    assert everything.after(500, 0.0) == everything


# -- which problems --------------------------------------------------------------------------------
@pytest.mark.parametrize("at", [0.0, 0.7, 2.0])
def test_conditions_at_one_place_are_where_points_begin(at):
    terms = [
        Term("start", LINE.at(t=at), condition),
        Term("ode", LINE.interior, equation),
        Term("slope", LINE.at(t=at), lambda u, at: u.t),
    ]
    horizon = horizon_of(terms, Reach(first=0.2))
    assert (horizon.origin, horizon.part) == (at, 0.2)


TWO = Box(t=(0, 1), x=(0, 1))
ELSEWHERE = {
    "two ends": [Term("ode", LINE.interior, equation), Term("ends", LINE.boundary, condition)],
    "no condition": [Term("ode", LINE.interior, equation)],
    "no equation": [Term("start", LINE.at(t=0), condition)],
    "space and time": [
        Term("ode", TWO.interior, equation),
        Term("corner", TWO.at(t=0, x=0), condition),
    ],
    "measurements": [
        Term("ode", LINE.interior, equation),
        Term("start", LINE.at(t=0), condition),
        Term("data", Points({"t": [0.5, 1.0]}, seen=[0.6, 0.5]), lambda u, at: u - at.seen),
    ],
    "parts": [
        Term("early", LINE.interior.where(lambda at: at.t < 1), equation),
        Term("late", LINE.interior.where(lambda at: at.t > 1), equation),
        Term("start", LINE.at(t=0), condition),
    ],
    "two boxes": [
        Term("early", Box(t=(0, 1), time=None).interior, equation),
        Term("late", Box(t=(1, 2), time=None).interior, equation),
        Term("start", LINE.at(t=0), condition),
    ],
    "a place outside": [
        Term("late", Box(t=(1, 2), time=None).interior, equation),
        Term("start", LINE.at(t=0), condition),
    ],
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_points_of_other_problems_are_everywhere(name):
    assert horizon_of(ELSEWHERE[name], Reach()).part == 1.0


def test_an_equation_on_a_part_is_not_evaluated_elsewhere():
    """The root of the second equation is not a number where the first one holds."""
    terms = (
        Term("early", LINE.interior.where(lambda at: at.t < 1), lambda u, at: u.t - 1),
        Term(
            "late", LINE.interior.where(lambda at: at.t > 1), lambda u, at: u.t - (at.t - 1) ** 0.5
        ),
        Term("start", LINE.at(t=0), lambda u, at: u),
    )
    result = solve(decay(*terms), *QUICK, "stop.steps=2")
    assert all(math.isfinite(loss) for loss in result.summary["losses"].values())


# -- runs ------------------------------------------------------------------------------------------
def test_a_run_reaches_all_of_its_domain():
    result = solve(decay(), *QUICK, "stop.steps=45")
    notes = [note for note in result.summary["notes"] if "points reach" in note]
    assert "15%" in notes[0]
    assert "100%" in notes[-1]
    assert result.errors.relative_l2 < 1e-6


def test_a_loss_that_is_small_nearby_does_not_end_a_run():
    result = solve(decay(), *QUICK, "stop.steps=80", "stop.loss=1e-3")
    assert "stop.loss" in result.stop_reason
    assert "100%" in " ".join(result.summary["notes"])


def test_a_run_that_is_resumed_inside_goes_on_bit_for_bit(tmp_path):
    first = solve(decay(), *QUICK, "stop.steps=13", folder=tmp_path / "run")
    assert "100%" not in " ".join(first.summary["notes"]), "stopped on the way"
    resumed = resume(tmp_path / "run", "stop.steps=25", pde=decay())
    whole = solve(decay(), *QUICK, "stop.steps=25")
    x = torch.linspace(0, 2, 9, dtype=torch.float64)[:, None]
    assert torch.equal(resumed.solution(x), whole.solution(x))
    assert resumed.summary["notes"] == whole.summary["notes"]


def test_a_run_that_is_resumed_with_other_points_keeps_what_it_has_solved(tmp_path):
    first = solve(decay(), *QUICK, "stop.steps=50", folder=tmp_path / "run")
    assert "100%" in " ".join(first.summary["notes"])
    resumed = resume(tmp_path / "run", "stop.steps=53", "points.scale=1.5", pde=decay())
    assert resumed.summary["notes"] == first.summary["notes"], "nothing begins anew"
    assert resumed.errors.relative_l2 < 10 * first.errors.relative_l2
