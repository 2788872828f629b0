"""Blocks that are shared among processes: the same numbers as from threads of one."""

from __future__ import annotations

import os
import pickle

import pytest
import torch
from nets import FLOAT, linear, net_for
from oracles import assert_close, flat, random_spd
from problems import PROBLEMS, inverse, points_for
from stepping import take
from torch import nn

from pinnkfac.curvature import gramian as gramians
from pinnkfac.curvature.cg_fac import KroneckerOperator
from pinnkfac.curvature.ekfac import second_moments
from pinnkfac.curvature.factors import Factors, dense_gramian, factors
from pinnkfac.curvature.gramian import diagonal_gramian, gramian
from pinnkfac.curvature.kernel import kernel
from pinnkfac.linearisation.balance import mean_square_norms
from pinnkfac.linearisation.products import gramian_products, kernel_products
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Scale
from pinnkfac.step.damping import Constant
from pinnkfac.step.methods import Ekfac, Kfac, Spring
from pinnkfac.step.search import Backtracking

RTOL = 1e-12


class TwoProcesses:
    """This process does one half of the items and a fork of it the other: what the fork writes into
    memory stays there, and only what a function returns comes back."""

    number = 2

    def __init__(self):
        self.shared = 0
        """How often both had something to do."""

    def halves(self, function, items):
        items = list(items)
        middle = len(items) // 2
        self.shared += middle > 0
        read, write = os.pipe()
        fork = os.fork()
        if not fork:
            try:
                with open(write, "wb") as pipe:
                    pickle.dump(function(items[middle:]), pipe)
            finally:
                os._exit(0)
        os.close(write)
        one = function(items[:middle])
        with open(read, "rb") as pipe:
            other = pickle.load(pipe)
        os.waitpid(fork, 0)
        return one, other

    def map(self, function, items):
        one, other = self.halves(lambda half: [function(item) for item in half], items)
        return one + other

    def sum(self, function, items):
        return [a + b for a, b in zip(*self.halves(function, items), strict=True)]

    def cat(self, function, items, dim=0):
        return torch.cat(self.map(function, items), dim)


SYSTEMS = {
    name: lambda name=name, **arguments: System(
        PROBLEMS[name](), net_for(PROBLEMS[name]()), **arguments
    )
    for name in ("poisson", "flow", "linked")
}
SYSTEMS["inverse"] = lambda **arguments: System(
    inverse(), nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1)), **arguments
)


def pair(name, memory):
    """Two equal systems, one of which has its work done by two processes."""
    systems = []
    for workers in (1, TwoProcesses()):
        torch.manual_seed(0)
        systems.append(SYSTEMS[name](chunk_bytes=1, memory=memory, workers=workers))
    return systems


KINDS = [
    ("expand", "type-2"),
    ("expand", "forward-only"),
    ("reduce", "monte-carlo"),
    ("weighted", "type-2"),
    ("weighted", "empirical"),
]


@pytest.mark.parametrize(
    ("name", "memory"), [*((name, 2.0**30) for name in SYSTEMS), ("inverse", 1.0)]
)
def test_processes_that_share_the_blocks_have_the_numbers_of_one(monkeypatch, name, memory):
    monkeypatch.setattr(gramians, "PANEL", 8)
    here, shared = (s.linearise(points_for(s, 40, 20)) for s in pair(name, memory))
    workers = shared.workers
    assert here.kept == shared.kept == (memory > 1.0)
    assert workers.shared and len(shared.blocks) > 3
    layout, bases = here.layout, []
    for out, inputs in layout.layers:
        bases.append((torch.linalg.eigh(random_spd(inputs, 1))[1], torch.eye(out, dtype=FLOAT)))
    v = [torch.randn(shape, dtype=FLOAT) for shape in layout.shapes]
    w = torch.randn(2, len(here.residual), dtype=FLOAT)
    assert_close(shared.residual, here.residual, RTOL)
    results = {
        "gradient": lambda lin: lin.gradient(),
        "Jv": lambda lin: [lin.jvp(v)],
        "Jᵀw": lambda lin: lin.vjp(w[0]),
        "JᵀJv": lambda lin: gramian_products(lin, [v, v])[1],
        "JJᵀw": lambda lin: [kernel_products(lin, w)],
        "JJᵀ": lambda lin: [kernel(lin)],
        "JᵀJ": lambda lin: [gramian(lin)],
        "its diagonal": diagonal_gramian,
        "sensitivities": mean_square_norms,
        "second moments": lambda lin: second_moments(lin, bases),
        "Kronecker products": lambda lin: KroneckerOperator(lin, "rows")(v[: len(bases)]),
    }
    if layout.dense:
        results["dense block"] = lambda lin: [dense_gramian(lin)]
    for kind in KINDS:
        results["factors, {}, {}".format(*kind)] = lambda lin, kind=kind: [
            side
            for layers in factors(lin, Factors(*kind), torch.Generator().manual_seed(1))
            for sides in layers
            for side in sides
        ]
    for what, result in results.items():
        before = workers.shared
        expected, found = result(here), result(shared)
        assert workers.shared > before, what
        for x, y in zip(found, expected, strict=True):
            assert_close(x, y, RTOL, what)


@pytest.mark.parametrize("name", ["poisson", "inverse"])
@pytest.mark.parametrize(
    "method",
    [Kfac(), Kfac(iterations=3), Ekfac(), Spring()],
    ids=["KFAC", "refined", "EKFAC", "SPRING"],
)
def test_a_step_of_processes_that_share_the_blocks_is_that_of_one(name, method):
    ends = []
    for system in pair(name, 2.0**30):
        stepper = method.start(
            system, Backtracking(), Constant(1e-2), torch.Generator().manual_seed(0)
        )
        for _ in range(2):
            report = take(stepper, system, points_for(system, 40, 20))
            assert report.length > 0
        ends.append(flat(system.get_parameters()))
    assert_close(ends[1], ends[0], 1e-9)
