"""Dense rows of J, Gramians, damped solves and the steps of ENGD against dense algebra."""

from __future__ import annotations

import copy

import pytest
import torch
from nets import FLOAT, linear, net_for
from oracles import (
    assert_close,
    deviation,
    flat,
    jacobian,
    layer_blocks,
    layer_jacobian,
    random_spd,
    unflat,
)
from problems import PROBLEMS, allen_cahn, flow, inverse, points_for, poisson
from stepping import situation, take
from torch import nn

from pinnkfac import UserError
from pinnkfac.common import memory
from pinnkfac.common.errors import Diverged
from pinnkfac.common.state import restore, state_of
from pinnkfac.curvature import gramian as gramian_module
from pinnkfac.curvature.gramian import (
    ExactGramian,
    GramianSettings,
    GramianSolver,
    GramianState,
    LayerKernels,
    diagonal_gramian,
    gramian,
    gramians,
)
from pinnkfac.curvature.kernel import layer_kernel
from pinnkfac.curvature.solve import solve_damped
from pinnkfac.linearisation import block as block_module
from pinnkfac.linearisation import layer as layer_module
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.layer import square_sum
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Scale
from pinnkfac.step.damping import Constant, LevenbergMarquardt
from pinnkfac.step.lengths import Automatic
from pinnkfac.step.methods import Engd
from pinnkfac.step.search import Backtracking, Fixed

KINDS = ("full", "layerwise", "diagonal")


def system_of(name, **arguments):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem), **arguments)
    return system, points_for(system, 6, 5, 4)


def with_coefficients(device="cpu"):
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1)).to(device)
    system = System(inverse(), net)
    points = points_for(system, 6)
    assert [len(p) for p in points] == [6, 7] and system.layout.dense == 6
    return system, points


def identity(size):
    return torch.eye(size, dtype=FLOAT)


# -- rows of J -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", PROBLEMS)
def test_rows_of_the_jacobian(name):
    system, points = system_of(name)
    blocks = list(system.linearise(points))
    found = torch.cat([block.jacobian(system.layout) for block in blocks])
    assert_close(found, jacobian(system, points), 1e-11)
    for block in blocks:
        for layer in block.layers:
            for e in range(block.equations):
                rows = layer.jacobian(e)
                out, inputs = layer.gradients[e].shape[-1], layer.inputs.shape[-1]
                assert rows.shape == (block.batch, out, inputs)
                if len(layer.gradients[e]):
                    expected = layer_jacobian(layer, e)
                    assert_close(rows.flatten(1), expected, 1e-13)
                else:
                    assert not rows.any()


def test_a_layer_without_bias_has_no_column_for_it():
    net = nn.Sequential(linear(2, 4, False), nn.Tanh(), linear(4, 1))
    system = System(poisson(), net)
    block = next(iter(system.linearise(points_for(system, 5))))
    assert system.layout.layers == ((4, 2), (1, 5))
    assert block.layers[0].jacobian(0).shape == (5, 4, 2)
    twice = block.layers[1].jacobian(0, 2.0)
    assert twice.shape == (5, 1, 5)
    assert_close(twice, 2.0 * block.layers[1].jacobian(0), 0.0)


@pytest.mark.parametrize("active", [1, 2, 3, 4, 6])
def test_sums_of_squares_with_few_and_many_rows(active, monkeypatch):
    monkeypatch.setattr(layer_module, "CACHED", 40)  # several pieces
    g, z = torch.randn(active, 9, 4, dtype=FLOAT), torch.randn(active, 9, 3, dtype=FLOAT)
    expected = torch.einsum("sbo,sbi->boi", g, z).square().sum(0)
    kept = g.clone()
    for few in (0, 99):
        monkeypatch.setattr(layer_module, "FEW", few)
        assert_close(square_sum(g, z), expected, 1e-13)
    assert_close(g, kept, 0.0)


# -- Gramians ------------------------------------------------------------------------------------
def check_gramians(system, points):
    j = jacobian(system, points)
    exact = j.T @ j
    linearisation = system.linearise(points)
    found = gramian(linearisation)
    assert_close(found, exact, 1e-10)
    assert torch.equal(found, found.T)
    blocks = gramians(linearisation, linearisation.layout.sizes)
    for block, expected in zip(blocks, layer_blocks(exact, system), strict=True):
        assert_close(block, expected, 1e-10)
    assert_close(flat(diagonal_gramian(linearisation)), exact.diagonal(), 1e-10)


