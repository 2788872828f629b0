"""Algebra of Kronecker products against dense matrices."""

from __future__ import annotations

import math

import pytest
import torch
from nets import FLOAT
from oracles import assert_close, kronecker, random_spd

from pinnkfac import UserError
from pinnkfac.curvature.factors import gram
from pinnkfac.curvature.kronecker import damp, floored, inverse, merge, symmetric_eigen

RTOL = 1e-10
IN, OUT = 5, 4
DAMPING = 0.03
KINDS = ("same", "trace-norm", "exact")


def pair(seed, *, rank=None, scale=1.0):
    return scale * random_spd(IN, seed, rank), random_spd(OUT, seed + 50, rank) / scale


def vector(seed=0):
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed), dtype=FLOAT)


def dense(p, kind, damping=DAMPING):
    """A damped Kronecker product as a matrix, by the definitions."""
    a, b = p
    if kind == "exact":
        return kronecker(a, b) + damping * torch.eye(IN * OUT, dtype=FLOAT)
    pi = math.sqrt((a.trace() / IN) / (b.trace() / OUT)) if kind == "trace-norm" else 1.0
    each = math.sqrt(damping) if kind == "trace-norm" else damping
    a = a + each * pi * torch.eye(IN, dtype=FLOAT)
    return kronecker(a, b + each / pi * torch.eye(OUT, dtype=FLOAT))


def solve(matrix, v):
    return torch.linalg.solve(matrix, v.reshape(-1)).view_as(v)


def test_the_dense_matrix_is_the_map_from_v_to_b_v_a(device):
    a, b = pair(0)
    v = vector()
    found = (kronecker(a, b) @ v.reshape(-1)).view_as(v)
    assert_close(found, b @ v @ a, 1e-14)
    columns = torch.kron(a, b) @ v.T.reshape(-1)
    assert_close(columns.view(IN, OUT).T, b @ v @ a, 1e-14)


# -- one product ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", KINDS)
def test_inverse_of_one_product(kind, device):
    p, v = pair(1), vector()
    here = (p[0].to(device), p[1].to(device))
    found = inverse([here], DAMPING, kind).apply(v.to(device)).cpu()
    assert_close(found, solve(dense(p, kind), v), RTOL)


def test_exact_damping_differs_from_damped_factors():
    p, v = pair(1), vector()
    found = [inverse([p], DAMPING, kind).apply(v) for kind in KINDS]
    for i in range(3):
        for j in range(i):
            assert (found[i] - found[j]).norm() > 1e-2 * found[i].norm()


@pytest.mark.parametrize("kind", ["trace-norm", "exact"])
def test_the_step_does_not_depend_on_how_the_product_is_split(kind):
    v = vector()
    reference = inverse([pair(2)], DAMPING, kind).apply(v)
    for c in (1e-3, 7.0, 1e4):
        assert_close(inverse([pair(2, scale=c)], DAMPING, kind).apply(v), reference, RTOL)


def test_the_step_depends_on_how_the_product_is_split_under_same_damping():
    v = vector()
    reference = inverse([pair(2)], DAMPING, "same").apply(v)
    changed = inverse([pair(2, scale=7.0)], DAMPING, "same").apply(v)
    assert (changed - reference).norm() > 1e-2 * reference.norm()


def test_trace_norm_damping_splits_the_damping_by_the_mean_eigenvalues():
    a, b = pair(3)
    damped_a, damped_b = damp((a, b), DAMPING, "trace-norm")
    to_a, to_b = (damped_a - a)[0, 0].item(), (damped_b - b)[0, 0].item()
    assert to_a * to_b == pytest.approx(DAMPING, rel=1e-12)
    assert to_a / to_b == pytest.approx(float((a.trace() / IN) / (b.trace() / OUT)), rel=1e-12)


def test_damping_leaves_its_arguments_alone():
    for kind in ("same", "trace-norm"):
        a, b = pair(3)
        copies = a.clone(), b.clone()
        damp((a, b), DAMPING, kind)
        inverse([(a, b)], DAMPING, kind)
        inverse([(a, b), pair(8)], DAMPING, kind)
        assert_close(a, copies[0], 0.0)
        assert_close(b, copies[1], 0.0)


# -- sums ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["same", "trace-norm"])
def test_inverse_of_a_sum_of_two_products(kind, device):
    p, q, v = pair(4), pair(5), vector()
    here = [tuple(m.to(device) for m in pair) for pair in (p, q)]
    found = inverse(here, DAMPING, kind).apply(v.to(device)).cpu()
    assert_close(found, solve(dense(p, kind) + dense(q, kind), v), RTOL)
    swapped = inverse(here[::-1], DAMPING, kind).apply(v.to(device)).cpu()
    assert_close(swapped, found, RTOL)


def test_inverse_of_a_sum_of_two_products_without_damping():
    p, q, v = pair(4), pair(5), vector()
    found = inverse([p, q], 0.0, "same").apply(v)
    assert_close(found, solve(kronecker(*p) + kronecker(*q), v), 1e-9)


def test_a_sum_with_zero_is_one_product():
    p, v = pair(4), vector()
    zero = torch.zeros(IN, IN, dtype=FLOAT), torch.zeros(OUT, OUT, dtype=FLOAT)
    expected = solve(dense(p, "same") + DAMPING**2 * torch.eye(IN * OUT, dtype=FLOAT), v)
    assert_close(inverse([p, zero], DAMPING, "same").apply(v), expected, RTOL)
    assert_close(inverse([zero, p], DAMPING, "same").apply(v), expected, RTOL)


