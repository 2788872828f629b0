"""What ``show`` prints is what is solved; ``check`` finds what is wrong, and names it."""

from __future__ import annotations

import math
import re

import nets
import problems
import pytest
import torch
from torch import nn

from pinnkfac import Box, Parameter, Points, Problem, Term, Uniform, dot, grad, lap
from pinnkfac.common.errors import UserError
from pinnkfac.config.pde_file import bundled, find
from pinnkfac.domain import Image, PointSet
from pinnkfac.inspection import autodiff, notation, text
from pinnkfac.inspection.checks import examine, examine_problem
from pinnkfac.inspection.configured import configured
from pinnkfac.inspection.description import describe, layers, ranges
from pinnkfac.inspection.finding import Verdict
from pinnkfac.inspection.formulas import formulas
from pinnkfac.inspection.hints import bare_faces, free_constants, missing_start
from pinnkfac.inspection.tracing import is_faithful, trace
from pinnkfac.nets import Activation, Mlp
from pinnkfac.residual import record

BUNDLED = list(bundled())


def draw(term, number=5):
    return term.where.draw(number, Uniform(), torch.Generator().manual_seed(1))


def traced_term(problem, term):
    points = draw(term)
    return trace(record(term, problem, points), points)


def problem_of(name):
    found = find(name)
    return found.problem(found.defaults)


# -- reading formulas back -----------------------------------------------------------------------
NAMES = {
    **{name: getattr(torch, name) for name in ("sin", "cos", "exp", "log", "sqrt", "abs", "where")},
    **{name: getattr(torch, name) for name in ("tanh", "maximum", "prod", "sum", "max", "atan")},
    "item": lambda v, i: v[i],
    "softmax": lambda v: torch.softmax(v, 0),
    "stack": lambda *values: torch.stack([torch.as_tensor(v, dtype=torch.float64) for v in values]),
}


def read(formula, atoms, names):
    """The number that a printed formula stands for; ``atoms`` are the texts of derivatives."""
    code = formula.removesuffix(" = 0").replace(text.TIGHT, " ").replace("−", "-")
    values = dict(NAMES)
    known = {**atoms, **names}
    for i, atom in enumerate(sorted(known, key=len, reverse=True)):
        end = "" if atom.endswith(")") else r"(?![A-Za-z0-9_(])"  # ² is a letter to re
        code = re.sub(rf"(?<!\w){re.escape(atom)}{end}", f"_v{i}_", code)
        values[f"_v{i}_"] = known[atom]
    digits = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
    code = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "**" + m[0].translate(digits), code)
    code = code.replace("^", "**").replace("[", "stack(").replace("]", ")")
    code = code.replace("≤", "<=").replace("≥", ">=")
    code = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", code)
    return eval(code, {"__builtins__": {}}, values)


def atoms_of(problem, derivatives):
    """Derivatives, Δ and Δ² by the texts that stand for them."""
    names, space = problem.coordinates.names, problem.coordinates.space
    twice = [tuple(2 * (name == s) for name in names) for s in space]
    fourth = [
        tuple(a + b for a, b in zip(u, v, strict=True))
        for u in twice
        for v in twice
        if len(space) < 5
    ]
    result = {}
    for (field, place, alpha), value in derivatives.items():
        index = "".join(name * times for name, times in zip(names, alpha, strict=True))
        where = f"({place})" if place else ""
        result[f"{problem.fields[field]}{f'_{index}' if index else ''}{where}"] = value
        for symbol, alphas in (("Δ", twice), ("Δ²", fourth)):
            keys = [(field, place, a) for a in alphas]
            if keys and alpha == alphas[0] and all(key in derivatives for key in keys):
                whole = sum(derivatives[key] for key in keys)
                result[f"{symbol}{problem.fields[field]}{where}"] = whole
    return result


def names_at(problem, points, i, theta):
    """Coordinates, the vector of them, normals, given values and Parameters by name."""
    result = dict(theta)
    places = {"": points.coordinates, **{f"({k})": v for k, v in points.links.items()}}
    for place, x in places.items():
        by_name = dict(zip(problem.coordinates.names, x[i], strict=True))
        result |= {f"{name}{place}": value for name, value in by_name.items()}
        if problem.coordinates.vector:
            entries = [by_name[name] for name in problem.coordinates.space]
            result[f"{problem.coordinates.vector}{place}"] = torch.stack(entries)
    if points.normals is not None:
        for name, value in zip(problem.coordinates.space, points.normals[i], strict=True):
            result[f"n_{name}"] = value
    return result | {name: v[i] for name, v in points.values.items()}


