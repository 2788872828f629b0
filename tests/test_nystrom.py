"""Sketches of the Gramian and the kernel, and preconditioners, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from nets import FLOAT, NETS, net_for
from oracles import assert_close, flat, jacobian, random_direction, random_spd, unflat
from problems import everything, flow, inverse, points_for, poisson
from stepping import situation, take

from pinnkfac.curvature.conjugate_gradients import Identity
from pinnkfac.curvature.diagonal import Diagonal
from pinnkfac.curvature.kfac import KroneckerFactors
from pinnkfac.curvature.nystrom import NystromSketch, nystrom
from pinnkfac.curvature.two_level import TwoLevel
from pinnkfac.linearisation.products import gramian_times
from pinnkfac.linearisation.system import System
from pinnkfac.step.damping import Constant
from pinnkfac.step.methods import EngdWNystrom
from pinnkfac.step.search import Fixed

SETTINGS = {
    "none": Identity(),
    "diagonal": Diagonal(),
    "kfac": KroneckerFactors(),
    "nystrom": NystromSketch(rank=6, every=3),
    "two_level": TwoLevel(coarse=6, refresh=2),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def sketch(matrix, rank, seed=0):
    return nystrom(lambda v: matrix @ v, len(matrix), rank, matrix, generator(seed))


def eye(size):
    return torch.eye(size, dtype=FLOAT)


def approximated(found):
    return found.vectors @ torch.diag(found.values) @ found.vectors.T


# -- the sketch ------------------------------------------------------------------------------------
@pytest.mark.parametrize("rank", [12, 20])
def test_a_sketch_of_full_rank_is_the_matrix(rank):
    matrix = random_spd(12, 0)
    found = sketch(matrix, rank)
    assert found.vectors.shape == (12, 12)
    assert_close(approximated(found), matrix, 1e-13)
    for rest in (0.0, found.smallest, 5.0):
        assert_close(found.inverse(matrix + 0.1 * eye(12), 0.1, rest), eye(12), 1e-12)


def test_a_sketch_is_exact_from_the_rank_of_the_matrix_on():
    matrix = random_spd(15, 1, rank=6)
    damped = matrix + 1e-3 * eye(15)
    for rank in (6, 7, 10):
        found = sketch(matrix, rank)
        assert_close(approximated(found), matrix, 1e-12)
        assert_close(found.inverse(damped, 1e-3, 0.0), eye(15), 1e-9)
    assert sketch(matrix, 7).smallest < 1e-12
    below = sketch(matrix, 5)
    assert float((approximated(below) - matrix).norm()) > 1e-2 * float(matrix.norm())
    assert float((below.inverse(damped, 1e-3, 0.0) - eye(15)).norm()) > 1.0


def test_a_sketch_is_the_formula_of_nystrom():
    matrix = random_spd(14, 2)
    omega = torch.linalg.qr(torch.randn(14, 5, dtype=FLOAT, generator=generator(3)))[0]
    image = matrix @ omega
    expected = image @ torch.linalg.solve(omega.T @ image, image.T)
    found = sketch(matrix, 5, seed=3)
    assert_close(approximated(found), expected, 1e-11)
    assert_close(found.vectors.T @ found.vectors, eye(5), 1e-13)
    assert found.values.tolist() == sorted(found.values.tolist(), reverse=True)
    assert float(torch.linalg.eigvalsh(matrix - expected).min()) > -1e-13


def test_the_inverse_is_that_of_the_formula():
    found = sketch(random_spd(9, 4), 4)
    u = found.vectors
    for rest in (0.0, 0.3):
        full = approximated(found) + rest * (eye(9) - u @ u.T) + 0.02 * eye(9)
        v = torch.randn(9, dtype=FLOAT, generator=generator())
        assert_close(found.inverse(v, 0.02, rest), torch.linalg.solve(full, v), 1e-11)


def test_a_sketch_tames_a_spectrum_that_falls():
    q = torch.linalg.qr(torch.randn(40, 40, dtype=FLOAT, generator=generator(5)))[0]
    matrix = (q * 0.5 ** torch.arange(40, dtype=FLOAT)) @ q.T
    damped = matrix + 1e-6 * eye(40)
    found = sketch(matrix, 20)
    values = torch.linalg.eigvals(found.inverse(damped, 1e-6, found.smallest)).real
    assert float(values.max() / values.min()) < 50
    assert float(torch.linalg.cond(damped)) > 1e5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_matrices_give_finite_numbers(dtype):
    for matrix in (torch.zeros(6, 6), torch.ones(6, 6), 1e-30 * torch.eye(6), 1e12 * torch.eye(6)):
        own = matrix.to(dtype)
        found = nystrom(lambda v, own=own: own @ v, 6, 4, own, generator())
        assert found.vectors.dtype == dtype
        for damping in (0.0, 1e-14, 1.0):
            result = found.inverse(torch.ones(6, dtype=dtype), damping, found.smallest)
            assert torch.isfinite(result).all()


# -- preconditioners -------------------------------------------------------------------------------
def prepared(settings, problem=None, *, number=8, damping=1e-2, net=None, seed=0):
    problem = problem or poisson()
    system = System(problem, net or net_for(problem))
    points = points_for(system, number)
    linearisation = system.linearise(points)
    at = situation(linearisation, damping, seed=seed)
    preconditioner = settings.at(at, settings.start(system))
    j = jacobian(system, points)
    return system, linearisation, preconditioner, j.T @ j


def following(settings, last, linearisation, damping, step):
    """The preconditioner of a later step."""
    return settings.at(situation(linearisation, damping, step, seed=100 + step), last.state)


def dense(preconditioner, like):
    """P⁻¹ column by column."""
    size = sum(v.numel() for v in like)
    return torch.stack([flat(preconditioner.apply(unflat(v, like))) for v in eye(size)], dim=1)


def test_a_sketch_with_more_vectors_than_residuals_inverts_the_gramian():
    for rank, exact in ((17, True), (200, True), (9, False)):
        system, _, found, gramian = prepared(NystromSketch(rank=rank))
        assert gramian.shape[0] > 17
        product = dense(found, system.layout.zeros()) @ (gramian + 1e-2 * eye(len(gramian)))
        assert (float((product - eye(len(product))).abs().max()) < 1e-9) == exact


def test_the_preconditioner_is_that_of_frangella():
    """Up to a factor: U (λ̂ + λ)⁻¹ Uᵀ (λ̂_r + λ) + (I − UUᵀ)."""
    system, _, found, gramian = prepared(NystromSketch(rank=6), damping=0.05)
    sketch = found.state.sketch
    u, values = sketch.vectors, sketch.values
    expected = (u * ((values[-1] + 0.05) / (values + 0.05))) @ u.T + eye(len(gramian)) - u @ u.T
    assert_close(dense(found, system.layout.zeros()) * (values[-1] + 0.05), expected, 1e-11)


def test_a_sketch_serves_until_its_next_draw():
    settings = NystromSketch(rank=4, every=3)
    _, linearisation, found, _ = prepared(settings)
    first = found.state.sketch
    for step in (1, 2, 4, 5):
        found = following(settings, found, linearisation, 0.5 * step, step)
        assert found.state.sketch is first and found.damping == 0.5 * step
    found = following(settings, found, linearisation, 0.5, 6)
    assert not torch.equal(found.state.sketch.vectors, first.vectors)


@pytest.mark.parametrize("net", ["tanh", "no bias", "Scale", "layer called twice"])
def test_the_diagonal_is_that_of_the_gramian(net):
    for exponent in (1.0, 0.75):
        system, _, found, gramian = prepared(
            Diagonal(exponent), everything(2), number=3, net=NETS[net](2)
        )
        v = random_direction(system)
        expected = flat(v) / (gramian.diagonal() + 1e-2) ** exponent
        assert_close(flat(found.apply(v)), expected, 1e-10)


def test_nothing_changes_nothing():
    system, _, found, _ = prepared(Identity())
    v = random_direction(system)
    assert_close(flat(found.apply(v)), flat(v), 0.0)


def test_kronecker_factors_are_those_of_the_steps():
    """Exact for a layer at a single point; P of several layers has no blocks off the diagonal."""
    system, _, found, gramian = prepared(KroneckerFactors(), number=1)
    p = torch.linalg.inv(dense(found, system.layout.zeros()))
    last = system.get_parameters()[-1].numel()
    assert_close(p, (p + p.T) / 2, 1e-10)
    assert not p[-last:, :-last].abs().max() > 1e-12
    assert gramian[-last:, :-last].abs().max() > 1e-3


@pytest.mark.parametrize("make", [poisson, flow, inverse])
@pytest.mark.parametrize("smoother", [KroneckerFactors(), Identity()], ids=["kfac", "none"])
def test_a_coarse_space_of_everything_is_exact(make, smoother):
    """Also where the Gramian has less than full rank."""
    system, _, found, gramian = prepared(TwoLevel(smoother, coarse=10**6), make())
    size = system.layout.number
    assert found.vectors.shape == (size, size)
    product = dense(found, system.layout.zeros()) @ (gramian + 1e-2 * eye(size))
    assert_close(product, eye(size), 1e-8)


def test_two_levels_are_the_formula_and_exact_on_the_coarse_space():
    system, _, found, gramian = prepared(TwoLevel(coarse=6))
    v, a = found.vectors, gramian + 1e-2 * eye(len(gramian))
    assert_close(v.T @ v, eye(6), 1e-12)
    q = v @ torch.linalg.solve(v.T @ a @ v, v.T)
    smoother = dense(found.smoother, system.layout.zeros())
    deflated = eye(len(a)) - a @ q
    inverse_p = dense(found, system.layout.zeros())
    assert_close(inverse_p, q + deflated.T @ smoother @ deflated, 1e-10)
    assert_close(inverse_p @ a @ v, v, 1e-9)
    assert float((inverse_p @ a - eye(len(a))).abs().max()) > 0.1


def test_new_vectors_are_where_the_smoother_is_short():
    """They span M⁻¹ JᵀJ Ω."""
    system, _, found, gramian = prepared(TwoLevel(coarse=5), seed=7)
    omega = torch.randn(len(gramian), 5, dtype=FLOAT, generator=generator(7))
    expected = dense(found.smoother, system.layout.zeros()) @ gramian @ omega
    outside = expected - found.vectors @ (found.vectors.T @ expected)
    assert float(outside.norm()) < 1e-10 * float(expected.norm())


def test_the_oldest_vectors_are_replaced():
    """The others stay, with images by the Gramian of the step."""
    settings = TwoLevel(coarse=6, refresh=2)
    system, _, found, _ = prepared(settings)
    old = found.vectors
    system.set_parameters([v + 0.1 for v in system.get_parameters()])
    points = points_for(system, 8)
    found = following(settings, found, system.linearise(points), 0.3, 1)
    assert_close(found.vectors[:, :4], old[:, 2:], 0.0)
    assert_close(found.vectors.T @ found.vectors, eye(6), 1e-12)
    j = jacobian(system, points)
    damped = j.T @ (j @ found.vectors) + 0.3 * found.vectors
    assert_close(dense(found, system.layout.zeros()) @ damped, found.vectors, 1e-9)
    for step in range(2, 4):
        found = following(settings, found, system.linearise(points), 0.3, step)
    assert float((old.T @ found.vectors).abs().max()) < 1.0 - 1e-6


def test_without_a_refresh_the_vectors_stay():
    settings = TwoLevel(coarse=6, refresh=0)
    system, _, found, _ = prepared(settings)
    old = found.vectors
    system.set_parameters([v + 0.1 for v in system.get_parameters()])
    here = system.linearise(points_for(system, 8))
    found = following(settings, found, here, 0.3, 1)
    assert_close(found.vectors, old, 0.0)
    assert_close(found.images, gramian_times(here, old), 1e-11)


@pytest.mark.parametrize("damping", [1e-2, 1e-14])
@pytest.mark.parametrize("name", SETTINGS)
def test_every_preconditioner_is_symmetric_and_positive(name, damping):
    """Over steps in which everything changes."""
    system, _, found, _ = prepared(SETTINGS[name], damping=damping)
    for seed in range(4):
        system.set_parameters([3.0 * v for v in random_direction(system, seed)])
        here = system.linearise(points_for(system, 8))
        found = following(SETTINGS[name], found, here, damping, seed + 1)
    p = dense(found, system.layout.zeros())
    assert torch.isfinite(p).all()
    assert_close(p, p.T, 1e-9)
    for seed in range(20):
        w = flat(random_direction(system, seed))
        assert float(w @ p @ w) > 0


# -- the kernel ------------------------------------------------------------------------------------
def direction(settings, make, damping, seed=0):
    system = System(make(), net_for(make()))
    points = points_for(system, 8)
    stepper = settings.start(system, Fixed(1.0), Constant(damping), generator(seed))
    before, j = flat(system.get_parameters()), jacobian(system, points)
    residual = system.linearise(points).residual
    take(stepper, system, points)
    return flat(system.get_parameters()) - before, j, residual


@pytest.mark.parametrize("make", [poisson, flow, inverse])
@pytest.mark.parametrize(("rank", "iterations"), [(5, 400), (10**6, 0), (10**6, 1)])
def test_the_kernel_gives_the_gauss_newton_direction(make, rank, iterations):
    """Primal = dual, whatever the sketch, where CG has enough iterations or the sketch is exact."""
    settings = EngdWNystrom(rank, iterations, progress=0.0)
    found, j, residual = direction(settings, make, 1e-2)
    dual = -j.T @ torch.linalg.solve(j @ j.T + 1e-2 * eye(len(j)), residual)
    primal = -torch.linalg.solve(j.T @ j + 1e-2 * eye(j.shape[1]), j.T @ residual)
    assert_close(dual, primal, 1e-10)
    assert_close(found, dual, 1e-8)


def test_a_sketch_can_stand_in_for_the_kernel():
    """y = (K̂ + λ)⁻¹ r with K̂ = (KΩ)(ΩᵀKΩ)⁻¹(KΩ)ᵀ."""
    found, j, residual = direction(EngdWNystrom(rank=4, iterations=0), poisson, 1e-2, seed=5)
    kernel = j @ j.T
    omega = torch.linalg.qr(torch.randn(len(j), 4, dtype=FLOAT, generator=generator(5)))[0]
    image = kernel @ omega
    sketched = image @ torch.linalg.solve(omega.T @ image, image.T)
    expected = -j.T @ torch.linalg.solve(sketched + 1e-2 * eye(len(j)), residual)
    assert_close(found, expected, 1e-8)
    exact = -j.T @ torch.linalg.solve(kernel + 1e-2 * eye(len(j)), residual)
    assert float((found - exact).norm()) > 1e-2 * float(exact.norm())
