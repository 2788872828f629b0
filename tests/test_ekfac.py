"""EKFAC: eigenbases, second moments, their inverse, and steps with it, against dense algebra."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import FLOAT, linear, net_for
from oracles import (
    assert_close,
    conjugate_gradients,
    deviation,
    flat,
    jacobian,
    kronecker,
    layer_blocks,
    random_direction,
    random_spd,
    unflat,
)
from problems import PROBLEMS, allen_cahn, inverse, points_for, poisson
from torch import nn

from pinnkfac import Box, Problem, Term
from pinnkfac.curvature.ekfac import (
    EigenvalueCorrected,
    EkfacInverse,
    Moments,
    carried,
    second_moments,
)
from pinnkfac.curvature.kfac import Factors
from pinnkfac.curvature.kronecker import merge
from pinnkfac.curvature.preconditioner import InverseSettings, KfacInverse
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Scale
from pinnkfac.step.damping import Constant, LevenbergMarquardt
from pinnkfac.step.ekfac import Ekfac
from pinnkfac.step.gauss_newton import Automatic
from pinnkfac.step.search import Backtracking, Fixed


def system_of(name, **arguments):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem), **arguments)
    return system, points_for(system, 9, 6, 4)


def with_coefficients():
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1))
    system = System(inverse(), net)
    return system, points_for(system, 6)


def prepared(system, points, damping=1e-2, factors=Factors(), moments=Moments()):  # noqa: B008
    found = EkfacInverse(factors, moments, system, torch.Generator().manual_seed(0))
    found.prepare(system.linearise(points), damping, 0)
    return found


def basis(pair):
    """U [param, param] of a layer, for V [out, in + bias] flattened as torch does."""
    base_a, base_b = pair
    return torch.kron(base_b, base_a)


def dense_matrix(found, system, points, damping):
    """The damped curvature that EKFAC inverts, as one matrix."""
    blocks = [
        basis(pair) @ (s.flatten() + damping).diag() @ basis(pair).T
        for pair, s in zip(found.bases, found.moments, strict=True)
    ]
    if system.dense_size:
        j = jacobian(system, points)
        exact = layer_blocks(j.T @ j, system)[-1]
        blocks.append(exact + damping * torch.eye(len(exact), dtype=FLOAT))
    return torch.block_diag(*blocks)


# -- second moments ------------------------------------------------------------------------------
@pytest.mark.parametrize("sharing", ["weighted", "expand"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_second_moments_are_the_diagonal_of_the_gramian_in_the_basis(name, sharing):
    system, points = system_of(name)
    found = prepared(system, points, factors=Factors(sharing))
    j = jacobian(system, points)
    blocks = layer_blocks(j.T @ j, system)
    for pair, s, exact in zip(found.bases, found.moments, blocks, strict=False):
        u = basis(pair)
        assert_close(u.T @ u, torch.eye(len(u), dtype=FLOAT), 1e-12)
        assert_close(s.flatten(), (u.T @ exact @ u).diagonal(), 1e-10)


def test_second_moments_of_threads_and_of_blocks_that_are_not_kept():
    expected = None
    for arguments in ({}, {"workers": 2, "chunk_bytes": 100}, {"memory": 1.0}):
        problem = allen_cahn()
        torch.manual_seed(0)
        system = System(problem, net_for(problem), **arguments)
        points = points_for(system, 40)
        bases = [
            (torch.linalg.eigh(random_spd(v.shape[1], 1))[1], torch.eye(len(v), dtype=FLOAT))
            for v in system.get_parameters()
        ]
        moments = second_moments(system.linearise(points), bases)
        expected = expected or moments
        for s, own in zip(moments, expected, strict=True):
            assert_close(s, own, 1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["poisson", "heat", "flow"])
def test_the_frobenius_error_is_smaller_than_that_of_kfac(name, seed):
    torch.manual_seed(seed)
    system, points = system_of(name)
    assert len(points[0]) == 9
    found = prepared(system, points)
    j = jacobian(system, points)
    weights = [t.weight for t in system.problem.terms]
    for layer, exact in enumerate(layer_blocks(j.T @ j, system)):
        u = basis(found.bases[layer])
        ours = u @ found.moments[layer].flatten().diag() @ u.T
        kfac = kronecker(*merge(found.average.layer(layer, weights)))
        if len(system.get_parameters()[layer]) == 1:  # one output, one row a term: both are exact
            assert_close(ours, exact, 1e-12)
            assert_close(kfac, exact, 1e-12)
            continue
        assert (exact - ours).norm() < (1 - 1e-6) * (exact - kfac).norm()
        assert (exact - ours).norm() > 1e-6 * exact.norm()  # an approximation, nevertheless


def test_moments_carried_to_another_basis():
    old, new = (
        tuple(torch.linalg.qr(torch.randn(n, n, dtype=FLOAT)).Q for n in (4, 3)) for _ in range(2)
    )
    s = torch.rand(3, 4, dtype=FLOAT)
    dense = basis(old) @ s.flatten().diag() @ basis(old).T
    expected = (basis(new).T @ dense @ basis(new)).diagonal()
    assert_close(carried(s, old, new).flatten(), expected, 1e-13)
    assert_close(carried(s, old, old), s, 1e-13)


# -- equal to KFAC, and not ----------------------------------------------------------------------
def kfac_of(system, points, damping=1e-2):
    found = KfacInverse(Factors(), InverseSettings(), system, torch.Generator())
    found.prepare(system.linearise(points), damping, 0)
    return found


@pytest.mark.parametrize("name", ["poisson", "flow"])
def test_products_of_eigenvalues_in_place_of_the_moments_are_kfac(name):
    system, points = system_of(name)
    found, kfac = prepared(system, points), kfac_of(system, points)
    v = random_direction(system)
    assert deviation(flat(found.apply(v)), flat(kfac.apply(v))) > 1e-2
    weights = [t.weight for t in system.problem.terms]
    for layer, (base_a, base_b) in enumerate(found.bases):
        a, b = merge(found.average.layer(layer, weights))
        values = [(q.T @ m @ q).diagonal() for q, m in ((base_b, b), (base_a, a))]
        found.moments[layer] = torch.outer(*values)
    found._invert(1e-2)
    assert_close(flat(found.apply(v)), flat(kfac.apply(v)), 1e-9)


def test_where_the_gramian_is_a_kronecker_product_both_are_exact():
    """One point and one row: Σ_s g zᵀ is a single product."""
    box = Box.cube(2)
    net = nn.Sequential(linear(2, 4), nn.Tanh(), linear(4, 3), nn.Tanh(), linear(3, 1))
    data = Term("data", box.boundary, lambda u, at: u - 1.0, weight=3.0)
    system = System(Problem(fields=("u",), terms=[data]), net)
    points = points_for(system, 1)
    assert [len(p) for p in points] == [1]
    v, j = random_direction(system), jacobian(system, points)
    exact = torch.block_diag(*layer_blocks(j.T @ j, system))
    exact += 1e-2 * torch.eye(len(exact), dtype=FLOAT)
    expected = torch.linalg.solve(exact, flat(v))
    assert_close(flat(prepared(system, points).apply(v)), expected, 1e-10)
    assert_close(flat(kfac_of(system, points).apply(v)), expected, 1e-10)


# -- the inverse in the course of a run ----------------------------------------------------------
@pytest.mark.parametrize("damping", [1e-2, 1e-8])
def test_the_inverse_and_its_dense_block(damping):
    system, points = with_coefficients()
    found = prepared(system, points, damping)
    v = random_direction(system)
    expected = torch.linalg.solve(dense_matrix(found, system, points, damping), flat(v))
    assert_close(flat(found.apply(v)), expected, 1e-8)


def test_without_damping_nothing_is_infinite():
    system, points = system_of("poisson")
    assert torch.isfinite(flat(prepared(system, points, 0.0).apply(random_direction(system)))).all()


def test_bases_are_renewed_in_time_and_carry_the_average():
    system, points = system_of("poisson")
    linearisation = system.linearise(points)
    found = prepared(system, points, moments=Moments(every=3, decay=0.6), factors=Factors(decay=0))
    first, start = [a.clone() for a, _ in found.bases], system.get_parameters()
    system.set_parameters([1.3 * v for v in start])
    other = system.linearise(points)
    for step in (1, 2):
        found.prepare(other, 1e-2, step)
        assert all(torch.equal(a, own) for (a, _), own in zip(found.bases, first, strict=True))
    old = second_moments(linearisation, found.bases)
    new = second_moments(other, found.bases)
    for s, x, y in zip(found.moments, old, new, strict=True):
        assert_close(s, 0.4 * (0.36 * x + 0.6 * y + y), 1e-12)
    before = list(zip(found.bases, [s.clone() for s in found.moments], strict=True))
    found.prepare(other, 1e-2, 3)
    assert all(deviation(a, own) > 1e-3 for (a, _), own in zip(found.bases, first, strict=True))
    fresh = second_moments(other, found.bases)
    for (pair, s), own, value, now in zip(before, found.bases, fresh, found.moments, strict=True):
        assert_close(now, 0.6 * carried(s, pair, own) + 0.4 * value, 1e-12)
    denominator = found.inverses[0].denominator
    assert_close(denominator, found.moments[0] / (1 - 0.6**4) + 1e-2, 1e-12)


def test_new_scales_begin_the_moments_anew():
    system, points = system_of("poisson")
    found = prepared(system, points, moments=Moments(decay=0.9))
    system.scales = [torch.full((1,), s, dtype=FLOAT) for s in (2.0, 3.0)]
    linearisation = system.linearise(points)
    found.prepare(linearisation, 1e-2, 1)
    assert found.updates == 1
    for s, new in zip(found.moments, second_moments(linearisation, found.bases), strict=True):
        assert_close(s, 0.1 * new, 1e-12)


def test_as_a_preconditioner_of_its_own():
    system, points = system_of("poisson")
    linearisation = system.linearise(points)
    found = EigenvalueCorrected().start(system, torch.Generator().manual_seed(0))
    found.prepare(linearisation, 1e-2, 0)
    v = random_direction(system)
    assert_close(flat(found.apply(v)), flat(prepared(system, points).apply(v)), 0.0)
    assert found.restart() == "factors and their second moments"
    assert not found.bases and found.average.updates == 0


# -- steps ---------------------------------------------------------------------------------------
def started(system, *, search=Fixed(1.0), damping=Constant(1e-2), **settings):  # noqa: B008
    return Ekfac(**settings).start(system, search, damping, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("iterations", [0, 1, 4])
def test_a_step_is_the_inverse_refined_by_conjugate_gradients(iterations):
    system, points = with_coefficients()
    start, j = flat(system.get_parameters()), jacobian(system, points)
    gradient = flat(system.linearise(points).gradient())
    matrix = dense_matrix(prepared(system, points), system, points, 1e-2)
    expected = -torch.linalg.solve(matrix, gradient)
    if iterations:
        exact = j.T @ j + 1e-2 * torch.eye(j.shape[1], dtype=FLOAT)
        expected = conjugate_gradients(
            exact, -gradient, lambda r: torch.linalg.solve(matrix, r), iterations
        )
    started(system, iterations=iterations).update(points)
    assert_close(flat(system.get_parameters()) - start, expected, 1e-9)


@pytest.mark.parametrize("build", [poisson, allen_cahn, inverse])
@pytest.mark.parametrize("lengths", [None, Automatic()], ids=str)
def test_a_few_steps_lower_the_loss(build, lengths):
    problem = build()
    system = System(problem, net_for(problem))
    points = points_for(system, 20)
    schedule = LevenbergMarquardt(start=1e-3)
    stepper = started(system, search=Backtracking(), damping=schedule, lengths=lengths)
    losses = [system.loss(points)]
    for _ in range(8):
        stepper.update(points)
        losses.append(system.loss(points))
        assert losses[-1] <= losses[-2] * (1 + 1e-12)
    assert losses[-1] < 0.5 * losses[0]


RESUMED = {
    "default": {},
    "averaged": {"moments": Moments(decay=0.7), "lengths": Automatic()},
    "every few steps": {"moments": Moments(every=3, decay=0.5), "factors": Factors(every=2)},
    "conjugate gradients": {"iterations": 3, "factors": Factors(backpropagated="monte-carlo")},
}


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(name, tmp_path):
    system, points = with_coefficients()

    def begun():
        return started(system, search=Backtracking(), **RESUMED[name])

    stepper = begun()
    for _ in range(2):
        stepper.update(points)
    generator = stepper.descent.generator.get_state()
    torch.save([stepper.state_dict(), system.get_parameters()], tmp_path / "state.pt")
    state, parameters = torch.load(tmp_path / "state.pt", weights_only=True)
    kept = copy.deepcopy(state)
    for _ in range(4):
        stepper.update(points)
    whole = flat(system.get_parameters())
    system.set_parameters(unflat(flat(parameters), parameters))
    resumed = begun()
    resumed.load_state_dict(state)
    resumed.descent.generator.set_state(generator)
    for _ in range(4):
        resumed.update(points)
    assert_close(flat(system.get_parameters()), whole, 0.0)
    for x, y in zip(kept["descent"]["moments"], state["descent"]["moments"], strict=True):
        assert torch.equal(x, y)  # what was given is not changed


def test_after_a_divergence_all_averages_are_new():
    system, points = with_coefficients()
    stepper = started(system)
    stepper.update(points)
    assert "factors and their second moments anew" in stepper.recover()
    assert stepper.descent.moments == [] and stepper.descent.average.updates == 0
    stepper.update(points)
