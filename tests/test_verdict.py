"""Relative residuals, jumping coefficients, and what a run that ended is told."""

from __future__ import annotations

import math

import pytest
import torch
from nets import FLOAT

from pinnkfac import Box, Parameter, Points, Problem, Term, Uniform, dot, grad, lap, solve
from pinnkfac.inspection.checks import examine_problem
from pinnkfac.inspection.finding import Verdict
from pinnkfac.linearisation.jumps import find_jumps
from pinnkfac.linearisation.parts import Parts
from pinnkfac.linearisation.residuals import ResidualMeter
from pinnkfac.linearisation.system import System
from pinnkfac.nets import MlpSettings
from pinnkfac.run.verdict import warnings_of

BOX = Box(x=(0, 2), y=(0, 1))
SMALL = ("net.widths=[12,12]", "points.interior=60", "points.lower=20", "threads=1")


def problem_of(*pairs, **options):
    terms = [Term(f"term{i}", where, residual) for i, (where, residual) in enumerate(pairs)]
    return Problem(fields=("u",), terms=terms, **options)


def system_of(problem):
    return System(problem, MlpSettings(widths=[10, 10]).make(problem.signature, 0))


class Plane(torch.nn.Module):
    """a x + b, with a trained layer that adds nothing."""

    def __init__(self, slope, constant):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1, dtype=FLOAT)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[slope, 0.0]], dtype=FLOAT))
            self.layer.bias.fill_(constant)

    def forward(self, x):
        return self.layer(x)


def measured(problem, net):
    return ResidualMeter(System(problem, net)).measure()


# -- relative residuals ----------------------------------------------------------------------------
def test_a_residual_is_measured_beside_its_largest_part():
    """u = x on [0, 2]: u_x − 1.1 is 0.1 beside 1.1, u − x is nothing."""
    problem = problem_of(
        (BOX.interior, lambda u, at: 7.0 * (u.x - 1.1)), (BOX.boundary, lambda u, at: u - at.x)
    )
    found = measured(problem, Plane(1.0, 0.0))
    assert found["term0"] == pytest.approx(0.1 / 1.1, rel=1e-10)
    assert found["term1"] < 1e-14


def test_a_condition_of_zero_is_measured_beside_the_field_itself():
    """u = 1e-3 where it should be 0 and u goes to 2: 1e-3 of its size, whatever its unit."""
    for unit in (1.0, 1e9):
        problem = problem_of(
            (BOX.interior, lambda u, at: lap(u)), (BOX.faces("x", side="low"), lambda u, at: u)
        )
        found = measured(problem, Plane(1.0 * unit, 1e-3 * unit))
        assert found["term1"] == pytest.approx(1e-3 / math.sqrt(4 / 3), rel=0.1)


def test_a_flux_of_zero_is_measured_beside_what_the_field_changes_by():
    problem = problem_of(
        (BOX.interior, lambda u, at: lap(u)),
        (BOX.faces("y"), lambda u, at: dot(grad(u), at.normal) + 1e-4),
    )
    found = measured(problem, Plane(1.0, 300.0))
    assert 1e-5 < found["term1"] < 1e-3


def test_residuals_of_given_points_are_measured_between_them_where_nothing_is_known_there_only():
    x = torch.linspace(0, 2, 41, dtype=FLOAT)
    y = torch.full_like(x, 0.5)
    with_values = problem_of((Points({"x": x, "y": y}, m=x), lambda u, at: u.x - at.m), domain=BOX)
    without = problem_of((Points({"x": x, "y": y}), lambda u, at: u.x), domain=BOX)
    data = problem_of((Points({"x": x, "y": y}), lambda u, at: u - 1), domain=BOX)
    assert not ResidualMeter(system_of(with_values)).given
    assert not ResidualMeter(system_of(data)).given
    meter = ResidualMeter(system_of(without))
    (judged,) = meter.judged
    places = judged.points.points.coordinates[:, 0]
    assert bool(((places - places.mul(40).round() / 40).abs() < 1e-12).all())
    assert bool((places.mul(40).round() % 2 == 1).all()), "halfway to a neighbour"
    assert set(meter.on_given_points()) == {"term0"}


def test_a_record_has_the_relative_residuals_of_all_terms():
    problem = problem_of((BOX.interior, lambda u, at: lap(u) + 1), (BOX.boundary, lambda u, at: u))
    result = solve(problem, *SMALL, "stop.steps=6")
    first, last = result.history[0], result.history[-1]
    assert set(first["relative_residuals"]) == {"term0", "term1"}
    for name in ("term0", "term1"):
        assert last["relative_residuals"][name] < first["relative_residuals"][name]
    assert set(result.summary["relative_residuals"]) == {"term0", "term1"}
    assert isinstance(result.summary["warnings"], list)