def test_more_than_two_products_are_refused():
    with pytest.raises(UserError, match=r"sum of 3 Kronecker products.*merge"):
        inverse([pair(1), pair(2), pair(3)], DAMPING, "same")


def test_exact_damping_of_a_sum_is_refused():
    with pytest.raises(UserError, match=r"damping=exact.*'trace-norm'"):
        inverse([pair(1), pair(2)], DAMPING, "exact")


# -- rank-deficient factors ----------------------------------------------------------------------
@pytest.mark.parametrize("damping", [1e-14, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_rank_deficient_factors_give_finite_steps(kind, damping):
    p, q = pair(6, rank=2), pair(7, rank=1)
    v = kronecker(*p) @ vector().reshape(-1)  # a gradient lies in the range of the curvature
    v = v.view(OUT, IN)
    assert torch.isfinite(inverse([p], damping, kind).apply(v)).all()
    if kind != "exact":
        assert torch.isfinite(inverse([p, q], damping, kind).apply(v)).all()
        assert torch.isfinite(inverse([q, p], damping, kind).apply(v)).all()


@pytest.mark.parametrize(
    "setting",
    [(damping, kind) for damping in (1e-14, 0.0) for kind in KINDS],
)
def test_a_layer_without_curvature_and_gradient_stays_where_it_is(setting):
    damping, kind = setting
    zero = torch.zeros(IN, IN, dtype=FLOAT), torch.zeros(OUT, OUT, dtype=FLOAT)
    assert not inverse([zero], damping, kind).apply(torch.zeros_like(vector())).any()


def test_rank_deficient_product_is_inverted_on_its_range():
    p = pair(6, rank=2)
    x = vector()
    found = inverse([p], 1e-14, "exact").apply(p[1] @ x @ p[0])
    onto = [q @ q.T for q in (symmetric_eigen(m)[1][:, -2:] for m in p)]
    assert_close(onto[1] @ found @ onto[0], onto[1] @ x @ onto[0], 1e-8)


def test_factors_that_are_not_finite_are_refused():
    a, b = pair(1)
    a[0, 0] = math.nan
    with pytest.raises(UserError, match=r"diverged.*damping"):
        inverse([(a, b)], DAMPING, "exact")


def test_eigenvectors_diagonalise(device):
    matrix = random_spd(6, 1).to(device)
    values, vectors = symmetric_eigen(matrix)
    assert_close(vectors @ torch.diag(values) @ vectors.T, matrix, 1e-13)


# -- merging -------------------------------------------------------------------------------------
def partial_traces(matrix):
    """Traces over the outputs and over the inputs of a matrix on V [out, in]."""
    tensor = matrix.view(OUT, IN, OUT, IN)
    return torch.einsum("oioj->ij", tensor), torch.einsum("oipi->op", tensor)


@pytest.mark.parametrize("number", [1, 2, 3, 5])
def test_merging_keeps_the_partial_traces(number):
    pairs = [pair(10 + i) for i in range(number)]
    total = sum(kronecker(*p) for p in pairs)
    merged = kronecker(*merge(pairs))
    for found, expected in zip(partial_traces(merged), partial_traces(total), strict=True):
        assert_close(found, expected, 1e-13)


def test_merging_is_exact_for_one_product_and_for_multiples_of_a_factor():
    a, b = pair(1)
    c, d = pair(2)
    assert all(x is y for x, y in zip(merge([(a, b)]), (a, b), strict=True))
    for pairs in ([(a, b), (3 * a, d)], [(a, b), (c, 0.2 * b)], [(a, b), (2 * a, 5 * b), (a, d)]):
        expected = sum(kronecker(*p) for p in pairs)
        assert_close(kronecker(*merge(pairs)), expected, 1e-13)


def test_merging_is_not_exact_in_general():
    pairs = [pair(1), pair(2)]
    expected = sum(kronecker(*p) for p in pairs)
    assert (kronecker(*merge(pairs)) - expected).norm() > 1e-2 * expected.norm()


def test_merging_zeros_gives_zero():
    zero = torch.zeros(IN, IN, dtype=FLOAT), torch.zeros(OUT, OUT, dtype=FLOAT)
    assert not kronecker(*merge([zero, zero])).any()
    p = pair(1)
    assert_close(kronecker(*merge([zero, p])), kronecker(*p), 1e-13)


def test_eigenvalues_are_at_least_rounding_unless_the_floor_is_off():
    for dtype, eps in ((torch.float32, 2**-23), (FLOAT, 2**-52)):
        values = torch.tensor([-1e-9, 1e-18, 1e-3, 2.0], dtype=dtype)
        assert_close(floored(values, 1e-20)[:2], torch.full((2,), 2 * eps, dtype=dtype), 1e-6)
        assert_close(floored(values, 1e-2)[:3], torch.full((3,), 2e-2, dtype=dtype), 1e-6)
        assert_close(floored(values, 0.0)[1:], values[1:], 0.0)
        assert bool((floored(torch.zeros(2, dtype=dtype), 1e-15) > 0).all())


# -- products of features ------------------------------------------------------------------------
@pytest.mark.parametrize("features", [1, 5, 127, 128, 129, 300])
def test_gram_is_the_product_with_the_transpose(features, device):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, features, generator=generator, dtype=FLOAT).to(device)
    assert_close(gram(x), x.T @ x, 1e-14)
    assert gram(x[:0]).shape == (features, features) and not gram(x[:0]).any()
