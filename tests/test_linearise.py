"""Residuals, J v, Jᵀ w, gradients and losses against the dense Jacobian of nested autodiff."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from nets import FLOAT, NETS, Net, linear, net_for, sequential
from oracles import (
    assert_close,
    flat,
    jacobian,
    layer_jacobian,
    random_direction,
    residuals,
    unflat,
    weighted,
)
from problems import (
    PROBLEMS,
    allen_cahn,
    everything,
    flow,
    heat,
    high_order,
    inverse,
    linked,
    points_for,
    poisson,
)
from torch import nn

from pinnkfac import Box, Problem, Term, UserError
from pinnkfac.curvature.kernel import kernel
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.direction import combine, inner, norm
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp, Scale
from pinnkfac.taylor.graph import input_jet
from pinnkfac.taylor.published import published_plan

RTOL = 1e-11
every_problem = pytest.mark.parametrize("name", PROBLEMS)


def check(system, points, sizes):
    """Everything that a linearisation offers, against the dense Jacobian."""
    linearisation = system.linearise(points)
    theta = flat(system.get_parameters())
    r = weighted(system, theta, points).detach()
    j = jacobian(system, points)
    terms = [t.residual.term for t in system.terms]  # a single point is drawn once
    given = [
        n if t.where.dimension or hasattr(t.where, "given") else 1
        for t, n in zip(terms, sizes, strict=True)
    ]
    assert [len(p) for p in points] == given
    assert j.shape == (linearisation.residual.numel(), theta.numel())
    assert theta.numel() == system.layout.number
    v = random_direction(system)
    w = flat(random_direction(system, 1)).repeat(1 + len(r) // theta.numel())[: len(r)].contiguous()
    assert_close(linearisation.residual, r, RTOL, "residual")
    assert_close(linearisation.jvp(v), j @ flat(v), RTOL, "J v")
    assert_close(flat(linearisation.vjp(w)), j.T @ w, RTOL, "Jᵀ w")
    assert_close(flat(linearisation.gradient()), j.T @ r, RTOL, "gradient")
    parts = linearisation.jvp_by_layer(v)[0]
    assert parts.shape == (len(v), len(r))
    zero = [torch.zeros_like(x) for x in v]
    for i in range(len(v)):
        alone = [*zero[:i], v[i], *zero[i + 1 :]]
        assert_close(parts[i], j @ flat(alone), 10 * RTOL, f"J v of layer {i}")
    assert linearisation.loss == pytest.approx(float(0.5 * r @ r), rel=1e-12)
    return linearisation


# -- every problem and every net -----------------------------------------------------------------
@every_problem
def test_products_with_the_jacobian(name, device):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem).to(device))
    points = points_for(system, 6, 5)
    check(system, points, [6, *(getattr(t.where, "number", 5) for t in problem.terms[1:])])


@pytest.mark.parametrize("name", NETS)
def test_products_with_the_jacobian_for_every_net(name, device):
    system = System(everything(2), NETS[name](2).to(device))
    check(system, points_for(system, 4), [4])


@pytest.mark.parametrize("name", ["tanh", "product", "Scale", "layer called twice"])
def test_published_rows_give_the_same_products(name):
    system = System(everything(2), NETS[name](2), planner=published_plan)
    check(system, points_for(system, 4), [4])
    problem = heat()
    published = System(problem, net := net_for(problem), planner=published_plan)
    folded = System(problem, net)
    points = points_for(folded, 5)
    assert published.terms[0].rows == folded.terms[0].rows + 1
    check(published, points, [5, 5])


def test_gradient_is_that_of_torch():
    """Once more by torch's own backward pass, through the net's parameters."""
    problem = heat()
    net = net_for(problem)
    system = System(problem, net)
    points = points_for(system, 5)
    theta = flat(system.get_parameters()).requires_grad_()
    loss = 0.5 * weighted(system, theta, points).square().sum()
    (expected,) = torch.autograd.grad(loss, theta)
    assert_close(flat(system.linearise(points).gradient()), expected, RTOL)


def test_layers_hold_what_the_gradient_is_made_of():
    """(Z, G) of every layer and equation, multiplied out, are the rows of J."""
    problem = linked()
    system = System(problem, net_for(problem))
    points = points_for(system, 3)
    j = jacobian(system, points)
    blocks = list(system.linearise(points))
    assert [b.batch for b in blocks] == [3, 3] and [b.equations for b in blocks] == [2, 1]
    start = 0
    for block in blocks:
        column = 0
        size = block.batch * block.equations
        rows = j[start : start + size].view(block.batch, block.equations, -1)
        for layer in block.layers:
            own = [layer_jacobian(layer, e) for e in range(block.equations)]
            width = own[0].shape[1]
            for e in range(block.equations):
                found = math.sqrt(block.weight) * own[e]
                assert_close(found, rows[:, e, column : column + width], RTOL)
            column += width
        start += size
    assert start == len(j) and column == j.shape[1]


# -- losses --------------------------------------------------------------------------------------
@every_problem
def test_losses_are_half_the_mean_of_squares(name):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem))
    points = points_for(system, 6, 4)
    expected = [
        0.5 * float(r.square().sum()) / len(r)
        for r in residuals(system, flat(system.get_parameters()), points)
    ]
    assert system.losses(points).written == pytest.approx(expected, rel=1e-12)
    assert system.linearise(points).losses.written == pytest.approx(expected, rel=1e-12)
    total = sum(t.weight * loss for t, loss in zip(problem.terms, expected, strict=True))
    assert system.loss(points) == pytest.approx(total, rel=1e-12)
    assert system.linearise(points).loss == pytest.approx(total, rel=1e-12)


@every_problem
def test_residuals_without_a_tape_are_the_same(name):
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem))
    points = points_for(system, 6, 4)
    expected = residuals(system, flat(system.get_parameters()), points)
    for found, reference in zip(system.residuals(points), expected, strict=True):
        assert found.shape == reference.shape and not found.requires_grad
        assert_close(found, reference.detach(), RTOL)


def test_weights_scale_a_term_and_nothing_else():
    net = net_for(poisson())
    one, five = System(poisson(), net), System(poisson(weight=5.0), net)
    points = points_for(one, 6, 4)
    assert one.losses(points) == five.losses(points)
    plain, heavy = one.linearise(points), five.linearise(points)
    assert_close(heavy.residual[:6], plain.residual[:6], 0.0)
    assert_close(heavy.residual[6:], 5.0**0.5 * plain.residual[6:], 1e-14)


@every_problem
def test_weights_of_points_scale_rows_by_their_roots(name):
    """Residuals, J and losses; for every term, with scales, and in the kernel of J."""
    problem = PROBLEMS[name]()
    system = System(problem, net_for(problem), chunk_bytes=600)
    plain = points_for(system, 6, 5)
    generator = torch.Generator().manual_seed(3)
    weights = [torch.rand(len(own), dtype=FLOAT, generator=generator) + 0.1 for own in plain]
    pairs = zip(plain, weights, strict=True)
    weighted = system.prepare([replace(own.points, weights=w) for own, w in pairs])
    equations = [t.residual.equations for t in system.terms]
    factors = [torch.linspace(0.5, 2.0, e, dtype=FLOAT) for e in equations]
    plain, weighted = with_scales(plain, factors), with_scales(weighted, factors)
    roots = torch.cat(
        [w.sqrt().repeat_interleave(e) for w, e in zip(weights, equations, strict=True)]
    )
    linearisation = system.linearise(weighted)
    scales = torch.cat([s.repeat(len(own)) for s, own in zip(factors, plain, strict=True)])
    rows = (scales * roots)[:, None] * jacobian(system, plain)
    residual = roots * system.residual(plain)
    assert_close(linearisation.residual, residual, RTOL)
    assert_close(system.residual(weighted), residual, RTOL)
    assert_close(flat(linearisation.gradient()), rows.T @ residual, RTOL)
    assert_close(kernel(linearisation), rows @ rows.T, RTOL)
    expected = [
        float(0.5 * (w[:, None] * r.square()).sum() / len(w))
        for w, r in zip(weights, system.residuals(plain), strict=True)
    ]
    assert linearisation.losses.written == pytest.approx(expected, rel=1e-10)
    assert system.losses(weighted).written == pytest.approx(expected, rel=1e-10)


def test_number_of_points_is_divided_out():
    """N copies of a point are worth one."""
    problem = poisson()
    system = System(problem, net_for(problem))
    once = points_for(system, 1)
    often = system.prepare([p.points[torch.zeros(9, dtype=int)] for p in once])
    assert [len(p) for p in often] == [9, 9]
    assert system.loss(often) == pytest.approx(system.loss(once), rel=1e-12)
    gradients = [flat(system.linearise(p).gradient()) for p in (often, once)]
    assert_close(*gradients, 1e-12)


def test_loss_is_infinite_where_it_is_not_a_number():
    box = Box(x=(0, 1))
    term = Term("log", box.interior, lambda u, at: torch.log(u))
    system = System(Problem(fields=("u",), terms=[term]), net := sequential(1, nn.Tanh, 1))
    with torch.no_grad():
        net[-1].weight.zero_()
        net[-1].bias.fill_(-1.0)
    assert system.loss(points_for(system)) == math.inf


# -- memory --------------------------------------------------------------------------------------
@every_problem
def test_chunks_give_the_same(name):
    problem = PROBLEMS[name]()
    net = net_for(problem)
    whole, pieces = System(problem, net), System(problem, net, chunk_bytes=1)
    points = points_for(whole, 40, 20)
    one, many = whole.linearise(points), pieces.linearise(points)
    batches = [b.batch for b in many if b.term == 0]
    assert len(batches) == 3 and sum(batches) == 40 and len(set(batches)) == 2
    assert [b.batch for b in one if b.term == 0] == [40]
    v, w = random_direction(whole), one.residual.cos()
    assert_close(many.residual, one.residual, 1e-13)
    assert_close(many.jvp(v), one.jvp(v), 1e-13)
    assert_close(flat(many.vjp(w)), flat(one.vjp(w)), 1e-12)
    assert many.losses.written == pytest.approx(one.losses.written, rel=1e-13)
    assert pieces.losses(points).written == pytest.approx(whole.losses(points).written, rel=1e-13)


@every_problem
def test_blocks_that_are_not_kept_give_the_same(name):
    problem = PROBLEMS[name]()
    net = net_for(problem)
    kept, recomputed = System(problem, net), System(problem, net, memory=0, chunk_bytes=1)
    points = points_for(kept, 20, 18)
    one, again = kept.linearise(points), recomputed.linearise(points)
    assert next(iter(one)) is next(iter(one))
    assert next(iter(again)) is not next(iter(again))
    v = random_direction(kept)
    for _ in range(2):
        assert_close(again.residual, one.residual, 1e-13)
        assert_close(again.jvp(v), one.jvp(v), 1e-13)
        assert_close(flat(again.gradient()), flat(one.gradient()), 1e-12)


def test_chunks_share_what_does_not_depend_on_their_points():
    system = System(poisson(), net_for(poisson()))
    chunks = [points_for(system, number)[0] for number in (4, 7)]
    term = system.terms[0]
    for dtype in (torch.float64, torch.float32):
        shared = []
        for chunk in chunks:
            x = chunk.points.coordinates.to(dtype)
            z = x.new_ones(len(x), len(term.residual.slots))
            _, by_slot, _ = term.residual.derivative(z, z, chunk.points, x.new_zeros(len(x), 1))
            shared.append([by_slot, input_jet(x, term.plans[0]).rows])
        for one, other in zip(*shared, strict=True):
            assert one.data_ptr() == other.data_ptr() and one.dtype == dtype


def test_what_a_linearisation_keeps_of_a_point_is_counted():
    system = System(poisson(), net_for(poisson()))
    points = points_for(system, 6, 5)
    for term, block in zip(system.terms, system.linearise(points), strict=True):
        kept = [block.residual, *(layer.inputs for layer in block.layers)]
        # of derivatives, those by rows that no equation reads are counted too
        kept += [
            g.new_empty(term.rows, *g.shape[1:]) for layer in block.layers for g in layer.gradients
        ]
        assert term.bytes_per_point(0) * block.batch == sum(
            v.numel() * v.element_size() for v in kept
        )


@pytest.mark.parametrize("memory", [0.0, 1e9])
@every_problem
def test_threads_give_the_same_and_always_the_same(name, memory):
    problem = PROBLEMS[name]()
    net = net_for(problem)
    alone = System(problem, net)
    points = points_for(alone, 60, 33)
    one = alone.linearise(points)
    v, w = random_direction(alone), one.residual.cos()
    found = []
    for _ in range(2):
        system = System(problem, net, chunk_bytes=1, memory=memory, workers=3)
        many = system.linearise(points)
        found.append([many.residual, many.jvp(v), flat(many.vjp(w)), flat(many.gradient())])
        assert system.losses(points).written == pytest.approx(
            alone.losses(points).written, rel=1e-13
        )
    expected = [one.residual, one.jvp(v), flat(one.vjp(w)), flat(one.gradient())]
    for a, b, reference in zip(*found, expected, strict=True):
        assert_close(a, b, 0.0)
        assert_close(a, reference, 1e-12)


def test_a_linearisation_leaves_no_graph_behind():
    problem = flow()
    system = System(problem, net_for(problem))
    linearisation = system.linearise(points_for(system))
    tensors = [linearisation.residual, *linearisation.gradient(), *system.get_parameters()]
    for block in linearisation:
        tensors += [block.residual, *(layer.inputs for layer in block.layers)]
        tensors += [g for layer in block.layers for g in layer.gradients]
    assert not any(t.requires_grad for t in tensors)
    assert all(p.grad is None for p in system.net.parameters())


# -- dtypes --------------------------------------------------------------------------------------
@every_problem
def test_float32_runs_and_stays_float32(name, device):
    problem = PROBLEMS[name]()
    net = net_for(problem)
    double = System(problem, net)
    points = points_for(double, 6, 5)
    expected = double.linearise(points)
    gradient = flat(expected.gradient())
    single = System(problem, net.float().to(device))
    own = single.prepare([p.points for p in points])
    assert all(p.points.coordinates.dtype == torch.float32 for p in own)
    found = single.linearise(own)
    v = random_direction(single)
    pieces = [found.residual, found.jvp(v), *found.gradient(), *single.get_parameters()]
    assert {p.dtype for p in pieces} == {torch.float32}
    assert {p.device.type for p in pieces} == {device.type}
    assert_close(found.residual.cpu().double(), expected.residual, 1e-4)
    assert_close(flat(found.gradient()).cpu().double(), gradient, 1e-4)


# -- parameters ----------------------------------------------------------------------------------
def scaled():
    return Net(
        lambda net, x: net.last(torch.tanh(net.scale(net.first(x)))),
        last=linear(4, 2, False),
        first=linear(2, 4),
        scale=Scale(4, 0.9),
    )


def test_parameters_are_layers_in_order_of_call_then_scales_then_coefficients():
    problem = inverse()
    net = Net(
        lambda net, x: net.last(torch.tanh(net.scale(net.first(x)))),
        last=linear(3, 1, False),
        scale=Scale(3, 0.9),
        first=linear(2, 3),
    )
    system = System(problem, net)
    first, last, others = system.get_parameters()
    assert_close(first, torch.cat([net.first.weight, net.first.bias[:, None]], 1).detach(), 0.0)
    assert_close(last, net.last.weight.detach(), 0.0)
    assert others.tolist() == [0.9, 0.9, 0.9, 0.8, -1.4]  # 0.4 and -0.7 in units of 1/2
    assert system.layout.number == 9 + 3 + 5
    check(system, points_for(system, 4), [4, 7])


@pytest.mark.parametrize("name", NETS)
def test_parameters_can_be_set_and_read_back(name):
    net = NETS[name](2)
    system = System(everything(2), net)
    before = system.get_parameters()
    changed = combine((1.0, before), (0.1, random_direction(system)))
    system.set_parameters(changed)
    for a, b in zip(system.get_parameters(), changed, strict=True):
        assert_close(a, b, 0.0)
    assert (
        system.layout.number
        == sum(p.numel() for p in net.parameters() if p.requires_grad)
        == flat(before).numel()
    )
    system.set_parameters(before)
    for a, b in zip(system.get_parameters(), before, strict=True):
        assert_close(a, b, 0.0)


def test_parameters_are_copies():
    system = System(poisson(), net := net_for(poisson()))
    copy = system.get_parameters()
    copy[0].zero_()
    assert net.layers[0].weight.abs().min() > 0


def test_losses_follow_the_parameters():
    problem = inverse()
    system = System(problem, net_for(problem))
    points = points_for(system, 5)
    theta = flat(system.get_parameters())
    other = theta + 0.1 * torch.cos(torch.arange(len(theta), dtype=FLOAT))
    before = system.loss(points)
    system.set_parameters(unflat(other, system.get_parameters()))
    after = 0.5 * float(weighted(system, other, points).square().sum())
    assert system.loss(points) == pytest.approx(after, rel=1e-12)
    assert system.loss(points) != pytest.approx(before, rel=1e-3)


def test_algebra_of_directions():
    system = System(poisson(), net_for(poisson()))
    a, b = random_direction(system, 0), random_direction(system, 1)
    assert inner(a, b) == pytest.approx(float(flat(a) @ flat(b)), rel=1e-13)
    assert norm(a) == pytest.approx(float(flat(a).norm()), rel=1e-13)
    assert_close(flat(combine((2.0, a), (-0.5, b))), 2 * flat(a) - 0.5 * flat(b), 1e-15)


# -- weights with a twist ------------------------------------------------------------------------
def _system(net):
    return System(poisson(), net)


def _frozen():
    net = sequential(2, nn.Tanh, 1)
    net[0].requires_grad_(False)
    return net


def _frozen_scale():
    net = nn.Sequential(linear(2, 4), Scale(4), nn.Tanh(), linear(4, 1))
    net[1].requires_grad_(False)
    return net


def _tied():
    net = nn.Sequential(linear(2, 4), linear(4, 4), nn.Tanh(), linear(4, 4), linear(4, 1))
    net[3].weight = net[1].weight
    return net


def _normalised():
    return nn.Sequential(
        nn.utils.parametrizations.weight_norm(linear(2, 4)), nn.Tanh(), linear(4, 1)
    )


@pytest.mark.parametrize("build", [_frozen, _frozen_scale, _tied, _normalised])
def test_trained_numbers_are_those_that_torch_would_train_or_the_net_is_refused(build):
    net = build()
    try:
        system = _system(net)
    except UserError as error:
        assert str(error).startswith("net: ")
        return
    trained = [p for p in net.parameters() if p.requires_grad]
    assert system.layout.number == sum(p.numel() for p in trained)
    changed = combine((1.0, system.get_parameters()), (0.1, random_direction(system)))
    untrained = [(p, p.clone()) for p in net.parameters() if not p.requires_grad]
    system.set_parameters(changed)
    for a, b in zip(system.get_parameters(), changed, strict=True):
        assert_close(a, b, 1e-14)
    for p, before in untrained:
        assert_close(p, before, 0.0)


# -- refusals ------------------------------------------------------------------------------------
def test_term_without_points_is_refused_by_name():
    system = _system(net_for(poisson()))
    points = [p.points for p in points_for(system)]
    with pytest.raises(UserError, match="'boundary' has no points"):
        system.prepare([points[0], points[1][:0]])


def test_fields_and_outputs_must_agree():
    with pytest.raises(UserError, match="3 outputs, but the problem has 1 fields"):
        System(poisson(), Mlp(2, 3))


def test_coordinates_and_inputs_must_agree():
    with pytest.raises(UserError, match="features"):
        System(poisson(3), Mlp(2, 1))


def test_source_that_is_not_a_number_names_its_term_and_point():
    box = Box(x=(-1, 1))
    term = Term("root", box.interior, lambda u, at: u.xx - torch.sqrt(at.x))
    system = System(Problem(fields=("u",), terms=[term]), Mlp(1, 1, (3,)))
    with pytest.raises(UserError, match=r"term 'root'.*'x': -"):
        points_for(system, 20)


@pytest.mark.parametrize("build", [poisson, heat, allen_cahn, flow, inverse, high_order])
def test_one_forward_pass_serves_all_slots(build):
    """Rows per term: what the operators need, not one pass a derivative."""
    problem = build()
    system = System(problem, net_for(problem))
    expected = {
        poisson: [4, 1],
        heat: [4, 1],
        allen_cahn: [3, 4, 1],
        flow: [4, 1, 1],
        inverse: [4, 1],
        high_order: [9, 13],
    }[build]
    assert [term.rows for term in system.terms] == expected


def test_several_directions_in_one_pass_are_each_alone():
    system = System(inverse(), net_for(inverse()), chunk_bytes=1)
    linearisation = system.linearise(points_for(system, 20))
    directions = [random_direction(system, seed) for seed in range(3)]
    together = linearisation.jvp_by_layer(*directions)
    assert len(together) == 3
    for image, v in zip(together, directions, strict=True):
        assert_close(image, linearisation.jvp_by_layer(v)[0], 1e-13)
