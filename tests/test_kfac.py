"""Kronecker factors: by their definition, against exact Gramian blocks, against curvlinops.

The cases P1 … P6 are interior terms on Taylor rows, T1 … T6 are supervised ones with a shared axis
made of linked points; each says where a factorisation is exact and where it is not.
"""

from __future__ import annotations

import math

import pytest
import torch
from nets import FLOAT, Net, deep_linear, linear, net_for, sequential
from oracles import assert_close, deviation, jacobian, kronecker, layer_blocks
from problems import PROBLEMS, inverse, points_for, poisson
from regions import Linked
from stepping import situation
from torch import nn
from torch.func import functional_call, jacrev

from pinnkfac import Box, Points, Problem, Term, Uniform, lap
from pinnkfac.common.parallel import Workers
from pinnkfac.common.state import restore, state_of
from pinnkfac.curvature.factors import FactorAverage, Factors, dense_gramian, factors
from pinnkfac.domain import PointSet
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.layer import Layer
from pinnkfac.linearisation.layout import Layout
from pinnkfac.linearisation.linearisation import Head, Linearisation
from pinnkfac.linearisation.system import System
from pinnkfac.linearisation.workload import Workload
from pinnkfac.nets import FixedLinear, Mlp, Scale
from pinnkfac.taylor.plan import make_plan
from pinnkfac.taylor.published import published_plan

RTOL = 1e-10
EXACT = 1e-12
BOX = Box(x=(0, 1), y=(0, 1))


def system_of(residual, net, *, where=BOX.interior, fields=("u",), published=False):
    """A system of one term."""
    term = Term("eq", where, residual, weight=1.7)
    return System(
        Problem(fields=fields, terms=[term], domain=BOX),
        net,
        planner=published_plan if published else make_plan,
    )


def exact_blocks(system, points):
    """Diagonal blocks of JᵀJ, one a layer."""
    j = jacobian(system, points)
    number = len(system.graph.linears)
    return layer_blocks(j.T @ j, system)[:number]


def kfac_blocks(system, points, generator=None, **settings):
    """weight · A ⊗ B of a system's first term, one a layer."""
    pairs = factors(system.linearise(points), Factors(**settings), generator)
    weight = system.problem.terms[0].weight
    return [weight * kronecker(a, b) for a, b in pairs[0]]


def errors(found, expected):
    """Relative Frobenius error of each layer's block."""
    return [float((f - e).norm() / e.norm()) for f, e in zip(found, expected, strict=True)]


# -- by the definition ---------------------------------------------------------------------------
def slow_factors(linearisation, term, number, settings, noise=None):
    """A and B of one term and layer, one point and one row at a time."""
    sums = {"a": 0.0, "b": 0.0}
    batch = 0
    for block in linearisation:
        if block.term != term:
            continue
        batch += block.batch
        layer = block.layers[number]
        shared = layer.inputs.shape[0]
        active = sorted({s for rows in layer.active for s in rows})
        rows = active if settings.active_rows else list(range(shared))
        weights = {
            "type-2": torch.eye(block.equations, dtype=FLOAT).expand(block.batch, -1, -1),
            "empirical": block.residual[:, None],
            "monte-carlo": None if noise is None else noise[:, None],
            "forward-only": torch.zeros(block.batch, 0, block.equations, dtype=FLOAT),
        }[settings.backpropagated]
        for n in range(block.batch):
            z = {s: layer.inputs[s, n] for s in rows}
            if settings.sharing == "reduce" and rows:
                z = {0: sum(z.values()) / len(rows)}
            for v in z.values():
                sums["a"] = sums["a"] + torch.outer(v, v) / len(z)
            for combination in weights[n]:
                g = {s: torch.zeros_like(layer.gradients[0][0, 0]) for s in active}
                for e, own in enumerate(layer.active):
                    for i, s in enumerate(own):
                        g[s] = g[s] + combination[e] * layer.gradients[e][i, n]
                if settings.sharing == "reduce":
                    g = {0: sum(g.values())}
                for v in g.values():
                    sums["b"] = sums["b"] + torch.outer(v, v)
    if settings.backpropagated == "forward-only":
        return sums["a"] / batch, torch.eye(layer.gradients[0].shape[-1], dtype=FLOAT)
    return sums["a"] / batch, sums["b"] / batch


def row_factors(layer, s):
    """A_s and B_s of one row, from all points of a block."""
    z = layer.inputs[s]
    out = layer.gradients[0].shape[-1]
    b = torch.zeros(out, out, dtype=FLOAT)
    for own, g in zip(layer.active, layer.gradients, strict=True):
        if s in own:
            b = b + g[own.index(s)].T @ g[own.index(s)]
    return z.T @ z / len(z), b / len(z)


