"""Terms, problems, unknown coefficients and exact solutions: what is accepted, what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from nets import FLOAT
from oracles import assert_close
from problems import PROBLEMS
from regions import Quarter

from pinnkfac import Box, Parameter, Points, Problem, Term, UserError, lap
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp
from pinnkfac.problem import bind
from pinnkfac.residual import check_finite, exact_solution
from pinnkfac.run.accuracy import ErrorMeter

BOX = Box(t=(0, 1), x=(0, 2))


def residual(u, at):
    return u.t - lap(u)


TERM = Term("heat", BOX.interior, residual)


def problem(**changes):
    return Problem(**{"fields": ("u",), "terms": [TERM], **changes})


# -- what is accepted ----------------------------------------------------------------------------
def test_a_problem_holds_what_it_was_given():
    kappa = Parameter("kappa", 0.5)
    found = problem(parameters=[kappa], source="a book", domain=BOX)
    assert found.fields == ("u",) and found.terms == (TERM,) and found.parameters == (kappa,)
    assert found.source == "a book" and found.domain is BOX
    assert found.coordinates == BOX.coordinates
    assert Problem(fields="u", terms=[TERM]).fields == ("u",)


def test_domain_is_the_box_of_the_terms():
    start = Term("start", BOX.at(t=0), lambda u, at: u)
    for terms in ([TERM, start], [start]):
        assert repr(problem(terms=terms).domain) == repr(BOX)
        assert problem(terms=terms).domain.coordinates.time == "t"


def test_without_bounds_a_problem_asks_for_its_domain():
    """A region of a user's own may say how far it reaches."""
    inside = Term("inside", Quarter(bounds=None), lambda u, at: u - at.x)
    with pytest.raises(UserError, match=r"\(Quarter\) have no bounds: give domain=Box\(\.\.\.\)"):
        Problem(fields=("u",), terms=[inside])
    square = Box(x=(0, 1), y=(0, 1))
    assert Problem(fields=("u",), terms=[inside], domain=square).domain is square
    side = Term("side", square.at(x=0), lambda u, at: u)
    assert Problem(fields=("u",), terms=[inside, side]).domain.bounds.ranges == square.ranges


def test_errors_of_a_region_of_a_users_own_are_measured_in_it():
    """Not in the corner of its bounds, where there is no solution."""
    inside = Term("inside", Quarter(), lambda u, at: u - at.x)
    found = Problem(
        fields=("u",), terms=[inside], solution=lambda at: (1.0001 - at.x**2 - at.y**2).sqrt()
    )
    assert repr(found.domain) == "Quarter in Box(x=(0, 1), y=(0, 1))"
    meter = ErrorMeter(found, 500)
    assert len(meter.points) == 500 and float(meter.points.norm(dim=1).max()) <= 1.0
    shifted = meter.measure(lambda x: (1.0001 - x.square().sum(1, keepdim=True)).sqrt() + 0.5)
    assert shifted.rms == pytest.approx(0.5)


def test_weights_and_numbers_of_points_are_kept():
    term = Term("heat", BOX.interior, residual, weight=3.0, points=17)
    assert term.weight == 3.0 and term.points == 17
    assert TERM.weight == 1.0 and TERM.points is None


@pytest.mark.parametrize("name", PROBLEMS)
def test_text_of_a_problem_names_its_terms(name):
    found = PROBLEMS[name]()
    text = repr(found)
    assert "\n" not in text
    for word in (*found.fields, *(t.name for t in found.terms)):
        assert word in text


