"""Solutions by name, on grids and in expressions, against nested automatic differentiation."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import oracles
import pytest
import references
import torch
from torch import nn

from pinnkfac import Box, Points, Problem, Term, UserError, dot, grad, lap
from pinnkfac.domain import PointSet
from pinnkfac.nets import MlpSettings
from pinnkfac.problem.signature import Signature
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.solution import Solution, net_fields

FLOW = Signature(
    ("u", "v", "net"),
    Box(t=(0, 1), x=(0, 1), y=(0, 2)),
    {"u": "m/s", "x": "m"},
    {"velocity": ("u", "v")},
)
NETS = {
    "tanh": MlpSettings(widths=(6, 5)),
    "sin, residual": MlpSettings(widths=(5, 5), activation="sin", residual=True),
    "periodic": MlpSettings(widths=(6,), periodic=("x",), harmonics=2),
    "Fourier": MlpSettings(widths=(6,), fourier_features=4, fourier_scale=0.3),
}


def solution_of(signature=FLOW, settings=NETS["tanh"], **coefficients):
    return Solution(signature, settings.make(signature, 1), coefficients)


def random_points(number=7):
    x = torch.rand(number, 3, dtype=torch.float64) * torch.tensor([1.0, 1.0, 2.0])
    return x, dict(zip("txy", x.unbind(1), strict=True))


def close(actual, expected, rtol=1e-10):
    actual = torch.as_tensor(actual)
    oracles.assert_close(actual, expected.to(actual.dtype), rtol)


# -- derivatives by name -------------------------------------------------------------------------
@pytest.mark.parametrize("settings", NETS.values(), ids=NETS)
@pytest.mark.parametrize("name", ["t", "x", "xy", "tx", "yyx", "xxxx", "txyy"])
def test_derivatives_are_those_of_nested_differentiation(settings, name):
    solution = solution_of(settings=settings)
    x, coordinates = random_points()
    index = tuple("txy".index(c) for c in name)
    full = oracles.derivatives(solution.net, x, len(name))[-1]
    for k, field in enumerate(FLOW.fields):
        expected = full[(slice(None), k, *index)]
        close(getattr(solution[field], name)(**coordinates), expected)
        close(solution[field].d(*name)(**coordinates), expected)


def test_operators_in_space_leave_time_out():
    solution = solution_of()
    x, coordinates = random_points()
    _, first, second, _, fourth = oracles.derivatives(solution.net, x, 4)
    laplacian = second[:, :, 1, 1] + second[:, :, 2, 2]
    bilaplacian = sum(fourth[:, :, i, i, j, j] for i in (1, 2) for j in (1, 2))
    close(solution.u.lap(**coordinates), laplacian[:, 0])
    close(solution.u.lap.lap(**coordinates), bilaplacian[:, 0])
    close(solution.v.grad(**coordinates), first[:, 1, 1:])
    close(solution.velocity.div(**coordinates), first[:, 0, 1] + first[:, 1, 2])
    close(solution.velocity.lap(**coordinates), laplacian[:, :2])
    close(solution.velocity.t(**coordinates), first[:, :2, 0])
    close(solution.u.t.grad(**coordinates), second[:, 0, 0, 1:])


def test_many_points_pass_in_pieces(monkeypatch):
    solution = solution_of()
    x, coordinates = random_points(100)
    value = oracles.derivatives(solution.net, x, 2)
    monkeypatch.setattr(net_fields, "LAYER_BYTES", 1)  # pieces of 16
    monkeypatch.setattr(net_fields, "POINTS", 33)
    close(solution.u.xy(**coordinates), value[2][:, 0, 1, 2])
    close(solution(x), value[0])
    product = solution.evaluate(lambda u, v, p, at: u.x * v * at.t, **coordinates)
    close(product, value[1][:, 0, 1] * value[0][:, 1] * x[:, 0])


def test_derivatives_follow_a_net_that_is_trained_frozen_and_moved():
    solution = solution_of()
    x, coordinates = random_points()
    before = solution.u.x(**coordinates)
    with torch.no_grad():
        solution.net.layers[0].weight.mul_(1.5)
    trained = oracles.derivatives(solution.net, x, 1)[1][:, 0, 1]
    assert not torch.allclose(before, trained)
    close(solution.u.x(**coordinates), trained)
    solution.net.requires_grad_(False)
    close(Solution(FLOW, solution.net).u.x(**coordinates), trained)
    solution.net.float()
    single = solution.u.x(**coordinates)
    assert single.dtype == torch.float32
    close(single, trained, rtol=1e-5)


class Shifted(nn.Module):
    """A net with a fixed tensor of its own, which its rules hold as a constant."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(1, 4), nn.Linear(4, 1)
        self.register_buffer("shift", torch.linspace(-1, 1, 4))

    def forward(self, x):
        return self.b(torch.tanh(self.a(x) + self.shift))