@pytest.mark.parametrize("name", ["heat", "allen-cahn", "flow", "linked"])
def test_weighted_rows_have_the_partial_traces_of_one_product_a_row(name):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem))
    points = points_for(system, 4)
    linearisation = system.linearise(points)
    for active_rows in (True, False):
        found = factors(linearisation, Factors("weighted", active_rows=active_rows))
        for block in linearisation:
            for (a, b), layer in zip(found[block.term], block.layers, strict=True):
                rows = [row_factors(layer, s) for s in range(len(layer.inputs))]
                by_inputs = sum(q.trace() * p for p, q in rows)
                by_outputs = sum(p.trace() * q for p, q in rows)
                assert_close(b.trace() * a, by_inputs, 1e-12)
                assert_close(a.trace() * b, by_outputs, 1e-12)
                assert a.trace() == pytest.approx(float(b.trace()), rel=1e-12)


def test_weighted_rows_do_not_depend_on_the_units_of_length():
    """The same problem in metres and in millimetres."""
    net = sequential(2, nn.Tanh, 1)
    finer = nn.Sequential(FixedLinear(1e-3 * torch.eye(2, dtype=FLOAT)), net)
    metres = system_of(lambda u, at: lap(u), net)
    millimetres = system_of(lambda u, at: 1e6 * lap(u), finer)
    points = points_for(metres, 6)
    scaled = millimetres.prepare([PointSet(1e3 * points[0].points.coordinates)])
    exact = exact_blocks(metres, points)
    assert max(errors(exact_blocks(millimetres, scaled), exact)) < 1e-10
    found = {
        sharing: errors(
            kfac_blocks(millimetres, scaled, sharing=sharing),
            kfac_blocks(metres, points, sharing=sharing),
        )
        for sharing in ("weighted", "expand", "reduce")
    }
    assert max(found["weighted"]) < 1e-10
    assert max(found["expand"]) > 0.1 and max(found["reduce"]) > 0.1


@pytest.mark.parametrize("active_rows", [True, False])
@pytest.mark.parametrize("backpropagated", ["type-2", "empirical", "monte-carlo", "forward-only"])
@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("name", ["heat", "allen-cahn", "flow", "linked"])
def test_factors_by_their_definition(name, sharing, backpropagated, active_rows, device):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem).to(device))
    points = points_for(system, 4)
    linearisation = system.linearise(points)
    settings = Factors(sharing, backpropagated, active_rows=active_rows)
    found = factors(linearisation, settings, torch.Generator().manual_seed(1))
    assert len(found) == len(problem.terms)
    slow = System(problem, system.net.cpu())
    reference = slow.linearise(slow.prepare([p.points for p in points]))
    generator = torch.Generator().manual_seed(1)
    for term in range(len(problem.terms)):
        (block,) = [b for b in reference if b.term == term]
        assert block.batch == len(points[term])
        noise = torch.randn(block.batch, block.equations, generator=generator, dtype=FLOAT)
        for layer, (a, b) in enumerate(found[term]):
            expected = slow_factors(reference, term, layer, settings, noise)
            assert_close(a.cpu(), expected[0], 1e-12, "A")
            assert_close(b.cpu(), expected[1], 1e-12, "B")


def test_a_layer_called_twice_has_the_rows_of_both_calls():
    net = Net(
        lambda net, x: net.c(torch.tanh(net.b(torch.tanh(net.b(torch.tanh(net.a(x))))))),
        a=linear(2, 3),
        b=linear(3, 3),
        c=linear(3, 1),
    )
    system = system_of(lambda u, at: lap(u) - u, net)
    linearisation = system.linearise(points_for(system, 4))
    assert [layer.inputs.shape[0] for layer in next(iter(linearisation)).layers] == [4, 8, 4]
    for sharing in ("expand", "reduce"):
        settings = Factors(sharing)
        found = factors(linearisation, settings)[0][1]
        expected = slow_factors(linearisation, 0, 1, settings)
        for x, y in zip(found, expected, strict=True):
            assert_close(x, y, 1e-12)


# -- interior terms: Taylor rows -----------------------------------------------------------------
def every_row(u, at):
    return u, u.x, u.y, lap(u)


def sum_of_rows(u, at):
    return u + u.x + u.y + lap(u)


@pytest.mark.parametrize("active_rows", [True, False])
@pytest.mark.parametrize("number", [1, 6])
def test_p1_expand_is_exact_for_a_deep_linear_net_and_every_row_as_residual(number, active_rows):
    system = system_of(every_row, deep_linear(2))
    points = points_for(system, number)
    (block,) = system.linearise(points)
    assert block.batch == number and block.equations == 4
    assert all(layer.inputs.shape[0] == 4 for layer in block.layers)
    exact = exact_blocks(system, points)
    expand = kfac_blocks(system, points, sharing="expand", active_rows=active_rows)
    weighted = kfac_blocks(system, points, sharing="weighted", active_rows=active_rows)
    reduce = kfac_blocks(system, points, sharing="reduce", active_rows=active_rows)
    assert max(errors(expand, exact)) < EXACT and max(errors(weighted, exact)) < EXACT
    assert min(errors(reduce, exact)) > 0.1


