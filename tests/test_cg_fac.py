"""CG-FAC: the product that is not formed, conjugate gradients by layer, and the step."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import scipy.sparse.linalg
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
)
from problems import PROBLEMS, allen_cahn, inverse, points_for, poisson
from stepping import situation, take
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pinnkfac import UserError
from pinnkfac.common.errors import Diverged
from pinnkfac.curvature.cg_fac import (
    KroneckerOperator,
    MatrixFree,
    conjugate_gradients_by_layer,
)
from pinnkfac.curvature.factors import Factors, factors
from pinnkfac.curvature.kronecker import inverse as kronecker_inverse
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Scale
from pinnkfac.step.damping import Constant, LevenbergMarquardt
from pinnkfac.step.lengths import Automatic, Past
from pinnkfac.step.methods import CgFac
from pinnkfac.step.search import Backtracking, Fixed


def system_of(name, **arguments):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem), **arguments)
    return system, points_for(system, 9, 6, 4)


def row_matrix(linearisation, layer):
    """Σ_t w_t Σ_s A_ts ⊗ B_ts of one layer, from single rows."""
    by_row = {}
    for block in linearisation:
        one = block.layers[layer]
        for s, z in enumerate(one.inputs):
            a, b = by_row.setdefault((block.term, s), [0.0, 0.0])
            for e, g in enumerate(one.gradients):
                if s in one.active[e]:
                    row = g[one.active[e].index(s)]
                    b = b + row.T @ row
            by_row[block.term, s] = [a + z.T @ z, b]
    points = [0] * len(linearisation.weights)
    for (batch, _), term in zip(linearisation.sizes, linearisation.terms, strict=True):
        points[term] += batch
    total = 0.0
    for (term, _), (a, b) in by_row.items():
        if isinstance(b, torch.Tensor):
            weight = linearisation.weights[term]
            total = total + weight / points[term] ** 2 * kronecker(a, b)
    return total


def dense_products(linearisation, sharing):
    """The matrices of all layers, [layer's param, layer's param]."""
    layers = range(len(linearisation.layout.layers))
    if sharing == "rows":
        return [row_matrix(linearisation, layer) for layer in layers]
    by_term = factors(linearisation, Factors(sharing))
    weights = linearisation.weights
    return [
        sum(w * kronecker(*pairs[layer]) for pairs, w in zip(by_term, weights, strict=True))
        for layer in layers
    ]


def linear_part(system, direction):
    return direction[: len(system.graph.linears)]


# -- the product ---------------------------------------------------------------------------------
@pytest.mark.parametrize("sharing", ["expand", "reduce", "rows"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_the_product_is_that_of_the_kronecker_factors(name, sharing):
    system, points = system_of(name)
    linearisation = system.linearise(points)
    assert linearisation.weights == [t.weight for t in system.problem.terms]
    v = linear_part(system, random_direction(system))
    found = KroneckerOperator(linearisation, sharing)(v)
    for x, own, matrix in zip(found, v, dense_products(linearisation, sharing), strict=True):
        assert_close(x.flatten(), matrix @ own.flatten(), 1e-11)


def test_the_product_of_threads_and_of_blocks_that_are_not_kept():
    for arguments in ({"workers": 2, "chunk_bytes": 100}, {"memory": 1.0}):
        problem = allen_cahn()
        system = System(problem, net_for(problem), **arguments)
        linearisation = system.linearise(points_for(system, 40, 30))
        assert len(linearisation.blocks) > 3 or not linearisation.kept
        v = random_direction(system)
        found = KroneckerOperator(linearisation, "expand")([None, v[1], v[2]])
        assert found[0] is None
        matrices = dense_products(linearisation, "expand")
        for layer in (1, 2):
            expected = matrices[layer] @ v[layer].flatten()
            assert_close(found[layer].flatten(), expected, 1e-11)


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that an operation returns."""

    def __init__(self):
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else (result,):
            if isinstance(value, torch.Tensor):
                self.size = max(self.size, value.numel())
        return result


def test_no_factor_is_ever_formed():
    """Layers of 4 × 900 and 900 × 4: a factor would have 810 000 numbers, a layer has 4505."""
    net = nn.Sequential(linear(2, 4), nn.Tanh(), linear(4, 900), nn.Tanh(), linear(900, 1))
    system = System(poisson(), net)
    linearisation = system.linearise(points_for(system, 3))
    gradient = linearisation.gradient()
    for sharing in ("expand", "reduce", "rows"):
        with Largest() as mode:
            solver = MatrixFree(sharing, iterations=3).at(situation(linearisation, 1e-3), None)
            solver.direction(gradient)
        rows, points = 4, 3
        assert 900 < mode.size <= rows * max(900 * 5, points * 901)
    with Largest() as mode:
        factors(linearisation, Factors("expand"))
    assert mode.size >= 900**2