# -- what is refused -----------------------------------------------------------------------------
OTHER = Term("other", Box(x=(0, 1)).interior, lambda u, at: u)
BAD = {
    "no fields": (lambda: problem(fields=()), ["fields is empty"]),
    "no terms": (lambda: problem(terms=[]), ["terms is empty"]),
    "two fields of a name": (lambda: problem(fields=("u", "u")), ["two fields", "'u'"]),
    "two terms of a name": (lambda: problem(terms=[TERM, TERM]), ["two terms", "'heat'"]),
    "two Parameters of a name": (
        lambda: problem(parameters=[Parameter("k", 1), Parameter("k", 2)]),
        ["two Parameters", "'k'"],
    ),
    "two boxes": (lambda: problem(terms=[TERM, OTHER]), ["'other'", "(x)", "'heat'", "(t, x)"]),
    "another domain": (lambda: problem(domain=Box(x=(0, 1))), ["'heat'", "the domain", "(x)"]),
    "given points only": (
        lambda: problem(terms=[Term("data", Points({"x": [1.0]}), lambda u, at: u)]),
        ["domain=Box(...)"],
    ),
    "term without a name": (lambda: Term("", BOX.interior, residual), ["name is ''"]),
    "term whose name is no text": (lambda: Term(3, BOX.interior, residual), ["name is 3"]),
    "term on a box": (lambda: Term("heat", BOX, residual), ["'heat'", "where is Box", "interior"]),
    "term on text": (lambda: Term("heat", "interior", residual), ["'heat'", "where is str"]),
    "term without function": (lambda: Term("heat", BOX.interior, 0), ["'heat'", "function"]),
    "term of no weight": (
        lambda: Term("heat", BOX.interior, residual, weight=0.0),
        ["'heat'", "weight=0.0", "positive"],
    ),
    "term of negative weight": (
        lambda: Term("heat", BOX.interior, residual, weight=-1),
        ["'heat'", "weight=-1", "positive"],
    ),
    "term of infinite weight": (
        lambda: Term("heat", BOX.interior, residual, weight=math.inf),
        ["'heat'", "weight=inf"],
    ),
    "term without points": (
        lambda: Term("heat", BOX.interior, residual, points=0),
        ["'heat'", "points=0", "at least 1"],
    ),
    "half a point": (
        lambda: Term("heat", BOX.interior, residual, points=2.5),
        ["'heat'", "points=2.5", "whole number"],
    ),
    "term on empty Points": (
        lambda: Term("data", Points({"x": []}), lambda u, at: u),
        ["'data'", "no points"],
    ),
    "Points of lists of different lengths": (
        lambda: Points({"x": [[1.0], [1.0, 2.0]]}),
        ["'x'", "[[1.0], [1.0, 2.0]]", "one number per point"],
    ),
    "Parameter without a name": (lambda: Parameter("2k", 1.0), ["'2k'", "name"]),
    "weight that is no number": (
        lambda: Term("heat", BOX.interior, residual, weight="big"),
        ["'heat'", "weight='big'", "positive number"],
    ),
    "Parameter whose name is none": (lambda: Parameter(3, 1.0), ["Parameter: 3", "name"]),
    "Parameter that begins with a word": (
        lambda: Parameter("k", initial="one"),
        ["'k'", "initial='one'", "finite number"],
    ),
    "a Parameter alone": (
        lambda: problem(parameters=Parameter("k", 1.0)),
        ["parameters is Parameter", "give a tuple", "parameters=(kappa,)"],
    ),
    "a term alone": (
        lambda: problem(terms=Term("heat", BOX.interior, residual)),
        ["terms is Term", "give a tuple or a list"],
    ),
    "a tuple in place of a term": (
        lambda: problem(terms=[("heat", BOX.interior, residual)]),
        ["terms[0] is tuple, not a Term", "Term(name, where, residual)"],
    ),
    "fields by number": (lambda: problem(fields=(1,)), ["fields[0] is int, not a string"]),
    "how many fields": (lambda: problem(fields=1), ["fields is int", "fields=('u',)"]),
    "domain that is a number": (lambda: problem(domain=3), ["domain=3 is int", "give a Box"]),
    "units in a list": (lambda: problem(units=["m"]), ["units=['m'] is list", "dictionary"]),
    "vectors in a word": (lambda: problem(vectors="uv"), ["vectors='uv' is str", "dictionary"]),
    "periodic in a coordinate that is none": (
        lambda: problem(periodic=("y",)),
        ["periodic: there is no coordinate 'y'", "t, x"],
    ),
    "a period that the terms do not fill": (
        lambda: problem(periodic=("x",), domain=Box(t=(0, 1), x=(0, 1))),
        ["periodic in x", "[0, 1]", "[0, 2]", "same range"],
    ),
    "periodic by number": (lambda: problem(periodic=1), ["periodic is int", "periodic=('x',)"]),
    "Parameter that is not finite": (lambda: Parameter("k", math.nan), ["'k'", "finite"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_problems_say_what_to_do(name):
    build, words = BAD[name]
    with pytest.raises(UserError) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


# -- unknown coefficients ------------------------------------------------------------------------
def test_a_parameter_stands_for_its_value():
    k, m = Parameter("k", 2.0), Parameter("m", 3.0)
    value, other = torch.tensor(0.5, dtype=FLOAT), torch.tensor(4.0, dtype=FLOAT)
    x = torch.tensor(1.5, dtype=FLOAT)
    with bind((k, m), (value, other)):
        found = [k + 1, 1 + k, k - x, x - k, k * 3, 3 * k, k / 4, 4 / k, k**2, 2**k, -k, k * m,
                 k - m, m / k, 2 - k, torch.sin(k), +k, abs(-1 * k), k.exp(), k.square(),
                 torch.stack([k.as_tensor(), x]).sum()]  # fmt: skip
    a, b = 0.5, 1.5
    expected = [a + 1, 1 + a, a - b, b - a, 3 * a, 3 * a, a / 4, 4 / a, a**2, 2**a, -a, 4 * a,
                a - 4, 4 / a, 2 - a, math.sin(a), a, a, math.exp(a), a**2, a + b]  # fmt: skip
    assert_close(torch.stack(found), torch.tensor(expected, dtype=FLOAT), 1e-15)


def test_a_parameter_is_compared_by_its_value():
    k, m = Parameter("k", 2.0), Parameter("m", 3.0)
    with bind((k, m), (torch.tensor(0.5), torch.tensor(4.0))):
        assert all([k > 0, k >= 0.5, k < m, k <= m, k == 0.5, k != m, k == 0.5, k < 1])
        assert not any([k > 1, k == m, k != 0.5, m <= k])
    assert k == k and k != m and len({k, m, k}) == 2
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = k.nothing


@pytest.mark.parametrize("value", [residual, lambda u, at: u.t * u.xx])
def test_a_parameter_that_no_term_uses_is_refused(value):
    found = problem(terms=[Term("heat", BOX.interior, value)], parameters=[Parameter("kappa", 1.0)])
    with pytest.raises(UserError, match="'kappa' is listed"):
        System(found, Mlp(2, 1, (3,)))


def test_bindings_end_with_their_block():
    k = Parameter("k", 2.0)
    with bind((k,), (torch.tensor(1.0),)):
        with bind((k,), (torch.tensor(5.0),)):
            assert float(k.as_tensor()) == 5.0
        assert float(k.as_tensor()) == 1.0
    with pytest.raises(UserError, match="'k'"):
        k.as_tensor()


# -- exact solutions -----------------------------------------------------------------------------
def solved(solution, fields=("u",)):
    found = problem(fields=fields, solution=solution)
    return exact_solution(found, torch.tensor([[0.0, 0.5], [1.0, 2.0], [0.25, 1.0]], dtype=FLOAT))


def test_solutions_are_evaluated_at_every_point():
    found = solved(lambda at: (at.t + at.x, torch.sin(at.x)), fields=("u", "v"))
    expected = [[0.5, math.sin(0.5)], [3.0, math.sin(2)], [1.25, math.sin(1)]]
    assert_close(found, torch.tensor(expected, dtype=FLOAT), 1e-15)
    assert solved(lambda at: 1.0).tolist() == [[1.0]] * 3


BAD_SOLUTIONS = {
    "too few values": (lambda at: at.x, ("u", "v"), ["1 values", "2 fields (u, v)"]),
    "too many values": (lambda at: (at.x, at.t), ("u",), ["2 values", "1 fields (u)"]),
    "a matrix": (lambda at: at.x.expand(1, 1), ("u",), ["shape (1, 1)"]),
    "text": (lambda at: "u", ("u",), ["str"]),
    "a condition": (lambda at: at.x > 1, ("u",), ["dtype torch.bool"]),
    "unknown coordinate": (lambda at: at.y, ("u",), ["'at.y'", "t, x"]),
    "a branch": (lambda at: at.x if at.t > 0.5 else 0.0, ("u",), ["torch.where"]),
    "math": (lambda at: math.sin(at.x), ("u",), ["solution"]),
    "no number": (lambda at: torch.log(at.t - 0.5), ("u",), ["NaN", "('t', 'x')", "[0.0, 0.5]"]),
    "infinite": (lambda at: 1 / at.t, ("u",), ["infinite", "[0.0, 0.5]"]),
}


@pytest.mark.parametrize("name", BAD_SOLUTIONS)
def test_bad_solutions_say_what_is_wrong(name):
    solution, fields, words = BAD_SOLUTIONS[name]
    with pytest.raises(UserError) as caught:
        solved(solution, fields)
    assert "solution" in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_residual_that_is_not_finite_names_its_term_and_point():
    r = torch.tensor([[1.0, 2.0], [3.0, math.inf]])
    x = torch.tensor([[0.0, 1.0], [0.5, 0.25]])
    check_finite("heat", r[:1], x[:1], ("t", "x"))
    with pytest.raises(UserError) as caught:
        check_finite("heat", r, x, ("t", "x"))
    for word in ("term 'heat'", "'t': 0.5", "'x': 0.25"):
        assert word in str(caught.value)