@pytest.mark.parametrize("published", [True, False])
@pytest.mark.parametrize("number", [1, 6])
def test_p2_reduce_is_exact_for_a_deep_linear_net_and_the_sum_of_rows(number, published):
    system = system_of(sum_of_rows, deep_linear(2), published=published)
    points = points_for(system, number)
    (block,) = system.linearise(points)
    assert block.batch == number and block.equations == 1
    rows = (0, 1, 2, 3) if published else (0, 3)
    assert all(layer.active == (rows,) for layer in block.layers)
    exact = exact_blocks(system, points)
    reduce = kfac_blocks(system, points, sharing="reduce")
    expand = kfac_blocks(system, points, sharing="expand")
    assert max(errors(reduce, exact)) < EXACT
    assert min(errors(expand, exact)) > 0.1
    all_rows = kfac_blocks(system, points, sharing="reduce", active_rows=False)
    if published:
        assert max(errors(all_rows, exact)) < EXACT
    else:  # rows that don't enter the residual spoil the mean
        assert min(errors(all_rows, exact)) > 0.1


@pytest.mark.parametrize("number", [1, 6])
def test_p3_the_laplacian_of_a_deep_linear_net_has_no_curvature(number):
    system = system_of(lambda u, at: lap(u), deep_linear(2))
    points = points_for(system, number)
    (block,) = system.linearise(points)
    assert block.batch == number
    assert all(not e.any() for e in exact_blocks(system, points))
    for sharing in ("expand", "reduce"):
        published = kfac_blocks(system, points, sharing=sharing, active_rows=False)
        assert min(float(k.norm()) for k in published) > 1e-4
        active = kfac_blocks(system, points, sharing=sharing, active_rows=True)
        assert not any(k.any() for k in active)
    assert not any(k.any() for k in kfac_blocks(system, points, sharing="weighted"))
    for layer in block.layers:  # one product a row
        assert not sum(
            kronecker(z.T @ z, g.T @ g)
            for s, g in zip(layer.active[0], layer.gradients[0], strict=True)
            for z in [layer.inputs[s]]
        ).any()


@pytest.mark.parametrize("sharing", ["expand", "reduce", "weighted"])
def test_p4_one_boundary_point_is_exact_for_any_net(sharing):
    net = sequential(2, nn.Tanh, 1)
    system = system_of(lambda u, at: u, net, where=BOX.boundary)
    one, many = points_for(system, 1), points_for(system, 6)
    assert len(one[0]) == 1 and len(many[0]) == 6
    assert max(errors(kfac_blocks(system, one, sharing=sharing), exact_blocks(system, one))) < EXACT
    *hidden, last = errors(kfac_blocks(system, many, sharing=sharing), exact_blocks(system, many))
    assert min(hidden) > 1e-4
    assert last < EXACT  # its g is 1 at every point


@pytest.mark.parametrize("active_rows", [True, False])
@pytest.mark.parametrize("sharing", ["expand", "reduce", "weighted"])
def test_p4_one_interior_point_is_not_exact(sharing, active_rows):
    system = system_of(lambda u, at: -lap(u), sequential(2, nn.Tanh, 1))
    points = points_for(system, 1)
    assert len(points[0]) == 1
    found = kfac_blocks(system, points, sharing=sharing, active_rows=active_rows)
    *hidden, _ = errors(found, exact_blocks(system, points))
    assert min(hidden) > 1e-2


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("number", [1, 6])
def test_p5_active_rows_make_the_last_layer_of_poisson_exact(number, sharing):
    system = system_of(lambda u, at: -lap(u), sequential(2, nn.Tanh, 1))
    points = points_for(system, number)
    (block,) = system.linearise(points)
    assert block.batch == number
    assert block.layers[-1].active == ((3,),) and block.layers[0].active == ((0, 1, 2, 3),)
    exact = exact_blocks(system, points)[-1]
    active = kfac_blocks(system, points, sharing=sharing, active_rows=True)[-1]
    published = kfac_blocks(system, points, sharing=sharing, active_rows=False)[-1]
    weighted = kfac_blocks(system, points, sharing="weighted", active_rows=False)[-1]
    assert errors([active], [exact])[0] < EXACT and errors([weighted], [exact])[0] < EXACT
    assert errors([published], [exact])[0] > 0.5