# -- conjugate gradients by layer ----------------------------------------------------------------
def dense_operator(*matrices):
    return lambda vs: [
        None if v is None else (m @ v.flatten()).view_as(v)
        for m, v in zip(matrices, vs, strict=True)
    ]


def solve(matrix, right, damping=0.0, iterations=100, tolerance=0.0):
    return conjugate_gradients_by_layer(
        dense_operator(matrix), [right], damping, iterations, tolerance
    )[0]


def test_run_to_the_end_it_is_the_exactly_damped_inverse_of_the_factors():
    """At tolerance 1e-24 of the squared residual, 1e-12 of the residual."""
    system, points = system_of("poisson")
    a, b = random_spd(5, 1), random_spd(4, 2)
    v = torch.randn(4, 5, dtype=FLOAT)
    expected = kronecker_inverse([(a, b)], 1e-3).apply(v)
    assert_close(solve(kronecker(a, b), v, 1e-3, 1000, 1e-24), expected, 1e-9)
    linearisation = system.linearise(points)
    right = random_direction(system)
    found = conjugate_gradients_by_layer(
        KroneckerOperator(linearisation, "expand"), right, 1e-2, 1000, 1e-24
    )
    for x, own, matrix in zip(found, right, dense_products(linearisation, "expand"), strict=True):
        damped = matrix + 1e-2 * torch.eye(len(matrix), dtype=FLOAT)
        assert_close(x.flatten(), torch.linalg.solve(damped, own.flatten()), 1e-10)


@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_it_is_the_textbook_method(iterations):
    matrix, right = random_spd(12, 3), torch.randn(3, 4, dtype=FLOAT)
    damped = matrix + 0.1 * torch.eye(12, dtype=FLOAT)
    found = solve(matrix, right, 0.1, iterations).flatten()
    textbook = conjugate_gradients(damped, right.flatten(), lambda r: r, iterations)
    assert_close(found, textbook, 1e-11)
    theirs, _ = scipy.sparse.linalg.cg(
        damped.numpy(), right.flatten().numpy(), rtol=0.0, atol=0.0, maxiter=iterations
    )
    assert np.abs(found.numpy() - theirs).max() < 1e-11 * np.abs(theirs).max()


def test_one_iteration_is_a_scaled_gradient():
    system, points = system_of("heat")
    linearisation = system.linearise(points)
    right = random_direction(system)
    operator = KroneckerOperator(linearisation, "expand")
    found = conjugate_gradients_by_layer(operator, right, 10.0, 1, 0.0)
    for x, b, image in zip(found, right, operator(right), strict=True):
        length = (b * b).sum() / (b * (image + 10.0 * b)).sum()
        assert_close(x, length * b, 1e-12)


def test_as_many_iterations_as_distinct_eigenvalues():
    base = torch.linalg.qr(torch.randn(12, 12, dtype=FLOAT)).Q
    values = torch.tensor([0.1, 1.0, 7.0], dtype=FLOAT).repeat_interleave(4)
    matrix = (base * values) @ base.T
    right = torch.randn(3, 4, dtype=FLOAT)
    exact = torch.linalg.solve(matrix, right.flatten())
    assert_close(solve(matrix, right, 0.0, 3).flatten(), exact, 1e-10)
    assert deviation(solve(matrix, right, 0.0, 2).flatten(), exact) > 1e-3


def test_every_layer_stops_at_its_own_time():
    """The first needs one product, the second all of them."""
    matrices = 2.0 * torch.eye(6, dtype=FLOAT), random_spd(6, 4)
    asked = []

    def operator(vs):
        asked.append([v is not None for v in vs])
        return dense_operator(*matrices)(vs)

    right = [torch.randn(2, 3, dtype=FLOAT) for _ in range(2)]
    found = conjugate_gradients_by_layer(operator, right, 0.0, 5, 1e-30)
    assert asked == [[True, True], *[[False, True]] * 4]
    assert_close(found[0], right[0] / 2, 1e-14)
    zero = [torch.zeros(2, 3, dtype=FLOAT)] * 2
    assert not flat(conjugate_gradients_by_layer(operator, zero, 0.0, 5, 0.01)).any()
    assert len(asked) == 5


