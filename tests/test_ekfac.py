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
from stepping import situation, take
from torch import nn

from pinnkfac import Box, Problem, Term
from pinnkfac.curvature.ekfac import (
    EigenvalueCorrected,
    EkfacState,
    Moments,
    carried,
    second_moments,
)
from pinnkfac.curvature.factors import Factors
from pinnkfac.curvature.kfac import Inverses, KroneckerFactors
from pinnkfac.curvature.kronecker import EigenInverse, floored, merge
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Scale
from pinnkfac.step.damping import Constant, LevenbergMarquardt
from pinnkfac.step.lengths import Automatic
from pinnkfac.step.methods import Ekfac
from pinnkfac.step.search import Backtracking, Fixed


def system_of(name, **arguments):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem), **arguments)
    return system, points_for(system, 9, 6, 4)


def with_coefficients():
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1))
    system = System(inverse(), net)
    return system, points_for(system, 6)


def prepared(system, points, damping=1e-2, **settings):
    """The solver of the first step."""
    curvature = EigenvalueCorrected(**settings)
    at = situation(system.linearise(points), damping)
    return curvature.at(at, curvature.start(system))


def merged(solver, linearisation, factors=Factors()):  # noqa: B008
    """The factors (A, B) of every layer, of all terms together."""
    pairs = solver.state.average.pairs(linearisation.weights, factors)
    return [merge(terms) for terms in pairs]


def basis(pair):
    """U [param, param] of a layer, for V [out, in + bias] flattened as torch does."""
    base_a, base_b = pair
    return torch.kron(base_b, base_a)


def dense_matrix(solver, system, points, damping):
    """The damped curvature that EKFAC inverts, as one matrix."""
    bases = solver.state.bases
    blocks = [
        basis(pair) @ (s.flatten() + damping).diag() @ basis(pair).T
        for pair, s in zip(bases, second_moments(solver.linearisation, bases), strict=True)
    ]
    if system.layout.dense:
        j = jacobian(system, points)
        exact = layer_blocks(j.T @ j, system)[-1]
        blocks.append(exact + damping * torch.eye(len(exact), dtype=FLOAT))
    return torch.block_diag(*blocks)