def compare(problem, term):
    """Printed text and traced graph against Residual.value at random slots and points."""
    points = draw(term)
    residual = record(term, problem, points)
    generator = torch.Generator().manual_seed(7)
    keys = sorted({key for slot in residual.slots for key, _ in slot})
    numbers = torch.rand(len(points), len(keys), generator=generator, dtype=torch.float64) + 0.3
    z = torch.stack(
        [sum(c * numbers[:, keys.index(k)] for k, c in slot) for slot in residual.slots], -1
    )
    theta = torch.tensor([0.3 + i for i in range(len(problem.parameters))], dtype=torch.float64)
    named = {p.name: v for p, v in zip(problem.parameters, theta, strict=True)}
    expected = residual.value(z, theta, points, residual.remainder(points))
    traced = trace(residual, points)
    graph = traced.values(z, theta, points)
    printed = formulas(traced, problem, full=True, digits=17)
    size = expected.abs().max() + z.abs().max()
    for i in range(len(points)):
        derivatives = {key: numbers[i, k] for k, key in enumerate(keys)}
        names = names_at(problem, points, i, named)
        atoms = atoms_of(problem, derivatives)
        for name, body in printed.named:
            names[name] = read(body, atoms, names)
        for e, formula in enumerate(printed.equations):
            own = float(expected[i, e])
            assert abs(float(graph[i, e]) - own) <= 1e-12 * size, (term.name, formula)
            assert abs(float(read(formula, atoms, names)) - own) <= 1e-12 * size, formula
    assert is_faithful(traced, points)


@pytest.mark.parametrize("name", BUNDLED)
def test_printed_equations_of_bundled_problems_are_those_that_are_solved(name):
    problem = problem_of(name)
    for term in problem.terms:
        compare(problem, term)


@pytest.mark.parametrize("name", list(problems.PROBLEMS))
def test_printed_equations_of_other_problems_are_those_that_are_solved(name):
    problem = problems.PROBLEMS[name]()
    for term in problem.terms:
        compare(problem, term)


def _accumulated(u, at):
    total = at.x * 1.0
    for k in range(3):
        total += u**k
    return total


TABLE = torch.linspace(1, 2, 9, dtype=torch.float64)
TRICKY = {
    "differences": lambda u, at: u - (u.x - (at.x - u * u)),
    "difference of a product": lambda u, at: 1 - (2 - u * u.x) * (-3 + at.x),
    "quotients": lambda u, at: (u.x / u) / at.x + u / (u.x / at.x) + 1 / (u * at.x),
    "number over": lambda u, at: 3 / u - 2 / (4 * u.x),
    "powers": lambda u, at: -((-(u**2)) ** 3) + (u + 1) ** 2 - 2**u + u**-1.5 + (u.x**2) ** at.x,
    "power of the Laplacian": lambda u, at: lap(u) ** 2 - lap(u) * at.x,
    "negative factors": lambda u, at: -u * -u.x * (-2) - (-at.x) * u,
    "sum times number": lambda u, at: 2 * (u * u + at.x) - 0.5 * (u.x * u - 3),
    "functions": lambda u, at: torch.sin(-u + at.x) * torch.exp(torch.tanh(u.x)) - abs(at.x - u),
    "branches": lambda u, at: torch.where(u > at.x - 1, u**2, -at.x) + torch.maximum(u, at.y),
    "captured constants": lambda u, at: (
        torch.tensor(2.5, dtype=torch.float64) * u * u
        + (torch.tensor([1.0, 2.0], dtype=torch.float64) * torch.stack([at.x, at.y])).sum()
    ),
    "vectors": lambda u, at: torch.stack([at.x, u * u])[1] + torch.stack([at.x, at.y])[:1].sum(),
    "in place": _accumulated,
    "in place on zeros": lambda u, at: torch.zeros_like(at.x).add_(u * u) + torch.ones_like(u) * u,
    "numbers from a table": lambda u, at: (
        u * float(TABLE[3]) * at.x + u * u * torch.linspace(0, 1, 5, dtype=torch.float64)[2]
    ),
    "several results": lambda u, at: (
        torch.stack([at.x * u, u.x * u]).max(0).values + sum(torch.sin(torch.stack([u, at.y])))
    ),
    "autodiff inside": lambda u, at: u - torch.func.grad(lambda x: torch.sin(x) * x**2)(at.x),
    "mixed orders": lambda u, at: lap(lap(u)) - 3 * u.xy + 0.5 * u.xxx * u,
    "bound by name": lambda u, at: dot(grad(u), grad(u)) - dot((at.x, at.y), grad(u)),
    "small and large": lambda u, at: 1e-9 * u.xx + 3e12 * u.x - 1e-300 * at.x * u,
}