def test_the_constants_of_a_net_move_with_it():
    solution = Solution(Signature(("u",), Box(x=(0, 1))), Shifted().double())
    x = torch.rand(5, 1, dtype=torch.float64)
    expected = oracles.derivatives(solution.net, x, 2)[2][:, 0, 0, 0]
    close(solution.u.xx(x=x[:, 0]), expected)
    solution.net.float()
    close(solution.u.xx(x=x[:, 0]), expected, rtol=1e-5)


# -- coordinates and what comes back -------------------------------------------------------------
def test_numbers_give_a_float_and_arrays_an_array():
    solution = solution_of()
    value = solution.u(t=0.5, x=0.25, y=1)
    assert type(value) is float
    expected = solution(torch.tensor([[0.5, 0.25, 1.0]], dtype=torch.float64))[0, 0]
    assert value == pytest.approx(float(expected), rel=1e-14)
    row = solution.u(t=0.5, x=[0.1, 0.25], y=np.float64(1))
    assert isinstance(row, np.ndarray) and row.shape == (2,) and row[1] == pytest.approx(value)
    outer = solution.u.x(t=0.5, x=np.array([[0.1], [0.25]]), y=np.array([0, 1, 2]))
    assert outer.shape == (2, 3) and outer.dtype == np.float64
    assert outer[1, 1] == pytest.approx(solution.u.x(t=0.5, x=0.25, y=1), rel=1e-12)
    assert solution.velocity(t=0.5, x=outer * 0, y=0).shape == (2, 3, 2)
    assert solution.u.grad(t=0.5, x=0.1, y=0.3).shape == (2,)
    for empty in (solution.u, solution.u.xx):
        assert empty(t=0.5, x=[], y=0).shape == (0,)


def test_a_tensor_gives_a_tensor_without_a_graph():
    solution = solution_of()
    t = torch.rand(4, 1, requires_grad=True)
    value = solution.u(t=t, x=torch.tensor([0, 1]), y=0.5)
    assert isinstance(value, torch.Tensor) and value.shape == (4, 2) and not value.requires_grad
    assert isinstance(solution.u(t=torch.tensor(0.5), x=0, y=0), torch.Tensor)
    both = solution.evaluate(lambda u, v, p, at: (u, grad(v)), t=t, x=0.5, y=0.5)
    assert [tuple(b.shape) for b in both] == [(4, 1), (4, 1, 2)]


@pytest.mark.parametrize(
    ("coordinates", "culprits"),
    [
        ({"t": 0.5, "x": 0.1}, ["u", "coordinate y is missing", "t, x, y"]),
        ({}, ["coordinates t, x, y are missing"]),
        ({"t": 0.5, "x": 0.1, "yy": 1}, ["no coordinate 'yy'", "Did you mean 'y'"]),
        ({"t": 0.5, "x": "0.1", "y": 1}, ["x='0.1'", "a number"]),
        ({"t": 0.5, "x": [1, [2]], "y": 1}, ["x=[1, [2]]"]),
        ({"t": None, "x": 0.1, "y": 1}, ["t=None"]),
        ({"t": True, "x": 0.1, "y": 1}, ["t=True"]),
        ({"t": 1j, "x": 0.1, "y": 1}, ["t=1j"]),
        ({"t": torch.tensor([True]), "x": 0.1, "y": 1}, ["t=tensor([True])"]),
        ({"t": [0, 1], "x": [0, 1, 0.5], "y": 1}, ["t has (2,)", "x has (3,)", "on_grid"]),
    ],
)
def test_a_wrong_coordinate_is_named(coordinates, culprits):
    for function in (solution_of().u, solution_of().u.xx):
        with pytest.raises(UserError) as caught:
            function(**coordinates)
        assert all(culprit in str(caught.value) for culprit in culprits), caught.value