# -- second moments ------------------------------------------------------------------------------
@pytest.mark.parametrize("sharing", ["weighted", "expand"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_second_moments_are_the_diagonal_of_the_gramian_in_the_basis(name, sharing):
    system, points = system_of(name)
    bases = prepared(system, points, factors=Factors(sharing)).state.bases
    moments = second_moments(system.linearise(points), bases)
    j = jacobian(system, points)
    blocks = layer_blocks(j.T @ j, system)
    assert len(bases) == len(moments) == len(system.layout.layers)
    for pair, s, exact in zip(bases, moments, blocks, strict=False):
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
        for s, first in zip(moments, expected, strict=True):
            assert_close(s, first, 1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["poisson", "heat", "flow"])
def test_the_frobenius_error_is_smaller_than_that_of_kfac(name, seed):
    torch.manual_seed(seed)
    system, points = system_of(name)
    assert len(points[0]) == 9
    solver, linearisation = prepared(system, points), system.linearise(points)
    j, bases = jacobian(system, points), solver.state.bases
    factors, moments = merged(solver, linearisation), second_moments(linearisation, bases)
    for layer, exact in enumerate(layer_blocks(j.T @ j, system)):
        u = basis(bases[layer])
        ours = u @ moments[layer].flatten().diag() @ u.T
        kfac = kronecker(*factors[layer])
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
    curvature = KroneckerFactors()
    return curvature.at(situation(system.linearise(points), damping), curvature.start(system))


@pytest.mark.parametrize("name", ["poisson", "flow"])
def test_products_of_eigenvalues_in_place_of_the_moments_are_kfac(name):
    system, points = system_of(name)
    ekfac, kfac = prepared(system, points), kfac_of(system, points)
    v = random_direction(system)
    assert deviation(flat(ekfac.apply(v)), flat(kfac.apply(v))) > 1e-2
    inverses = []
    pairs = merged(ekfac, system.linearise(points))
    for (base_a, base_b), (a, b) in zip(ekfac.state.bases, pairs, strict=True):
        values = [(q.T @ m @ q).diagonal() for q, m in ((base_b, b), (base_a, a))]
        inverses.append(EigenInverse(base_a, base_b, floored(torch.outer(*values) + 1e-2, 1e-15)))
    assert ekfac.state.dense is None
    assert_close(flat(Inverses(inverses).apply(v)), flat(kfac.apply(v)), 1e-9)


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
    solver = prepared(system, points, damping)
    v = random_direction(system)
    expected = torch.linalg.solve(dense_matrix(solver, system, points, damping), flat(v))
    assert_close(flat(solver.apply(v)), expected, 1e-8)


def test_without_damping_nothing_is_infinite():
    system, points = system_of("poisson")
    assert torch.isfinite(flat(prepared(system, points, 0.0).apply(random_direction(system)))).all()


def test_bases_are_renewed_in_time_and_carry_the_average():
    system, points = system_of("poisson")
    linearisation = system.linearise(points)
    curvature = EigenvalueCorrected(Factors(decay=0), Moments(every=3, decay=0.6))
    first = curvature.at(situation(linearisation), curvature.start(system)).state
    system.set_parameters([1.3 * v for v in system.get_parameters()])
    other, state = system.linearise(points), first
    for step in (1, 2):
        state = curvature.at(situation(other, step=step), state).state
        pairs = zip(state.bases, first.bases, strict=True)
        assert all(torch.equal(a, before) for (a, _), (before, _) in pairs)
    old, new = (second_moments(lin, state.bases) for lin in (linearisation, other))
    for s, x, y in zip(state.moments.total, old, new, strict=True):
        assert_close(s, 0.4 * (0.36 * x + 0.6 * y + y), 1e-12)
    solver = curvature.at(situation(other, step=3), state)
    renewed = solver.state
    pairs = zip(renewed.bases, first.bases, strict=True)
    assert all(deviation(a, before) > 1e-3 for (a, _), (before, _) in pairs)
    fresh = second_moments(other, renewed.bases)
    for now, s, before, after, value in zip(
        renewed.moments.total, state.moments.total, state.bases, renewed.bases, fresh, strict=True
    ):
        assert_close(now, 0.6 * carried(s, before, after) + 0.4 * value, 1e-12)
    moments, v = renewed.moments.total[0] / (1 - 0.6**4), random_direction(system)
    inverse = EigenInverse(*renewed.bases[0], moments + 1e-2)
    assert_close(solver.apply(v)[0], inverse.apply(v[0]), 1e-12)


def test_new_scales_begin_the_moments_anew():
    system, points = system_of("poisson")
    curvature = EigenvalueCorrected(moments=Moments(decay=0.9))
    state = curvature.at(situation(system.linearise(points)), curvature.start(system)).state
    assert state.moments.updates == 1
    scales = [torch.full((1,), s, dtype=FLOAT) for s in (2.0, 3.0)]
    linearisation = system.linearise(with_scales(points, scales))
    state = curvature.at(situation(linearisation, step=1), state).state
    assert state.moments.updates == 1
    new = second_moments(linearisation, state.bases)
    for s, value in zip(state.moments.total, new, strict=True):
        assert_close(s, 0.1 * value, 1e-12)
    state = curvature.at(situation(linearisation, step=2), state).state
    assert state.moments.updates == 2


def test_as_a_curvature_of_its_own():
    system, points = system_of("poisson")
    curvature = EigenvalueCorrected()
    assert curvature.kept == "factors and their second moments"
    assert curvature.start(system) == EkfacState()
    solver = curvature.at(situation(system.linearise(points)), curvature.start(system))
    v = random_direction(system)
    assert_close(flat(solver.apply(v)), flat(prepared(system, points).apply(v)), 0.0)
    assert solver.state.bases and solver.state.average.factors.updates == 1


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
    take(started(system, iterations=iterations), system, points)
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
        take(stepper, system, points)
        losses.append(system.loss(points))
        assert losses[-1] <= losses[-2] * (1 + 1e-12)
    assert losses[-1] < 0.5 * losses[0]


def averages(state):
    """The averaged tensors in the state of a step."""
    held = state["curvature"]
    factors, moments = held["average"]["factors"]["total"], held["moments"]["total"]
    assert len(factors) == 8  # of two terms and two layers
    return [*factors, *moments]


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
        take(stepper, system, points)
    generator = stepper.generator.get_state()
    torch.save([stepper.state_dict(), system.get_parameters()], tmp_path / "state.pt")
    state, parameters = torch.load(tmp_path / "state.pt", weights_only=True)
    kept = copy.deepcopy(state)
    for _ in range(4):
        take(stepper, system, points)
    whole = flat(system.get_parameters())
    system.set_parameters(unflat(flat(parameters), parameters))
    resumed = begun()
    resumed.load_state_dict(state)
    resumed.generator.set_state(generator)
    for _ in range(4):
        take(resumed, system, points)
    assert_close(flat(system.get_parameters()), whole, 0.0)
    for before, after in zip(averages(kept), averages(state), strict=True):
        assert torch.equal(before, after)  # what was given is not changed


def test_after_a_divergence_all_averages_are_new():
    system, points = with_coefficients()
    stepper = started(system)
    take(stepper, system, points)
    assert "factors and their second moments anew" in stepper.recover()
    assert stepper.memory.curvature == EkfacState()
    take(stepper, system, points)
