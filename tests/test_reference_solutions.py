"""``check`` tells a wrong solution from a coarse one, and from one with a kink."""

from __future__ import annotations

from copy import copy
from math import pi

import pytest
import torch
from nets import FLOAT

from pinnkfac import Box, Problem, Term, lap
from pinnkfac.config.pde_file import bundled, find
from pinnkfac.inspection.autodiff import derivatives
from pinnkfac.inspection.checks import examine_problem
from pinnkfac.inspection.coarse import differences
from pinnkfac.inspection.finding import Verdict
from pinnkfac.nets import MlpSettings

BOX = Box(x=(0, 1), y=(0, 2))


def findings(problem, term):
    """The verdict on a term with the solution, and what it says."""
    net = MlpSettings(widths=[4]).make(problem.signature, 0).double()
    *_, last = [f for f in examine_problem(problem, net) if f.subject == f"term '{term}'"]
    return last.verdict, last.text


def with_solution(problem, solution):
    result = copy(problem)
    result.solution = solution
    return result


# -- differences -----------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [(0, 0), (1, 0), (0, 2), (1, 1), (2, 1), (0, 4), (2, 2)])
def test_differences_are_those_of_a_smooth_function(alpha):
    """At corners and edges, where they are one-sided, too."""

    def function(point):
        return torch.stack([torch.sin(2 * point[0] + point[1]), torch.exp(point[0] - point[1])])

    inside = torch.rand(20, 2, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    points = torch.cat([inside, torch.tensor([[0, 0], [1, 2], [0.5, 2]], dtype=FLOAT)])
    points[:20, 1] *= 2
    box = torch.tensor([0, 0], dtype=FLOAT), torch.tensor([1, 2], dtype=FLOAT)
    exact = derivatives(function, points, [alpha])[alpha]
    off = [
        (differences(function, points, alpha, h, box) - exact).abs().max() for h in (1 / 16, 1 / 32)
    ]
    if not any(alpha):
        assert float(off[0]) == 0.0
    else:
        assert off[1] < 0.05 * exact.abs().max() and off[1] < off[0] / 6, "of third order"


# -- tables ----------------------------------------------------------------------------------------
def pieces(order, n):
    """Lagrange polynomials of a table [n], or [n, n] in two coordinates, on [0, 1]."""

    def at(table, s):
        place = s * (n - 1)
        first = (place.detach() - 0.5 * (order - 1)).floor().long().clamp(0, n - 1 - order)
        nodes = [table[(first + i).reshape(1)][0] for i in range(order + 1)]
        f = place - first
        total = 0.0
        for i, value in enumerate(nodes):
            weight = 1.0
            for j in range(order + 1):
                weight = weight * (f - j) / (i - j) if j != i else weight
            total = total + weight * value
        return total

    return at


def plate(order, n, sign=1.0, noise=0.0, source=2.0):
    """−lap(u) = 2 k² sin kx sin ky, k = π, of which a table is given."""
    x = torch.linspace(0, 1, n, dtype=FLOAT)
    table = sign * torch.sin(pi * x)[:, None] * torch.sin(2 * pi * x)
    table += noise * torch.randn(n, n, generator=torch.Generator().manual_seed(0), dtype=FLOAT)
    at_place = pieces(order, n)

    def residual(u, at):
        return lap(u) + source * pi**2 * torch.sin(pi * at.x) * torch.sin(pi * at.y)

    return Problem(
        fields=("u",),
        terms=[Term("plate", BOX.interior, residual)],
        solution=lambda at: at_place(at_place(table, at.x), at.y / 2),
    )


REFERENCES = {
    "by straight lines": (1, 80, 0.0),
    "by cubic pieces": (3, 25, 0.0),
    "of numbers with an error of 1e-5": (3, 100, 1e-5),
    "by lines, with an error of 1e-5": (1, 100, 1e-5),
}


@pytest.mark.parametrize("name", list(REFERENCES))
def test_a_coarse_reference_is_not_called_wrong(name):
    order, n, noise = REFERENCES[name]
    verdict, text = findings(plate(order, n, noise=noise), "plate")
    assert verdict is Verdict.HINT and "interpolated" in text, text


@pytest.mark.parametrize("name", list(REFERENCES))
@pytest.mark.parametrize("mistake", [{"sign": -1.0}, {"source": 3.0}, {"source": -2.0}])
def test_a_coarse_reference_that_is_wrong_too_is_found(name, mistake):
    order, n, noise = REFERENCES[name]
    verdict, text = findings(plate(order, n, noise=noise, **mistake), "plate")
    assert verdict is Verdict.FAILED, text


def test_a_beam_of_a_table_is_not_called_wrong():
    """Cubic pieces have no fourth derivative at all."""
    x = torch.linspace(0, 1, 101, dtype=FLOAT)
    table = torch.sin(2 * pi * x)
    for source, expected in ((1.0, Verdict.HINT), (-1.0, Verdict.FAILED)):

        def residual(w, at, source=source):
            return w.xxxx - source * (2 * pi) ** 4 * torch.sin(2 * pi * at.x)

        problem = Problem(
            fields=("w",),
            terms=[Term("beam", Box(x=(0, 1)).interior, residual)],
            solution=lambda at: pieces(3, 101)(table, at.x),
        )
        assert findings(problem, "beam")[0] is expected


def hat(bend=0.0, broad=0.02):
    """u'' = 2, and a bump at 0.5, where a table of x² + |x − 0.5| has a kink."""
    x = torch.linspace(0, 1, 60, dtype=FLOAT)
    table = (x - 0.5).abs() + x**2

    def residual(u, at):
        return u.xx - 2 - bend * torch.exp(-(((at.x - 0.5) / broad) ** 2))

    return Problem(
        fields=("u",),
        terms=[Term("hat", Box(x=(0, 1)).interior, residual)],
        solution=lambda at: pieces(3, 60)(table, at.x),
    )


def test_a_kink_is_told_from_a_wrong_term():
    verdict, text = findings(hat(), "hat")
    assert verdict is Verdict.HINT and "has it a kink" in text and "of 64 points" in text


def test_a_smooth_solution_that_is_wrong_at_some_points_is_no_kink():
    problem = with_solution(hat(bend=1.0, broad=0.05), lambda at: at.x**2)
    verdict, text = findings(problem, "hat")
    assert verdict is Verdict.FAILED, text


# -- bundled problems ------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("factor", "name"),
    [(-1.0, name) for name in bundled()] + [(1.05, n) for n in bundled() if n != "poisson100d"],
)
def test_a_wrong_solution_of_a_bundled_problem_is_found(name, factor):
    file = find(name)
    problem = file.problem(file.defaults)
    solution = problem.solution

    def wrong(at):
        values = solution(at)
        return tuple(factor * v for v in values) if isinstance(values, tuple) else factor * values

    net = MlpSettings(widths=[4]).make(problem.signature, 0).double()
    found = examine_problem(with_solution(problem, wrong), net)
    assert any(f.verdict is Verdict.FAILED and "exact solution" in f.text for f in found)