@pytest.mark.parametrize("places", [8, 60])
def test_a_misfit_is_told_from_noise_by_the_signs_at_neighbours(places):
    """u = 0 beside values of noise, of a wave, and of both; eight points say nothing."""
    generator = torch.Generator().manual_seed(0)
    x = 2 * torch.rand(places, generator=generator, dtype=FLOAT)
    noise, wave = torch.randn(places, generator=generator, dtype=FLOAT), torch.sin(3 * x)
    for values, alike in ((noise, False), (wave, places > 8), (wave + 0.3 * noise, places > 8)):
        data = Points({"x": x, "y": 0 * x}, m=values)
        problem = problem_of((BOX.interior, lambda u, at: lap(u)), (data, lambda u, at: u - at.m))
        found = ResidualMeter(System(problem, Plane(0.0, 0.0))).systematic()
        assert found == {"term1": alike}


def test_a_fit_of_noisy_values_is_told_from_one_that_they_contradict():
    """u'' = 0 through values of a line with noise of a tenth, and of a parabola."""
    x = torch.linspace(0, 2, 60, dtype=FLOAT)
    noise = torch.randn(60, generator=torch.Generator().manual_seed(0), dtype=FLOAT)

    def told_of(values):
        data = Points({"x": x, "y": 0.5 + 0 * x}, m=values)
        problem = Problem(
            fields=("u",),
            terms=[
                Term("line", BOX.interior, lambda u, at: (u.xx, u.y)),
                Term("data", data, lambda u, at: u - at.m, weight=1e-3),
            ],
        )
        summary = solve(problem, *SMALL, "stop.steps=40", "run.quiet=true").summary
        assert summary["relative_residuals"]["data"] > 0.02
        return summary["warnings"]

    assert told_of(1 + x + 0.1 * noise) == []
    (warning,) = told_of(1 + x**2)
    assert warning.startswith("term 'data' does not hold") and "noise is not" in warning


# -- jumps -----------------------------------------------------------------------------------------
def jumps_of(residual):
    problem = problem_of((BOX.interior, residual))
    system = system_of(problem)
    drawn = [problem.terms[0].where.draw(200, Uniform(), torch.Generator().manual_seed(0))]
    return find_jumps([Parts(t) for t in system.terms], system.prepare(drawn))


def test_a_coefficient_that_jumps_under_a_second_derivative_is_found():
    (jump,) = jumps_of(lambda u, at: torch.where(at.x < 0.7, 1.0, 10.0) * lap(u) - 1)
    assert jump.term == "term0" and jump.place[0] == pytest.approx(0.7, abs=1e-9)
    assert set(jump.values) == {1.0, 10.0}


@pytest.mark.parametrize(
    "residual",
    [
        lambda u, at: (1 + at.x**2) * lap(u),
        lambda u, at: torch.tanh(100 * (at.x - 0.7)) * u.xx + u,
        lambda u, at: torch.where(at.x < 0.7, 1.0, 10.0) * u.x + u,  # of a flux that is a field
        lambda u, at: lap(u) - torch.where(at.x < 0.7, 1.0, 10.0),  # a source
        lambda u, at: u * lap(u) - 1,
        lambda u, at: torch.where(at.y < 0.3, 1.0, 10.0) * u.xx + u,  # not across its jump
        lambda u, at: u.xx / (at.x - 0.7),  # a pole
    ],
)
def test_other_coefficients_do_not_jump(residual):
    assert jumps_of(residual) == []


# -- warnings --------------------------------------------------------------------------------------
PROBLEM = problem_of((BOX.interior, lambda u, at: lap(u)), (BOX.boundary, lambda u, at: u - at.x))


def told(*trace, steps=100, given=None, coefficients=None, problem=PROBLEM, alike=None):
    records = [
        {"step": steps, "relative_residuals": dict(zip(("term0", "term1"), pair, strict=True))}
        for pair in trace
    ]
    return warnings_of(
        problem,
        records,
        records[-1]["relative_residuals"],
        given or {},
        coefficients or {},
        [],
        alike or {},
    )


def test_terms_that_hold_are_no_reason_to_warn():
    assert told((1.0, 1.0), (1e-3, 1e-6)) == []


@pytest.mark.parametrize(
    ("trace", "words"),
    [
        ([(1.0, 1.0), (0.9, 0.8)], "nothing was learnt"),
        (
            [(1.0, 1.0), (1e-3, 1e-3), (0.5, 1e-3)],
            "0.5 of its largest part, after 0.001 on the way",
        ),
        ([(1.0, 1.0), (0.4, 1e-2), (0.1, 1e-2)], "and still falls"),
        (
            [(1.0, 1.0), (0.1, 1e-5), (0.09, 1e-5)],
            "0.09 of its largest part, while 'term1' has 1e-05",
        ),
    ],
)
def test_a_warning_names_the_term_and_what_was_seen(trace, words):
    (warning,) = told(*trace)
    assert words in warning


