"""The cost model against counts of what is really multiplied."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from nets import net_for
from problems import allen_cahn, flow, heat, points_for, poisson
from torch import Generator
from torch.utils._python_dispatch import TorchDispatchMode

from pinnkfac.curvature import cost, kernel
from pinnkfac.curvature.cost import (
    conjugate_gradient_step,
    exact_bytes,
    exact_step,
    forward,
    product,
)
from pinnkfac.curvature.kernel import KernelPlan, plan_kernel
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp
from pinnkfac.step.base import Batch
from pinnkfac.step.damping import Constant
from pinnkfac.step.lengths import Automatic
from pinnkfac.step.methods import Kfac, Spring
from pinnkfac.step.search import Accepted

PRODUCTS = {"mm": (0, 1), "bmm": (0, 1), "addmm": (1, 2), "addmm_": (1, 2), "baddbmm": (1, 2)}
"""Operations that multiply matrices, and which of their arguments these are."""


class Counter(TorchDispatchMode):
    """Counts the multiplications of all matrix products."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in PRODUCTS:
            a, b = (args[i] for i in PRODUCTS[name])
            self.number += a.numel() * b.shape[-1]
        return func(*args, **(kwargs or {}))


def counted(function):
    with Counter() as counter:
        function()
    return counter.number


def made(problem, widths, *numbers):
    system = System(problem, net_for(problem, widths))
    points = points_for(system, *numbers)
    return system, points, [len(own) for own in points]


@pytest.fixture
def products_alone(monkeypatch):
    """Without what else takes time."""
    for name in ("ACTIVATION", "ENTRY", "EIGEN", "EIGEN_ENTRY", "CHOLESKY_ENTRY", "JACOBIAN_ENTRY"):
        monkeypatch.setattr(cost, name, 0.0)
    for name in ("OVERHEAD", "FORMING"):
        monkeypatch.setattr(kernel, name, 0.0)


# -- by hand ---------------------------------------------------------------------------------------
def test_poisson_by_hand(products_alone):
    """Net 2 → 5 → 4 → 1: 34 weights, 44 parameters. Inside, u, ∂u/∂x, ∂u/∂y and Δu are carried."""
    system, _, numbers = made(poisson(), (5, 4), 7, 3)
    assert [t.rows for t in system.terms] == [4, 1] and numbers == [7, 3]
    assert system.workload.residuals(numbers) == 10
    assert forward(system.workload, numbers) == (7 * 4 + 3) * (10 + 20 + 4)
    assert product(system.workload, numbers) == forward(system.workload, numbers)
    assert exact_bytes(system.workload, numbers) == 3 * 8 * 10**2
    plan = plan_kernel(system.workload, numbers)
    assert plan.rows == tuple(31**2 / 2 * n for n in (2 + 5, 5 + 4, 4 + 1))
    assert plan.dense == tuple((10**2 / 2 + 31) * n for n in (10, 20, 4))
    assert plan.multiplications == (50 + 31) * 34


def test_equations_multiply_products_with_the_jacobian_only(products_alone):
    """flow has 3, 2 and 1 equations."""
    system, _, numbers = made(flow(), (5, 4), 7, 3, 1)
    rows = [t.rows for t in system.terms]
    weights = 2 * 5 + 5 * 4 + 4 * 3
    assert system.workload.residuals(numbers) == 7 * 3 + 3 * 2 + 1
    assert forward(system.workload, numbers) == weights * (7 * rows[0] + 3 * rows[1] + rows[2])
    assert product(system.workload, numbers) == weights * (21 * rows[0] + 6 * rows[1] + rows[2])


def test_entries_are_counted_beside_products():
    system, _, numbers = made(poisson(), (5, 4), 7, 3)
    outputs = 5 + 4 + 1
    assert forward(system.workload, numbers) == 31 * (34 + cost.ACTIVATION * outputs)
    assert product(system.workload, numbers) == 31 * (34 + cost.ENTRY * outputs)


def test_the_smaller_side_is_factorised():
    """With fewer parameters (44) than residuals JᵀJ, with J, its copy and its factor."""
    system, _, _ = made(poisson(), (5, 4), 7)
    assert exact_bytes(system.workload, [40, 4]) == 3 * 8 * 44**2
    assert exact_bytes(system.workload, [40, 5]) == 8 * (45 + 3 * 44) * 44
    with_more = exact_step(system.workload, [4000, 4]) / exact_step(system.workload, [2000, 2])
    assert with_more == pytest.approx(2.0, rel=0.05)  # linear in the points, not cubic


# -- against what is multiplied --------------------------------------------------------------------
NETS = {
    "poisson": (lambda: poisson(), (64, 48), (40, 20)),
    "poisson 5d": (lambda: poisson(5), (64, 64), (30, 10)),
    "heat": (lambda: heat(), (48, 64), (40, 10)),
    "flow": (lambda: flow(), (64, 64), (20, 10)),
    "allen-cahn": (lambda: allen_cahn(), (64, 64), (20, 10)),
}


