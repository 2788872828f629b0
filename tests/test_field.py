"""The language of residuals: forms, slots, and what is refused.

What a residual means is compared with the same formula written out on known derivatives of
u = sin x e^{2y} + x y³ and v = cos(x y).
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from nets import FLOAT
from oracles import assert_close
from references import slots
from regions import Linked
from torch.func import grad as derivative

from pinnkfac import Box, Parameter, Problem, Term, Uniform, UserError, div, dot, grad, lap
from pinnkfac.field import Coordinates, factorial, multi_indices
from pinnkfac.residual import record

BOX = Box(x=(0.2, 1), y=(0.3, 1.5))
SPACE_TIME = Box(t=(0, 1), x=(0, 1), y=(0, 2))
CUBE = Box.cube(3)
KAPPA = Parameter("kappa", 0.7)


def compiled(residual, *, box=BOX, where=None, fields=("u", "v"), parameters=()):
    where = box.interior if where is None else where
    term = Term("eq", where, residual)
    problem = Problem(fields=fields, terms=[term], domain=box, parameters=parameters)
    points = where.draw(5, Uniform(), torch.Generator().manual_seed(0))
    return record(term, problem, points), problem, points


def slots_of(residual, **settings):
    return set(compiled(residual, **settings)[0].slots)


# -- slots ---------------------------------------------------------------------------------------
SAME = {
    "lap in two ways": (lambda u, v, at: lap(u), lambda u, v, at: u.xx + u.yy),
    "div of grad": (lambda u, v, at: lap(u), lambda u, v, at: div(grad(u))),
    "by name": (lambda u, v, at: u.d("x", "y", "y"), lambda u, v, at: u.yxy),
    "order of names": (lambda u, v, at: u.xy, lambda u, v, at: u.yx),
    "multiples": (lambda u, v, at: u.xx, lambda u, v, at: -3.5 * u.xx),
    "divisions": (lambda u, v, at: lap(u), lambda u, v, at: lap(u) / 7),
    "sums in any order": (lambda u, v, at: u.x + 2 * v, lambda u, v, at: 2 * (v + u.x / 2)),
    "differences": (lambda u, v, at: u.x - v.y, lambda u, v, at: -(v.y - u.x)),
    "at the point itself": (lambda u, v, at: u.x, lambda u, v, at: u.x(at)),
    "a source": (lambda u, v, at: lap(u), lambda u, v, at: lap(u) - torch.sin(at.x)),
    "a source before": (lambda u, v, at: u, lambda u, v, at: at.x - u),
    "a number of numpy": (lambda u, v, at: u.x, lambda u, v, at: u.x - np.float32(0.5)),
    "a constant": (lambda u, v, at: u.x, lambda u, v, at: 1 + u.x),
    "a derivative of a constant": (lambda u, v, at: u.x, lambda u, v, at: (u + 3.0).x),
    "cancellation": (lambda u, v, at: u.x, lambda u, v, at: u.x + v - v),
    "bilaplacian": (lambda u, v, at: lap(lap(u)), lambda u, v, at: u.xxxx + 2 * u.xxyy + u.yyyy),
    "directional": (lambda u, v, at: dot((1, 2), grad(u)), lambda u, v, at: u.x + 2 * u.y),
    "vectors": (
        lambda u, v, at: div(grad(u) - 2 * grad(v)),
        lambda u, v, at: lap(u) - lap(v) * 2,
    ),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_form_is_the_same_slot(name):
    one, other = SAME[name]
    assert slots_of(one) == slots_of(other)
    assert len(slots_of(one)) == 1


def test_different_forms_are_different_slots():
    forms = ["u", "v", "u.x", "u.y", "u.xy", "lap(u)", "lap(v)", "u.xx - u.yy", "u + v", "u - v"]
    found = {frozenset(slots_of(eval(f"lambda u, v, at: {form}"))) for form in forms}
    assert len(found) == len(forms)


NUMBER_OF_SLOTS = [
    ("heat", lambda u, at: u.t - 0.25 * lap(u), 1),
    ("heat with a source", lambda u, at: u.t - lap(u) - torch.sin(at.x), 1),
    ("plate", lambda u, at: u.tt + lap(lap(u)), 1),
    ("Allen-Cahn", lambda u, at: u.t - 1e-4 * u.xx + 5 * (u**3 - u), 2),
    ("Burgers", lambda u, at: u.t + u * u.x - 0.01 * u.xx, 3),
    ("Korteweg-de Vries", lambda u, at: u.t + 6 * u * u.x + u.xxx, 3),
    ("eikonal", lambda u, at: dot(grad(u), grad(u)) - 1, 2),
    ("diffusion that varies", lambda u, at: at.x * u.xx + u.x, 2),
    ("a multiple twice", lambda u, at: torch.sin(2 * u.x) + u.x**2, 1),
    ("an expression twice", lambda u, at: torch.exp(u.t - lap(u)) * (u.t - lap(u)), 1),
]


@pytest.mark.parametrize(("name", "residual", "number"), NUMBER_OF_SLOTS)
def test_number_of_slots(name, residual, number):
    assert len(slots_of(residual, box=SPACE_TIME, fields=("u",))) == number


def test_slots_of_a_flow():
    nu = 0.01

    def flow(u, v, p, at):
        return (
            u * u.x + v * u.y + p.x - nu * lap(u),
            u * v.x + v * v.y + p.y - nu * lap(v),
            u.x + v.y,
        )

    residual, _, _ = compiled(flow, fields=("u", "v", "p"))
    assert len(residual.slots) == 9 and residual.equations == 3 and residual.constant is None


def test_terms_with_constant_coefficients_are_recognised():
    def constant(residual, **settings):
        return compiled(residual, **settings)[0].constant is not None

    assert constant(lambda u, v, at: lap(u) - torch.sin(at.x))
    assert constant(lambda u, v, at: (u.x - 2, v - at.y))
    assert not constant(lambda u, v, at: at.x * u)
    assert not constant(lambda u, v, at: u * v)
    assert not constant(lambda u, v, at: u - KAPPA, parameters=(KAPPA,))


# -- values --------------------------------------------------------------------------------------
def u_of(x, y):
    return torch.sin(x) * torch.exp(2 * y) + x * y**3


def v_of(x, y):
    return torch.cos(x * y)


def by_hand(x, y):
    """Derivatives of u and v, written out."""
    s, c, e = torch.sin(x), torch.cos(x), torch.exp(2 * y)
    a, b = torch.sin(x * y), torch.cos(x * y)
    return {
        "u": s * e + x * y**3,
        "ux": c * e + y**3,
        "uy": 2 * s * e + 3 * x * y**2,
        "uxx": -s * e,
        "uxy": 2 * c * e + 3 * y**2,
        "uyy": 4 * s * e + 6 * x * y,
        "uxxx": -c * e,
        "v": b,
        "vx": -y * a,
        "vy": -x * a,
        "vxx": -(y**2) * b,
        "vyy": -(x**2) * b,
    }


FORMULAS = {
    "linear": (
        lambda u, v, at: 2 * lap(u) - v / 4 + at.x * at.y - 3,
        lambda f, x, y: 2 * (f["uxx"] + f["uyy"]) - f["v"] / 4 + x * y - 3,
    ),
    "numbers and tensors on either side": (
        lambda u, v, at: (1 - u, at.x - u.x, u.y - at.y, 2.0 * v + at.x, at.x + v, -v, +v),
        lambda f, x, y: (1 - f["u"], x - f["ux"], f["uy"] - y, 2 * f["v"] + x, x + f["v"], -f["v"],
                         f["v"]),
    ),
    "products and quotients": (
        lambda u, v, at: u * v.x - u.x / v + 1 / u + at.x / v + v * at.y + (u + 2) * (v - at.x),
        lambda f, x, y: f["u"] * f["vx"] - f["ux"] / f["v"] + 1 / f["u"] + x / f["v"]
        + f["v"] * y + (f["u"] + 2) * (f["v"] - x),
    ),
    "powers": (
        lambda u, v, at: u**2 + v**-1 + u.square() + 2**v + u**v,
        lambda f, x, y: 2 * f["u"] ** 2 + 1 / f["v"] + 2 ** f["v"] + f["u"] ** f["v"],
    ),
    "functions": (
        lambda u, v, at: torch.sin(u) + u.exp() + torch.sqrt(u) + abs(v.x) + torch.maximum(u, v),
        lambda f, x, y: torch.sin(f["u"]) + torch.exp(f["u"]) + f["u"].sqrt() + f["vx"].abs()
        + torch.maximum(f["u"], f["v"]),
    ),
    "conditions": (
        lambda u, v, at: torch.where(u > 1, u.x, v.x) + torch.where(at.x <= 0.5, 1.0, u),
        lambda f, x, y: torch.where(f["u"] > 1, f["ux"], f["vx"])
        + torch.where(x <= 0.5, 1.0, f["u"]),
    ),
    "equality": (
        lambda u, v, at: torch.where(u == u.xx - u.xx + u, u.x, v.x) * torch.where(v != v, 2.0, v),
        lambda f, x, y: f["ux"] * f["v"],
    ),
    "vectors": (
        lambda u, v, at: dot(grad(u), grad(v)) + dot(2 * grad(u) - grad(v) / 2, (at.x, 3.0)),
        lambda f, x, y: f["ux"] * f["vx"] + f["uy"] * f["vy"]
        + (2 * f["ux"] - f["vx"] / 2) * x + 3 * (2 * f["uy"] - f["vy"] / 2),
    ),
    "divergence of a flux": (
        lambda u, v, at: div((u.x + v, u.y - v)) + div(grad(v)),
        lambda f, x, y: f["uxx"] + f["vx"] + f["uyy"] - f["vy"] + f["vxx"] + f["vyy"],
    ),
    "torch functions of forms": (
        lambda u, v, at: torch.add(u, v) + torch.sub(at.x, u.x) + torch.mul(u, v) + torch.square(v),
        lambda f, x, y: f["u"] + f["v"] + x - f["ux"] + f["u"] * f["v"] + f["v"] ** 2,
    ),
    "system in nested tuples": (
        lambda u, v, at: (u * v, (grad(u), [v.xx])),
        lambda f, x, y: (f["u"] * f["v"], f["ux"], f["uy"], f["vxx"]),
    ),
    "a factor that vanishes": (
        lambda u, v, at: (0.0 * lap(u) + 0.1) * v,
        lambda f, x, y: 0.1 * f["v"],
    ),
    "third order": (lambda u, v, at: u.xxx * u.xy, lambda f, x, y: f["uxxx"] * f["uxy"]),
}  # fmt: skip


def evaluated(residual, **settings):
    """A compiled residual on u and v, with slots by nested automatic differentiation."""
    found, problem, points = compiled(residual, **settings)

    def fields(point):
        return torch.stack([u_of(*point), v_of(*point)])

    z = slots(found.slots, problem, points, fields)
    theta = torch.tensor([p.initial for p in problem.parameters], dtype=FLOAT)
    return found, z, theta, points


@pytest.mark.parametrize("name", FORMULAS)
def test_a_residual_means_what_it_says(name):
    residual, formula = FORMULAS[name]
    found, z, theta, points = evaluated(residual)
    x, y = points.coordinates.T
    expected = formula(by_hand(x, y), x, y)
    expected = torch.stack(expected if isinstance(expected, tuple) else (expected,), -1)
    value = found.value(z, theta, points, found.remainder(points))
    assert value.shape == (5, found.equations) == expected.shape
    assert_close(value, expected, 1e-12, name)


@pytest.mark.parametrize("name", FORMULAS)
def test_derivatives_by_the_slots(name):
    found, z, theta, points = evaluated(FORMULAS[name][0])
    remainder = found.remainder(points)
    value, by_slot, by_parameter = found.derivative(z, theta, points, remainder)
    assert_close(value, found.value(z, theta, points, remainder), 1e-15)
    assert by_parameter is None

    for e in range(found.equations):
        total = derivative(lambda z, e=e: found.value(z, theta, points, remainder)[:, e].sum())(z)
        assert_close(by_slot[e].expand(5, -1), total, 1e-13)


def test_derivatives_by_the_parameters():
    def residual(u, v, at):
        return KAPPA * u.xx - torch.sin(KAPPA) * v + KAPPA, 2 - KAPPA**2 * u + u / KAPPA, -KAPPA * v

    found, z, theta, points = evaluated(residual, parameters=(KAPPA,))
    x, y = points.coordinates.T
    f, k = by_hand(x, y), 0.7
    expected = torch.stack(
        [
            k * f["uxx"] - math.sin(k) * f["v"] + k,
            2 - k**2 * f["u"] + f["u"] / k,
            -k * f["v"],
        ],
        -1,
    )
    value, _, by_parameter = found.derivative(z, theta, points, None)
    assert_close(value, expected, 1e-13)
    assert by_parameter.shape == (3, 5, 1)
    assert_close(by_parameter[0, :, 0], f["uxx"] - math.cos(k) * f["v"] + 1, 1e-13)
    assert_close(by_parameter[1, :, 0], -2 * k * f["u"] - f["u"] / k**2, 1e-13)
    assert_close(by_parameter[2, :, 0], -f["v"], 1e-13)


def test_values_in_float32():
    for residual, _ in FORMULAS.values():
        found, z, theta, points = evaluated(residual)
        single = points.to("cpu", torch.float32)
        remainder = found.remainder(single)
        value = found.value(z.float(), theta.float(), single, remainder)
        by_slot = found.derivative(z.float(), theta.float(), single, remainder)[1]
        assert value.dtype == by_slot.dtype == torch.float32
        expected = found.value(z, theta, points, found.remainder(points))
        assert_close(value.double(), expected, 1e-5)


def test_slots_that_are_read_do_not_depend_on_the_points():
    def read(residual, **settings):
        found = compiled(residual, **settings)[0]
        names = [[slot[0][0][0], *slot[0][0][2]] for slot in found.slots]
        return [sorted(names[i] for i in own) for own in found.reads]

    u, uxx, v = [0, 0, 0], [0, 2, 0], [1, 0, 0]
    assert read(lambda u, v, at: torch.where(at.x > 5, u.xx, u)) == [[u, uxx]]
    assert read(lambda u, v, at: torch.where(v > 0, u.xx, u)) == [[u, uxx]]
    assert read(lambda u, v, at: (u * v, u.xx, torch.sin(v))) == [[u, v], [uxx], [v]]
    assert read(lambda u, v, at: (v, u.xx - 1)) == [[v], [uxx]]
    assert read(lambda u, v, at: (0 * at.x * u * v, u**2)) == [[u, v], [u]]
    found, _, _ = compiled(lambda u, v, at: (KAPPA * u, v), parameters=(KAPPA,))
    assert found.reads_parameters == (0,)
    found, _, _ = compiled(lambda u, v, at: (u, v), parameters=(KAPPA,))
    assert found.reads_parameters == ()


# -- the point -----------------------------------------------------------------------------------
def test_vector_coordinates_are_a_vector_and_single_names_work_too():
    def residual(u, at):
        return dot(at.x, grad(u)), dot(u.x, at.x), at.x1 * u.x1, at.x[1] * u, at.x2 * u

    found, _, points = compiled(residual, box=CUBE, fields=("u",))
    z = torch.randn(5, len(found.slots), dtype=FLOAT)
    value = found.value(z, z.new_zeros(0), points, None)
    alphas = [slot[0][0][2] for slot in found.slots]
    gradient = z[:, [alphas.index(alpha) for alpha in multi_indices(1, 3)]]
    x, u = points.coordinates, z[:, alphas.index((0, 0, 0))]
    expected = [(gradient * x).sum(1)] * 2 + [x[:, 0] * gradient[:, 0]] + [x[:, 1] * u] * 2
    assert_close(value, torch.stack(expected, -1), 1e-14)
    one = slots_of(lambda u, at: u.x1x3, box=CUBE, fields=("u",))
    assert one == slots_of(lambda u, at: u.d("x3", "x1"), box=CUBE, fields=("u",))


def test_time_is_not_part_of_space():
    def parts(u, at):
        assert len(grad(u)) == 2
        return u.t - lap(u)

    assert slots_of(parts, box=SPACE_TIME, fields=("u",)) == slots_of(
        lambda u, at: u.t - u.xx - u.yy, box=SPACE_TIME, fields=("u",)
    )
    ode = Box(t=(0, 1), time=None)
    assert slots_of(lambda u, at: lap(u), box=ode, fields=("u",)) == slots_of(
        lambda u, at: u.tt, box=ode, fields=("u",)
    )
    named = Box(s=(0, 1), x=(0, 1), time="s")
    assert slots_of(lambda u, at: lap(u), box=named, fields=("u",)) == slots_of(
        lambda u, at: u.xx, box=named, fields=("u",)
    )


def test_linked_points_have_their_own_slots_and_coordinates():
    region = Linked(BOX, {"near": (0.1, 0.0), "far": (2.0, -1.0)})

    def residual(u, v, at):
        return u(at.near) - u, u.x(at.near) * v(at.far) - at.far.x, lap(u)(at.far) - at.near.y

    found, z, theta, points = evaluated(residual, where=region)
    places = {place for slot in found.slots for (_, place, _), _ in slot}
    assert places == {"", "near", "far"} and len(found.slots) == 4
    value = found.value(z, theta, points, None)
    x, y = points.coordinates.T
    here, near, far = by_hand(x, y), by_hand(x + 0.1, y), by_hand(x + 2.0, y - 1.0)
    expected = [
        near["u"] - here["u"],
        near["ux"] * far["v"] - (x + 2.0),
        far["uxx"] + far["uyy"] - y,
    ]
    assert_close(value, torch.stack(expected, -1), 1e-13)


def test_slots_of_two_places_are_one_form():
    region = BOX.opposite("x")
    found, _, _ = compiled(lambda u, v, at: u - u(at.opposite), where=region)
    assert len(found.slots) == 1 and found.constant is not None


def test_normals_and_given_values_are_read():
    found, z, theta, points = evaluated(
        lambda u, v, at: dot(at.normal, grad(u)) - at.normal[0], where=BOX.faces("x")
    )
    x, y = points.coordinates.T
    sign = points.normals[:, 0]
    assert set(sign.tolist()) == {-1.0, 1.0}
    value = found.value(z, theta, points, None)
    assert_close(value[:, 0], sign * by_hand(x, y)["ux"] - sign, 1e-13)


# -- what is refused -----------------------------------------------------------------------------
def _two_numbers(u, v, at):
    return torch.stack([u.as_tensor(), v.as_tensor()])[None]


calls = {"number": 0}


def _never_the_same(u, v, at):
    calls["number"] += 1
    return u.x * v if calls["number"] == 1 else u.y * v


def _ever_more(u, v, at):
    calls["number"] += 1
    return u if calls["number"] == 1 else (u, u)


def _ever_more_squares(u, v, at):
    calls["number"] += 1
    return u**2 if calls["number"] <= 2 else (u**2, u**2)


REFUSED = {
    "unknown coordinate": (lambda u, v, at: u.z, ["'.z'", "x, y"]),
    "unknown coordinate of the point": (lambda u, v, at: u - at.z, ["'at.z'", "x, y"]),
    "unknown coordinate by name": (lambda u, v, at: u.d("z"), ["unknown coordinate 'z'", "x, y"]),
    "time where there is none": (lambda u, v, at: u.t - lap(u), ["'.t'", "x, y"]),
    "a near miss": (lambda u, v, at: u.xX, ["'.xX'"]),
    "a method without brackets": (lambda u, v, at: u.exp, ["function", "brackets"]),
    "product rule": (lambda u, v, at: (at.x * u.x).x, ["product rule", "k * u.xx"]),
    "product of fields": (lambda u, v, at: (u * v).x, ["product rule"]),
    "lap of a product": (lambda u, v, at: lap(u * v), ["lap", "by hand"]),
    "grad of a function": (lambda u, v, at: grad(torch.sin(u))[0], ["grad", "by hand"]),
    "derivative of a source": (lambda u, v, at: (u - at.x**2).x, ["by hand", "sum"]),
    "lap of a number": (lambda u, v, at: lap(3.0) + u, ["lap expects a field", "float"]),
    "div of one field": (lambda u, v, at: div((u,)), ["div of 1", "2 coordinates (x, y)"]),
    "vectors of two lengths": (lambda u, v, at: dot(grad(u), (1, 2, 3)), ["2 and 3"]),
    "vector plus number": (lambda u, v, at: dot(grad(u) + 1, (1, 1)), ["entry by entry"]),
    "vector times vector": (lambda u, v, at: dot(grad(u) * grad(v), (1, 1)), ["dot(a, b)"]),
    "normal inside": (lambda u, v, at: at.normal[0] * u, ["at.normal", "faces"]),
    "branch on a field": (lambda u, v, at: u if u > 0 else v, ["branch", "torch.where"]),
    "branch on a form": (lambda u, v, at: u if u.x else v, ["branch", "torch.where"]),
    "branch on equality": (lambda u, v, at: u if u == 0 else v, ["branch", "torch.where"]),
    "branch on inequality": (lambda u, v, at: u if u != 0 else v, ["branch", "torch.where"]),
    "branch on the point": (lambda u, v, at: u if at.x > 0.5 else v, ["branch", "torch.where"]),
    "min of a field": (lambda u, v, at: min(u, v), ["branch", "torch.where"]),
    "max of a field": (lambda u, v, at: max(u, 0), ["branch", "torch.where"]),
    "chained comparison": (lambda u, v, at: torch.where(0 < u < 1, u, v), ["torch.where"]),
    "float of the point": (lambda u, v, at: u - float(at.x), ["branch", "float()"]),
    "math.sin of a field": (lambda u, v, at: math.sin(u), ["torch.sin", "math.sin"]),
    "math.sin of the point": (lambda u, v, at: u - math.sin(at.x), ["float()"]),
    "numpy of a field": (lambda u, v, at: np.sin(u), ["numpy", "torch"]),
    "numpy array of a field": (lambda u, v, at: np.asarray(u), ["numpy", "torch"]),
    "a numpy array": (lambda u, v, at: u * np.ones(3), ["ndarray", "tensors"]),
    "a string": (lambda u, v, at: u * "2", ["str", "numbers"]),
    "call with a number": (lambda u, v, at: u(0.5), ["float", "u(at.NAME)"]),
    "linked point that is not there": (lambda u, v, at: u - u(at.opposite), ["at.opposite"]),
    "list of a field": (lambda u, v, at: list(u), ["iterated", "grad(u)"]),
    "a coefficient that is not a number": (lambda u, v, at: math.nan * u.xx, ["nan"]),
    "branch on a Parameter's value": (lambda u, v, at: u if KAPPA == 1 else v, ["kappa"]),
    "division by zero": (lambda u, v, at: u / 0, ["zero"]),
    "two few arguments": (lambda u, at: u, ["positional argument", "one argument per field (2"]),
    "too many arguments": (lambda u, v, w, at: u, ["argument", "one argument per field (2"]),
    "nothing": (lambda u, v, at: None, ["NoneType", "number per equation"]),
    "an empty tuple": (lambda u, v, at: (), ["returned nothing"]),
    "a string back": (lambda u, v, at: "u", ["str", "number per equation"]),
    "a field that is not called": (lambda u, v, at: lap, ["function"]),
    "a matrix": (_two_numbers, ["shape (1, 2)", "one number per equation"]),
    "a condition": (lambda u, v, at: u > v, ["dtype torch.bool", "floating-point"]),
    "an integer tensor": (lambda u, v, at: torch.round(u).long(), ["dtype torch.int64"]),
    "complex numbers": (lambda u, v, at: torch.complex(u, v), ["complex"]),
    "no field": (lambda u, v, at: at.x - 1, ["does not depend on any field"]),
    "random numbers": (lambda u, v, at: u - torch.randn(2)[0], ["random", "once, outside"]),
    "random numbers like a field": (lambda u, v, at: u - torch.rand_like(v), ["random", "outside"]),
    "no field in one of two nonlinear equations": (
        lambda u, v, at: (u * v, at.x),
        ["equation 2", "any field"],
    ),
    "infinite divisor": (lambda u, v, at: u / math.inf, ["inf"]),
    "no field in one equation": (lambda u, v, at: (u, at.x), ["equation 2", "any field"]),
    "a number": (lambda u, v, at: 1.0, ["does not depend on any field"]),
    "a mistake in the code": (lambda u, v, at: u + undefined, ["NameError", "undefined"]),  # noqa: F821
    "division of numbers": (lambda u, v, at: u * (1 / 0), ["ZeroDivisionError"]),
    "an unlisted Parameter": (lambda u, v, at: KAPPA * u, ["'kappa'", "Problem(parameters=...)"]),
    "an unlisted Parameter alone": (lambda u, v, at: u - KAPPA, ["'kappa'", "parameters"]),
    "a branch on a Parameter": (lambda u, v, at: u if KAPPA else v, ["kappa", "torch.where"]),
    "a vector of sources": (
        lambda u, v, at: u - at.x * torch.ones(2),
        ["shape (2,)", "one number"],
    ),
    "an axis of one": (lambda u, v, at: u - torch.ones(1), ["shape (1,)", "one number"]),
    "a vector in one of two equations": (lambda u, v, at: (u - torch.ones(3), v), ["shape (3,)"]),
    "a complex source": (lambda u, v, at: u - torch.tensor(1 + 2j), ["dtype torch.complex64"]),
    "one equation, then two": (_ever_more, ["(5, 2)", "1 equation", "same at every call"]),
    "one nonlinear equation, then two": (_ever_more_squares, ["(5, 2)", "same at every call"]),
    "not always the same": (_never_the_same, ["same at every call"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_mistakes_name_the_term_and_what_to_do(name):
    residual, words = REFUSED[name]
    calls["number"] = 0
    with pytest.raises(UserError) as caught:
        found, _, points = compiled(residual)
        z = torch.ones(len(points), len(found.slots), dtype=FLOAT)
        found.value(z, z.new_zeros(0), points, found.remainder(points))
    message = str(caught.value)
    assert message.startswith("term 'eq': ") and message.count("term 'eq'") == 1
    for word in words:
        assert word in message, message


@pytest.mark.parametrize("residual", [lambda u, at: lap(u) - at.x**2, lambda u, at: (u - at.x, u)])
def test_a_source_that_is_the_vector_of_coordinates_is_refused(residual):
    with pytest.raises(UserError, match=r"term 'eq': the residual has shape \(2,\) at a point"):
        compiled(residual, box=Box.cube(2), fields=("u",))


@pytest.mark.parametrize(
    ("name", "words"),
    [("x", "the coordinate x"), ("place", "at.place itself"), ("normal", "at.normal itself")],
)
def test_linked_points_cannot_be_hidden(name, words):
    region = Linked(BOX, {name: (0.1, 0.0)})
    with pytest.raises(UserError, match=f"term 'eq': at.{name} .* hidden: it is {words}"):
        compiled(lambda u, v, at: u, where=region)


def test_given_values_and_linked_points_have_different_names():
    region = Linked(BOX, {"near": (0.1, 0.0)})
    term = Term("eq", region, lambda u, at: u - at.near)
    points = region.draw(2, Uniform(), torch.Generator())
    points = replace(points, values={"near": points.coordinates[:, 0]})
    with pytest.raises(UserError, match=r"term 'eq': at\.near .* both a given value and a linked"):
        record(term, Problem(fields=("u",), terms=[term], domain=BOX), points)


# -- indices -------------------------------------------------------------------------------------
def test_multi_indices_are_all_of_one_order():
    assert multi_indices(0, 2) == [(0, 0)]
    assert multi_indices(2, 2) == [(2, 0), (1, 1), (0, 2)]
    assert len(multi_indices(4, 3)) == 15
    assert factorial((3, 0, 2)) == 12


@pytest.mark.parametrize(
    ("names", "text", "expected"),
    [
        (("x", "y"), "xxy", ["x", "x", "y"]),
        (("x1", "x2", "x12"), "x1x12x2", ["x1", "x12", "x2"]),
        (("x1", "x2"), "x3", None),
        (("x", "xy", "z"), "xyz", ["xy", "z"]),
        (("x", "xy", "yz"), "xyz", ["x", "yz"]),
        (("x",), "", []),
    ],
)
def test_names_of_derivatives_are_split_into_coordinates(names, text, expected):
    assert Coordinates(names).parse(text) == expected


def test_vector_name_is_the_common_stem():
    assert Coordinates(("x1", "x2")).vector == "x"
    assert Coordinates(("t", "x1", "x2"), "t").vector == "x"
    assert Coordinates(("x", "y")).vector == ""
    assert Coordinates(("x", "x1")).vector == ""
    assert Coordinates(("x", "x1", "x2"), "x").vector == ""