class _ForwardLaplacian(nn.Module):
    """−Δu of a tanh net, spelled out; rows are [value, ∂_1 … ∂_d, Δ], with a bias column."""

    def __init__(self, net):
        super().__init__()
        weights = [
            torch.cat([m.weight, m.bias[:, None]], 1) for m in net if isinstance(m, nn.Linear)
        ]
        self.layers = nn.ModuleList(
            nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=FLOAT) for w in weights
        )
        for layer, weight in zip(self.layers, weights, strict=True):
            layer.weight.data = weight.detach().clone()

    def forward(self, x):
        batch, d = x.shape
        first = torch.eye(d, dtype=FLOAT).expand(batch, d, d)
        rows = torch.cat([x[:, None], first, torch.zeros(batch, 1, d, dtype=FLOAT)], 1)
        bias = torch.zeros(batch, d + 2, 1, dtype=FLOAT)
        bias[:, 0] = 1.0
        for i, layer in enumerate(self.layers):
            z = layer(torch.cat([rows, bias], -1))
            if i == len(self.layers) - 1:
                return -z[:, -1]
            y = torch.tanh(z[:, :1])
            slope, bend = 1 - y**2, -2 * y * (1 - y**2)
            gradient = z[:, 1:-1]
            laplacian = slope * z[:, -1:] + bend * gradient.square().sum(1, keepdim=True)
            rows = torch.cat([y, slope * gradient, laplacian], 1)
        raise AssertionError


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
@pytest.mark.parametrize("number", [1, 6])
def test_p6_factors_of_an_independent_engine(number, sharing):
    curvlinops = pytest.importorskip("curvlinops")
    net = sequential(2, nn.Tanh, 1)
    system = system_of(lambda u, at: -lap(u), net, published=True)
    points = points_for(system, number)
    found = factors(system.linearise(points), Factors(sharing, active_rows=False))[0]

    other = _ForwardLaplacian(net)
    x = points[0].points.coordinates
    y = torch.zeros(number, 1, dtype=FLOAT)
    assert x.shape == (number, 2)
    assert_close(other(x).detach(), system.residuals(points)[0], 1e-12)
    engine = curvlinops.KFACLinearOperator(
        other,
        nn.MSELoss(reduction="sum"),
        list(other.parameters()),
        [(x, y)],
        fisher_type="type-2",
        kfac_approx=sharing,
        check_deterministic=False,
    )
    engine.compute_kronecker_factors()
    assert len(found) == len(other.layers) == 3
    for i, (a, b) in enumerate(found):
        assert_close(a, engine._input_covariances[f"layers.{i}"], 1e-13, "A")
        # Its criterion is the sum of squares: twice the Hessian, and no mean over points.
        assert_close(b, engine._gradient_covariances[f"layers.{i}"] / (2 * number), 1e-13, "B")


# -- supervised terms ----------------------------------------------------------------------------
FIELDS = ("u", "v", "w")


def fit(u, v, w, at):
    return u - at.a, v - at.b, w - at.c


def data(number, *, copies):
    """Given points and targets; the same point over and over with ``copies``."""
    generator = torch.Generator().manual_seed(2)
    columns = torch.rand(5, 1 if copies else number, generator=generator, dtype=FLOAT)
    x, y, a, b, c = columns.expand(5, number).contiguous()
    return Points({"x": x, "y": y}, a=a, b=b, c=c)


def supervised(net, number, *, copies):
    return system_of(fit, net, where=data(number, copies=copies), fields=FIELDS)


def activated(activation, bias=True):
    """An activation after every layer, the last one too."""
    return nn.Sequential(
        linear(2, 4, bias),
        activation(),
        linear(4, 3, bias),
        activation(),
        linear(3, 3),
        activation(),
    )


def empirical_fisher(system, points):
    """Diagonal blocks of weight / N · Σ_n ∇_n ∇_nᵀ with ∇_n the gradient of ½ Σ residual²."""
    (r,) = system.residuals(points)
    scale = (len(r) / system.problem.terms[0].weight) ** 0.5
    j = scale * jacobian(system, points).view(*r.shape, -1)
    gradients = torch.einsum("be,bep->bp", r, j) / scale
    return layer_blocks(gradients.T @ gradients, system)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
@pytest.mark.parametrize("number", [1, 5])
def test_t1_copies_of_one_datum_are_exact_for_any_net(number, activation, bias):
    system = supervised(activated(activation, bias), number, copies=True)
    points = points_for(system)
    assert len(points[0]) == number
    exact, fisher = exact_blocks(system, points), empirical_fisher(system, points)
    for sharing in ("expand", "reduce"):
        found = kfac_blocks(system, points, sharing=sharing)
        assert max(errors(found, exact)) < EXACT
        found = kfac_blocks(system, points, sharing=sharing, backpropagated="empirical")
        assert max(errors(found, fisher)) < EXACT