def test_coordinates_by_position_are_refused():
    with pytest.raises(UserError, match=r"by name, u\(t=\.\.\., x=\.\.\., y=\.\.\.\)"):
        solution_of().u(0.1, 0.2, 0.3)


def test_the_coordinates_of_a_cube_come_as_a_vector():
    signature = Signature(("u",), Box.cube(4, t=(0, 1)))
    solution = solution_of(signature)
    x = torch.rand(3, 2, 4, dtype=torch.float64)
    points = torch.cat([torch.full((6, 1), 0.5, dtype=torch.float64), x.reshape(6, 4)], dim=1)
    value, first, second = oracles.derivatives(solution.net, points, 2)
    close(solution.u(x=x, t=0.5), value[:, 0].reshape(3, 2))
    close(solution.u.x1x3(x=x, t=0.5), second[:, 0, 1, 3].reshape(3, 2))
    close(solution.u.x(x=x, t=0.5), first[:, 0, 1:].reshape(3, 2, 4))
    single = {f"x{i + 1}": x[..., i] for i in range(4)}
    close(solution.u.lap(**single, t=0.5), torch.einsum("nii->n", second[:, 0, 1:, 1:]).view(3, 2))
    assert type(solution.u(x=[0.5] * 4, t=0.5)) is float
    for wrong, culprit in (
        ({"x": 0.5}, "shape ()"),
        ({"x": [0.5] * 3}, "shape (3,)"),
        ({"x": [0.5] * 4, "x2": 0.1}, "'x2' is given twice"),
        ({"x1": 0.5}, "the vector x with 4 entries"),
    ):
        with pytest.raises(UserError) as caught:
            solution.u(t=0.5, **wrong)
        assert culprit in str(caught.value)


def test_points_outside_the_box_are_warned_of_where_they_were_asked_for():
    solution = solution_of()
    match = r"x = 1.5 is 0.5 outside \(0, 1\); y = -0.25 is 0.25 outside \(0, 2\)"
    with pytest.warns(UserWarning, match=match) as caught:
        solution.u(t=0.5, x=[0.5, 1.5], y=-0.25)
    with pytest.warns(UserWarning, match=r"evaluate: t = 2 is 1 outside"):
        solution.evaluate(lambda u, v, p, at: u, t=2, x=0, y=0)
    with pytest.warns(UserWarning, match=r"on_grid: t = -1 is 1 outside"):
        solution.on_grid(t=-1.0, x=2, y=2)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solution.u(t=np.float32(1) + np.float32(1e-7), x=0, y=2 + 1e-9)
        solution.u(t=math.nan, x=0, y=0)


# -- names ---------------------------------------------------------------------------------------
def test_unknown_names_list_the_known_ones():
    solution = solution_of()
    for function, culprits in (
        (lambda: solution.w, ["'w'", "u, v, net, velocity"]),
        (lambda: solution["velocty"], ["Did you mean 'velocity'"]),
        (lambda: solution.u.xz, ["u.xz", "t, x, y"]),
        (lambda: solution.u.d("z"), ["'z'", "t, x, y"]),
        (lambda: solution.u.div, ["u.div", "vector"]),
        (lambda: solution.velocity.grad, ["velocity.grad"]),
    ):
        with pytest.raises(UserError) as caught:
            function()
        assert all(culprit in str(caught.value) for culprit in culprits), caught.value
    assert not hasattr(solution, "w") and not hasattr(solution.u, "shape")


def test_a_field_called_as_an_attribute_is_reached_by_its_name():
    solution = solution_of()
    x, coordinates = random_points()
    assert isinstance(solution.net, nn.Module)
    close(solution["net"](**coordinates), solution.net(x)[:, 2].detach())
    assert {"u", "v", "velocity", "evaluate"} <= set(dir(solution))
    assert "u.xy" in repr(solution.u.xy) and "t, x, y" in repr(solution)


