"""Taylor mode against nested automatic differentiation: values, rows, towers, refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from nets import FLOAT, NETS, FirstOrderOnly, Gaussian, Net, TooShort, linear, sequential
from oracles import assert_close, derivatives, flat, jacobian, operator
from torch import nn

from pinnkfac import Box, Problem, Term, Uniform, UserError, lap
from pinnkfac.field import Context, Coordinates, Form, grad, multi_indices
from pinnkfac.linearisation.system import System
from pinnkfac.nets import (
    Activation,
    FixedLinear,
    InputScaling,
    Mlp,
    PeriodicEmbedding,
    Scale,
    affine_layer,
)
from pinnkfac.nets.mlp import ACTIVATIONS
from pinnkfac.residual import record
from pinnkfac.taylor import activations
from pinnkfac.taylor.activations import power
from pinnkfac.taylor.graph import Graph
from pinnkfac.taylor.plan import make_plan
from pinnkfac.taylor.published import published_plan

RTOL = 1e-11
BATCH = 3
every_net = pytest.mark.parametrize("name", NETS)
both_rows = pytest.mark.parametrize("published", [False, True], ids=["folded", "published"])


def points(d, device="cpu"):
    generator = torch.Generator().manual_seed(5)
    return torch.rand(BATCH, d, generator=generator, dtype=FLOAT).to(device)


def slot(alpha, field=0):
    return (((field, "", alpha), 1.0),)


def slot_values(net, x, slots, *, outputs=2, published=False):
    """Slots [batch, slot] by Taylor mode."""
    plan = (published_plan if published else make_plan)(slots, x.shape[1])
    with torch.no_grad():
        jet, tape = Graph(net, x.shape[1], outputs).forward(x, plan)
    assert tape is None and jet.value.shape == (len(x), outputs)
    columns = [
        sum(c * jet.row(row)[:, field].expand(len(x)) for c, row, field in rule)
        for rule in plan.slots
    ]
    return torch.stack(columns, dim=-1)


# -- every net, every derivative -----------------------------------------------------------------
@pytest.mark.parametrize("d", [2, 3])
@every_net
def test_all_derivatives_up_to_order_four(name, d, device):
    net, x = NETS[name](d).to(device), points(d, device)
    expected = derivatives(net, x, 4)
    for order in range(5):
        indices = multi_indices(order, d)
        slots = [slot(alpha, field) for alpha in indices for field in (0, 1)]
        found = slot_values(net, x, slots)
        assert found.shape == (BATCH, 2 * len(indices))
        for i, alpha in enumerate(indices):
            position = [j for j, a in enumerate(alpha) for _ in range(a)]
            reference = expected[order][(slice(None), slice(None), *position)]
            assert_close(found[:, 2 * i : 2 * i + 2], reference, RTOL, (name, alpha))


@both_rows
@every_net
def test_all_derivatives_in_one_pass(name, published):
    """Rows of one order do not disturb those of another."""
    net, x = NETS[name](2), points(2)
    indices = [alpha for order in range(5) for alpha in multi_indices(order, 2)]
    together = slot_values(net, x, [slot(alpha, 1) for alpha in indices], published=published)
    for i, alpha in enumerate(indices):
        alone = slot_values(net, x, [slot(alpha, 1)], published=published)
        assert_close(together[:, i], alone[:, 0], RTOL, (name, alpha))


# -- collapsed operators -------------------------------------------------------------------------
class _Fields(Context):
    def __init__(self, names, time=None):
        self.coordinates = Coordinates(tuple(names), time)

    def form(self, k):
        return Form(self, {(k, "", (0,) * len(self.coordinates.names)): 1.0})


def slot_of(expression, names, time=None):
    """The slot of an expression in u and v on the named coordinates."""
    context = _Fields(names, time)
    form = expression(context.form(0), context.form(1))
    return tuple((key, form.linear[key]) for key in sorted(form.linear))


OPERATORS = {
    "Laplacian": (lambda u, v: lap(u), "xy"),
    "Laplacian in 3 dimensions": (lambda u, v: lap(u), "xyz"),
    "weighted Laplacian": (lambda u, v: 2 * u.xx - 0.3 * u.yy + 0.7 * u.zz, "xyz"),
    "mixed second order": (lambda u, v: u.xx + 3 * u.xy - u.yy + 0.5 * u.yz, "xyz"),
    "heat": (lambda u, v: u.t - 0.25 * lap(u), "txy"),
    "transport": (lambda u, v: u.t + 2 * u.x - 3 * u.y, "txy"),
    "Helmholtz": (lambda u, v: lap(u) + 9 * u, "xy"),
    "wave": (lambda u, v: u.tt - 4 * u.xx, "tx"),
    "Korteweg-de Vries": (lambda u, v: u.t + u.xxx, "tx"),
    "Kuramoto-Sivashinsky": (lambda u, v: u.t + u.xx + u.xxxx, "tx"),
    "bilaplacian": (lambda u, v: lap(lap(u)), "xy"),
    "bilaplacian in 3 dimensions": (lambda u, v: lap(lap(u)), "xyz"),
    "beam": (lambda u, v: u.tt + 0.1 * u.xxxx, "tx"),
    "plate under tension": (lambda u, v: u.tt + lap(lap(u)) - 2 * lap(u) + u, "txy"),
    "third order": (lambda u, v: grad(lap(u))[0] - 2 * u.xyz + u.zzz, "xyz"),
    "two fields": (lambda u, v: lap(u) + v.x - 2 * lap(v), "xy"),
}


@pytest.mark.parametrize("net_name", ["tanh", "product", "FourierFeatures", "layer called twice"])
@pytest.mark.parametrize("name", OPERATORS)
def test_collapsed_operators(name, net_name, device):
    expression, names = OPERATORS[name]
    wanted = slot_of(expression, names, "t" if "t" in names else None)
    net, x = NETS[net_name](len(names)).to(device), points(len(names), device)
    expected = operator(net, x, wanted)
    folded = slot_values(net, x, [wanted])[:, 0]
    published = slot_values(net, x, [wanted], published=True)[:, 0]
    assert folded.shape == (BATCH,)
    assert_close(folded, expected, RTOL, name)
    assert_close(published, expected, RTOL, name)


def test_operators_share_rows_without_disturbing_each_other():
    names = "txy"
    wanted = [slot_of(expression, names, "t") for expression, n in OPERATORS.values() if n == names]
    wanted += [slot((0, 1, 1)), slot((0, 0, 0), 1), slot((1, 0, 0))]
    net, x = NETS["tanh"](3), points(3)
    together = slot_values(net, x, wanted)
    for i, part in enumerate(wanted):
        assert_close(together[:, i], operator(net, x, part), RTOL, part)


def rows(expressions, names, *, time="t", published=False):
    planner = published_plan if published else make_plan
    plan = planner([slot_of(e, names, time) for e in expressions], len(names))
    assert len(plan.rows) == len(plan.powers) == len(plan.products)
    return len(plan.rows)


@pytest.mark.parametrize("d", [1, 2, 4, 9])
def test_heat_needs_one_row_more_than_the_gradient_in_space(d):
    names = ["t", *(f"x{i}" for i in range(1, d + 1))]
    heat = [lambda u, v: u.t - lap(u)]
    assert rows(heat, names) == d + 2
    assert rows(heat, names, published=True) == d + 3  # time included


@pytest.mark.parametrize(
    ("expressions", "names", "expected"),
    [
        ([lambda u, v: u], "xy", 1),
        ([lambda u, v: u.t + 2 * u.x - u.y], "txy", 2),
        ([lambda u, v: u.t], "txy", 2),
        ([lambda u, v: lap(u)], "xy", 4),
        ([lambda u, v: u.xx], "xy", 3),
        ([lambda u, v: u.tt - u.xx], "tx", 4),
        ([lambda u, v: u.t + u.xxx], "tx", 4),
        ([lambda u, v: lap(lap(u))], "xy", 9),
        # Burgers: the gradient in x is there already, the rest is one row.
        ([lambda u, v: u.t - u.xx, lambda u, v: u.x, lambda u, v: u], "tx", 3),
        # Several operators share first derivatives; fields share rows.
        ([lambda u, v: lap(u), lambda u, v: lap(v), lambda u, v: u.x + v.y], "xy", 4),
        ([lambda u, v: u.xx + u.yy, lambda u, v: u.xx - u.yy], "xy", 5),
    ],
)
def test_number_of_rows(expressions, names, expected):
    assert rows(expressions, names) == expected


def test_laplacian_in_100_dimensions_has_102_rows():
    assert rows([lambda u, v: lap(u)], [f"x{i}" for i in range(1, 101)]) == 102


# -- activations ---------------------------------------------------------------------------------
def softplus_of(beta):
    return partial(activations.softplus, beta=beta), nn.Softplus(beta=beta)


TOWERS = {
    "tanh": (activations.tanh, torch.tanh),
    "sigmoid": (activations.sigmoid, torch.sigmoid),
    "softplus": (activations.softplus, nn.functional.softplus),
    "softplus(beta=0.5)": softplus_of(0.5),
    "softplus(beta=3)": softplus_of(3.0),
    "sin": (activations.sin, torch.sin),
    "cos": (activations.cos, torch.cos),
    "exp": (activations.exp, torch.exp),
    "SiLU": (activations.silu, nn.functional.silu),
    "GELU": (activations.gelu, nn.functional.gelu),
    **{f"power {n}": (partial(power, exponent=n), lambda z, n=n: z**n) for n in range(1, 7)},
    "own": (Gaussian().tower, lambda z: torch.exp(-0.5 * z * z)),
}
OF_POSITIVE = {
    "log": (activations.log, torch.log),
    **{
        f"power {p}": (partial(power, exponent=p), lambda z, p=p: z**p)
        for p in (0.5, -1, -2.7, 3.1)
    },
}


@pytest.mark.parametrize("name", [*TOWERS, *OF_POSITIVE])
def test_towers_up_to_order_five(name, device):
    tower, function = (TOWERS | OF_POSITIVE)[name]
    lowest = 0.3 if name in OF_POSITIVE else -4.0
    z = torch.linspace(lowest, 4, 33, dtype=FLOAT, device=device).requires_grad_()
    value = function(z)
    found = tower(z.detach(), 5)
    assert len(found) == 6
    for n in range(6):
        assert_close(found[n], value.detach(), RTOL, (name, n))
        if not value.requires_grad:
            assert not found[n + 1 :] or all(not f.any() for f in found[n + 1 :])
            break
        (value,) = torch.autograd.grad(value.sum(), z, create_graph=True)


@pytest.mark.parametrize("name", TOWERS)
def test_towers_of_any_order_agree(name):
    tower, _ = TOWERS[name]
    z = torch.linspace(-2, 2, 9, dtype=FLOAT)
    longest = tower(z, 5)
    for order in range(5):
        shorter = tower(z, order)
        assert len(shorter) == order + 1
        for a, b in zip(shorter, longest, strict=False):
            torch.testing.assert_close(a, b, rtol=0, atol=0)


def spellings(name):
    """Every way in which torch lets a net call the function: as a function, method or layer."""
    for space in (torch, torch.special, nn.functional):
        if hasattr(space, name):
            yield getattr(space, name)
    if hasattr(torch.Tensor, name):
        yield lambda z: getattr(z, name)()
    for layer in vars(nn).values():
        if isinstance(layer, type) and layer.__name__.lower() == name:
            yield layer()


@pytest.mark.parametrize("name", sorted(activations.TOWERS.keys() - {"pow"}))
def test_an_entry_of_the_table_has_every_spelling(name):
    calls = list(spellings(name))
    assert calls
    for call in calls:
        net = Net(lambda net, x: net.b(net.call(net.a(x) + 2.0)), a=linear(2, 4), b=linear(4, 2))
        net.call = call
        x = points(2)
        found = slot_values(net, x, [slot((0, 0)), slot((1, 1))])
        expected = derivatives(net, x, 2)
        assert_close(found[:, 0], expected[0][:, 0], RTOL, call)
        assert_close(found[:, 1], expected[2][:, 0, 0, 1], RTOL, call)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "softplus", "SiLU", "GELU"])
def test_towers_stay_finite_far_out(name):
    tower, _ = TOWERS[name]
    z = torch.tensor([-800.0, -60.0, 60.0, 800.0], dtype=FLOAT)
    for derivative in tower(z, 5)[2:]:
        assert torch.isfinite(derivative).all()
        assert derivative.abs().max() < 1e-20


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name(name):
    net = Mlp(2, 1, (3,), name)
    x = points(2)
    found = slot_values(net, x, [slot((0, 0)), slot((1, 1))], outputs=1)
    expected = derivatives(net, x, 2)
    assert_close(found[:, 0], expected[0][:, 0], RTOL)
    assert_close(found[:, 1], expected[2][:, 0, 0, 1], RTOL)


# -- precision and device ------------------------------------------------------------------------
@every_net
def test_rows_keep_float32(name, device):
    net, x = NETS[name](2), points(2)
    expected = slot_values(net, x, [slot((0, 0)), slot_of(lambda u, v: lap(u), "xy")])
    single = slot_values(
        net.float().to(device),
        x.float().to(device),
        [slot((0, 0)), slot_of(lambda u, v: lap(u), "xy")],
    )
    assert single.dtype == torch.float32 and single.device.type == device.type
    assert_close(single.cpu().double(), expected, 2e-5, name)


def test_input_scaling_maps_the_box_to_the_cube():
    scaling = InputScaling((-2.0, 0.0), (4.0, 1.0))
    corners = torch.tensor([[-2.0, 0.0], [4.0, 1.0], [1.0, 0.5]], dtype=FLOAT)
    expected = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]], dtype=FLOAT)
    assert_close(scaling(corners), expected, 1e-15)


def test_periodic_embedding_is_periodic_with_all_derivatives():
    net = NETS["PeriodicEmbedding"](2)
    slots = [slot(alpha) for order in range(5) for alpha in multi_indices(order, 2)]
    x = points(2)
    shifted = x + torch.tensor([0.0, 2.0], dtype=FLOAT)
    other = x + torch.tensor([0.0, 1.0], dtype=FLOAT)
    assert_close(slot_values(net, shifted, slots), slot_values(net, x, slots), 1e-12)
    with pytest.raises(AssertionError):
        assert_close(slot_values(net, other, slots), slot_values(net, x, slots), 1e-3)


# -- refusals ------------------------------------------------------------------------------------
def tiny(function, **modules):
    return Net(function, a=linear(2, 4), b=linear(4, 1), **modules)


class _Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = linear(2, 1)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else -self.a(x)


def _with_raw_parameter():
    net = tiny(lambda net, x: net.b(torch.tanh(net.a(x)) * net.raw))
    net.raw = nn.Parameter(torch.ones(4, dtype=FLOAT))
    return net


def _with_unused_parameter():
    net = tiny(lambda net, x: net.b(torch.tanh(net.a(x))))
    net.unused = nn.Parameter(torch.ones(4, dtype=FLOAT))
    return net


def middle(module):
    return nn.Sequential(linear(2, 4), module, linear(4, 1))


@affine_layer
class NotAffine(nn.Module):
    def forward(self, z):
        return z * z.sum(-1, keepdim=True)


REFUSED = {
    "BatchNorm1d": (lambda: middle(nn.BatchNorm1d(4, dtype=FLOAT)), ["'1'", "BatchNorm1d", "rule"]),
    "LayerNorm": (lambda: middle(nn.LayerNorm(4, dtype=FLOAT)), ["LayerNorm", "rule"]),
    "Conv1d": (lambda: middle(nn.Conv1d(1, 1, 1, dtype=FLOAT)), ["Conv1d", "rule"]),
    "Dropout": (lambda: middle(nn.Dropout()), ["Dropout", "rule"]),
    "Bilinear": (
        lambda: Net(lambda n, x: n.m(x, x), m=nn.Bilinear(2, 2, 1, dtype=FLOAT)),
        ["Bilinear"],
    ),
    "ReLU": (lambda: middle(nn.ReLU()), ["ReLU", "second derivatives", "smooth"]),
    "LeakyReLU": (lambda: middle(nn.LeakyReLU()), ["LeakyReLU", "second derivatives"]),
    "ELU": (lambda: middle(nn.ELU()), ["ELU", "second derivatives"]),
    "GELU(tanh)": (lambda: middle(nn.GELU("tanh")), ["net: GELU", "approximate"]),
    "function of relu": (lambda: tiny(lambda n, x: n.b(torch.relu(n.a(x)))), ["relu", "rule"]),
    "function of gelu tanh": (
        lambda: tiny(lambda n, x: n.b(nn.functional.gelu(n.a(x), approximate="tanh"))),
        ["GELU", "approximate"],
    ),
    "power of a layer": (lambda: tiny(lambda n, x: n.b(n.a(x) ** n.a(x))), ["pow", "rule"]),
    "layer as an exponent": (lambda: tiny(lambda n, x: n.b(2.0 ** n.a(x))), ["pow", "rule"]),
    "sum with a factor": (
        lambda: tiny(lambda n, x: n.b(torch.add(n.a(x), n.a(x), alpha=2))),
        ["add", "rule"],
    ),
    "unknown option": (
        lambda: tiny(lambda n, x: n.b(torch.div(n.a(x), 2.0, rounding_mode="floor"))),
        ["div", "rule"],
    ),
    "softmax": (lambda: tiny(lambda n, x: n.b(torch.softmax(n.a(x), -1))), ["softmax", "rule"]),
    "sum over the batch": (lambda: tiny(lambda n, x: n.b(n.a(x) + n.a(x).mean(0))), ["mean"]),
    "cat along the batch": (
        lambda: tiny(lambda n, x: n.b(torch.cat([n.a(x), n.a(x)]))),
        ["cat", "dim=-1"],
    ),
    "one column": (lambda: tiny(lambda n, x: n.b(n.a(x)) * x[:, 0]), ["a:a + 1"]),
    "points in reverse": (lambda: tiny(lambda n, x: n.b(n.a(x).flip(0))), ["flip", "points"]),
    "sums along the batch": (
        lambda: tiny(lambda n, x: n.b(n.a(x).cumsum(0))),
        ["cumsum", "points", "dim=-1"],
    ),
    "first point": (lambda: tiny(lambda n, x: n.b(n.a(x)) * x[0]), ["getitem", "points"]),
    "total": (lambda: tiny(lambda n, x: n.b(n.a(x)) * x.sum()), ["sum", "points"]),
    "size of the batch": (
        lambda: tiny(lambda n, x: n.b(n.a(x).view(3, 4))),
        ["reshape", "points", "-1"],
    ),
    "matrix product of layers": (
        lambda: tiny(lambda n, x: n.b(torch.einsum("bi,bj->bi", n.a(x), n.a(x)))),
        ["einsum", "not linear", "*"],
    ),
    "affine layer that is not": (lambda: middle(NotAffine()), ["'1'", "not linear"]),
    "Linear on two axes": (
        lambda: tiny(lambda n, x: n.b(n.a(x).unsqueeze(1)).flatten(1)),
        ["Linear", "flatten(1)"],
    ),
    "raw parameter": (_with_raw_parameter, ["'raw'", "Scale", "nn.Linear"]),
    "unused parameter": (_with_unused_parameter, ["'unused'", "not used"]),
    "nothing to train": (
        lambda: nn.Sequential(FixedLinear(torch.ones(1, 2, dtype=FLOAT))),
        ["nothing to train"],
    ),
    "branch": (_Branch, ["_Branch.forward", "branches"]),
    "two outputs": (lambda: nn.Sequential(linear(2, 2)), ["2 outputs", "1 fields"]),
    "tuple": (lambda: tiny(lambda n, x: (n.a(x), n.b(n.a(x)))), ["one tensor"]),
    "wrong width": (lambda: nn.Sequential(linear(2, 4), linear(3, 1)), ["3 features", "gets 4"]),
    "wrong number of coordinates": (lambda: nn.Sequential(linear(3, 1)), ["3 features", "gets 2"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_nets_without_rules_are_refused_by_name(name):
    build, words = REFUSED[name]
    with pytest.raises(UserError) as caught:
        Graph(build(), 2, 1)
    for word in words:
        assert word in str(caught.value)


def test_what_is_refused_runs_in_torch():
    """The table above refuses nets that torch accepts, not nets that are broken anyway."""
    broken = {"Conv1d", "wrong width", "wrong number of coordinates"}
    for name, (build, _) in REFUSED.items():
        if name not in broken:
            build()(points(2))


# -- no net is silently another one --------------------------------------------------------------
def _two_inputs():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = linear(2, 4), linear(4, 1)

        def forward(self, x, t):
            return self.b(torch.tanh(self.a(x) + self.a(t)))

    return TwoInputs()


def _in_place(net, x):
    z = net.a(x)
    w = z
    w += torch.tanh(z)
    return net.b(z)


def _buffer_wider_than_the_layer(f):
    net = Net(lambda net, x: net.b(torch.tanh(f(net.one(x), net.k))), one=linear(2, 1))
    net.b = linear(4, 1)
    net.register_buffer("k", torch.arange(1.0, 5.0, dtype=FLOAT))
    return net


class _DoubleLinear(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class _DoubleTanh(nn.Tanh):
    def forward(self, z):
        return 2 * super().forward(z)


def _hooked(net, hook):
    net[0].register_forward_hook(hook)
    return net


def _rows_of_numbers():
    """A buffer with an entry per point, as many as the net is tried on."""
    net = tiny(lambda net, x: net.b(torch.tanh(net.a(x)) * net.k))
    net.register_buffer("k", torch.arange(3.0, dtype=FLOAT)[:, None] * torch.ones(4, dtype=FLOAT))
    return net


def _half_frozen():
    net = middle(nn.Tanh())
    net[2].bias.requires_grad_(False)
    return net


def _shared_bias():
    net = tiny(lambda net, x: net.b(torch.tanh(net.a(x)) + net.c(x)), c=linear(2, 4))
    net.c.bias = net.a.bias
    return net


UNUSUAL = {
    "two inputs": _two_inputs,
    "addition in place": lambda: tiny(_in_place),
    "subclass of Linear": lambda: nn.Sequential(
        _DoubleLinear(2, 4, dtype=FLOAT), nn.Tanh(), linear(4, 1)
    ),
    "subclass of Tanh": lambda: middle(_DoubleTanh()),
    "sum with one feature": lambda: tiny(
        lambda net, x: net.b(torch.tanh(net.a(x)) + net.one(x)), one=linear(2, 1)
    ),
    "product with a wider buffer": lambda: _buffer_wider_than_the_layer(lambda z, k: z * k),
    "sum with a wider buffer": lambda: _buffer_wider_than_the_layer(lambda z, k: k - z),
    "wider Scale": lambda: Net(
        lambda net, x: net.b(net.s(net.one(x))), one=linear(2, 1), b=linear(4, 1), s=Scale(4)
    ),
    "cat by keyword": lambda: tiny(lambda net, x: net.b(torch.cat(tensors=[net.a(x)], dim=-1))),
    "layer by keyword": lambda: tiny(lambda net, x: net.b(torch.tanh(net.a(input=x)))),
    "silu": lambda: tiny(lambda net, x: net.b(nn.functional.silu(net.a(x)))),
    "one linear layer": lambda: linear(2, 1),
    "hook that changes nothing": lambda: _hooked(middle(nn.Tanh()), lambda m, x, y: None),
    "hook that doubles": lambda: _hooked(middle(nn.Tanh()), lambda m, x, y: 2 * y),
    "numbers a point": _rows_of_numbers,
    "half frozen": _half_frozen,
    "shared bias": _shared_bias,
    "spectral_norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(linear(2, 4)), nn.Tanh(), linear(4, 1)
    ),
    "weight_norm by a hook": lambda: nn.Sequential(
        nn.utils.weight_norm(linear(2, 4)), nn.Tanh(), linear(4, 1)
    ),
    "one activation": nn.Tanh,
    "nothing but scales": lambda: nn.Sequential(Scale(2), FixedLinear(torch.ones(1, 2).double())),
}
WORDS = {
    "two inputs": ["forward takes 2 arguments (x, t)", "x[:, 0:1]"],
    "addition in place": ["gives other values", "in place"],
    "subclass of Linear": ["gives other values", "subclass"],
    "subclass of Tanh": ["gives other values", "Activation"],
    "hook that doubles": ["gives other values", "hooks"],
    "numbers a point": ["(3, 4)", "(features,)"],
    "half frozen": ["'2'", "bias", "freeze both"],
    "shared bias": ["'a'", "'c'", "share their bias", "twice"],
    "spectral_norm": ["'0'", "parametriz"],
    "weight_norm by a hook": ["'0'", "weight_g", "weight_norm"],
    "one activation": ["nothing to train"],
    "nothing but scales": ["nothing to train"],
}
"""What is said of those that are refused; the others work."""


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm:FutureWarning")
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_nets_are_right_or_refused(name):
    net = UNUSUAL[name]()
    box = Box(x=(0, 1), y=(0, 1))
    problem = Problem(fields=("u",), terms=[Term("eq", box.interior, lambda u, at: u + lap(u))])
    try:
        system = System(problem, net)
    except UserError as error:
        assert str(error).startswith("net: ")
        for word in WORDS[name]:
            assert word in str(error), str(error)
        return
    assert name not in WORDS
    x = box.interior.draw(BATCH, Uniform(), torch.Generator())
    linearisation = system.linearise(system.prepare([x]))
    full = derivatives(net, x.coordinates, 2)
    expected = (full[0] + full[2][..., 0, 0] + full[2][..., 1, 1])[:, 0] / BATCH**0.5
    assert_close(linearisation.residual, expected, RTOL)
    prepared = system.prepare([x])
    assert_close(flat(linearisation.gradient()), jacobian(system, prepared).T @ expected, RTOL)


# -- refusals that need a problem ----------------------------------------------------------------
@pytest.mark.parametrize("kind", [FirstOrderOnly, TooShort])
def test_an_activation_with_too_few_derivatives_is_refused(kind):
    net = sequential(2, kind, outputs=1)
    box = Box(x=(0, 1), y=(0, 1))

    def system(residual):
        return System(Problem(fields=("u",), terms=[Term("eq", box.interior, residual)]), net)

    enough = system(lambda u, at: u.x)
    drawn = [box.interior.draw(BATCH, Uniform(), torch.Generator())]
    assert enough.linearise(enough.prepare(drawn)).residual.shape == (BATCH,)
    with pytest.raises(UserError, match=kind.__name__) as caught:
        short = system(lambda u, at: u.xx)
        short.linearise(short.prepare(drawn))
    assert "3" in str(caught.value) and "tower" in str(caught.value)


def test_an_activation_without_a_tower_says_what_to_define():
    with pytest.raises(NotImplementedError, match="tower"):
        Activation()(torch.zeros(2))


@pytest.mark.parametrize(
    "build",
    [
        lambda: PeriodicEmbedding((None, None)),
        lambda: PeriodicEmbedding((1.0, 0.0)),
        lambda: PeriodicEmbedding((1.0,), harmonics=0),
        lambda: InputScaling((0.0, 1.0), (1.0, 1.0)),
        lambda: InputScaling((0.0,), (1.0, 1.0)),
    ],
)
def test_embeddings_that_cannot_be_are_refused(build):
    with pytest.raises(UserError, match=r"^(PeriodicEmbedding|InputScaling): "):
        build()


def test_unknown_activation_names_the_known_ones():
    with pytest.raises(UserError, match="'tanh'") as caught:
        Mlp(2, 1, (3,), "tahn")
    assert "softplus" in str(caught.value)


@pytest.mark.parametrize("widths", [(3, 0), (3, 2.5), (-1,)])
def test_widths_must_be_positive_whole_numbers(widths):
    with pytest.raises(UserError, match="positive whole number"):
        Mlp(2, 1, widths)


def test_scales_start_where_told():
    z = points(2)
    assert_close(Scale(2, 0.5)(z), 0.5 * z, 0.0)
    assert_close(Scale()(z), z, 0.0)


def test_a_recorded_term_gives_the_plan_its_slots():
    box = Box(t=(0, 1), x=(0, 1))
    term = Term("burgers", box.interior, lambda u, at: u.t + u * u.x - 0.1 * u.xx)
    problem = Problem(fields=("u",), terms=[term])
    drawn = box.interior.draw(3, Uniform(), torch.Generator())
    plan = make_plan(record(term, problem, drawn).slots, 2)
    assert len(plan.slots) == 3 and len(plan.rows) == 3