def test_t1_different_data_are_not_exact():
    system = supervised(activated(nn.Tanh), 6, copies=False)
    points = points_for(system)
    assert len(points[0]) == 6
    assert min(errors(kfac_blocks(system, points), exact_blocks(system, points))) > 1e-4
    found = kfac_blocks(system, points, backpropagated="empirical")
    assert min(errors(found, empirical_fisher(system, points))) > 1e-3


def assert_sampled(found, expected):
    """Close, as 20 000 samples are (1 % off), and not computed."""
    assert max(errors(found, expected)) < 0.03
    assert max(errors(found, expected)) > 1e-4


def test_t1_monte_carlo_converges_to_type_2():
    net = activated(nn.Tanh)
    one, many = supervised(net, 1, copies=True), supervised(net, 25_000, copies=True)
    points = points_for(many)
    assert len(points[0]) == 25_000
    generator = torch.Generator().manual_seed(4)
    found = kfac_blocks(many, points, generator, backpropagated="monte-carlo")
    assert_sampled(found, exact_blocks(one, points_for(one)))


def test_monte_carlo_factors_follow_the_generator():
    system = supervised(activated(nn.Tanh), 6, copies=False)
    points = points_for(system)

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return kfac_blocks(system, points, generator, backpropagated="monte-carlo")

    assert max(errors(draw(1), draw(1))) == 0.0
    assert min(errors(draw(1), draw(2))) > 1e-2


SHIFTS = {"p1": (1.0, 0.0), "p2": (0.0, 2.0), "p3": (-1.5, 0.5), "p4": (1.0, -2.0)}


def places(field, at):
    return [field, *(field(getattr(at, name)) for name in SHIFTS)]


def shared(residual, number):
    """A deep linear net of two outputs, read at five places a point."""
    region = Linked(BOX, SHIFTS)
    system = system_of(residual, deep_linear(2, outputs=2), where=region, fields=("u", "v"))
    drawn = region.draw(number, Uniform(), torch.Generator().manual_seed(3))
    return system, system.prepare([drawn])


def kept(u, v, at):
    return [*places(u, at), *places(v, at)]


def test_t2_a_deep_linear_net_without_sharing_is_exact():
    system = supervised(deep_linear(2, outputs=3), 6, copies=False)
    points = points_for(system)
    assert len(points[0]) == 6
    exact = exact_blocks(system, points)
    for sharing in ("expand", "reduce"):
        assert max(errors(kfac_blocks(system, points, sharing=sharing), exact)) < EXACT
    found = kfac_blocks(system, points, backpropagated="empirical")
    assert min(errors(found, empirical_fisher(system, points))) > 1e-3


def test_t2_expand_is_exact_where_the_shared_axis_is_kept_to_the_output():
    system, points = shared(kept, 6)
    (block,) = system.linearise(points)
    assert block.batch == 6 and block.equations == 10
    assert all(layer.inputs.shape[0] == 5 for layer in block.layers)
    exact = exact_blocks(system, points)
    assert max(errors(kfac_blocks(system, points), exact)) < EXACT
    assert min(errors(kfac_blocks(system, points, sharing="reduce"), exact)) > 0.05
    found = kfac_blocks(system, points, backpropagated="empirical")
    assert min(errors(found, empirical_fisher(system, points))) > 1e-3


def test_t2_monte_carlo_converges_to_type_2():
    system, points = shared(kept, 6)
    exact = exact_blocks(system, points)
    often = points[0].points[torch.arange(18_000) % 6]
    generator = torch.Generator().manual_seed(4)
    found = kfac_blocks(system, system.prepare([often]), generator, backpropagated="monte-carlo")
    assert_sampled(found, exact)


@pytest.mark.parametrize("divisor", [1, 5], ids=["sum", "mean"])
def test_t3_reduce_is_exact_where_the_shared_axis_is_summed(divisor):
    def summed(u, v, at):
        return [sum(places(f, at)) / divisor for f in (u, v)]

    system, points = shared(summed, 6)
    (block,) = system.linearise(points)
    assert block.batch == 6 and block.equations == 2
    assert all(layer.inputs.shape[0] == 5 for layer in block.layers)
    exact = exact_blocks(system, points)
    assert max(errors(kfac_blocks(system, points, sharing="reduce"), exact)) < EXACT
    assert min(errors(kfac_blocks(system, points, sharing="expand"), exact)) > 1e-3
    often = system.prepare([points[0].points[torch.arange(24_000) % 6]])
    generator = torch.Generator().manual_seed(4)
    found = kfac_blocks(system, often, generator, sharing="reduce", backpropagated="monte-carlo")
    assert_sampled(found, exact)


