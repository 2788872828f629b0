"""The contract of every file in pdes/: its exact solution solves what its terms say.

The exact solution is put in place of the net, with nested automatic differentiation
(references.py). Files whose solution is no closed form are checked by refinement as well.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import math
from pathlib import Path

import numpy as np
import pytest
import references
import torch

from pinnkfac import Grid, Sobol, Uniform
from pinnkfac.residual import exact_solution, record

FOLDER = Path(__file__).parent.parent / "pdes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
SAMPLINGS = (Uniform(), Sobol(), Grid())
POINTS = 16

# The exact solution satisfies a term to this accuracy, relative to the size of the solution.
TOLERANCE = 1e-9
# Reference solutions that are interpolated are differentiated as polynomials, hence less exactly;
# worst are first derivatives at the ends at t < 0.01, where the start has a kink.
LOOSE = {("allen_cahn", "phases"): 1e-4}

# Points inside and on conditions in the paper (arXiv:2405.15603), medium and big nets.
PAPER = {
    "poisson2d": (900, 120),
    "poisson5d": (3000, 500),
    "poisson10d": (3000, 1000),
    "heat1d": (900, 120),
    "heat4d": (3000, 500),
    "log_fokker_planck9d": (3000, 1000),
}


@functools.cache
def load(name):
    spec = importlib.util.spec_from_file_location(f"pdes_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def problem(name):
    return getattr(load(name), name)()


every_file = pytest.mark.parametrize("name", NAMES)


def draw(region, sampling, number=POINTS, seed=0):
    points = region.draw(number, sampling, torch.Generator().manual_seed(seed))
    assert len(points) > 0 and points.coordinates.dtype == torch.float64
    return points


def size(problem):
    inside = draw(problem.domain.interior, Uniform(), 100).coordinates
    return max(1.0, exact_solution(problem, inside).abs().max().item())


def at_t_x(t, x):
    return torch.stack(torch.broadcast_tensors(torch.as_tensor(t), torch.as_tensor(x)), -1)


@every_file
def test_file_has_one_public_function_and_names_its_source(name):
    module = load(name)
    own = {
        key: value
        for key, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }
    assert [key for key in own if not key.startswith("_")] == [name]
    parameters = inspect.signature(own[name]).parameters.values()
    assert all(p.default is not inspect.Parameter.empty for p in parameters)
    assert "Source: " in module.__doc__
    assert own[name]().source in " ".join(module.__doc__.split())


@every_file
def test_exact_solution_solves_every_term(name, problem):
    for term in problem.terms:
        tolerance = LOOSE.get((name, term.name), TOLERANCE) * size(problem)
        for sampling in SAMPLINGS:
            points = draw(term.where, sampling)
            r = references.residual(term, problem, points, references.exact(problem))
            assert r.shape[0] == len(points)
            assert r.abs().max() <= tolerance, (term.name, sampling)


@every_file
def test_check_notices_a_slightly_wrong_solution(name, problem):
    exact = references.exact(problem)
    frequency = 1 + torch.arange(len(problem.coordinates.names), dtype=torch.float64) / 10
    phase = 0.3 + torch.arange(len(problem.fields), dtype=torch.float64)

    for term in problem.terms:
        tolerance = LOOSE.get((name, term.name), TOLERANCE)
        error = 1e-6 if tolerance == TOLERANCE else 0.1

        def wrong(point, error=error):
            return exact(point) + error * torch.cos((frequency * point).sum() + phase)

        points = draw(term.where, Uniform())
        r = references.residual(term, problem, points, wrong)
        assert (r.abs().amax(0) > 2 * tolerance * size(problem)).all(), term.name


@every_file
def test_recorded_slots_give_the_same_residual(name, problem):
    """Compiled to slots, a term says the same as the user's function called directly."""
    for term in problem.terms:
        points = draw(term.where, Uniform())
        compiled = record(term, problem, points)
        z = references.slots(compiled.slots, problem, points, references.exact(problem))
        none = z.new_zeros(0)
        got = compiled.value(z, none, points, compiled.remainder(points))
        expected = references.residual(term, problem, points, references.exact(problem))
        assert got.shape == expected.shape == (len(points), compiled.equations)
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10 * float(z.abs().max() + 1))


@every_file
def test_exact_solution_is_finite_everywhere_in_both_precisions(name, problem):
    regions = [problem.domain.interior, *(term.where for term in problem.terms)]
    low, high = torch.tensor(problem.domain.low), torch.tensor(problem.domain.high)
    corners = torch.stack([low, high, (low + high) / 2]).double()
    for x in [corners, *(draw(region, Uniform()).coordinates for region in regions)]:
        u = exact_solution(problem, x)  # raises where it is not finite
        assert u.shape == (len(x), len(problem.fields)) and u.dtype == torch.float64
        single = exact_solution(problem, x.float())
        assert single.dtype == torch.float32
        assert (single - u).abs().max() <= 1e-3 * size(problem)


@pytest.mark.parametrize("name", PAPER)
def test_points_and_weights_are_the_papers(name, problem):
    inside, *conditions = problem.terms
    numbers = (inside.points, sum(term.points for term in conditions))
    assert numbers == PAPER[name]
    # One mean over all condition points: their weights are their shares of the points.
    assert [t.weight for t in conditions] == [t.points / numbers[1] for t in conditions]
    assert inside.weight == 1