@pytest.mark.parametrize("name", list(TRICKY))
def test_brackets_signs_and_powers_are_right(name):
    box = Box(x=(0.5, 1), y=(0.5, 2))
    problem = Problem(fields=("u",), terms=[Term("all", box.interior, TRICKY[name])])
    compare(problem, problem.terms[0])


@pytest.mark.parametrize(
    ("residual", "printed"),
    [
        (lambda u, at: u.t - 0.25 * u.xx, "u_t − 0.25 u_xx = 0"),
        (lambda u, at: u.t - 0.25 * lap(u) + at.x, "u_t − 0.25 Δu + x = 0"),
        (lambda u, at: lap(lap(u)) - 3 * lap(u), "Δ²u − 3 Δu = 0"),
        (lambda u, at: u.xx + 2 * u.yy, "u_xx + 2 u_yy = 0"),
        (lambda u, at: u.t + u * u.x, "u_t + u u_x = 0"),
        (lambda u, at: u - u**3 + 2 * lap(u) * u, "u − u³ + 2 Δu u = 0"),
        (lambda u, at: u - 1e-6 * torch.sin(math.pi * at.x), "u − 1e-6 sin(3.14159 x) = 0"),
        (lambda u, at: (u + 1) / (at.x * at.y), "(u + 1) / (x y) = 0"),
    ],
)
def test_equations_are_printed_as_on_paper(residual, printed):
    box = Box(t=(0, 1), x=(0.5, 1), y=(0.5, 2))
    problem = Problem(fields=("u",), terms=[Term("all", box.interior, residual)])
    found = formulas(traced_term(problem, problem.terms[0]), problem)
    assert [e.replace(text.TIGHT, " ") for e in found.equations] == [printed]


def test_long_sources_and_parts_used_twice_get_names():
    box = Box(x=(0, 1), y=(0, 1))

    def residual(u, at):
        source = sum(torch.sin(k * at.x) * torch.cos(k * at.y) for k in range(1, 20))
        speed = torch.exp(-((u * u.x + at.x) ** 2)) + torch.sin(u * at.y) * u.x + 1
        return speed * u.x + speed**2 - source

    problem = Problem(fields=("u",), terms=[Term("all", box.interior, residual)])
    traced = traced_term(problem, problem.terms[0])
    short = formulas(traced, problem)
    assert [name for name, _ in short.named] == ["w1"]
    assert short.omitted[0][0] == "f1(x, y)"
    assert short.omitted[0][1] > 50
    assert short.equations[0].replace(text.TIGHT, " ") == "w1 u_x + w1² − f1(x, y) = 0"
    full = formulas(traced, problem, full=True)
    assert not full.omitted
    assert "sin(19" in full.equations[0]
    compare(problem, problem.terms[0])


def test_a_residual_that_differs_from_call_to_call_is_not_printed(tmp_path):
    path = write(
        tmp_path,
        "calls.append(0) or u * u.xx - len(calls) * at.x",
        ("    box =", "    calls = []\n    box ="),
    )
    shown = "\n".join(describe(configured(str(path), ["net.widths=[4]"]), 100))
    assert "1 equation(s) that cannot be written down" in shown
    assert "u u_xx" not in shown


