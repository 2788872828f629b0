"""Steps for what is no PDE: a classifier with cross-entropy, against an engine of others.

With p = softmax(f) the Hessian of −log p_y by the outputs f is S Sᵀ, S = diag(√p) − p √pᵀ. With
J = Sᵀ ∂f/∂θ in place of the Jacobian of a residual, and r = −e_y/√p_y,

    Jᵀr = ∂f/∂θᵀ S r = ∂f/∂θᵀ (p − e_y) = ∇(−log p_y),    JᵀJ = the Gauss-Newton matrix,

so that all that reads (Z, G) and r works unchanged; only the loss is not ½‖r‖².
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from nets import FLOAT, linear
from oracles import assert_close, flat
from torch import Generator, Tensor, nn

from pinnkfac.common.parallel import Workers
from pinnkfac.curvature.factors import Factors
from pinnkfac.curvature.gramian import gramian
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layer import Layer
from pinnkfac.linearisation.layout import Layout
from pinnkfac.linearisation.linearisation import Head, Linearisation
from pinnkfac.linearisation.objective import Losses, Objective
from pinnkfac.linearisation.workload import Workload
from pinnkfac.step.base import Batch
from pinnkfac.step.damping import Constant, LevenbergMarquardt
from pinnkfac.step.methods import Ekfac, Engd, GaussNewtonCg, Kfac
from pinnkfac.step.search import Backtracking, Fixed

Data = tuple[Tensor, Tensor]
"""Inputs [batch, in] and labels [batch]."""
DAMPING = 1e-2


@dataclass(frozen=True)
class Labels:
    name: str = "labels"
    weight: float = 1.0


class Classifier:
    """The mean cross-entropy of one linear layer with a bias."""

    terms = (Labels(),)

    def __init__(self, net: nn.Linear) -> None:
        layers = ((net.out_features, net.in_features + 1),)
        self.layout = Layout(layers, 0, net.weight.dtype, net.weight.device)
        self.workload = Workload(
            ((net.in_features, net.out_features, 1),),
            ((1, net.out_features),),
            self.layout.number,
            2.0**30,
        )

    def numbers(self, points: Data) -> list[int]:
        return [len(points[0])]

    def evaluate(self, points: Data, at: Direction) -> Losses:
        inputs, labels = points
        value = float(nn.functional.cross_entropy(with_one(inputs) @ at[0].T, labels))
        return Losses([value], value, value)

    def loss(self, points: Data, at: Direction) -> float:
        return self.evaluate(points, at).trained

    def residual(self, points: Data, at: Direction) -> Tensor:
        return self.linearise(points, at).residual

    def linearise(self, points: Data, at: Direction) -> Linearisation:
        inputs, labels = points
        z = with_one(inputs)
        p = torch.softmax(z @ at[0].T, dim=1)
        one = nn.functional.one_hot(labels, p.shape[1]).to(p)
        columns = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
        gradients = tuple(g[None].contiguous() for g in columns.unbind(2))  # an equation a class
        residual = -one / p.sqrt()
        layer = Layer(z[None], ((0,),) * p.shape[1], gradients)
        block = Block(0, 1.0 / len(p), residual, (layer,), None)
        head = Head(0, block.weight, residual)
        losses = self.evaluate(points, at)
        return Linearisation(
            self.layout,
            self.workload,
            [1.0],
            [lambda: block],
            [head],
            losses=losses.terms,
            loss=losses.trained,
            workers=Workers(),
        )


def with_one(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones_like(inputs[:, :1])], dim=1)


@pytest.fixture
def net():
    return linear(5, 4)


@pytest.fixture
def data() -> Data:
    generator = Generator().manual_seed(1)
    inputs = torch.randn(30, 5, generator=generator, dtype=FLOAT)
    return inputs, torch.randint(4, (30,), generator=generator)


def start(net: nn.Linear) -> Direction:
    return [torch.cat([net.weight, net.bias[:, None]], dim=1).detach()]


def gradients(net: nn.Linear, data: Data) -> list[Tensor]:
    """Of the mean cross-entropy, by weight and bias."""
    loss = nn.functional.cross_entropy(net(data[0]), data[1])
    return list(torch.autograd.grad(loss, [net.weight, net.bias]))


def joint(parts: list[Tensor]) -> Tensor:
    """[out, in + bias] of what belongs to a weight and to a bias."""
    return torch.cat([parts[0], parts[1][:, None]], dim=1)


def started(net, method, *, search=Fixed(1.0), damping=Constant(DAMPING)):  # noqa: B008
    objective: Objective = Classifier(net)
    return method.start(objective, search, damping, Generator().manual_seed(0))


def test_gradient_and_gauss_newton_matrix_are_those_of_the_cross_entropy(net, data):
    curvlinops = pytest.importorskip("curvlinops")
    linearisation = Classifier(net).linearise(data, start(net))
    assert_close(linearisation.gradient()[0], joint(gradients(net, data)), 1e-12)
    matrix = curvlinops.GGNLinearOperator(
        net, nn.CrossEntropyLoss(), [net.weight, net.bias], [data], check_deterministic=False
    )
    for column, v in zip(gramian(linearisation).T, torch.eye(24, dtype=FLOAT), strict=True):
        v = v.view(4, 6)
        image = matrix @ [v[:, :5].contiguous(), v[:, 5].contiguous()]
        assert_close(column.view(4, 6), joint(image), 1e-12)


def test_a_step_of_kfac_is_the_inverse_of_an_independent_engine_on_the_gradient(net, data):
    curvlinops = pytest.importorskip("curvlinops")
    engine = curvlinops.KFACLinearOperator(
        net,
        nn.CrossEntropyLoss(),
        [net.weight, net.bias],
        [data],
        fisher_type="type-2",
        kfac_approx="expand",
        separate_weight_and_bias=False,
        check_deterministic=False,
    )
    inverse = curvlinops.KFACInverseLinearOperator(engine, DAMPING, use_exact_damping=True)
    expected = -joint(inverse @ gradients(net, data))
    before = start(net)
    report = started(net, Kfac(Factors("expand")).parts()).update(before, Batch(data))
    assert_close(report.parameters[0] - before[0], expected, 1e-10)
    cross_entropy = nn.functional.cross_entropy(net(data[0]), data[1]).detach()
    assert report.losses == [report.trained_loss] == [pytest.approx(float(cross_entropy), 1e-14)]


def test_a_step_of_newton_solves_with_the_gauss_newton_matrix(net, data):
    linearisation = Classifier(net).linearise(data, start(net))
    matrix = gramian(linearisation) + DAMPING * torch.eye(24, dtype=FLOAT)
    expected = -torch.linalg.solve(matrix, joint(gradients(net, data)).flatten())
    report = started(net, Engd()).update(start(net), Batch(data))
    assert_close(flat(report.parameters) - flat(start(net)), expected, 1e-10)


@pytest.mark.parametrize("method", [Kfac(), Ekfac(), Engd(), GaussNewtonCg()], ids=type)
def test_steps_lower_the_cross_entropy_as_far_as_it_goes(method, net, data):
    stepper = started(net, method, search=Backtracking(), damping=LevenbergMarquardt(start=1e-2))
    parameters, losses = start(net), []
    small = 1e-4 * joint(gradients(net, data)).abs().max()
    while (left := Classifier(net).linearise(data, parameters).gradient()[0].abs().max()) > small:
        report = stepper.update(parameters, Batch(data))
        parameters = report.parameters
        losses.append(report.trained_loss)
        assert len(losses) < 60, f"a gradient of {float(left):.1e} is left"
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.9 * losses[0]