@pytest.mark.parametrize("name", NETS)
def test_passes_and_products(name, products_alone):
    """Less than modelled in first and last layers, whose rows are partly known to be zero."""
    problem, widths, sizes = NETS[name]
    system, points, numbers = made(problem(), widths, *sizes)
    linearisation = system.linearise(points)
    gradient = linearisation.gradient()
    f, p = forward(system.workload, numbers), product(system.workload, numbers)
    layers = [(inputs + 1, outputs, uses) for inputs, outputs, uses in system.workload.layers]
    with_bias = product(replace(system.workload, layers=tuple(layers)), numbers)
    for found, expected in (
        (counted(lambda: system.residuals(points)), f),
        (counted(lambda: system.linearise(points)), f + p),
        (counted(lambda: linearisation.jvp(gradient)), with_bias),
        (counted(linearisation.gradient), with_bias),
    ):
        assert 0.75 * expected < found <= expected


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("dimension", [2, 5])
def test_the_kernel_by_rows_and_densely(by_rows, dimension, products_alone, monkeypatch):
    """Many tiles, since those on the diagonal are computed whole."""
    if not by_rows:
        monkeypatch.setattr(kernel, "TILE_ROWS", 64)
    system, points, numbers = made(poisson(dimension), (64, 64, 48), 1200, 100)
    linearisation = system.linearise(points)
    plan = plan_kernel(system.workload, numbers)
    plan = KernelPlan((by_rows,) * 4, plan.rows, plan.dense)
    found = counted(lambda: kernel.kernel(linearisation, plan))
    assert found == pytest.approx(plan.multiplications, rel=0.25)


def test_the_kernel_by_rows_does_not_cost_what_dense_rows_do(products_alone):
    """That the comparison above can fail: the two ways differ by far more than it allows."""
    system, _, numbers = made(poisson(), (256, 256), 1200, 100)
    plan = plan_kernel(system.workload, numbers)
    assert plan.by_rows[1] and plan.dense[1] > 3 * plan.rows[1]


class SomeTrials:
    """A search that evaluates as many losses as the model counts."""

    def run(self, loss, loss_0, slope, last):
        for _ in range(round(cost.TRIALS)):
            value = loss(1e-4)
        return Accepted(1e-4, value, round(cost.TRIALS))


def step_count(system, points, step):
    stepper = step.start(system, SomeTrials(), Constant(1e-6), Generator().manual_seed(0))
    place = stepper.update(system.get_parameters(), Batch(points)).parameters
    return counted(lambda: stepper.update(place, Batch(points)))


@pytest.mark.parametrize("iterations", [0, 1, 10])
def test_a_step_of_kfac(iterations, products_alone, monkeypatch):
    monkeypatch.setattr(cost, "BACKWARD", 1.0)
    system, points, numbers = made(poisson(), (64, 48), 300, 40)
    step = Kfac(iterations=iterations, lengths=Automatic())
    found = step_count(system, points, step)
    expected = conjugate_gradient_step(system.workload, numbers, iterations)
    assert found == pytest.approx(expected, rel=0.25)


def test_an_exact_step(products_alone, monkeypatch):
    """All but its factorisation, which is no matrix product, far from a solution."""
    monkeypatch.setattr(cost, "BACKWARD", 1.0)
    monkeypatch.setattr(cost, "REFINED", 0.0)
    monkeypatch.setattr(cost, "CORRECTED", 0.0)
    system, points, numbers = made(poisson(), (64, 64), 1200, 100)
    assert system.layout.number > 1300
    found = step_count(system, points, Spring(decay=0.0, geodesic=True))
    expected = exact_step(system.workload, numbers) - 1300**3 / 6
    assert found == pytest.approx(expected, rel=0.25)


def test_costs_grow_with_every_size():
    def steps(dimension=2, widths=(32, 32), numbers=(100, 20)):
        system = System(poisson(dimension), Mlp(dimension, 1, widths))
        workload = system.workload
        return exact_step(workload, numbers), conjugate_gradient_step(workload, numbers, 10)

    wide, deep = steps(widths=(64, 64)), steps(widths=(32,) * 4)
    for other in (steps(4), wide, deep, steps(numbers=(200, 40))):
        assert all(1.2 * old < new for old, new in zip(steps(), other, strict=True))


def test_times_are_proportional_to_the_model():
    """Coarsely: a factor of 3 on a machine that others use; experiments/kernel_cost.py measures."""
    import time

    rates = []
    for widths, numbers in (((64, 64), (400, 50)), ((128, 128), (800, 100))):
        system, points, own = made(poisson(), widths, *numbers)
        step = Spring(decay=0.0, geodesic=True)
        stepper = step.start(system, SomeTrials(), Constant(1e-6), Generator().manual_seed(0))
        place, seconds = system.get_parameters(), []
        for _ in range(4):
            start = time.process_time()
            place = stepper.update(place, Batch(points)).parameters
            seconds.append(time.process_time() - start)
        rates.append(exact_step(system.workload, own) / min(seconds))
    assert torch.get_num_threads() > 1 or 1 / 3 < rates[1] / rates[0] < 3