def test_slots_and_rows_in_notation():
    coordinates = Box(t=(0, 1), x=(0, 1), y=(0, 1)).coordinates
    slot = (((0, "", (0, 2, 0)), -0.25), ((0, "", (1, 0, 0)), 1.0))
    assert notation.slot(slot, ("u",), coordinates) == "u_t − 0.25 u_xx"
    linked = (((1, "right", (0, 0, 0)), -1.0), ((1, "", (0, 0, 0)), 1.0))
    assert notation.slot(linked, ("u", "v"), coordinates) == "v − v(right)"
    assert notation.row((), coordinates) == "value"
    assert notation.row((((0, 0, 2), 1.0), ((0, 2, 0), 1.0)), coordinates) == "Δ"
    assert notation.row((((1, 0, 0), 1.0), ((0, 2, 0), -0.5)), coordinates) == "∂t − 0.5 ∂xx"
    assert notation.number(-2.5e-7) == "−2.5e-7"


def test_formulas_are_wrapped_in_front_of_signs_and_lose_nothing():
    summands = " + ".join(f"{k}{text.TIGHT}u_x{k}" for k in range(30))
    lines = text.formula(f"{summands} = 0", 40, "  ")
    assert all(len(line) <= 40 for line in lines)
    assert all(line.lstrip().startswith(("+", "=")) for line in lines[1:])
    assert " ".join(line.strip() for line in lines) == f"{summands} = 0".replace(text.TIGHT, " ")
    product = text.TIGHT.join(f"sin({k}{text.TIGHT}x)" for k in range(20))
    assert all(len(line) <= 40 for line in text.formula(product, 40, "  "))


def test_signs_that_an_encoding_lacks_are_spelled_out():
    assert text.plain("✓ Δ²u − 2 ∂x", "ascii") == "ok laplace^2 u - 2 d_x"
    assert text.plain("✗ κ", "cp1252") == "FAILED ?"
    assert text.plain("✓ Δ²u", "utf-8") == "✓ Δ²u"


# -- what else is shown ----------------------------------------------------------------------------
def test_layers_are_listed_in_the_order_of_their_calls():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(5, 1, dtype=torch.float64)
            self.first = nn.Linear(2, 5, dtype=torch.float64)
            self.act = nn.Tanh()

        def forward(self, x):
            return self.last(self.act(self.first(x)))

    x = torch.zeros(3, 2, dtype=torch.float64)
    assert layers(Net(), x) == "Net: 2 → 5 Tanh → 1"
    periodic = nets.NETS["PeriodicEmbedding"](2)
    assert layers(periodic, x) == "Mlp: 2 → 5 PeriodicEmbedding → 4 Tanh → 3 Tanh → 2"


def test_ranges_of_many_coordinates_are_abbreviated():
    assert ranges(Box(t=(0, 1), x=(-1, 1), y=(-1, 1)), {"x": "m"}) == [
        "t in [0, 1] (time)",
        "x in [−1, 1] m",
        "y in [−1, 1]",
    ]
    assert ranges(Box.cube(100, t=(0, 2)), {}) == [
        "t in [0, 2] (time)",
        "x1, x2, …, x100 in [0, 1]",
    ]


@pytest.mark.parametrize("name", BUNDLED)
def test_show_fits_and_says_what_a_run_would_take(name):
    lines = describe(configured(name, ["net.widths=[6,5]", "points.scale=0.01"]), 80)
    assert max(map(len, lines)) <= 80
    shown = "\n".join(lines)
    problem = problem_of(name)
    assert "cannot be written down" not in shown
    for term in problem.terms:
        number = max(1, round((term.points or 0) * 0.01))
        assert f"Term '{term.name}': {number} point" in shown
    assert re.search(r"layers .*→ 6 Tanh → 5 Tanh → \d", shown)
    inputs = len(problem.coordinates.names) + len(problem.signature.periodic)
    outputs = len(problem.fields)
    parameters = 6 * (inputs + 1) + 5 * 7 + outputs * 6
    assert re.search(rf"parameters +{parameters}\n", shown)


def test_rows_are_those_that_the_net_carries():
    shown = "\n".join(describe(configured("heat4d", ["net.widths=[4]"]), 100))
    assert "rows (6)     value,  ∂x1,  ∂x2,  ∂x3,  ∂x4,  ∂t − 0.25 Δ" in shown.replace(
        "rows (6)   value", "rows (6)     value"
    )
    published = "\n".join(
        describe(configured("heat4d", ["net.widths=[4]", "published_rows=true"]), 100)
    )
    assert "rows (7)" in published