def test_a_solution_can_be_copied_and_pickled():
    solution = solution_of(nu=0.5)
    _, coordinates = random_points()
    solution.u.xx(**coordinates)
    for other in (copy.deepcopy(solution), pickle.loads(pickle.dumps(solution))):
        assert other.coefficients == {"nu": 0.5}
        close(other.u.xx(**coordinates), solution.u.xx(**coordinates), rtol=1e-14)


@pytest.mark.parametrize(
    ("points", "culprit"),
    [
        (torch.zeros(3), "(3,)"),
        (torch.zeros(3, 2), "(3, 2)"),
        (torch.zeros(1, 3, 3), "(1, 3, 3)"),
        (np.zeros((3, 3)), "ndarray"),
    ],
)
def test_points_of_another_shape_are_refused(points, culprit):
    with pytest.raises(UserError) as caught:
        solution_of()(points)
    assert culprit in str(caught.value) and "[batch, 3]" in str(caught.value)


# -- expressions ---------------------------------------------------------------------------------
def expression(u, v, p, at):
    return (
        v.x - u.y,
        u * u.x + torch.sin(at.t) * lap(v) - 3.0 * p.xxy * u.t,
        torch.where(u > 0, u, v.yy),
        dot(grad(u), grad(v)) + u.exp(),
    )


def test_expressions_are_those_of_a_residual():
    solution = solution_of()
    x, coordinates = random_points()
    problem = Problem(
        fields=FLOW.fields,
        terms=[Term("all", FLOW.domain.interior, expression)],
        domain=FLOW.domain,
    )

    def fields(point):
        return solution.net(point[None])[0]

    expected = references.residual(problem.terms[0], problem, PointSet(x), fields)
    values = solution.evaluate(expression, **coordinates)
    assert isinstance(values, tuple)
    for value, column in zip(values, expected.detach().unbind(1), strict=True):
        close(value, column)


def test_expressions_may_be_vectors_numbers_and_free_of_fields():
    solution = solution_of(nu=0.25)
    flux, number, place, large = solution.evaluate(
        lambda u, v, p, at: (solution.coefficients["nu"] * grad(u), 3, at.x * at.t, u > -1e9),
        t=[0.5, 1.0],
        x=0.5,
        y=1,
    )
    assert flux == pytest.approx(0.25 * solution.u.grad(t=[0.5, 1.0], x=0.5, y=1), rel=1e-12)
    assert number.tolist() == [3.0, 3.0] and place.tolist() == [0.25, 0.5]
    assert large.dtype == bool and large.all()
    assert type(solution.evaluate(lambda u, v, p, at: u * v, t=0, x=0, y=0)) is float
    assert solution.evaluate(lambda u, v, p, at: (u.x * v,), t=[], x=0, y=0)[0].shape == (0,)


@pytest.mark.parametrize(
    ("wrong", "culprits"),
    [
        (lambda u, at: u, ["one argument per field (3 here)"]),
        (lambda u, v, p, at: (u * v).x, ["expand the product rule"]),
        (lambda u, v, p, at: u if u.x > 0 else v, ["torch.where"]),
        (lambda u, v, p, at: np.sin(u), ["torch.sin"]),
        (lambda u, v, p, at: u + at.z, ["at.z", "t, x, y"]),
        (lambda u, v, p, at: u.z, [".z"]),
        (lambda u, v, p, at: "u", ["str"]),
        (lambda u, v, p, at: None, ["NoneType"]),
        (lambda u, v, p, at: (), ["nothing"]),
    ],
)
def test_a_mistake_in_an_expression_is_explained(wrong, culprits):
    with pytest.raises(UserError) as caught:
        solution_of().evaluate(wrong, t=[0.5, 0.6], x=0.5, y=0.5)
    message = str(caught.value)
    assert message.startswith("evaluate: ") and "residual" not in message
    assert all(culprit in message for culprit in culprits), message