@pytest.mark.parametrize("nu", [0.1, 0.01, 0.01 / math.pi])
def test_burgers_against_the_trapezoidal_rule(nu):
    """The same integral by another quadrature, with fewer and more nodes, up to the shock."""
    generator = np.random.default_rng(0)
    t = np.concatenate([np.zeros(50), generator.random(500), np.linspace(0.2, 1, 500)])
    x = np.concatenate(
        [np.linspace(-1, 1, 50), generator.uniform(-1, 1, 500), 0.005 * generator.normal(size=500)]
    )
    z = np.arange(-20, 20.01, 0.02)[:, None]
    y = np.pi * (x - 2 * np.sqrt(nu * t) * z)
    log_w = -(z**2) - np.cos(y) / (2 * np.pi * nu)
    w = np.exp(log_w - log_w.max(0))
    expected = torch.from_numpy(-(w * np.sin(y)).sum(0) / w.sum(0))

    function = load("burgers").burgers
    points = at_t_x(torch.from_numpy(t), torch.from_numpy(x))
    for nodes, tolerance in ((150, 1e-12), (200, 1e-12), (300, 1e-12)):
        u = exact_solution(function(nu=nu, nodes=nodes), points)[:, 0]
        assert (u - expected).abs().max() < tolerance, nodes
    few = exact_solution(function(nu=nu, nodes=30), points)[:, 0]
    assert (few - expected).abs().max() > 1e-8
    assert (expected[:50] + torch.sin(math.pi * points[:50, 1])).abs().max() < 1e-13


def test_kdv_against_the_formula_with_hyperbolic_functions():
    """Another form of the two-soliton solution; it overflows in float32, this one does not."""
    c1, c2 = 6.0, 2.0
    k1, k2 = math.sqrt(c1), math.sqrt(c2)
    problem = load("kdv").kdv()
    points = draw(problem.domain.interior, Uniform(), 500).coordinates
    a, b = k1 * (points[:, 1] - c1 * points[:, 0] + 2), k2 * (points[:, 1] - c2 * points[:, 0] - 2)
    above = c1 * torch.cosh(b / 2) ** 2 + c2 * torch.sinh(a / 2) ** 2
    below = (k1 - k2) * torch.cosh((a + b) / 2) + (k1 + k2) * torch.cosh((a - b) / 2)
    expected = 2 * (c1 - c2) * above / below**2
    torch.testing.assert_close(exact_solution(problem, points)[:, 0], expected)


@every_file
def test_the_exact_solution_is_periodic_where_the_problem_is(problem):
    for name in problem.signature.periodic:
        ends = []
        for value in problem.domain.ranges[name]:
            generator = torch.Generator().manual_seed(0)
            points = problem.domain.at(**{name: value}).draw(POINTS, Uniform(), generator)
            ends.append(exact_solution(problem, points.coordinates))
        assert torch.allclose(*ends, rtol=0.0, atol=1e-9)


def test_allen_cahn_reference_converges():
    """Half the modes or the steps: the error is what the file says, and at the kink alone."""
    part = load("allen_cahn")._smooth_part
    fine = part(1e-4, 5.0)[::5, ::4]
    coarse = np.abs(part(1e-4, 5.0, modes=2048)[::5, ::2] - fine)
    assert np.sqrt((coarse**2).mean()) < 5e-9
    assert coarse[11:].max() < 2e-7 and coarse[:, 50:-50].max() < 1e-9
    fewer_steps = np.abs(part(1e-4, 5.0, steps=200)[::2, ::4] - fine)
    assert fewer_steps.max() < 1e-7


def test_allen_cahn_against_a_plain_fourier_solver():
    """No layer taken out: less accurate near the kink at x = ±1, but fine away from it."""
    modes, steps, diffusion, reaction = 2048, 500, 1e-4, 5.0
    x = 2 * np.arange(modes) / modes - 1
    decay = diffusion * (np.pi * np.arange(modes // 2 + 1)) ** 2
    h = 1 / steps
    half, full = np.exp(-decay * h / 2), np.exp(-decay * h)

    def slope(u):
        u = np.fft.irfft(u, modes)
        return reaction * np.fft.rfft(u - u**3)

    u = np.fft.rfft(x**2 * np.cos(np.pi * x))
    problem = load("allen_cahn").allen_cahn()
    for i in range(1, steps + 1):
        k1 = slope(u)
        k2 = slope(half * (u + h / 2 * k1))
        k3 = slope(half * u + h / 2 * k2)
        k4 = slope(full * u + half * h * k3)
        u = full * (u + h / 6 * k1) + half * h / 3 * (k2 + k3) + h / 6 * k4
        if i in (37, 250, 500):
            solution = exact_solution(problem, at_t_x(i * h, torch.from_numpy(x)))[:, 0].numpy()
            error = np.abs(np.fft.irfft(u, modes) - solution)
            assert error[100:-100].max() < 1e-8
            assert error.max() < 1e-4
    assert error.max() < 1e-8