STALLED = ((1.0, 1.0), (1e-3, 0.04), (1e-3, 0.04))


def test_values_that_are_fitted_but_for_noise_are_no_reason_to_warn():
    assert told(*STALLED), "of any other term"
    assert told(*STALLED, alike={"term1": False}) == []
    assert told((1.0, 1.0), (1e-3, 0.04), steps=4, alike={"term1": False}) == []


def test_noise_as_large_as_the_values_is_told_of():
    (warning,) = told((1.0, 1.0), (1e-3, 0.5), alike={"term1": False})
    assert warning.startswith("term 'term1': its values are fitted to 50 % only")


def test_a_misfit_that_is_no_noise_is_told_of():
    (warning,) = told(*STALLED, alike={"term1": True})
    assert "term 'term1' does not hold" in warning and "which noise is not" in warning


@pytest.mark.parametrize("trace", [(0.9, 0.1, 0.1), (0.9, 1e-3, 0.1)])
def test_an_equation_that_is_spoiled_by_noise_is_told_of_the_weight_of_the_data(trace):
    """Whether it stalled there, or had been lower before the noise was fitted."""
    (warning,) = told(*((rho, 0.04) for rho in trace), alike={"term1": False})
    assert warning.startswith("term 'term0' does not hold")
    assert "'term1' less weight, Term(..., weight=0.01)" in warning and "astray" not in warning


def test_a_record_that_was_not_finite_is_infinite():
    records = [{"step": 50, "relative_residuals": {"term0": None, "term1": 1.0}}]
    now = {"term0": 0.5, "term1": 1e-3}
    assert warnings_of(PROBLEM, records, now, {}, {}, [])


def test_records_of_another_problem_say_nothing_of_this_one():
    """Those of a run that was resumed with other terms."""
    now = {"term0": 0.5, "term1": 1e-3}
    others = {"step": 50, "relative_residuals": {"walls": 1e-9, "term0": 1e-9}}
    own = {"step": 90, "relative_residuals": now}
    assert warnings_of(PROBLEM, [others, own], now, {}, {}, []) == warnings_of(
        PROBLEM, [own], now, {}, {}, []
    )


def test_few_steps_are_what_a_short_run_is_told():
    (warning,) = told((1.0, 1.0), (0.9, 0.8), steps=4)
    assert warning.startswith("term 'term0' does not hold yet") and "few steps" in warning


def test_a_net_that_fits_its_given_points_only_is_told_of():
    (warning,) = told((1.0, 1.0), (0.5, 1e-3), given={"term0": 1e-6})
    assert "5e+05 times larger between its given points" in warning
    (warning,) = told((1.0, 1.0), (0.5, 1e-3), given={"term0": 0.0})
    assert "far larger between its given points" in warning
    assert told((1.0, 1.0), (5e-3, 1e-3), given={"term0": 1e-6}) == []


def test_a_coefficient_that_ran_off_is_told_of():
    problem = problem_of(
        (BOX.interior, lambda u, at: lap(u)), parameters=(Parameter("k", initial=10.0),)
    )
    for value, number in ((1e-6, 1), (1e5, 1), (0.5, 0), (-300.0, 0)):
        found = told((1.0, 1.0), (1e-3, 1e-3), problem=problem, coefficients={"k": value})
        assert len(found) == number and all("coefficient k went from 10" in w for w in found)


def test_a_run_says_that_a_coefficient_jumps(capsys):
    problem = problem_of(
        (BOX.interior, lambda u, at: torch.where(at.x < 0.7, 1.0, 10.0) * lap(u)),
        (BOX.boundary, lambda u, at: u - at.x),
    )
    result = solve(problem, *SMALL, "stop.steps=2")
    (warning, *_) = result.summary["warnings"]
    assert "the coefficient of u.xx jumps at x = 0.7" in warning or "u.yy" in warning
    assert "jumps" in capsys.readouterr().err


def test_check_finds_a_coefficient_that_jumps():
    def findings(residual):
        problem = problem_of((BOX.interior, residual))
        net = MlpSettings(widths=[10]).make(problem.signature, 0)
        return [
            f"{f.subject}: {f.text}"
            for f in examine_problem(problem, net)
            if f.verdict is Verdict.HINT and "jumps" in f.text
        ]

    (found,) = findings(lambda u, at: torch.where(at.x < 0.7, 1.0, 10.0) * u.xx + u.yy)
    assert found.startswith("term 'term0': the coefficient of u.xx jumps at x = 0.7")
    assert findings(lambda u, at: (1 + at.x) * u.xx + u.yy) == []
