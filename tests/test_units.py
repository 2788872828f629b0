"""Parts of equations, the scales that follow from them, and runs that do not depend on units."""

from __future__ import annotations

import math

import pytest
import torch
from nets import FLOAT, net_for
from oracles import assert_close, derivatives
from problems import PROBLEMS, points_for
from torch import Generator

from pinnkfac import Box, Parameter, Points, Problem, Solution, Term, Uniform, UserError, lap, solve
from pinnkfac.config.compose import compose
from pinnkfac.linearisation.balance import Balance, mean_square_norms
from pinnkfac.linearisation.field_scales import field_scales
from pinnkfac.linearisation.parts import MOST, Parts
from pinnkfac.linearisation.parts import size as size_of
from pinnkfac.linearisation.system import System
from pinnkfac.linearisation.units import choose_units
from pinnkfac.nets import MlpSettings, OutputScaling
from pinnkfac.run.assembly import assemble

SMALL = ("net.widths=[12,12]", "points.interior=60", "points.lower=20", "threads=1")


def parts_of(problem):
    system = System(problem, net_for(problem))
    points = points_for(system, 33, 20)
    return system, [Parts(term) for term in system.terms], points


# -- parts -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROBLEMS)
def test_parts_and_rest_add_up_to_the_residual(name):
    system, parts, points = parts_of(PROBLEMS[name]())
    for part, drawn, term in zip(parts, points, system.terms, strict=True):
        monomials = part.monomials(drawn)
        affine = part.at(monomials, drawn)
        total = (affine.slopes * monomials).sum(-1) + affine.rest
        weights = drawn.points.weights
        plain = (
            term.value(drawn) if weights is None else term.value(drawn) / weights.sqrt()[:, None]
        )
        assert_close(affine.value.T, plain, 1e-12)
        assert_close(total.T, plain, 1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_monomials_are_single_derivatives_of_single_fields(name):
    system, parts, points = parts_of(PROBLEMS[name]())
    for part, drawn in zip(parts, points, strict=True):
        monomials = part.monomials(drawn)
        for j, column in enumerate(part.columns):
            ((field, place, alpha), factor), *more = column.operator
            x = drawn.points.links[place] if place else drawn.points.coordinates
            full = derivatives(system.net, x, sum(alpha))[-1]
            index = [i for i, a in enumerate(alpha) for _ in range(a)]
            assert factor == 1.0 and not more
            assert_close(monomials[:, j], full[(slice(None), field, *index)], 1e-10, column)


def test_slopes_are_derivatives_by_the_parts():
    """u·u_x + 3 u_xx − f: slopes u_x, u and 3, the rest −u u_x − f."""
    box = Box(t=(0, 1), x=(0, 1))
    term = Term("flow", box.interior, lambda u, at: u * u.x + 3.0 * u.xx - at.x)
    system, (parts,), _ = parts_of(Problem(fields=("u",), terms=[term]))
    (drawn,) = points_for(system, 7, 3)
    monomials = parts.monomials(drawn)
    by_alpha = {column.operator[0][0][2]: j for j, column in enumerate(parts.columns)}
    u, ux = (monomials[:, by_alpha[alpha]] for alpha in ((0, 0), (0, 1)))
    affine = parts.at(monomials, drawn)
    expected = {(0, 0): ux, (0, 1): u, (0, 2): torch.full_like(u, 3.0)}
    for alpha, slope in expected.items():
        assert_close(affine.slopes[0, :, by_alpha[alpha]], slope, 1e-12)
    assert_close(affine.rest[0], -u * ux - drawn.points.coordinates[:, 1], 1e-12)


def test_many_derivatives_of_a_slot_are_one_part():
    box = Box.cube(MOST + 1)
    problem = Problem(
        fields=("u",), terms=[Term("poisson", box.interior, lambda u, at: lap(u) + u.x1 * u - 1.0)]
    )
    system = System(problem, MlpSettings(widths=[3]).make(problem.signature, 0))
    (parts,) = [Parts(term) for term in system.terms]
    assert len(parts.columns) == 3
    (drawn,) = points_for(system, 4, 3)
    monomials = parts.monomials(drawn)
    affine = parts.at(monomials, drawn)
    assert_close(affine.value.T, system.terms[0].value(drawn), 1e-12)


# -- scales of fields ------------------------------------------------------------------------------
def scales_of(problem, seed=0, dtype=FLOAT):
    net = MlpSettings(widths=[16, 16]).make(problem.signature, seed).to(dtype)
    system = System(problem, net)
    drawn = [t.where.draw(200, Uniform(), Generator().manual_seed(1)) for t in problem.terms]
    points = system.prepare(drawn)
    return field_scales(system.net, [Parts(term) for term in system.terms], points)


BOX = Box(x=(0, 2), y=(0, 1))


def made_of(*residuals, fields=("u",), **options):
    regions = (
        BOX.interior,
        BOX.faces("x", side="low"),
        BOX.faces("x", side="high"),
        BOX.faces("y"),
    )
    terms = [
        Term(f"term{i}", where, residual)
        for i, (where, residual) in enumerate(zip(regions, residuals, strict=False))
    ]
    return Problem(fields=fields, terms=terms, **options)


def test_conditions_on_values_give_offset_and_scale():
    (found,) = scales_of(made_of(lambda u, at: lap(u), lambda u, at: u - 700 - 200 * at.y))
    assert found.offset == pytest.approx(800, rel=1e-2)
    assert found.scale == pytest.approx(100, rel=2e-2)


def test_an_offset_is_none_where_values_reach_zero():
    (found,) = scales_of(made_of(lambda u, at: lap(u), lambda u, at: u + 1 - 4 * at.y))
    assert found.offset == 0.0 and found.scale == pytest.approx(3, rel=2e-2)


def test_a_source_gives_the_scale_of_a_field_with_conditions_of_zero():
    scales = [
        scales_of(made_of(lambda u, at, q=q: 2.0 * lap(u) - q, lambda u, at: u))[0].scale
        for q in (1.0, 1e6)
    ]
    assert 0.01 < scales[0] < 10.0
    assert scales[1] == pytest.approx(1e6 * scales[0], rel=1e-10)


def test_a_field_that_is_tied_to_another_one_has_its_offset():
    u, v = scales_of(
        made_of(
            lambda u, v, at: (lap(u), lap(v)),
            lambda u, v, at: u - 300.0,
            lambda u, v, at: u - v,
            lambda u, v, at: 5.0 * v.y - 20.0,
            fields=("u", "v"),
        )
    )
    assert u.offset == v.offset == pytest.approx(300.0)
    assert 0.1 < v.scale < 100.0 and 0.1 < u.scale < 100.0


def test_a_field_of_which_only_the_gradient_is_known_balances_what_it_stands_beside():
    """A pressure: u is known by its condition, p by the momentum that it balances."""
    for size in (1.0, 1e5):
        u, p = scales_of(
            made_of(
                lambda u, p, at, s=size: s * lap(u) - p.x,
                lambda u, p, at: u - at.y,
                fields=("u", "p"),
            )
        )
        assert u.scale == pytest.approx(1.0, rel=2e-2)
        assert 0.05 < p.scale / size < 100.0


def test_nothing_that_says_how_large_a_field_is_leaves_it_as_it_is():
    (found,) = scales_of(made_of(lambda u, at: lap(u), lambda u, at: u))
    assert (found.scale, found.offset) == (1.0, 0.0)


def test_parts_that_are_not_linear_settle_where_they_balance():
    """u_xx + u_yy = c u³ + q: for a large c the cube balances q, u = (q/c)^(1/3)."""
    (found,) = scales_of(made_of(lambda u, at: lap(u) - 1e12 * u**3 - 1.0, lambda u, at: u))
    assert 1e-5 < found.scale < 1e-3


@pytest.mark.parametrize(
    "condition",
    [
        lambda u, at: u + 1e5 * at.y - 700.3 - 1e5 * at.y,  # 700.3, but for rounding
        lambda u, at: torch.log(torch.exp((u - 700 - at.y) / 300)),  # linear, but for rounding
    ],
)
def test_rounding_of_float32_says_nothing_of_a_field(condition):
    problem = made_of(lambda u, at: lap(u), condition)
    fine, coarse = (scales_of(problem, dtype=dtype)[0] for dtype in (FLOAT, torch.float32))
    assert coarse.scale == pytest.approx(fine.scale, rel=0.1)
    assert coarse.offset == pytest.approx(fine.offset, rel=1e-4)


@pytest.mark.parametrize("power", [-30, 0, 30])
def test_sizes_of_float32_do_not_overflow(power):
    values = torch.tensor([3.0, 4.0, math.inf]) * 10.0**power
    assert float(size_of(values)) == pytest.approx(math.sqrt(12.5) * 10.0**power)


# -- runs ------------------------------------------------------------------------------------------
def poisson(size=1.0, length=1.0, conductivity=1.0, offset=0.0):
    box = Box(x=(0, length), y=(0, length))
    k = math.pi / length

    def solution(at):
        return offset + size * torch.sin(k * at.x) * torch.cos(k * at.y / 2)

    return Problem(
        fields=("u",),
        terms=[
            Term(
                "poisson",
                box.interior,
                lambda u, at: conductivity * (-lap(u) - 1.25 * k**2 * (solution(at) - offset)),
            ),
            Term("edge", box.boundary, lambda u, at: u - solution(at)),
        ],
        solution=solution,
    )


@pytest.mark.parametrize(
    "units",
    [{"size": 1e9}, {"size": 1e-9}, {"length": 1e-6}, {"conductivity": 1e12},
     {"size": 1e-6, "length": 1e-3, "conductivity": 2e11}],
    ids=str,
)  # fmt: skip
def test_a_run_does_not_depend_on_units(units):
    """Up to rounding, which exact steps blow up."""
    plain, other = (solve(p, *SMALL, "stop.steps=4").summary for p in (poisson(), poisson(**units)))
    assert other["relative_l2_error"] == pytest.approx(plain["relative_l2_error"], rel=1e-6)
    assert other["relative_residuals"] == pytest.approx(plain["relative_residuals"], rel=1e-6)


@pytest.mark.parametrize(
    "units", [{"size": 1e22}, {"size": 1e-25}, {"conductivity": 1e20}], ids=str
)
def test_a_run_in_float32_does_not_depend_on_units(units):
    """Squares of such residuals are beyond what float32 holds."""
    options = (*SMALL, "stop.steps=4", "dtype=float32")
    plain, other = (solve(p, *options).summary for p in (poisson(), poisson(**units)))
    assert other["relative_l2_error"] == pytest.approx(plain["relative_l2_error"], rel=0.3)
    assert other["relative_residuals"] == pytest.approx(plain["relative_residuals"], rel=0.3)
    assert plain["relative_l2_error"] < 0.5, "something was learnt"


def test_coefficients_are_trained_in_units_of_their_first_values():
    def trained(unit):
        k = Parameter("k", initial=2.0 * unit)
        x = torch.linspace(0.1, 0.9, 9, dtype=FLOAT)
        box = Box(x=(0, 1))
        problem = Problem(
            fields=("u",),
            parameters=(k,),
            terms=[
                Term("decay", box.interior, lambda u, at: u.x + k / unit * u),
                Term("start", box.at(x=0), lambda u, at: u - 1),
                Term("data", Points({"x": x}, m=torch.exp(-3 * x)), lambda u, at: u - at.m),
            ],
        )
        return solve(problem, *SMALL, "stop.steps=8").coefficients["k"] / unit

    found = [trained(unit) for unit in (1.0, 2.0**30)]
    assert found[0] == pytest.approx(3.0, rel=0.1) and found[1] == pytest.approx(found[0], rel=1e-6)


def test_scales_of_a_problem_are_those_of_its_net():
    problem = made_of(lambda u, at: lap(u) - 1, lambda u, at: u, scales={"u": (400, 800)})
    parts = assemble(compose("x", {}, SMALL), problem)
    (output,) = [m for m in parts.system.net.modules() if isinstance(m, OutputScaling)]
    assert (float(output.weight), float(output.bias)) == (400.0, 800.0)
    alone = made_of(lambda u, at: lap(u) - 1, lambda u, at: u, scales={"u": 3})
    assert alone.scales == {"u": (3.0, 0.0)}


@pytest.mark.parametrize(
    ("scales", "words"),
    [
        ({"w": 1.0}, "scales: there is no field 'w'. Known: u"),
        ({"u": 0.0}, "scales: 'u' has 0.0; give a positive scale"),
        ({"u": (-1.0, 2.0)}, "give a positive scale"),
        ({"u": (1.0, 2.0, 3.0)}, "give a positive scale"),
        ({"u": "large"}, "give a positive scale"),
        ({"u": (1.0, math.nan)}, "give a positive scale"),
        ([1.0], "Problem: scales=[1.0] is list; give a dictionary"),
    ],
)
def test_scales_that_cannot_be_are_refused(scales, words):
    with pytest.raises(UserError) as error:
        made_of(lambda u, at: lap(u) - 1, scales=scales)
    assert words in str(error.value)


def test_a_stored_solution_has_its_units(tmp_path):
    result = solve(poisson(1e5, offset=3e5), *SMALL, "stop.steps=3", folder=tmp_path / "r")
    again = Solution.load(tmp_path / "r")
    x = torch.rand(5, 2, dtype=FLOAT)
    assert torch.equal(again(x), result.solution(x)) and float(again(x).abs().max()) > 1e5


def test_a_net_without_output_scaling_gives_what_it_gives():
    problem = poisson(size=1e3)
    parts = assemble(compose("x", {}, [*SMALL, "net.output_scaling=false"]), problem)
    assert not [m for m in parts.system.net.modules() if isinstance(m, OutputScaling)]


def test_equations_of_other_units_are_balanced_alike():
    """s_e times the size of an equation does not depend on its unit, however large that is."""
    results = []
    for unit in (1.0, 1e15):
        problem = poisson(conductivity=unit)
        system = System(problem, MlpSettings(widths=[8]).make(problem.signature, 0))
        choose_units(system)
        assert system.equation_sizes is not None
        points = points_for(system, 30, 10)
        scales = Balance().scales(system.linearise(points))
        results.append([s * size for s, size in zip(scales, system.equation_sizes, strict=True)])
    for one, other in zip(*results, strict=True):
        assert_close(other, one, 1e-10)


def test_the_size_of_an_equation_is_that_of_the_rows_of_its_jacobian():
    problem = poisson(conductivity=7.0)
    system = System(problem, MlpSettings(widths=[8]).make(problem.signature, 0))
    choose_units(system, equations=False)
    assert system.equation_sizes is None
    choose_units(system)
    points = points_for(system, 4000)
    expected = mean_square_norms(system.linearise(points))
    for found, norms in zip(system.equation_sizes, expected, strict=True):
        assert_close(found, norms.sqrt(), 0.1)  # of a few points