def linearisation_of(layers, residual):
    """Of one term of weight 1, from (Z, G) with a bias."""
    batch, equations = residual.shape
    shapes = [(g.shape[-1], z.shape[-1]) for z, g in (layer.rows(0) for layer in layers)]
    layout = Layout(tuple(shapes), 0, residual.dtype, residual.device)
    rows = max(len(layer.inputs) for layer in layers)
    widths = tuple((inputs - 1, out, 1) for out, inputs in shapes)
    workload = Workload(widths, ((rows, equations),), layout.number, 2.0**30)
    block = Block(0, 1 / batch, residual, tuple(layers), None)
    heads = [Head(0, 1 / batch, residual)]
    return Linearisation(
        layout, workload, [1.0], [lambda: block], heads, losses=[0.0], workers=Workers()
    )


@pytest.mark.parametrize("divisor", [1, 5], ids=["sum", "mean"])
def test_t4_before_a_reduction_reduce_is_exact_and_after_it_both(divisor):
    """Four linear layers, the shared axis summed after the second: (Z, G) written by hand."""
    net = deep_linear(3, (4, 3, 4), 2)
    layers = list(net)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 6, 3, generator=generator, dtype=FLOAT)
    with torch.no_grad():
        second = layers[0](x)
        third = (layers[1](second).sum(0) / divisor)[None]
        inputs = [x, second, third, layers[2](third)]
        g = [torch.eye(2, dtype=FLOAT)]
        for layer in reversed(layers[1:]):
            g.append(g[-1] @ layer.weight / (divisor if layer is layers[2] else 1))
    by_layer = [
        Layer(
            torch.cat([z, torch.ones_like(z[..., :1])], -1),
            (tuple(range(len(z))),) * 2,
            tuple(row[e].expand(len(z), 6, -1) for e in range(2)),
        )
        for z, row in zip(inputs, reversed(g), strict=True)
    ]
    made = linearisation_of(by_layer, torch.zeros(6, 2, dtype=FLOAT))

    def forward(parameters):
        named = {f"{i // 2}.{('weight', 'bias')[i % 2]}": p for i, p in enumerate(parameters)}
        first = {k[2:]: v for k, v in named.items() if k[0] == "0"}
        z = functional_call(layers[0], first, (x,))
        for i in (1, 2, 3):
            own = {k[2:]: v for k, v in named.items() if k[0] == str(i)}
            z = functional_call(layers[i], own, (z,))
            z = z.sum(0) / divisor if i == 1 else z
        return z

    by_parameter = jacrev(forward)([p.detach() for p in net.parameters()])
    exact = []
    for i in range(4):
        joint = torch.cat([by_parameter[2 * i], by_parameter[2 * i + 1][..., None]], -1)
        j = joint.reshape(12, -1)
        exact.append(j.T @ j / 6)
    found = {s: factors(made, Factors(s))[0] for s in ("expand", "reduce")}
    products = {s: [kronecker(*p) for p in pairs] for s, pairs in found.items()}
    assert max(errors(products["reduce"], exact)) < EXACT
    assert max(errors(products["expand"][2:], exact[2:])) < EXACT
    assert min(errors(products["expand"][:2], exact[:2])) > 0.05
    for (_, b), (_, c) in zip(found["expand"][:2], found["reduce"][:2], strict=True):
        # The same matrix: five equal rows, once added before and once after the product.
        assert_close(5 * b, c, 1e-12)
    for (a, _), (c, _) in zip(found["expand"][:2], found["reduce"][:2], strict=True):
        assert deviation(a, c) > 1e-2


ALL_KINDS = [
    (sharing, backpropagated)
    for sharing in ("expand", "reduce", "weighted")
    for backpropagated in ("type-2", "empirical", "forward-only")
]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kind", ALL_KINDS, ids="-".join)
@pytest.mark.parametrize("name", ["poisson", "flow", "linked"])
def test_t6_unequal_batches_give_the_factors_of_one(name, kind, workers):
    problem = PROBLEMS[name]()
    net = net_for(problem)
    whole, pieces = System(problem, net), System(problem, net, chunk_bytes=1, workers=workers)
    points = points_for(whole, 37, 17)
    many = pieces.linearise(points)
    assert sorted({b.batch for b in many if b.term == 0}) == [11, 13]
    settings = Factors(*kind)
    one, several = factors(whole.linearise(points), settings), factors(many, settings)
    for mine, theirs in zip(one, several, strict=True):
        for p, q in zip(mine, theirs, strict=True):
            assert_close(q[0], p[0], 1e-12)
            assert_close(q[1], p[1], 1e-12)