def test_nested_autodiff_of_a_polynomial():
    def function(point):
        return torch.stack([point[0] ** 3 * point[1] ** 2, point[0] + point[1]])

    points = torch.rand(4, 2, dtype=torch.float64)
    x, y = points.unbind(-1)
    found = autodiff.derivatives(function, points, [(0, 0), (2, 1), (0, 3)])
    torch.testing.assert_close(found[2, 1], torch.stack([12 * x * y, 0 * x], -1))
    torch.testing.assert_close(found[0, 0], torch.stack([x**3 * y**2, x + y], -1))
    assert not found[0, 3].any()


# -- checks ----------------------------------------------------------------------------------------
PDE = '''"""A plate."""
import torch
from math import pi
from torch import exp, sin
from pinnkfac import Box, Parameter, Points, Problem, Term, lap


def plate(load: float = 1.0) -> Problem:
    box = Box(x=(0, 1), y=(0, 1))

    def solution(at):
        return sin(pi * at.x) * sin(pi * at.y)

    def source(at):
        return 2 * pi**2 * sin(pi * at.x) * sin(pi * at.y)

    return Problem(
        fields=("u",),
        terms=[
            Term("plate", box.interior, lambda u, at: lap(u) + source(at)),
            Term("edge", box.boundary, lambda u, at: u),
        ],
        solution=solution,
    )
'''


def write(folder, residual="lap(u) + source(at)", *changes):
    text = PDE.replace("lap(u) + source(at)", residual)
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    path = folder / "plate.py"
    path.write_text(text, encoding="utf-8")
    return path


def check_problem(problem):
    net = Mlp(len(problem.coordinates.names), len(problem.fields), (4,))
    return examine_problem(problem, net)


def found(path, verdict, *overrides):
    return [str(f) for f in examine(str(path), overrides) if f.verdict is verdict]


@pytest.mark.parametrize("name", BUNDLED)
def test_bundled_problems_pass(name):
    findings = list(examine(name, ["net.widths=[6,5]"]))
    assert [str(f) for f in findings if f.verdict is Verdict.FAILED] == []
    problem = problem_of(name)
    for term in problem.terms:
        about = [f.text for f in findings if f.subject == f"term '{term.name}'"]
        assert len(about) == 4
        assert "nested autodiff" in about[2]
        assert "exact solution leaves" in about[3]


FAILURES = {
    "a sign": ("lap(u) - source(at)", (), "term 'plate': the exact solution leaves 1.4 times the"),
    "a factor": (
        "lap(u) + 1.1 * source(at)",
        (),
        "term 'plate': the exact solution leaves 0.06 of",
    ),
    "a boundary value": (
        "lap(u) + source(at)",
        (("lambda u, at: u)", "lambda u, at: u - at.x)"),),
        "term 'edge': the exact solution leaves",
    ),
    "a wrong solution": (
        "lap(u) + source(at)",
        (("return sin(pi * at.x) *", "return sin(2 * pi * at.x) *"),),
        "term 'plate': the exact solution leaves",
    ),
    "a solution that is not finite": (
        "lap(u) + source(at)",
        (("return sin(pi * at.x) *", "return torch.log(at.x - 0.5) *"),),
        "solution: is NaN",
    ),
    "a solution of too many fields": (
        "lap(u) + source(at)",
        (
            (
                "return sin(pi * at.x) * sin(pi * at.y)\n\n    def source",
                "return 1, 2\n\n    def source",
            ),
        ),
        "solution: returned 2 values",
    ),
    "a shape": ("torch.stack([lap(u), u])", (), "term 'plate': the residual has shape (2,)"),
    "no field": ("at.x", (), "term 'plate': the residual does not depend on any field"),
    "an unknown coordinate": ("u.zz", (), "term 'plate': unknown derivative '.zz'"),
    "not finite": ("lap(u) + torch.log(-at.x)", (), "term 'plate': the residual is NaN"),
    "not finite with a net": ("torch.log(u - 100)", (), "term 'plate': the residual is NaN"),
    "points outside": (
        "lap(u) + source(at)",
        (("box.boundary", "Points({'x': [0.5, 7.0], 'y': [0.1, 0.2]})"),),
        "term 'edge': 1 of 2 points lie outside Box(x=(0, 1), y=(0, 1)), such as x = 7, y = 0.2",
    ),
    "an unused Parameter": (
        "lap(u) + source(at)",
        (("solution=solution", "solution=solution, parameters=(Parameter('k', 1.0),)"),),
        "problem: Parameter 'k' is listed",
    ),
    "a unit of nothing": (
        "lap(u) + source(at)",
        (("solution=solution", "solution=solution, units={'z': 'm'}"),),
        "problem: plate.py: units: there is no 'z'",
    ),
    "a vector of no field": (
        "lap(u) + source(at)",
        (("solution=solution", "solution=solution, vectors={'a': ('u', 'w')}"),),
        "'w', which is no field",
    ),
    "two terms of one name": (
        "lap(u) + source(at)",
        (('"edge"', '"plate"'),),
        "two terms are called 'plate'",
    ),
    "an exception": (
        "lap(u) + source(at)",
        (("    box = Box", "    load / 0\n    box = Box"),),
        "problem: plate.py, line 9, plate() failed: ZeroDivisionError",
    ),
    "a syntax error": ("lap(u) +", (), "file: plate.py, line 20, could not be imported"),
    "no default": ("lap(u)", (("load: float = 1.0", "load"),), "plate(load) has no default"),
    "two equations, one wrong": (
        "(lap(u) + source(at), u.x - u.y)",
        (),
        "equation 2, residual",
    ),
}


