"""Boxes, their regions, given points, and how points are drawn."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from nets import FLOAT
from oracles import assert_close
from torch.func import jacrev, vmap

from pinnkfac import Box, Grid, Points, Problem, Sobol, Term, Uniform, UserError
from pinnkfac.domain import PointSet
from pinnkfac.domain.sampling import Clustered
from pinnkfac.field import Form

SAMPLINGS = [Uniform(), Sobol(), Grid()]
each_sampling = pytest.mark.parametrize("sampling", SAMPLINGS, ids=lambda s: type(s).__name__)
RANDOM = SAMPLINGS[:2]
BOX = Box(t=(0, 2), x=(-1, 1), y=(3, 7))


def draw(region, sampling=SAMPLINGS[0], number=64, seed=0):
    return region.draw(number, sampling, torch.Generator().manual_seed(seed))


# -- regions -------------------------------------------------------------------------------------
REGIONS = {
    "interior": (lambda b: b.interior, {}, 3),
    "boundary": (lambda b: b.boundary, None, 2),
    "faces in x": (lambda b: b.faces("x"), {1: (-1.0, 1.0)}, 2),
    "faces in time": (lambda b: b.faces("t", side="high"), {0: (2.0,)}, 2),
    "low face": (lambda b: b.faces("y", side="low"), {2: (3.0,)}, 2),
    "start": (lambda b: b.at(t=0), {0: (0.0,)}, 2),
    "slice inside": (lambda b: b.at(y=4.5), {2: (4.5,)}, 2),
    "line": (lambda b: b.at(t=1, y=5), {0: (1.0,), 2: (5.0,)}, 1),
    "point": (lambda b: b.at(t=0, x=0, y=3), {0: (0.0,), 1: (0.0,), 2: (3.0,)}, 0),
    "opposite": (lambda b: b.opposite("x"), {1: (-1.0,)}, 2),
    "union": (lambda b: b.faces("x", side="low") | b.at(t=0), None, 2),
}


@each_sampling
@pytest.mark.parametrize("name", REGIONS)
def test_points_lie_in_their_region(name, sampling):
    build, fixed, dimension = REGIONS[name]
    region = build(BOX)
    points = draw(region, sampling)
    x = points.coordinates
    assert region.dimension == dimension and region.coordinates.names == ("t", "x", "y")
    assert x.shape == (len(points), 3) and x.dtype == FLOAT and x.device.type == "cpu"
    low, high = torch.tensor(BOX.low), torch.tensor(BOX.high)
    assert bool(((x >= low) & (x <= high)).all())
    for i, values in (fixed or {}).items():
        assert set(x[:, i].tolist()) == set(values)
    for i in range(3):
        if fixed is not None and i not in fixed:
            assert x[:, i].unique().numel() > 1


@pytest.mark.parametrize("sampling", RANDOM, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", REGIONS)
@pytest.mark.parametrize("number", [1, 2, 50])
def test_random_draws_have_exactly_the_number_asked_for(name, sampling, number):
    region = REGIONS[name][0](BOX)
    # Of a single point there is only one.
    assert len(draw(region, sampling, number)) == (number if region.dimension else 1)


@each_sampling
def test_the_ends_of_an_interval_are_drawn_once_each(sampling):
    ends = Box(x=(-1, 3)).boundary
    assert draw(ends, sampling, 200).coordinates.tolist() == [[-1.0], [3.0]]
    assert draw(ends, sampling, 200).normals.tolist() == [[-1.0], [1.0]]


@each_sampling
def test_no_points_are_refused(sampling):
    with pytest.raises(UserError, match="at least one point"):
        draw(BOX.interior, sampling, 0)


@each_sampling
def test_the_seed_of_the_generator_decides(sampling):
    one, same, other = (draw(BOX.boundary, sampling, seed=seed).coordinates for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert torch.equal(one, other) == isinstance(sampling, Grid)


@pytest.mark.parametrize("sampling", RANDOM, ids=lambda s: type(s).__name__)
def test_draws_go_on_from_the_state_of_the_generator(sampling):
    generator = torch.Generator().manual_seed(1)
    first, second = (BOX.interior.draw(8, sampling, generator).coordinates for _ in range(2))
    assert not torch.equal(first, second)


@each_sampling
def test_drawing_leaves_the_global_generator_alone(sampling):
    before = torch.get_rng_state()
    draw(BOX.boundary, sampling)
    assert torch.equal(before, torch.get_rng_state())


# -- faces, normals, links -----------------------------------------------------------------------
@each_sampling
@pytest.mark.parametrize("number", [4, 9, 40, 100])
def test_every_face_gets_points_with_its_outward_normal(sampling, number):
    points = draw(BOX.boundary, sampling, number if isinstance(sampling, Grid) else 100)
    assert points.normals.shape == (len(points), 2)
    found = Counter()
    for (_, x, y), normal in zip(points.coordinates.tolist(), points.normals.tolist(), strict=True):
        face = {(-1.0, 0.0): x == -1, (1.0, 0.0): x == 1, (0.0, -1.0): y == 3, (0.0, 1.0): y == 7}
        assert face[tuple(normal)]
        found[tuple(normal)] += 1
    assert set(found) == {(-1.0, 0.0), (1.0, 0.0), (0.0, -1.0), (0.0, 1.0)}


@each_sampling
@pytest.mark.parametrize("dimension", [1, 2, 5])
def test_every_face_of_a_cube_gets_points(sampling, dimension):
    points = draw(Box.cube(dimension).boundary, sampling, 40 * dimension)
    assert len({tuple(n) for n in points.normals.tolist()}) == 2 * dimension


def test_faces_get_points_by_their_measure():
    """In a box of 1 by 3, two faces have a quarter of the points each, and three quarters."""
    box = Box(x=(0, 1), y=(0, 3))
    for sampling, tolerance in ((Uniform(), 0.02), (Sobol(), 0.002), (Grid(), 0.002)):
        points = draw(box.boundary, sampling, 4096)
        share = float((points.normals[:, 0] != 0).double().mean())
        assert share == pytest.approx(0.75, abs=tolerance)
    timed = Box(t=(0, 10), x=(0, 1), y=(0, 3))
    points = draw(timed.boundary, Sobol(), 4096)
    assert float((points.normals[:, 0] != 0).double().mean()) == pytest.approx(0.75, abs=0.002)


def test_time_has_no_walls():
    x = draw(BOX.boundary, number=200).coordinates
    assert bool(((x[:, 1].abs() == 1) | (x[:, 2] == 3) | (x[:, 2] == 7)).all())
    still = Box(t=(0, 2), x=(0, 1), time=None)
    assert draw(still.boundary).normals.shape == (64, 2)


def test_interiors_and_slices_have_no_normals():
    assert draw(BOX.interior).normals is None and draw(BOX.at(t=0)).normals is None
    assert draw(BOX.faces("x") | BOX.faces("y")).normals is not None
    assert draw(BOX.faces("x") | BOX.at(t=0)).normals is None


@each_sampling
def test_opposite_links_each_point_to_its_partner(sampling):
    points = draw(BOX.opposite("x"), sampling)
    assert BOX.opposite("x").link_names == ("opposite",)
    shift = torch.tensor([0.0, 2.0, 0.0], dtype=FLOAT)
    assert_close(points.links["opposite"], points.coordinates + shift, 1e-15)
    assert set(points.links["opposite"][:, 1].tolist()) == {1.0}


@each_sampling
def test_opposite_of_a_vector_links_all_directions(sampling):
    points = draw(Box.cube(3).opposite("x"), sampling, 90)
    moved = points.links["opposite"] - points.coordinates
    assert {tuple(m) for m in moved.tolist()} == {(1, 0, 0), (0, 1, 0), (0, 0, 1)}


def test_periodic_faces_can_be_joined():
    points = draw(BOX.opposite("x") | BOX.opposite("y"), Sobol())
    moved = points.links["opposite"] - points.coordinates
    assert {tuple(m) for m in moved.tolist()} == {(0, 2, 0), (0, 0, 4)}


@pytest.mark.parametrize(
    "join",
    [lambda b: b.opposite("x") | b.faces("y"), lambda b: b.faces("y") | b.opposite("x")],
)
def test_linked_and_other_points_cannot_be_joined(join):
    with pytest.raises(UserError):
        draw(join(BOX))


def test_regions_of_different_boxes_cannot_be_joined():
    with pytest.raises(UserError, match="same box"):
        BOX.interior | Box(x=(0, 1)).interior


def test_vector_name_stands_for_all_faces():
    box = Box.cube(3, t=(0, 1))
    named = draw(box.faces("x"))
    assert_close(named.coordinates, draw(box.boundary).coordinates, 0.0)
    assert box.faces("x").dimension == 3


# -- samplings -----------------------------------------------------------------------------------
def test_sobol_puts_one_point_in_every_cell():
    """64 points in 2d: every elementary interval of area 1/64 has exactly one."""
    x = draw(Box(x=(0, 1), y=(0, 1)).interior, Sobol(), 64).coordinates
    for columns, rows in ((8, 8), (64, 1), (1, 64), (16, 4)):
        cells = Counter(zip((x[:, 0] * columns).int().tolist(), (x[:, 1] * rows).int().tolist(),
                            strict=True))  # fmt: skip
        assert len(cells) == 64


def test_sobol_is_closer_to_the_integral_than_uniform():
    def error(sampling, seed):
        x = draw(Box(x=(0, 1), y=(0, 1)).interior, sampling, 256, seed).coordinates
        return abs(float((x[:, 0] * x[:, 1] ** 2).mean()) - 1 / 6)

    uniform, sobol = (max(error(s, seed) for seed in range(10)) for s in RANDOM)
    assert sobol < uniform / 10


def test_grid_is_the_midpoints_of_cells():
    x = draw(Box(x=(0, 1), y=(2, 6)).interior, Grid(), 17).coordinates
    axis = [0.125, 0.375, 0.625, 0.875]
    assert sorted(map(tuple, x.tolist())) == sorted((a, 2 + 4 * b) for a in axis for b in axis)
    assert len(draw(Box.cube(3).interior, Grid(), 100)) == 125
    assert draw(Box(x=(0, 1)).interior, Grid(), 2).coordinates.tolist() == [[0.25], [0.75]]


# -- points that are denser at faces ---------------------------------------------------------------
@pytest.mark.parametrize("faces", [0.0, 0.4, 0.9])
def test_weights_are_the_density_of_the_cube_over_that_of_the_points(faces):
    """The determinant of the map, which goes from 0 to 1 in every coordinate."""
    for dimension in (1, 2, 5, 7):
        u = torch.rand(20, dimension, dtype=FLOAT, generator=torch.Generator().manual_seed(1))
        u[0], u[1] = 0.0, 1.0
        rule = Clustered(Uniform(), faces)
        x, weights = rule.moved(u)
        assert_close(x[:2], u[:2], 1e-15)
        slopes = vmap(jacrev(lambda point, rule=rule: rule.moved(point[None])[0][0]))(u)
        assert_close(weights, torch.linalg.det(slopes), 1e-13)
        c = faces * min(1.0, (2 / dimension) ** 0.5) * (dimension < 7)
        at_a_corner = (1.0 - c) ** dimension
        assert_close(weights[:2], torch.full((2,), at_a_corner, dtype=FLOAT), 1e-13)


@pytest.mark.parametrize("dimension", [1, 2, 5, 6])
def test_weights_do_not_scatter_in_many_dimensions(dimension):
    u = Sobol().unit(2**14, dimension, torch.Generator().manual_seed(0))
    weights = Clustered(Sobol(), 0.9).moved(u)[1]
    expected = (1.0 + (math.pi**2 / 8 - 1.0) * 0.81 * min(1.0, 2 / dimension)) ** dimension
    assert float(weights.mean()) == pytest.approx(1.0, rel=0.02)
    assert float(weights.square().mean()) == pytest.approx(expected, rel=0.03)
    assert expected < 1.5


@each_sampling
def test_weighted_means_are_those_over_the_region(sampling):
    """On the interior and on faces of different sizes, which get points by their measure."""
    box = Box(x=(0, 1), y=(0, 3))
    rule = Clustered(sampling, 0.9)
    inside, faces = draw(box.interior, rule, 10_000), draw(box.boundary, rule, 10_000)
    x, y = inside.coordinates.unbind(1)
    assert float((inside.weights * x**2 * y).mean()) == pytest.approx(0.5, rel=0.05)
    on_x = faces.normals[:, 0] != 0
    assert float(on_x.double().mean()) == pytest.approx(0.75, abs=0.02)
    y = faces.coordinates[on_x, 1]
    assert float((faces.weights[on_x] * y**2).mean()) == pytest.approx(3.0, rel=0.05)
    near = (inside.coordinates[:, 0] < 0.05).double()
    assert float(near.mean()) > 1.5 * 0.05
    assert float((inside.weights * near).mean()) == pytest.approx(0.05, rel=0.1)


def test_single_points_weigh_1_and_given_ones_nothing_else():
    rule = Clustered(Sobol(), 0.9)
    assert draw(Box(x=(0, 1)).faces("x"), rule).weights.tolist() == [1.0, 1.0]
    given = Points({"x": [0.1, 0.5]})
    assert given.draw(2, rule, torch.Generator()).weights is None


# -- boxes ---------------------------------------------------------------------------------------
def test_box_knows_its_coordinates():
    assert BOX.coordinates.names == ("t", "x", "y") and BOX.coordinates.time == "t"
    assert BOX.coordinates.space == ("x", "y")
    assert BOX.low == (0.0, -1.0, 3.0) and BOX.high == (2.0, 1.0, 7.0)
    cube = Box.cube(3, -5, 5, t=(0, 1))
    assert cube.coordinates.names == ("t", "x1", "x2", "x3") and cube.coordinates.vector == "x"
    assert cube.low == (0, -5, -5, -5) and cube.high == (1, 5, 5, 5)
    assert Box({"r": (0, 1)}, z=(1, 2)).coordinates.names == ("r", "z")
    assert Box(s=(0, 1), x=(0, 1), time="s").coordinates.space == ("x",)


def test_text_of_a_box_and_its_regions():
    assert repr(BOX) == "Box(t=(0, 2), x=(-1, 1), y=(3, 7))"
    assert str(BOX.interior) == "interior" and str(BOX.at(t=0)) == "at(t=0)"
    assert "x" in str(BOX.faces("x")) and "low" in str(BOX.faces("x", side="low"))
    assert len(repr(Box.cube(100))) < 200


BAD_BOXES = {
    "nothing": (lambda: Box(), ["at least one range"]),
    "empty": (lambda: Box(x=(1, 1)), ["'x'", "empty", "low < high"]),
    "reversed": (lambda: Box(x=(1, 0)), ["'x'", "reversed", "low < high"]),
    "infinite": (lambda: Box(x=(0, math.inf)), ["'x'", "finite"]),
    "not a number": (lambda: Box(x=(0, math.nan)), ["'x'"]),
    "one number": (lambda: Box(x=3), ["'x'", "two numbers"]),
    "three numbers": (lambda: Box(x=(0, 1, 2)), ["'x'", "two numbers"]),
    "text": (lambda: Box(x="ab"), ["'x'", "two numbers"]),
    "name of a method": (lambda: Box(normal=(0, 1)), ["'normal'", "cannot name"]),
    "name of a method of fields": (lambda: Box(d=(0, 1)), ["'d'", "cannot name", "u.d"]),
    "name of a function of fields": (lambda: Box(exp=(0, 1)), ["'exp'", "cannot name"]),
    "name in a form": (lambda: Box(x=(0, 1), linear=(0, 1)), ["'linear'", "cannot name"]),
    "name in the point": (lambda: Box(place=(0, 1)), ["'place'", "at.place"]),
    "name of a linked point": (lambda: Box(opposite=(0, 1)), ["'opposite'", "at.opposite"]),
    "name in a tensor": (lambda: Box(T=(0, 1), x=(0, 1)), ["'T'", "cannot name"]),
    "stem of names": (lambda: Box(d1=(0, 1), d2=(0, 1)), ["'d'", "cannot name the vector"]),
    "word of Python": (lambda: Box({"lambda": (0, 1)}), ["'lambda'", "cannot name"]),
    "no name": (lambda: Box({"1x": (0, 1)}), ["'1x'", "cannot name"]),
    "unknown time": (lambda: Box(x=(0, 1), time="s"), ["time='s'", "x"]),
    "time only": (lambda: Box(t=(0, 1)), ["no coordinate of space", "time=None"]),
    "no dimension": (lambda: Box.cube(0), ["dimension is 0"]),
    "unknown face": (lambda: BOX.faces("z"), ["unknown coordinate 'z'", "t, x, y"]),
    "no face": (lambda: BOX.faces(), ["at least one coordinate"]),
    "unknown side": (lambda: BOX.faces("x", side="left"), ["side='left'", "low, high, both"]),
    "unknown slice": (lambda: BOX.at(z=0), ["unknown coordinate 'z'", "t, x, y"]),
    "no slice": (lambda: BOX.at(), ["at least one coordinate"]),
    "slice outside": (lambda: BOX.at(t=3), ["at(t=3)", "outside", "0.0 to 2.0"]),
    "slice at no number": (lambda: BOX.at(t=math.nan), ["t"]),
    "unknown opposite": (lambda: BOX.opposite("z"), ["unknown coordinate 'z'"]),
}


@pytest.mark.parametrize("name", BAD_BOXES)
def test_bad_boxes_say_what_to_do(name):
    build, words = BAD_BOXES[name]
    with pytest.raises(UserError) as caught:
        build()
    for word in words:
        assert word in str(caught.value)


# -- given points --------------------------------------------------------------------------------
def test_given_points_come_back_in_the_order_of_the_box():
    x, t = [0.1, 0.2, 0.3], np.array([1, 2, 3])
    region = Points({"x": x, "t": t}, measured=torch.tensor([4.0, 5.0, 6.0]))
    box = Box(t=(0, 3), x=(0, 1))
    term = Term("data", region, lambda u, at: u - at.measured)
    bound = Problem(fields=("u",), terms=[term], domain=box).terms[0].where
    for sampling in SAMPLINGS:
        points = draw(bound, sampling, 100)
        assert_close(
            points.coordinates, torch.tensor([[1, 0.1], [2, 0.2], [3, 0.3]], dtype=FLOAT), 0.0
        )
        assert points.values["measured"].tolist() == [4.0, 5.0, 6.0]
        assert points.coordinates.dtype == points.values["measured"].dtype == FLOAT
    assert str(region) == str(bound) == "3 given points"


def test_given_points_serve_two_problems():
    region = Points({"x": [0.1], "t": [0.9]})
    term = Term("data", region, lambda u, at: u)
    first = Problem(fields=("u",), terms=[term], domain=Box(t=(0, 1), x=(0, 1)))
    Problem(fields=("u",), terms=[term], domain=Box(x=(0, 1), t=(0, 1)))
    assert draw(first.terms[0].where).coordinates.tolist() == [[0.9, 0.1]]


def test_given_arrays_are_copied():
    x = np.zeros(3)
    region = Points({"x": x})
    x[:] = 1.0
    assert not draw(region).coordinates.any()


BAD_POINTS = {
    "nothing": (lambda: Points({}), ["one array per coordinate"]),
    "lengths": (lambda: Points({"x": [1, 2], "y": [1, 2, 3]}), ["x has 2", "y has 3"]),
    "values of another length": (lambda: Points({"x": [1, 2]}, m=[1]), ["x has 2", "m has 1"]),
    "columns": (lambda: Points({"x": np.zeros((3, 1))}), ["'x'", "(3, 1)", "(N,)"]),
    "a number": (lambda: Points({"x": 0.5}), ["'x'", "()"]),
    "not a number": (lambda: Points({"x": [1, math.nan]}), ["'x'", "NaN", "drop"]),
    "infinite value": (lambda: Points({"x": [1.0]}, m=[math.inf]), ["'m'", "infinite"]),
    "a value twice": (lambda: Points({"x": [1.0]}, x=[1.0]), ["'x'", "the coordinate x"]),
    "a vector twice": (
        lambda: Points({"x1": [1.0], "x2": [1.0]}, x=[1.0]),
        ["'x'", "hidden", "the vector of the coordinates x1, x2"],
    ),
    "a normal": (lambda: Points({"x": [1.0]}, normal=[1.0]), ["'normal'", "at.normal"]),
    "a place": (lambda: Points({"x": [1.0]}, place=[1.0]), ["'place'", "at.place"]),
    "text": (lambda: Points({"x": ["a"]}), ["'x'", "real numbers"]),
    "complex": (lambda: Points({"x": [1j]}), ["'x'", "real numbers"]),
}


@pytest.mark.parametrize("name", BAD_POINTS)
def test_bad_points_say_what_to_do(name):
    build, words = BAD_POINTS[name]
    with pytest.raises(UserError) as caught:
        build()
    for word in ("Points", *words):
        assert word in str(caught.value)


@pytest.mark.parametrize("given", [{"x": [0.5]}, {"t": [0.5], "x": [0.5], "y": [0.5]}])
def test_given_points_need_the_coordinates_of_the_box(given):
    term = Term("data", Points(given), lambda u, at: u)
    with pytest.raises(UserError, match="coordinates are t, x"):
        Problem(fields=("u",), terms=[term], domain=Box(t=(0, 1), x=(0, 1)))


def test_values_cannot_hide_behind_the_vector_of_a_problem_in_time():
    given = Points({"t": [0.5], "x1": [0.5], "x2": [0.5]}, x=[1.0])
    term = Term("data", given, lambda u, at: u - at.x)
    with pytest.raises(UserError, match=r"value 'x' would be hidden, at\.x is the vector"):
        Problem(fields=("u",), terms=[term], domain=Box.cube(2, t=(0, 1)))


@pytest.mark.parametrize("name", [n for n in dir(Form) if not n.startswith("_")])
def test_no_coordinate_has_the_name_of_something_in_a_form(name):
    with pytest.raises(UserError, match=f"'{name}' cannot name a coordinate"):
        Box({name: (0, 1)})


# -- sets of points ------------------------------------------------------------------------------
def full_set(number=5):
    x = torch.arange(2.0 * number, dtype=FLOAT).view(number, 2)
    return PointSet(
        x, normals=-x, links={"opposite": x + 1}, values={"m": x[:, 0]}, weights=x[:, 1],
        ranges=torch.stack([x, x + 1], dim=-1),
    )  # fmt: skip


def parts(points):
    given = [*points.links.values(), *points.values.values()]
    return [points.coordinates, points.normals, points.weights, points.ranges, *given]


def test_all_parts_of_a_set_are_cut_and_joined_together():
    whole = full_set()
    joined = PointSet.concatenate([whole[:2], whole[2:4], whole[torch.tensor([4])]])
    assert len(joined) == 5
    for a, b in zip(parts(joined), parts(whole), strict=True):
        assert_close(a, b, 0.0)


def test_all_parts_of_a_set_move_together(device):
    moved = full_set().to(device, torch.float32)
    assert {p.dtype for p in parts(moved)} == {torch.float32}
    assert {p.device.type for p in parts(moved)} == {device.type}


# -- parts of regions ------------------------------------------------------------------------------
def outside(at):
    return at.x**2 + at.y**2 > 0.25


HOLED = Box(x=(-1, 1), y=(-1, 1)).interior.where(outside)


@pytest.mark.parametrize("sampling", [*SAMPLINGS, Clustered(Sobol())], ids=str)
def test_a_part_of_a_region_is_where_its_condition_holds(sampling):
    points = draw(HOLED, sampling, 4000)
    x = points.coordinates
    assert bool((x.norm(dim=1) > 0.5).all())
    if not sampling.regular:
        assert len(points) == 4000
    weights = torch.ones(len(points), dtype=FLOAT) if points.weights is None else points.weights
    share = float(weights[x[:, 0] > 0.5].sum() / weights.sum())
    assert share == pytest.approx(1.0 / (4 - math.pi / 4), abs=0.03)  # of its area


@pytest.mark.parametrize("sampling", [*SAMPLINGS, Clustered(Sobol())], ids=str)
def test_points_of_a_part_are_moved_within_it(sampling):
    points = draw(HOLED, sampling, 1000)
    rows = torch.arange(0, len(points), 3)
    moved = points.spread(rows, torch.Generator().manual_seed(1))
    assert points.movable and bool((moved.coordinates.norm(dim=1) > 0.5).all())
    same = (moved.coordinates == points.coordinates[rows]).all(dim=1).double().mean()
    assert 0.0 <= float(same) < 0.05


def test_a_part_keeps_normals_links_and_bounds():
    box = Box(x=(-1, 1), y=(-1, 1))
    right = box.boundary.where(lambda at: at.normal[0] > 0.5)
    points = draw(right, number=20)
    assert bool((points.coordinates[:, 0] == 1).all()) and len(points.normals) == 20
    linked = draw(box.opposite("x").where(lambda at: at.y > 0), number=20)
    assert bool((linked.links["opposite"][:, 1] > 0).all())
    upper = HOLED.where(lambda at: at.y > 0)
    assert upper.bounds == HOLED.bounds and upper.dimension == 2
    assert bool((draw(upper).coordinates[:, 1] > 0).all())
    assert str(HOLED) == "interior where outside" and str(upper).endswith("where …")


def test_the_only_region_of_full_dimension_says_what_is_inside_of_the_domain():
    problem = Problem(fields=("u",), terms=[Term("inside", HOLED, lambda u, at: u.xx + u.yy)])
    inside = problem.domain.contains(
        torch.tensor([[0.0, 0.0], [0.9, 0.9], [2.0, 0.0]], dtype=FLOAT)
    )
    assert inside.tolist() == [False, True, False]
    angle = torch.linspace(0, 6, 50, dtype=FLOAT)
    edge = 0.5 * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert bool(problem.domain.contains(edge).all()), "up to rounding"


def test_conditions_one_after_the_other_all_hold_after_points_are_moved():
    upper = HOLED.where(lambda at: at.y > 0)
    moved = draw(upper, number=500).spread(torch.arange(500), torch.Generator().manual_seed(2))
    assert bool((moved.coordinates.norm(dim=1) > 0.5).all() & (moved.coordinates[:, 1] > 0).all())


def test_faces_keep_their_share_of_a_part():
    box = Box(x=(-1, 1), y=(-1, 1))
    region = box.boundary.where(lambda at: at.x + at.y + 10 * at.normal[0] * at.normal[1] > -3)
    half = box.boundary.where(lambda at: torch.sin(20 * at.x) + torch.sin(20 * at.y) > -9)
    normals = draw(half, number=4000).normals
    shares = [float((normals == torch.tensor(n, dtype=FLOAT)).all(1).double().mean())
              for n in ((1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0))]  # fmt: skip
    assert shares == pytest.approx([0.25] * 4, abs=0.03) and len(draw(region, number=9)) == 9


def test_single_points_of_a_part_are_all_drawn():
    ends = Box(x=(0, 1)).boundary.where(lambda at: at.x > -1)
    assert len(draw(ends, number=1)) == 2
    with pytest.raises(UserError, match="points fulfils the condition"):
        draw(Box(x=(0, 1)).boundary.where(lambda at: at.x > 2), number=1)


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        (lambda at: at.x > 5, "points fulfils the condition"),
        (lambda at: at.x, "torch.float64 of shape (64,); give a comparison"),
        (lambda at: at.z > 0, "unknown coordinate 'at.z'"),
        (lambda at: at.x > 0 and at.y > 0, "& for and"),
        (True, "give a function of the point"),
    ],
)
def test_conditions_that_cannot_be_are_refused(condition, words):
    with pytest.raises(UserError) as error:
        draw(Box(x=(-1, 1), y=(-1, 1)).interior.where(condition))
    assert words in str(error.value)


def test_many_given_points_are_drawn_at_random_with_their_values():
    x = torch.arange(100, dtype=FLOAT)
    points = Points({"x": x}, m=x + 0.5)
    drawn = draw(points, number=30)
    assert len(drawn) == 30 and len(set(drawn.coordinates[:, 0].tolist())) == 30
    assert torch.equal(drawn.values["m"], drawn.coordinates[:, 0] + 0.5)
    assert not torch.equal(drawn.coordinates, draw(points, number=30, seed=1).coordinates)
    assert torch.equal(draw(points, number=100).coordinates[:, 0], x)