def test_batches_in_which_a_slot_does_not_enter_give_the_factors_of_one():
    """A residual that reads u.xx on one half of the box and u on the other."""

    def halves(u, at):
        return torch.where(at.x > 0.5, u.xx, u)

    box = Box(x=(0, 1))
    grid = Points({"x": torch.linspace(0.01, 0.99, 40, dtype=FLOAT)})
    problem = Problem(fields=("u",), terms=[Term("halves", grid, halves)], domain=box)
    net = sequential(1, nn.Tanh, 1)
    whole, pieces = System(problem, net), System(problem, net, chunk_bytes=1)
    points = points_for(whole)
    many = pieces.linearise(points)
    assert [b.batch for b in many] == [14, 14, 12]
    one, several = factors(whole.linearise(points), Factors()), factors(many, Factors())
    for p, q in zip(one[0], several[0], strict=True):
        assert_close(q[0], p[0], 1e-12)
        assert_close(q[1], p[1], 1e-12)


def test_t6_the_order_in_which_layers_are_listed_does_not_matter():
    def forward(net, x):
        return net.c(torch.tanh(net.b(torch.tanh(net.a(x)))))

    modules = {"a": linear(2, 4), "b": linear(4, 3), "c": linear(3, 1)}
    one = Net(forward, **modules)
    other = Net(forward, **{name: modules[name] for name in "cab"})
    found = []
    for net in (one, other):
        system = system_of(lambda u, at: lap(u), net)
        found.append(factors(system.linearise(points_for(system, 5)), Factors())[0])
    for p, q in zip(*found, strict=True):
        assert_close(p[0], q[0], 0.0)
        assert_close(p[1], q[1], 0.0)


def test_forward_only_has_the_identity_for_b():
    system = System(poisson(), net_for(poisson()))
    linearisation = system.linearise(points_for(system, 4))
    plain = factors(linearisation, Factors("expand"))
    forward_only = factors(linearisation, Factors("expand", backpropagated="forward-only"))
    for mine, theirs in zip(plain, forward_only, strict=True):
        for p, q in zip(mine, theirs, strict=True):
            assert_close(q[0], p[0], 0.0)
            assert_close(q[1], torch.eye(len(q[1]), dtype=FLOAT), 0.0)


@pytest.mark.parametrize("active_rows", [True, False])
def test_forward_only_adds_the_factors_of_weighted_rows(active_rows):
    """Σ_s A_s ⊗ I: the number of rows times their mean, at any number of points."""
    problem = PROBLEMS["allen-cahn"]()
    system = System(problem, net_for(problem))
    linearisation = system.linearise(points_for(system, 4))
    mean, total = (
        factors(linearisation, Factors(sharing, "forward-only", active_rows=active_rows))
        for sharing in ("expand", "weighted")
    )
    for block in linearisation:
        pairs = zip(mean[block.term], total[block.term], block.layers, strict=True)
        for (a, _), (b, identity), layer in pairs:
            rows = {s for active in layer.active for s in active}
            number = len(rows) if active_rows else len(layer.inputs)
            assert_close(b, number * a, 1e-13)
            assert_close(identity, torch.eye(len(identity), dtype=FLOAT), 0.0)


def test_factors_keep_float32(device):
    problem = poisson()
    net = net_for(problem).float().to(device)
    system = System(problem, net)
    for a, b in factors(system.linearise(points_for(system, 4)), Factors())[0]:
        assert {a.dtype, b.dtype} == {torch.float32}
        assert {a.device.type, b.device.type} == {device.type}


# -- averages ------------------------------------------------------------------------------------
def one_step():
    problem = poisson(weight=5.0)
    system = System(problem, net_for(problem))
    return system, situation(system.linearise(points_for(system, 4)))


def test_a_constant_factor_in_is_the_same_factor_out_from_the_first_step():
    _, step = one_step()
    settings, average = Factors(decay=0.9), FactorAverage()
    fresh = factors(step.linearisation, Factors())
    for _ in range(4):
        average = average.at(step, settings)
        by_layer = average.pairs([1.0, 5.0], settings)
        assert len(by_layer) == 3
        for layer, pairs in enumerate(by_layer):
            for term, weight in enumerate((1.0, 5.0)):
                assert_close(pairs[term][0], fresh[term][layer][0], 1e-14)
                assert_close(pairs[term][1], weight * fresh[term][layer][1], 1e-14)


@pytest.mark.parametrize("start", ["identity", "zero"])
def test_other_starts_are_forgotten_slowly(start):
    _, step = one_step()
    settings, average = Factors(decay=0.9, start=start), FactorAverage()
    fresh = factors(step.linearisation, Factors())
    for steps in range(1, 4):
        average = average.at(step, settings)
        by_layer = average.pairs([1.0, 1.0], settings)
        assert len(by_layer) == 3
        for layer, ((a, b), _) in enumerate(by_layer):
            for found, new in zip((a, b), fresh[0][layer], strict=True):
                first = torch.eye(len(new), dtype=FLOAT) if start == "identity" else 0.0
                expected = 0.9**steps * first + (1 - 0.9**steps) * new
                assert_close(found, expected, 1e-13)