@pytest.mark.parametrize("name", list(FAILURES))
def test_a_failure_is_found_and_named(tmp_path, name):
    residual, changes, culprit = FAILURES[name]
    failures = found(write(tmp_path, residual, *changes), Verdict.FAILED, "net.widths=[4]")
    assert any(culprit in line for line in failures), failures
    assert all(len(line.splitlines()) == 1 for line in failures)


def test_a_failure_says_where_it_is_largest(tmp_path):
    (line,) = found(write(tmp_path, "lap(u) + source(at) + (at.x > 0.99) * 5"), Verdict.FAILED)
    where = re.search(r"most at x = ([\d.]+), y = [\d.]+ \(residual 5\)", line)
    assert where and float(where[1]) > 0.99


def test_wrong_terms_do_not_hide_each_other(tmp_path):
    path = write(tmp_path, "u.zz", ("lambda u, at: u)", "lambda u, at: at.q)"))
    failures = found(path, Verdict.FAILED)
    assert any("term 'plate'" in line and ".zz" in line for line in failures)
    assert any("term 'edge'" in line and "at.q" in line for line in failures)


def test_a_net_without_enough_derivatives_is_found(tmp_path, monkeypatch):
    from pinnkfac.nets import mlp

    monkeypatch.setitem(mlp.ACTIVATIONS, "short", nets.FirstOrderOnly)
    path = write(tmp_path, "lap(lap(u))")
    failures = found(path, Verdict.FAILED, "net.activation=short", "net.widths=[4]")
    assert any(line.startswith("✗ net: term 'plate'") for line in failures), failures


def test_wrong_derivatives_of_taylor_mode_are_found(tmp_path, monkeypatch):
    class Wrong(Activation):
        def tower(self, z, order):
            y = torch.tanh(z)
            s = 1 - y * y
            return [y, s, 2 * y * s, 6 * y * y * s - 2 * s][: order + 1]  # σ'' has a wrong sign

    from pinnkfac.nets import mlp

    monkeypatch.setitem(mlp.ACTIVATIONS, "wrong", Wrong)
    failures = found(write(tmp_path), Verdict.FAILED, "net.activation=wrong", "net.widths=[4]")
    assert any("term 'plate': Taylor mode deviates" in line for line in failures), failures