# -- grids ---------------------------------------------------------------------------------------
def test_a_grid_has_the_axes_that_were_asked_for():
    solution = solution_of()
    grid = solution.on_grid(y=[0.5, 0.7], x=5, t=0.25)
    assert list(grid.axes) == ["x", "y"] and grid.fixed == {"t": 0.25}
    assert grid.axes["x"].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert grid.shape == (5, 2) == grid.values["u"].shape == grid.coordinates["t"].shape
    for name in FLOW.fields:
        assert np.array_equal(grid.values[name], solution[name](**grid.coordinates))
    assert np.array_equal(grid.vector("velocity"), solution.velocity(**grid.coordinates))
    assert grid.values["v"][3, 1] == pytest.approx(solution.v(t=0.25, x=0.75, y=0.7), rel=1e-12)
    with pytest.raises(UserError, match=r"no vector 'u'\. Known: velocity"):
        grid.vector("u")
    assert solution.on_grid(t=0.1, x=0.2, y=0.3).values["u"].shape == ()


def test_coordinates_that_are_left_out():
    assert solution_of().on_grid().shape == (41, 41, 41)
    assert solution_of(Signature(("u",), Box(x=(0, 1)))).on_grid().shape == (101,)
    cube = solution_of(Signature(("u",), Box.cube(5, -1.0, 3.0)))
    grid = cube.on_grid()
    assert grid.shape == (101, 101) and list(grid.axes) == ["x1", "x2"]
    assert grid.fixed == {"x3": 1.0, "x4": 1.0, "x5": 1.0}
    assert list(cube.on_grid(x1=0.5).axes) == ["x2", "x3"]
    assert cube.on_grid(x4=7).shape == (7,)


@pytest.mark.parametrize(
    ("axes", "culprits"),
    [
        ({"t": 1}, ["t=1 ", "t=1.0"]),
        ({"t": 0}, ["t=0 ", "t=0.0"]),
        ({"z": 5}, ["'z'", "t, x, y"]),
        ({"t": True}, ["t=True"]),
        ({"t": "5"}, ["t='5'"]),
        ({"t": None}, ["t=None"]),
        ({"t": []}, ["t=[]"]),
        ({"t": [[0.5]]}, ["t=[[0.5]]"]),
        ({"t": [[0.5], [0.1, 0.2]]}, ["t=[[0.5], [0.1, 0.2]]", "a list of numbers"]),
        ({"t": [0.5, math.nan]}, ["t is not finite"]),
        ({"t": 2, "x": 10**5, "y": 10**5}, ["x=100000", "2.0e+10"]),
    ],
)
def test_a_wrong_axis_is_named(axes, culprits):
    with pytest.raises(UserError) as caught:
        solution_of().on_grid(**axes)
    assert all(culprit in str(caught.value) for culprit in culprits), caught.value


def test_a_solution_works_where_its_net_lies(device):
    solution = solution_of()
    x, coordinates = random_points()
    expected = oracles.derivatives(solution.net, x, 1)[1][:, 0, 1]
    solution.net.to(device)
    assert solution(x).device.type == device.type
    close(solution.u.x(**coordinates), expected)
    assert solution.u.x(**{n: v.to(device) for n, v in coordinates.items()}).device.type == (
        device.type
    )
    product = solution.evaluate(lambda u, v, p, at: 2 * u.x, **coordinates)
    close(product, 2 * expected)
    assert isinstance(solution.on_grid(t=0.5, x=2, y=2).values["u"], np.ndarray)


# -- as the loop uses it -------------------------------------------------------------------------
def test_errors_are_measured_on_any_function_of_points():
    problem = Problem(
        fields=("u", "v"),
        terms=[Term("data", Points({"x": [0.5]}, m=[1.0]), lambda u, v, at: u - at.m + v)],
        domain=Box(x=(0, 1)),
        solution=lambda at: (torch.sin(at.x), torch.cos(at.x)),
    )

    def doubled(points):
        return 2 * torch.cat([torch.sin(points), torch.cos(points)], dim=1)

    errors = ErrorMeter(problem, 100).measure(doubled)
    assert errors.relative_l2 == pytest.approx(1.0, rel=1e-12)
    assert errors.relative_l2_by_field == pytest.approx({"u": 1.0, "v": 1.0}, rel=1e-12)
    assert errors.rms == pytest.approx(math.sqrt(0.5), rel=1e-12)