def test_averages_weight_the_past_by_the_decay():
    system, first = one_step()
    settings = Factors(decay=0.6)
    average = FactorAverage().at(first, settings)
    system.set_parameters([1.3 * v for v in system.get_parameters()])
    second = situation(system.linearise(points_for(system, 4)))
    average = average.at(second, settings)
    old, new = (factors(step.linearisation, Factors())[0][1] for step in (first, second))
    found = average.pairs([1.0, 1.0], settings)[1][0]
    for x, a, b in zip(found, old, new, strict=True):
        assert deviation(a, b) > 1e-2
        assert_close(x, (0.6 * 0.4 * a + 0.4 * b) / (1 - 0.6**2), 1e-13)


def test_an_average_that_was_updated_is_another_one():
    system, first = one_step()
    settings = Factors(decay=0.6)
    average = FactorAverage().at(first, settings)
    before = [v.clone() for v in average.factors.total]
    system.set_parameters([1.3 * v for v in system.get_parameters()])
    average.at(situation(system.linearise(points_for(system, 4))), settings)
    assert average.factors.updates == 1
    for x, y in zip(average.factors.total, before, strict=True):
        assert_close(x, y, 0.0)


@pytest.mark.parametrize("sharing", ["expand", "reduce", "weighted"])
def test_averages_are_carried_over_to_new_scales_of_equations(sharing):
    """For one equation a term they are those that the new residual would have had."""
    system, step = one_step()
    settings = Factors(sharing, decay=0.6)
    average = FactorAverage().at(step, settings)
    scales = [torch.full((1,), s, dtype=FLOAT) for s in (2.0, 0.3)]
    scaled = situation(system.linearise(with_scales(points_for(system, 4), scales)))
    carried, expected = average.rescaled(scales), FactorAverage().at(scaled, settings)
    back = carried.rescaled(None)
    assert carried.factors.updates == 1 and carried.scales is scales
    for found, other in ((carried, expected), (back, average)):
        pairs, others = (a.pairs([1.0, 5.0], settings) for a in (found, other))
        for layer, same in zip(pairs, others, strict=True):
            for p, q in zip(layer, same, strict=True):
                assert_close(kronecker(*p), kronecker(*q), 1e-12)
    same = average.rescaled(None)
    assert same is average and carried.rescaled([s.clone() for s in scales]) is carried


def test_no_decay_keeps_the_last_factors_only():
    _, step = one_step()
    settings = Factors(decay=0.0, start="identity")
    average = FactorAverage().at(step, settings)
    fresh = factors(step.linearisation, Factors())[0][0]
    for found, new in zip(average.pairs([1.0, 1.0], settings)[0][0], fresh, strict=True):
        assert_close(found, new, 0.0)


def test_averages_survive_saving_and_loading():
    _, step = one_step()
    settings = Factors(decay=0.9)
    average = FactorAverage().at(step, settings)
    other = restore(FactorAverage(), state_of(average))
    for found, expected in zip(
        other.pairs([1.0, 1.0], settings)[1], average.pairs([1.0, 1.0], settings)[1], strict=True
    ):
        for x, y in zip(found, expected, strict=True):
            assert_close(x, y, 0.0)


# -- parameters outside layers -------------------------------------------------------------------
def test_scales_and_coefficients_have_their_exact_gramian(device):
    problem = inverse()
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1)).to(device)
    system = System(problem, net)
    points = points_for(system, 6)
    j = jacobian(system, points)
    exact = layer_blocks(j.T @ j, system)[-1]
    linearisation = system.linearise(points)
    assert system.layout.dense == 6 and exact.shape == (6, 6)
    assert_close(dense_gramian(linearisation), exact, 1e-11)
    settings, average = Factors(decay=0.9), FactorAverage()
    assert average.dense.values(0.9) == []
    for _ in range(2):
        average = average.at(situation(linearisation), settings)
        (found,) = average.dense.values(0.9)
        assert_close(found, exact, 1e-11)


def test_mean_over_points_not_the_sum():
    """Twice the same points give the same factors: the weight is per term, not per point."""
    system = System(poisson(), Mlp(2, 1, (3,)))
    points = points_for(system, 4)
    twice = system.prepare([p.points[torch.arange(8) % 4] for p in points])
    one = factors(system.linearise(points), Factors())
    two = factors(system.linearise(twice), Factors())
    assert [len(p) for p in twice] == [8, 8]
    for p, q in zip(one[0], two[0], strict=True):
        assert_close(q[0], p[0], 1e-13)
        assert_close(q[1], p[1], 1e-13)
    assert math.isclose(system.loss(points), system.loss(twice), rel_tol=1e-13)