HINTS = {
    "no start": (
        "u.t - u.xx",
        (("Box(x=(0, 1), y", "Box(t=(0, 1), x"), ("solution=solution,", "")),
        "u is differentiated once by t, and has no condition at the start: give u on box.at(t=0)",
    ),
    "a face without condition": (
        "lap(u) + source(at)",
        (("box.boundary", "box.faces('x') | box.at(y=1)"),),
        "no term lies on the face y=0",
    ),
    "a field that is not read": (
        "lap(u) + source(at)",
        (
            ('fields=("u",)', 'fields=("u", "v")'),
            ("lambda u, at", "lambda u, v, at"),
            ("solution=solution,", ""),
        ),
        "no term reads the field v",
    ),
    "a constant that is free": (
        "lap(u) + source(at)",
        (("lambda u, at: u)", "lambda u, at: u.x)"), ("solution=solution,", "")),
        "no term fixes the constant of u",
    ),
    "a small domain": (
        "lap(u) + source(at)",
        (("solution=solution,", "solution=solution, domain=Box(x=(0, 0.5), y=(0, 1)),"),),
        "term 'plate' lies in x from 0 to 1, the domain reaches from 0 to 0.5",
    ),
    "noise": (
        "lap(u) + source(at)",
        (
            ("box.boundary", "Points({'x': [0.5, 0.4], 'y': [0.5, 0.5]}, m=[1.05, 1.0])"),
            ("lambda u, at: u)", "lambda u, at: u - at.m)"),
        ),
        "noise of the given values?",
    ),
}


@pytest.mark.parametrize("name", list(HINTS))
def test_a_hint_is_given_and_fails_nothing(tmp_path, name):
    residual, changes, culprit = HINTS[name]
    path = write(tmp_path, residual, *changes)
    assert any(culprit in line for line in found(path, Verdict.HINT, "net.widths=[4]"))
    assert found(path, Verdict.FAILED, "net.widths=[4]") == []


def test_a_first_derivative_needs_one_face_only():
    box = Box(x=(0, 1), y=(0, 1))
    terms = [
        Term("flow", box.interior, lambda u, at: u.x + 2 * u.y - u),
        Term("inflow", box.faces("x", side="low"), lambda u, at: u),
    ]

    def bare(terms):
        problem = Problem(fields=("u",), terms=terms)
        return list(bare_faces(problem, [record(t, problem, draw(t)) for t in terms], ()))

    (line,) = bare(terms)
    assert "no term lies on the faces y=0, y=1:" in line
    terms.append(Term("other", box.at(y=1), lambda u, at: u))
    assert bare(terms) == []
    terms[0] = Term("flow", box.interior, lambda u, at: u.x + 2 * u.yy - u)
    (line,) = bare(terms)
    assert "no term lies on the face y=0:" in line


def test_both_ends_of_a_line_are_looked_at():
    box = Box(x=(0, 1))
    terms = [
        Term("inside", box.interior, lambda u, at: u.xx),
        Term("ends", box.boundary, lambda u, at: u - 3 * at.x),
    ]
    problem = Problem(fields=("u",), terms=terms, solution=lambda at: 0.0 * at.x)
    lines = [str(f) for f in check_problem(problem)]
    assert "✓ term 'ends': 2 points in the domain" in lines
    assert any("most at x = 1 (residual -3)" in line for line in lines)


def test_periodic_nets_and_second_time_derivatives_have_their_own_hints(tmp_path):
    changes = (("box.boundary", "box.faces('x')"), ("solution=solution,", ""))
    path = write(tmp_path, "lap(u)", *changes)
    assert any("face" in line for line in found(path, Verdict.HINT))
    assert found(path, Verdict.HINT, "net.periodic=[y]") == []
    box = Box(t=(0, 1), x=(0, 1))
    terms = [
        Term("wave", box.interior, lambda u, at: u.tt - u.xx),
        Term("ends", box.boundary, lambda u, at: u),
        Term("start", box.at(t=0), lambda u, at: u),
    ]

    def missing(terms):
        problem = Problem(fields=("u",), terms=terms)
        return list(missing_start(problem, [record(t, problem, draw(t)) for t in terms], ()))

    (line,) = missing(terms)
    assert "differentiated 2 times by t, and has only 1 condition" in line
    terms[2] = Term("start", box.at(t=0), lambda u, at: (u, u.t))
    assert missing(terms) == []
    curve = Box(s=(0, 1)).interior
    start = Image("start", box, curve, lambda s: PointSet(torch.cat([0 * s, s**2], dim=1)))
    terms[2] = Term("start", start, lambda u, at: (u, u.t))
    assert missing(terms) == []
    places = {"t": [0.1, 0.5], "x": [0.2, 0.6]}
    terms[2] = Term("data", Points(places, seen=[1.0, 0.5]), lambda u, at: u - at.seen)
    assert missing(terms) == []  # measurements stand in for a start
    terms[2] = Term("places", Points(places), lambda u, at: u.tt - u.xx)
    assert len(missing(terms)) == 1


