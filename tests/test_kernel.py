"""The kernel J Jᵀ by rows and by dense rows of J, against the dense Jacobian of nested autodiff."""

from __future__ import annotations

import pytest
import torch
from nets import NETS, net_for
from oracles import assert_close, jacobian
from problems import PROBLEMS, everything, points_for, poisson

from pinnkfac import UserError
from pinnkfac.curvature import kernel as module
from pinnkfac.curvature.kernel import KernelPlan, kernel, plan_kernel
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp

RTOL = 1e-12


def plans(linearisation):
    """By rows, densely, alternating, and the one chosen by cost."""
    number = len(linearisation.layout.layers)
    zeros = (0.0,) * number
    for ways in (
        (True,) * number,
        (False,) * number,
        tuple(i % 2 == 0 for i in range(number)),
    ):
        yield KernelPlan(ways, zeros, zeros)
    yield plan_kernel(linearisation.workload, linearisation.points)


def check(system, points):
    j = jacobian(system, points)
    if points[0].scale is not None:
        j = torch.cat([p.scale.repeat(len(p)) for p in points])[:, None] * j
    expected = j @ j.T
    linearisation = system.linearise(points)
    assert len(expected) == len(linearisation.residual)
    for plan in plans(linearisation):
        found = kernel(linearisation, plan)
        assert_close(found, expected, RTOL, plan.by_rows)
        assert torch.equal(found, found.T)


@pytest.mark.parametrize("name", PROBLEMS)
def test_kernel_of_every_problem(name, device):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem).to(device))
    check(system, points_for(system, 6, 5))


@pytest.mark.parametrize("name", NETS)
def test_kernel_of_every_net(name, device):
    system = System(everything(2), NETS[name](2).to(device))
    check(system, points_for(system, 4))


@pytest.mark.parametrize("name", ["flow", "inverse", "everything"])
def test_products_of_rows_are_added_pair_by_pair_where_points_are_many(monkeypatch, name):
    """As in tiles that are larger than those of any other test here."""
    monkeypatch.setattr(module, "FEW_POINTS", 0)
    problem = everything(2) if name == "everything" else PROBLEMS[name]()
    system = System(problem, net_for(problem))
    check(system, points_for(system, 6, 5))


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("name", ["flow", "inverse", "linked"])
def test_tiles_and_chunks_change_nothing(monkeypatch, name, kept, workers):
    """Many small blocks and tiles, on two threads, computed anew, with scales on the equations."""
    monkeypatch.setattr(module, "TILE_ROWS", 8)
    problem = PROBLEMS[name]()
    memory = 2**30 if kept else 1
    system = System(problem, net_for(problem), chunk_bytes=1, memory=memory, workers=workers)
    points = points_for(system, 37, 18)
    scales = [torch.linspace(0.5, 2.0, t.equations, dtype=torch.float64) for t in system.terms]
    points = with_scales(points, scales)
    linearisation = system.linearise(points)
    assert len(linearisation.blocks) > len(system.terms) and linearisation.kept == kept
    check(system, points)


def test_dense_layers_are_sliced_to_the_budget(monkeypatch):
    problem = poisson()
    memory = 4 * 17 * 8 * 8 * 2  # two outputs of the middle layer, seven inputs and a bias wide
    system = System(problem, net_for(problem, (7, 9)), memory=1e9)
    system.memory = memory
    points = points_for(system, 12, 5)
    linearisation = system.linearise(points)
    sizes = []
    fill = module.fill_jacobian

    def spy(jacobian, linearisation, number, outputs):
        sizes.append(jacobian.numel() * 8)
        fill(jacobian, linearisation, number, outputs)

    monkeypatch.setattr(module, "fill_jacobian", spy)
    zeros = (0.0,) * 3
    found = kernel(linearisation, KernelPlan((False,) * 3, zeros, zeros))
    j = jacobian(system, points)
    assert_close(found, j @ j.T, RTOL)
    assert len(sizes) == 2 + 5 + 1 and max(sizes) <= memory / 4


def test_the_plan_takes_the_cheaper_way_of_every_layer():
    wide = System(poisson(), Mlp(2, 1, [256, 256]))
    plan = plan_kernel(wide.workload, [30, 10])
    assert plan.by_rows == (False, True, False)
    narrow = System(poisson(3), Mlp(3, 1, [16, 16]))
    plan = plan_kernel(narrow.workload, [30, 10])
    assert plan.by_rows == (False, False, False)
    chosen = [min(r, d) for r, d in zip(plan.rows, plan.dense, strict=True)]
    assert plan.multiplications == sum(chosen)


def test_kernel_has_the_eigenvalues_of_the_gramian():
    problem = poisson()
    system = System(problem, net_for(problem, (4,)))
    points = points_for(system, 20, 10)
    j = jacobian(system, points)
    dual = torch.linalg.eigvalsh(kernel(system.linearise(points))).flip(0)
    primal = torch.linalg.eigvalsh(j.T @ j).flip(0)
    assert len(dual) > len(primal)
    assert_close(dual[: len(primal)], primal, RTOL)
    assert float(dual[len(primal) :].abs().max()) < 1e-13 * float(dual[0])


def test_a_kernel_that_does_not_fit_is_refused(monkeypatch):
    problem = poisson()
    system = System(problem, net_for(problem))
    linearisation = system.linearise(points_for(system, 20, 10))
    monkeypatch.setattr("pinnkfac.common.memory.available", lambda device: 2 * 8 * 30**2 - 1)
    with pytest.raises(UserError, match=r"kernel of 30 residuals .* points\.scale"):
        kernel(linearisation)