@pytest.mark.parametrize("name", PROBLEMS)
def test_gramians(name, monkeypatch):
    monkeypatch.setattr(gramian_module, "PANEL", 7)
    check_gramians(*system_of(name))


def test_gramians_in_pieces_threads_and_blocks_that_are_not_kept(monkeypatch):
    monkeypatch.setattr(block_module, "PIECE", 200)
    for arguments in ({"workers": 2}, {"memory": 1.0}, {"workers": 3, "chunk_bytes": 100}):
        problem = PROBLEMS["flow"]()
        system = System(problem, net_for(problem), **arguments)
        check_gramians(system, points_for(system, 40, 20, 1))


def test_gramians_carry_the_scales_of_equations():
    system, points = system_of("flow")
    plain = jacobian(system, points)
    scales = [torch.full((n,), 2.0 + n, dtype=FLOAT) for n in (3, 2, 1)]
    rows = [len(p) * n for p, n in zip(points, (3, 2, 1), strict=True)]
    factors = torch.cat([torch.full((k,), 2.0 + n) for k, n in zip(rows, (3, 2, 1), strict=True)])
    j = plain * factors[:, None]
    linearisation = system.linearise(with_scales(points, scales))
    assert_close(gramian(linearisation), j.T @ j, 1e-10)


def test_gramian_and_kernel_have_the_same_eigenvalues():
    system, points = system_of("poisson")
    found = torch.linalg.eigvalsh(gramian(system.linearise(points)))
    j = jacobian(system, points)
    assert len(j) == 11 < len(found)
    assert_close(found[-11:], torch.linalg.eigvalsh(j @ j.T), 1e-11)
    assert found[:-11].abs().max() < 1e-12 * found[-1]


# -- averages ------------------------------------------------------------------------------------
def averages(settings, linearisations):
    """The averaged matrices after each linearisation, with the state that is kept."""
    curvature, state = ExactGramian(settings), GramianState()
    for step, linearisation in enumerate(linearisations):
        solver = curvature.at(situation(linearisation, step=step), state)
        state = solver.state
        yield solver.average.values(settings.decay, settings.start), state


@pytest.mark.parametrize("kind", KINDS)
def test_averages(kind):
    system, points = with_coefficients()
    linearisation = system.linearise(points)
    ((exact, state),) = averages(GramianSettings(kind), [linearisation])
    assert state == GramianState()
    of_all = {
        "full": [gramian(linearisation)],
        "layerwise": gramians(linearisation, linearisation.layout.sizes),
    }
    for x, y in zip(exact, of_all.get(kind, diagonal_gramian(linearisation)), strict=True):
        assert_close(x, y, 0.0)
    for values, _ in averages(GramianSettings(kind, 0.9), 3 * [linearisation]):
        for x, y in zip(values, exact, strict=True):
            assert_close(x, y, 1e-13)
    *_, (begun, _) = averages(GramianSettings(kind, 0.9, "identity"), 2 * [linearisation])
    *_, (zero, _) = averages(GramianSettings(kind, 0.9, "zero"), 2 * [linearisation])
    for x, y, z in zip(begun, zero, exact, strict=True):
        one = torch.ones_like(z) if kind == "diagonal" else identity(len(z))
        assert_close(y, 0.19 * z, 1e-13)
        assert_close(x, 0.81 * one + 0.19 * z, 1e-13)


def test_an_average_begins_anew_with_new_scales():
    system, points = system_of("poisson")
    scales = [torch.full((1,), s, dtype=FLOAT) for s in (2.0, 3.0)]
    plain, linearisation = (system.linearise(with_scales(points, s)) for s in (None, scales))
    settings = GramianSettings("diagonal", 0.9)
    *_, (values, state) = averages(settings, [plain, linearisation])
    assert state.average.updates == 1
    assert_close(flat(values), flat(diagonal_gramian(linearisation)), 1e-13)
    other = restore(GramianState(), copy.deepcopy(state_of(state)))
    equal = system.linearise(with_scales(points, [s.clone() for s in scales]))
    solver = ExactGramian(settings).at(situation(equal, step=2), other)
    assert solver.state.average.updates == 2