def test_a_constant_is_free_only_where_no_slot_feels_it():
    box = Box(x=(0, 1), y=(0, 1))
    inside = Term("inside", box.interior, lambda u, at: lap(u))

    def free(*terms):
        problem = Problem(fields=("u",), terms=terms)
        return list(free_constants(problem, [record(t, problem, draw(t)) for t in terms]))

    periodic = Term("periodic", box.opposite("x"), lambda u, at: u - u(at.opposite))
    assert len(free(inside, periodic)) == 1
    assert free(inside, periodic, Term("level", box.at(x=0, y=0), lambda u, at: u)) == []
    assert free(Term("mass", box.interior, lambda u, at: lap(u) - u)) == []


def test_unknown_coefficients_are_fitted_to_the_exact_solution(tmp_path):
    changes = (
        ("    return Problem(", "    k = Parameter('k', initial=1.0)\n    return Problem("),
        ("solution=solution", "solution=solution, parameters=(k,)"),
    )
    path = write(tmp_path, "k * k * lap(u) + 4 * source(at)", *changes)
    assert found(path, Verdict.FAILED) == []
    assert any("at k = 2, which fits it best" in line for line in found(path, Verdict.PASSED))
    path = write(tmp_path, "k * lap(u) + source(at) * at.x", *changes)
    assert any("term 'plate'" in line for line in found(path, Verdict.FAILED))


@pytest.mark.parametrize(
    ("solution", "reason"),
    [
        ("return (sin(pi * at.x) * sin(pi * at.y)).detach()", "0 by autodiff, but"),
        (
            "return at.y * table.index_select(0, (1e6 * at.x).long()[None])[0]",
            "∂u/∂x is 0 by autodiff, but",
        ),
        ("return at.y * Cube.apply(at.x)", "cannot be differentiated"),
    ],
)
def test_a_solution_that_torch_cannot_differentiate_is_left_out(tmp_path, solution, reason):
    more = """
table = torch.linspace(0, 1, 1_000_001, dtype=torch.float64)


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass


def plate("""
    path = write(
        tmp_path,
        "lap(u) + source(at)",
        ("return sin(pi * at.x) * sin(pi * at.y)", solution),
        ("\ndef plate(", more),
    )
    lines = found(path, Verdict.NOT_CHECKED)
    assert found(path, Verdict.FAILED) == []
    assert any(reason in line for line in lines), lines


def test_no_solution_is_no_mistake(tmp_path):
    path = write(tmp_path, "lap(u) + source(at)", ("solution=solution,", ""))
    assert any("none is given" in line for line in found(path, Verdict.NOT_CHECKED))
    assert found(path, Verdict.FAILED) == []


def test_wrong_input_is_no_finding(tmp_path):
    path = write(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        list(examine(str(tmp_path / "missing.py"), []))
    with pytest.raises(UserError, match=r"net\.widht"):
        list(examine(str(path), ["net.widht=3"]))
    with pytest.raises(UserError, match="'heat1d' is not an override"):
        list(examine(str(path), ["heat1d"]))
    with pytest.raises(UserError, match="unknown"):
        list(examine(str(path), ["net.activation=wrong"]))


def test_measured_parameters_have_a_name_in_formulas():
    k = Parameter("k", 2.0)
    box = Box(x=(0, 1))
    given_points = Points({"x": [0.1, 0.2]}, seen=[1.0, 2.0])
    problem = Problem(
        fields=("u",),
        terms=[
            Term("ode", box.interior, lambda u, at: k * u.x + torch.exp(k) * u),
            Term("data", given_points, lambda u, at: u - at.seen * k),
            Term("flux", box.faces("x"), lambda u, at: dot(grad(u), at.normal) - 1),
        ],
        parameters=(k,),
    )
    shown = [
        formulas(traced_term(problem, t), problem).equations[0].replace(text.TIGHT, " ")
        for t in problem.terms
    ]
    assert shown == ["u_x k + exp(k) u = 0", "u − seen k = 0", "n_x u_x − 1 = 0"]
    for term in problem.terms:
        compare(problem, term)