def test_it_stops_at_the_tolerance_of_the_squared_residual():
    matrix, right = random_spd(30, 5), torch.randn(5, 6, dtype=FLOAT)
    squares = []
    for iterations in range(1, 30):
        x = solve(matrix, right, 0.0, iterations, 0.0)
        squares.append(float((right.flatten() - matrix @ x.flatten()).square().sum()))
    first = next(i for i, s in enumerate(squares) if s < 0.01 * float(right.square().sum()))
    assert 0 < first < 28
    found = solve(matrix, right, 0.0, 30, 0.01)
    assert_close(found, solve(matrix, right, 0.0, first + 1, 0.0), 0.0)
    assert deviation(found, solve(matrix, right, 0.0, first, 0.0)) > 1e-6


def test_where_it_breaks_down_the_gradient_is_taken():
    right = torch.randn(2, 3, dtype=FLOAT)
    negative = -torch.eye(6, dtype=FLOAT)
    nothing = torch.full((6, 6), float("nan"), dtype=FLOAT)
    good = random_spd(6, 1)
    for bad in (negative, nothing, torch.zeros(6, 6, dtype=FLOAT)):
        found = conjugate_gradients_by_layer(
            dense_operator(bad, good), [right, right], 0.0, 6, 1e-20
        )
        assert_close(found[0], right, 0.0)
        assert_close(found[1].flatten(), torch.linalg.solve(good, right.flatten()), 1e-9)
    # The residual grows: after one iteration along a direction of little curvature.
    spread = torch.tensor([1e-6, 1e6], dtype=FLOAT).diag()
    far = torch.tensor([[1.0, 1e-5]], dtype=FLOAT)
    assert_close(solve(spread, far, 0.0, 1), far, 0.0)


# -- the step ------------------------------------------------------------------------------------
def start(system, *, search=Fixed(1.0), damping=Constant(1e-2), **settings):  # noqa: B008
    return CgFac(**settings).start(system, search, damping, torch.Generator().manual_seed(0))


def with_coefficients():
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1))
    system = System(inverse(), net)
    return system, points_for(system, 6)


@pytest.mark.parametrize("sharing", ["expand", "rows"])
def test_a_step_solves_by_layer_and_the_dense_block_exactly(sharing):
    system, points = with_coefficients()
    linearisation, before = system.linearise(points), flat(system.get_parameters())
    j = jacobian(system, points)
    matrices = [*dense_products(linearisation, sharing), layer_blocks(j.T @ j, system)[-1]]
    damped = torch.block_diag(*matrices) + 1e-2 * torch.eye(j.shape[1], dtype=FLOAT)
    expected = -torch.linalg.solve(damped, flat(linearisation.gradient()))
    take(start(system, sharing=sharing, iterations=200, tolerance=1e-26), system, points)
    assert_close(flat(system.get_parameters()) - before, expected, 1e-9)


@pytest.mark.parametrize("build", [poisson, allen_cahn, inverse])
@pytest.mark.parametrize("lengths", [None, Automatic()], ids=str)
def test_a_few_steps_lower_the_loss(build, lengths):
    problem = build()
    system = System(problem, net_for(problem))
    points = points_for(system, 20)
    schedule = LevenbergMarquardt(start=1e-3)
    stepper = start(system, search=Backtracking(), damping=schedule, lengths=lengths)
    losses = [system.loss(points)]
    for _ in range(8):
        take(stepper, system, points)
        losses.append(system.loss(points))
        assert losses[-1] <= losses[-2] * (1 + 1e-12)
    assert losses[-1] < 0.5 * losses[0]


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(tmp_path):
    system, points = with_coefficients()
    settings = {"search": Backtracking(), "lengths": Automatic(), "damping": LevenbergMarquardt()}
    stepper = start(system, **settings)
    for _ in range(2):
        take(stepper, system, points)
    torch.save([stepper.state_dict(), system.get_parameters()], tmp_path / "state.pt")
    state, parameters = torch.load(tmp_path / "state.pt", weights_only=True)
    for _ in range(3):
        take(stepper, system, points)
    whole = flat(system.get_parameters())
    system.set_parameters(copy.deepcopy(parameters))
    resumed = start(system, **settings)
    resumed.load_state_dict(state)
    for _ in range(3):
        take(resumed, system, points)
    assert_close(flat(system.get_parameters()), whole, 0.0)
    assert "momentum anew" in resumed.recover()
    assert resumed.memory.lengths == Past([], 5) and resumed.memory.curvature is None


def test_what_is_wrong_is_said():
    for make in (CgFac, MatrixFree):
        with pytest.raises(UserError, match=r"step\.sharing=row .*expand, reduce, rows"):
            make("row")
    system, points = with_coefficients()
    linearisation = system.linearise(points)
    bad = [torch.full_like(v, float("nan")) for v in linearisation.gradient()]
    with pytest.raises(Diverged, match="diverged"):
        MatrixFree().at(situation(linearisation, 1e-3), None).direction(bad)