@pytest.mark.parametrize("solver", ["jacobi", "least-squares"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_bias_of_an_average_is_divided_out_without_a_copy(kind, solver, monkeypatch):
    system, points = with_coefficients()
    linearisation = system.linearise(points)
    gradient, matrices = linearisation.gradient(), []
    solve = GramianSolver.solve
    monkeypatch.setattr(
        GramianSolver, "solve", lambda self, m, v: (matrices.append(m), solve(self, m, v))[1]
    )
    plain, averaged = (
        solver_at(system, linearisation, 0.1, kind=kind, decay=decay, solver=solver)
        for decay in (0.0, 0.5)
    )
    expected = flat(plain.direction(gradient))
    matrices.clear()
    assert_close(flat(averaged.direction(gradient)), expected, 1e-9)
    for matrix in matrices:
        assert any(matrix is kept for kept in averaged.state.average.total)


# -- damped solves -------------------------------------------------------------------------------
@pytest.mark.parametrize("jacobi", [False, True])
@pytest.mark.parametrize("damping", [0.0, 1e-3, 10.0])
def test_damped_solves(damping, jacobi, device):
    matrix = random_spd(12, 0).to(device)
    before = matrix.clone()
    right = torch.randn(12, 3, dtype=FLOAT, device=device)
    expected = torch.linalg.solve(matrix + damping * identity(12).to(device), right)
    assert_close(solve_damped(matrix, right, damping, jacobi=jacobi), expected, 1e-10)
    one = solve_damped(matrix, right[:, 0], damping, jacobi=jacobi)
    assert_close(one, expected[:, 0], 1e-10)
    assert torch.equal(matrix, before)


def test_jacobi_scaling_bears_parameters_of_very_different_scales():
    scale = torch.logspace(-12, 12, 12, dtype=FLOAT)
    inner, solution = random_spd(12, 1), torch.randn(12, dtype=FLOAT)
    matrix = torch.outer(scale, scale) * inner
    right = scale * (inner @ solution)
    found = solve_damped(matrix, right, 0.0, jacobi=True)
    assert_close(found * scale, solution, 1e-10)


@pytest.mark.parametrize("jacobi", [False, True])
@pytest.mark.parametrize("damping", [0.0, 1e-300, 1e-20, 1e-14])
def test_a_singular_matrix_gives_a_finite_solution_of_the_range(damping, jacobi):
    matrix = random_spd(20, 2, rank=6)
    right = matrix @ torch.randn(20, dtype=FLOAT)
    found = solve_damped(matrix, right, damping, jacobi=jacobi)
    assert torch.isfinite(found).all()
    assert_close(matrix @ found, right, 1e-6)
    zero = solve_damped(torch.zeros(4, 4, dtype=FLOAT), torch.zeros(4, dtype=FLOAT), damping)
    assert not zero.any()


def test_a_matrix_far_from_positive_is_solved_by_its_eigenvalues():
    values = torch.tensor([-1e6, 0.0, 1.0, 4.0], dtype=FLOAT)
    base = torch.linalg.qr(torch.randn(4, 4, dtype=FLOAT)).Q
    matrix = (base * values) @ base.T
    matrix = (matrix + matrix.T) / 2
    right = base[:, 2:].sum(1)
    expected = base[:, 2] / 1.5 + base[:, 3] / 4.5
    assert_close(solve_damped(matrix, right, 0.5), expected, 1e-8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_solve_without_finite_numbers_says_so(bad):
    good, right = identity(3), torch.ones(3, dtype=FLOAT)
    matrix, wrong = good.clone(), right.clone()
    matrix[0, 1], wrong[2] = bad, bad
    for arguments in ((matrix, right, 0.1), (good, wrong, 0.1), (good, right, bad)):
        with pytest.raises(Diverged, match="diverged"):
            solve_damped(*arguments)


def test_solves_in_single_precision_stay_finite():
    matrix = random_spd(30, 3, rank=10).float()
    right = matrix @ torch.randn(30)
    found = solve_damped(matrix, right, 0.0)
    assert found.dtype == torch.float32 and torch.isfinite(found).all()
    assert_close(matrix @ found, right, 1e-2)


# -- steps ---------------------------------------------------------------------------------------
def started(system, *, search=Fixed(1.0), damping=Constant(1e-2), **settings):  # noqa: B008
    kind = settings.pop("kind", "full")
    gramian_settings = GramianSettings(kind, settings.pop("decay", 0.0))
    step = Engd(gramian_settings, **settings)
    return step.start(system, search, damping, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("solver", ["cholesky", "jacobi", "least-squares"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_solves_with_the_damped_gramian(kind, solver):
    system, points = with_coefficients()
    j, start = jacobian(system, points), flat(system.get_parameters())
    gradient = flat(system.linearise(points).gradient())
    exact = j.T @ j
    parts = {
        "full": exact,
        "layerwise": torch.block_diag(*layer_blocks(exact, system)),
        "diagonal": exact.diagonal().diag(),
    }
    take(started(system, kind=kind, solver=solver), system, points)
    found = flat(system.get_parameters()) - start
    for name, matrix in parts.items():
        expected = -torch.linalg.solve(matrix + 1e-2 * identity(len(matrix)), gradient)
        if name == kind:
            assert_close(found, expected, 1e-9, name)
        else:
            assert deviation(found, expected) > 1e-3


def solver_at(system, linearisation, damping=1e-3, *, kind="full", decay=0.0, solver="jacobi"):
    curvature = ExactGramian(GramianSettings(kind, decay), solver)
    return curvature.at(situation(linearisation, damping), curvature.start(system))


def test_primal_and_dual_agree():
    system, points = system_of("poisson")
    j, linearisation = jacobian(system, points), system.linearise(points)
    solver = solver_at(system, linearisation)
    found = solver.direction(linearisation.gradient())
    kernel = j @ j.T + 1e-3 * identity(len(j))
    assert_close(flat(found), -j.T @ torch.linalg.solve(kernel, linearisation.residual), 1e-10)


@pytest.mark.parametrize("solver", ["cholesky", "jacobi"])
@pytest.mark.parametrize("build", [poisson, allen_cahn, flow, inverse])
def test_layers_are_solved_through_their_kernels_where_residuals_are_fewer(build, solver):
    problem = build()
    system = System(problem, net_for(problem, (9, 8)))
    points = points_for(system, 5, 4, 2)
    linearisation = system.linearise(points)
    gradient = linearisation.gradient()
    through = solver_at(system, linearisation, kind="layerwise", solver=solver)
    assert isinstance(through, LayerKernels)
    assert through.state == GramianState()  # no Gramian was made
    found = through.direction(gradient)
    exact = gramians(linearisation, linearisation.layout.sizes)
    for x, block, g in zip(found, exact, gradient, strict=True):
        assert_close(x.flatten(), -solve_damped(block, g.flatten(), 1e-3), 1e-9)
    many = system.linearise(points_for(system, 90))
    assert not isinstance(solver_at(system, many, kind="layerwise"), LayerKernels)
    for other in ({"decay": 0.5}, {"solver": "least-squares"}, {"kind": "full"}):
        settings = {"kind": "layerwise", **other}
        assert not isinstance(solver_at(system, linearisation, **settings), LayerKernels)


@pytest.mark.parametrize("solver", ["cholesky", "jacobi"])
def test_a_layer_alone_has_the_kernel_of_its_columns(solver):
    system, points = system_of("allen-cahn")
    linearisation = system.linearise(points)
    j, right = jacobian(system, points), linearisation.residual
    columns = j.split([v.numel() for v in system.get_parameters()], dim=1)
    kernels = LayerKernels(situation(linearisation, 1e-2), solver, GramianState())
    assert len(columns) == 3
    for number, of_layer in enumerate(columns):
        dense = of_layer @ of_layer.T
        assert_close(layer_kernel(linearisation, number), dense, 1e-11)
        expected = of_layer.T @ torch.linalg.solve(dense + 1e-2 * identity(len(dense)), right)
        found = kernels.solve(number, right)
        assert found.shape == system.layout.layers[number]
        assert_close(found.flatten(), expected, 1e-11)
    assert_close(flat(linearisation.gradient()), j.T @ linearisation.residual, 1e-11)


def test_one_layer_is_the_whole():
    net = nn.Sequential(linear(2, 1))
    system = System(poisson(), net)
    points = points_for(system, 6)
    start = copy.deepcopy(net.state_dict())
    found = []
    for kind in ("full", "layerwise"):
        net.load_state_dict(start)
        take(started(system, kind=kind), system, points)
        found.append(flat(system.get_parameters()))
    assert_close(found[1], found[0], 1e-12)


def test_a_linear_problem_is_solved_in_one_step():
    """The loss of the last layer alone is quadratic: its minimum is that of least squares."""
    net = nn.Sequential(linear(2, 1))
    system = System(poisson(), net)
    points = points_for(system, 6)
    theta, linearisation = flat(system.get_parameters()), system.linearise(points)
    j = jacobian(system, points)
    best = torch.linalg.lstsq(j, (j @ theta - linearisation.residual)[:, None], driver="gelsd")
    take(started(system, damping=Constant(0.0)), system, points)
    expected = 0.5 * (j @ best.solution[:, 0] - (j @ theta - linearisation.residual)).square().sum()
    assert system.loss(points) == pytest.approx(float(expected), rel=1e-9)


@pytest.mark.parametrize("lengths", [None, Automatic()], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_steps_lower_the_loss(kind, lengths):
    system, points = with_coefficients()
    stepper = started(
        system, kind=kind, lengths=lengths, search=Backtracking(), damping=LevenbergMarquardt()
    )
    losses = [system.loss(points)]
    for _ in range(8):
        take(stepper, system, points)
        losses.append(system.loss(points))
        assert losses[-1] <= losses[-2] * (1 + 1e-12)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("decay", [0.0, 0.7])
@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(kind, decay, tmp_path):
    settings = {"kind": kind, "decay": decay, "search": Backtracking(), "lengths": Automatic()}
    system, points = with_coefficients()
    stepper = started(system, **settings)
    for _ in range(2):
        take(stepper, system, points)
    torch.save([stepper.state_dict(), system.get_parameters()], tmp_path / "state.pt")
    state, parameters = torch.load(tmp_path / "state.pt", weights_only=True)
    for _ in range(3):
        take(stepper, system, points)
    whole = flat(system.get_parameters())
    system.set_parameters(parameters)
    resumed = started(system, **settings)
    resumed.load_state_dict(state)
    for _ in range(3):
        take(resumed, system, points)
    assert_close(flat(system.get_parameters()), whole, 0.0)


def test_after_a_divergence_the_average_is_new():
    system, points = with_coefficients()
    stepper = started(system, decay=0.9)
    take(stepper, system, points)
    assert "Gramian anew" in stepper.recover()
    assert stepper.memory.curvature == GramianState() and stepper.memory.damping == 1.0
    assert "Gramian" not in started(system).recover()
    bad = unflat(torch.full((23,), float("nan"), dtype=FLOAT), system.get_parameters())
    linearisation = system.linearise(points)
    for kind in KINDS:
        solver = solver_at(system, linearisation, 0.1, kind=kind)
        with pytest.raises(Diverged):
            solver.direction(bad)


@pytest.mark.parametrize(("kind", "instead"), [("full", "layerwise"), ("layerwise", "diagonal")])
def test_a_gramian_that_does_not_fit_is_refused(kind, instead, monkeypatch):
    system, _ = system_of("poisson")
    linearisation = system.linearise(points_for(system, 60))
    monkeypatch.setattr(memory, "available", lambda device: 1000.0)
    with pytest.raises(UserError) as caught:
        solver_at(system, linearisation, kind=kind)
    assert f"Gramian of {system.layout.number} parameters" in str(caught.value)
    assert f"step.gramian.approximation={instead}" in str(caught.value)
    solver_at(system, linearisation, kind="diagonal")
    with pytest.raises(UserError):
        started(system, kind="full")  # before the first step
    started(system, kind="layerwise")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GramianSettings("ful"), ["step.gramian.approximation=ful", "'full'"]),
        (lambda: GramianSettings(start="one"), ["step.gramian.start=one", "identity"]),
        (lambda: Engd(solver="qr"), ["step.solver=qr", "cholesky, jacobi, least-squares"]),
    ],
)
def test_unknown_options_are_refused_with_the_known_ones(make, words):
    with pytest.raises(UserError) as caught:
        make()
    for word in words:
        assert word in str(caught.value)
