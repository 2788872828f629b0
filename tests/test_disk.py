"""A shape that the package does not know, in this file alone: what a user's own needs, and gets."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pytest
import torch
from nets import FLOAT

from pinnkfac import Box, Problem, Term, UserError, lap, solve
from pinnkfac.commands import plot
from pinnkfac.domain import Even, Grid, Image, PointSet, Sobol, Uniform
from pinnkfac.domain.sampling import Clustered
from pinnkfac.inspection.checks import examine_problem
from pinnkfac.nets import Mlp
from pinnkfac.plots import draw_solution
from pinnkfac.points.selection import ImportanceSampling
from pinnkfac.residual import exact_solution
from pinnkfac.run.accuracy import ErrorMeter
from pinnkfac.solution import Solution
from pinnkfac.store.stored_run import StoredRun


@dataclass(frozen=True)
class Disk:
    """All points within ``radius`` of (x, y)."""

    x: float
    y: float
    radius: float

    @cached_property
    def bounds(self):
        r = self.radius
        return Box(x=(self.x - r, self.x + r), y=(self.y - r, self.y + r))

    @property
    def coordinates(self):
        return self.bounds.coordinates

    @property
    def interior(self):
        """Rings of the same area are the same ranges of s = ρ²."""
        box = Box(s=(0, 1), angle=(0, 2 * math.pi))
        return Image("interior", self, box.interior, self._inside)

    @property
    def boundary(self):
        return Image("boundary", self, Box(angle=(0, 2 * math.pi)).interior, self._circle)

    def _inside(self, parameters):
        s, angle = parameters.unbind(1)
        rim = self._circle(angle[:, None])
        middle = rim.coordinates.new_tensor([self.x, self.y])
        return PointSet(middle + s.sqrt()[:, None] * (rim.coordinates - middle))

    def _circle(self, parameters):
        normals = torch.cat([parameters.cos(), parameters.sin()], dim=1)
        middle = normals.new_tensor([self.x, self.y])
        return PointSet(middle + self.radius * normals, normals)

    def contains(self, points):
        middle = points.new_tensor([self.x, self.y])
        return (points - middle).norm(dim=1) <= (1 + 1e-6) * self.radius

    def as_dict(self):
        return {"x": self.x, "y": self.y, "radius": self.radius}


DISK = Disk(1.0, -2.0, 1.5)


def distance(points, disk=DISK):
    return (points - torch.tensor([disk.x, disk.y], dtype=points.dtype)).norm(dim=1)


def draw(region, sampling, number, seed=0):
    return region.draw(number, sampling, torch.Generator().manual_seed(seed))


def poisson():
    """Δu = −4 with u = 9/4 − ρ² + eˣ cos y."""

    def solution(at):
        rho = (at.x - DISK.x) ** 2 + (at.y - DISK.y) ** 2
        # Beyond the circle there is no solution: nothing may ask for it.
        return torch.where(rho > 2.3, math.nan, 2.25 - rho + torch.exp(at.x) * torch.cos(at.y))

    return Problem(
        fields=("u",),
        terms=[
            Term("poisson", DISK.interior, lambda u, at: lap(u) + 4.0),
            Term("rim", DISK.boundary, lambda u, at: u - torch.exp(at.x) * torch.cos(at.y)),
        ],
        solution=solution,
    )


@pytest.fixture(scope="module")
def solved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disk") / "run"
    return solve(poisson(), "stop.steps=40", "net.widths=[16,16]", "points.interior=300",
                 "points.lower=60", folder=folder)  # fmt: skip


def test_a_disk_is_solved_and_its_error_is_that_on_the_disk(solved):
    assert solved.problem.domain is DISK  # which its regions name
    assert solved.errors.relative_l2 < 1e-4
    points = draw(DISK.interior, Uniform(), 4000, seed=7).coordinates
    exact = exact_solution(solved.problem, points)
    error = (solved.solution(points) - exact).norm() / exact.norm()
    assert solved.errors.relative_l2 == pytest.approx(float(error), rel=0.1)


# -- points ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("sampling", [Uniform(), Sobol(), Grid()], ids=lambda s: type(s).__name__)
def test_points_are_uniform_in_area_and_along_the_circle(sampling):
    inside = draw(DISK.interior, sampling, 4096).coordinates
    # Of a quarter of the area in the middle, and of eight sectors.
    assert float((distance(inside) < 0.75).double().mean()) == pytest.approx(0.25, abs=0.03)
    for region in (DISK.interior, DISK.boundary):
        x, y = (draw(region, sampling, 4096).coordinates - torch.tensor([1.0, -2.0])).unbind(1)
        sectors = ((torch.atan2(y, x) / math.pi + 1.0) * 4.0).long().clamp(0, 7)
        counts = torch.bincount(sectors, minlength=8)
        assert int(counts.min()) > 0.85 * 512 and int(counts.max()) < 1.15 * 512


@pytest.mark.parametrize("faces", [0.0, 0.9])
def test_normals_of_the_circle_point_outward(faces):
    points = draw(DISK.boundary, Clustered(Sobol(), faces), 100)
    assert points.normals.shape == (100, 2)
    away = points.coordinates - torch.tensor([1.0, -2.0], dtype=FLOAT)
    assert torch.allclose(1.5 * points.normals, away, rtol=0.0, atol=1e-14)


@pytest.mark.parametrize("dtype", [FLOAT, torch.float32])
def test_the_default_sampler_gives_distinct_points_of_the_shape(dtype):
    """A hot spot at the rim, where many of the candidates are wanted more than once."""
    for region in (DISK.interior, DISK.boundary):
        candidates = draw(region, Clustered(Even(), 0.9), 4000).to("cpu", dtype)
        hot = torch.tensor([2.5, -2.0], dtype=dtype)
        residual = torch.exp(-(candidates.coordinates - hot).norm(dim=1) / 0.01)[:, None]
        generator = torch.Generator().manual_seed(1)
        chosen = ImportanceSampling(share=0.05).choose(candidates, residual, 400, generator)
        assert len({tuple(x) for x in chosen.coordinates.tolist()}) == 400
        assert bool(DISK.contains(chosen.coordinates).all())
        near = (chosen.coordinates - hot).norm(dim=1) < 0.05
        assert int(near.sum()) > 5 * 400 * 0.05**2
        if region.dimension == 1:
            assert torch.allclose(distance(chosen.coordinates), torch.tensor(1.5, dtype=dtype))
            away = (chosen.coordinates - torch.tensor([1.0, -2.0], dtype=dtype)) / 1.5
            assert torch.allclose(chosen.normals, away, atol=1e-6)
        mean = (chosen.weights * chosen.coordinates[:, 0]).mean()
        assert float(mean) == pytest.approx(1.0, abs=0.15)


def test_errors_are_measured_on_points_of_the_shape_and_nowhere_else():
    points = ErrorMeter(poisson(), 2000).points  # the exact solution is NaN beyond
    assert bool(DISK.contains(points).all())
    assert float((distance(points) < 0.75).double().mean()) == pytest.approx(0.25, abs=0.03)


# -- pictures, grids, warnings ---------------------------------------------------------------------
def test_a_picture_shows_the_shape_and_nothing_else(solved):
    figure = draw_solution(solved.solution, lambda x: exact_solution(solved.problem, x))
    own, exact, error = figure.axes
    assert figure.get_suptitle() == ""
    for axes in (own, exact, error):
        data = np.ma.filled(axes.images[0].get_array(), math.nan)
        x, y = np.meshgrid(np.linspace(-0.5, 2.5, 161), np.linspace(-3.5, -0.5, 161))
        inside = np.hypot(x - 1.0, y + 2.0) <= 1.5 * (1 + 1e-6)
        assert np.array_equal(np.isfinite(data), inside)
    title = error.get_title().removeprefix("relative L2 error ")
    assert 0.2 < float(title) / solved.errors.relative_l2 < 5.0


def test_a_grid_is_empty_outside_and_places_there_are_warned_of(solved):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values = solved.solution.on_grid(x=21, y=21).values["u"]
        assert np.isfinite(solved.solution.u(x=1.0, y=-2.0))
    assert np.isnan(values[0, 0]) and np.isfinite(values[10, 10])
    assert 0.7 < np.isfinite(values).mean() < 0.8  # π/4
    with pytest.warns(UserWarning, match=r"u: 1 of 2 points outside Disk.*x = 2\.4, y = -0\.6"):
        solved.solution.u(x=[1.0, 2.4], y=[-2.0, -0.6])
    with pytest.warns(UserWarning, match=r"u: x = 3 is 0\.5 outside \(-0\.5, 2\.5\)"):
        solved.solution.u(x=3.0, y=-2.0)


# -- parts of it by a condition --------------------------------------------------------------------
def right(at):
    return at.x > 1.2


def on_a_part(exact=None):
    terms = [
        Term("inside", DISK.interior.where(right), lambda u, at: lap(u) - 1),
        Term("rim", DISK.boundary.where(right), lambda u, at: u),
    ]
    return Problem(fields=("u",), terms=terms, solution=exact)


def test_a_part_of_the_disk_alone_is_what_errors_and_pictures_are_of():
    domain = on_a_part().domain
    x = torch.tensor([[1.5, -2.0], [1.1, -2.0], [2.4, -0.6], [1.2, -2.0]], dtype=FLOAT)
    assert domain.contains(x).tolist() == [True, False, False, True], "its edge included"
    points = ErrorMeter(on_a_part(lambda at: at.x), 500).points
    assert bool((points[:, 0] > 1.2).all() & DISK.contains(points).all())
    boundary = draw(domain.boundary, Uniform(), 50).coordinates
    assert torch.allclose(distance(boundary), torch.tensor(1.5, dtype=FLOAT)), "that of the disk"
    both = [*on_a_part().terms, Term("all", DISK.interior, lambda u, at: u)]
    assert Problem(fields=("u",), terms=both).domain is DISK


def test_a_picture_of_a_part_shows_the_part_and_a_stored_run_the_box(tmp_path):
    words = ("net.widths=[4]", "points.scale=0.1", "step=adam", "stop.steps=1", "run.plot=false")
    result = solve(on_a_part(), *words, "threads=1", "run.quiet=true", folder=tmp_path / "run")
    data = np.ma.filled(draw_solution(result.solution).axes[0].images[0].get_array(), math.nan)
    x, y = np.meshgrid(np.linspace(-0.5, 2.5, 161), np.linspace(-3.5, -0.5, 161))
    inside = (np.hypot(x - 1.0, y + 2.0) <= 1.5 * (1 + 1e-6)) & (x > 1.2)
    assert np.array_equal(np.isfinite(data), inside)
    note = "the shape of interior where right is not at hand: this is the box around it"
    assert draw_solution(Solution.load(tmp_path / "run")).get_suptitle() == note


# -- what check sees -------------------------------------------------------------------------------
def test_a_solution_that_ends_with_the_disk_is_checked_in_it():
    """Differences and the faces of the box lie outside, where it is NaN."""

    def solution(at):
        rho = (at.x - DISK.x) ** 2 + (at.y - DISK.y) ** 2
        return torch.where(rho > 2.25 + 1e-9, math.nan, torch.exp(at.x).detach() * at.y)

    terms = [
        Term("inside", DISK.interior, lambda u, at: u.x),
        Term("rim", DISK.boundary, lambda u, at: u),
    ]
    problem = Problem(fields=("u",), terms=terms, solution=solution, periodic=["y"])
    lines = [str(finding) for finding in examine_problem(problem, Mlp(2, 1, [4]))]
    assert "✓ term 'rim': 64 points in the domain" in lines
    assert "✓ solution: finite in the domain and at the points of all terms" in lines
    assert any("torch cannot differentiate it: at " in line for line in lines)
    assert not any("periodic in" in line for line in lines)


# -- stored runs -----------------------------------------------------------------------------------
def test_a_stored_run_of_it_is_read_as_the_box_around_it(solved, tmp_path):
    """Its folder holds what the shape said of itself, and no code."""
    stored = json.loads((solved.folder / "problem.json").read_text())
    assert stored["coordinates"] == {"x": [-0.5, 2.5], "y": [-3.5, -0.5]}
    assert stored["domain"] == {"kind": "Disk", "x": 1.0, "y": -2.0, "radius": 1.5}
    again = Solution.load(solved.folder)
    assert again.signature.as_dict() == solved.problem.signature.as_dict()
    assert repr(again.signature.domain) == "Disk in Box(x=(-0.5, 2.5), y=(-3.5, -0.5))"
    x = draw(DISK.interior, Uniform(), 5).coordinates
    assert torch.equal(again(x), solved.solution(x))
    note = "the shape of Disk is not at hand: this is the box around it"
    assert draw_solution(again).get_suptitle() == note
    assert np.isfinite(again.on_grid(x=5, y=5).values["u"]).all()
    assert StoredRun.open(solved.folder).signature.domain.as_dict() == DISK.as_dict()
    assert plot.main([str(solved.folder), "--output", str(tmp_path)]) == 0


# -- what is refused -------------------------------------------------------------------------------
def test_terms_of_two_shapes_need_a_domain():
    terms = [Term(str(i), Disk(i, 0.0, 1.0).interior, lambda u, at: u) for i in (0, 1)]
    with pytest.raises(UserError, match=r"lie in Disk\(x=0.*and Disk\(x=1.*Problem\(domain="):
        Problem(fields=("u",), terms=terms)
    assert Problem(fields=("u",), terms=terms, domain=DISK).domain is DISK


def test_a_shape_that_lacks_something_is_refused_by_name():
    class Half:
        bounds = DISK.bounds
        coordinates = DISK.coordinates
        interior = DISK.interior

    with pytest.raises(UserError, match="a shape that has boundary, contains, as_dict too"):
        Problem(fields=("u",), terms=poisson().terms, domain=Half())


def test_a_shape_that_cannot_be_stored_is_refused():
    class Tensors(Disk):
        def as_dict(self):
            return {"radius": torch.tensor(1.0)}

    with pytest.raises(UserError, match=r"as_dict .* plain values"):
        Problem(fields=("u",), terms=poisson().terms, domain=Tensors(1.0, -2.0, 1.5))
