"""Windows of time: fields that go on from one to the next, their problems, runs through them."""

from __future__ import annotations

import json
import math
import os
import signal
import textwrap
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import exp, sin

import pinnkfac
from pinnkfac import Box, Parameter, Points, Problem, Solution, Term, UserError, resume, solve
from pinnkfac.__main__ import main
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp, MlpSettings, PiecewiseNet, TimeWindows, WindowField
from pinnkfac.residual.time_orders import time_orders
from pinnkfac.run.progress import Stop
from pinnkfac.run.watching import Before, Watcher
from pinnkfac.run.window_outcomes import share
from pinnkfac.taylor.graph import Graph
from pinnkfac.taylor.plan import make_plan

FLOAT = torch.float64
EDGES = (0.0, 0.2, 0.5, 1.0)
QUICK = ("threads=1", "run.plot=false", "run.quiet=true", "net.widths=[8]", "points.scale=0.1")


def problem(order=1, windows=EDGES, **more):
    """u of t and x, of that order in time; (u, v) of orders 2 and 1 for order 'mixed'."""
    box = Box(t=(0, 1), x=(0, 2))
    if order == "mixed":
        fields, equation = ("u", "v"), lambda u, v, at: (u.tt - u.xx, v.t + u - v.xx)
        start = lambda u, v, at: (u - sin(at.x), u.t, v)  # noqa: E731
    else:
        fields, equation = ("u",), lambda u, at: u.d(*"t" * order) - u.xx
        start = lambda u, at: (u - sin(at.x), *(u.d(*"t" * j) for j in range(1, order)))  # noqa: E731
    terms = [
        Term("equation", box.interior, equation),
        Term("start", box.at(t=0), start),
        Term("ends", box.faces("x"), lambda *a: a[0]),
    ]
    return Problem(fields=fields, terms=terms, windows=windows, **more)


def field_of(made, **settings):
    """Nets of all windows of a problem, with other weights each, and its windows."""
    settings = MlpSettings(**({"widths": (6, 5)} | settings))
    nets = [settings.make(made.window(k).signature, k) for k in range(len(made.windows) - 1)]
    return nets, TimeWindows(made.windows, 0, 2, time_orders(made))


def points(number=40):
    generator = torch.Generator().manual_seed(1)
    size = torch.tensor([1.0, 2.0], dtype=FLOAT)
    return torch.rand(number, 2, dtype=FLOAT, generator=generator) * size


def by_autograd(net, x, field, *coordinates):
    """A derivative of a net at points, by reverse mode again and again."""
    x = x.clone().requires_grad_()
    value = net(x)[:, field]
    for i in coordinates:
        value = torch.autograd.grad(value.sum(), x, create_graph=True)[0][:, i]
    return value.detach()


# -- the field -------------------------------------------------------------------------------------
@pytest.mark.parametrize("order", [1, 2, 3, "mixed"])
def test_derivatives_of_all_windows_are_those_of_autograd(order):
    made = problem(order)
    net, x = PiecewiseNet(*field_of(made)), points()
    solution = Solution(made.signature, net)
    place = {"t": x[:, 0], "x": x[:, 1]}
    for k, name in enumerate(made.fields):
        for wanted in ("t", "x", "tt", "tx", "xx", "xxt", "ttx"):
            expected = by_autograd(net, x, k, *("tx".index(c) for c in wanted))
            got = getattr(solution[name], wanted)(**place)
            torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(solution[name](**place), net(x)[:, k], rtol=0, atol=1e-14)


@pytest.mark.parametrize("order", [1, 2, 3, "mixed"])
def test_what_goes_on_is_the_same_on_both_sides_of_an_edge_and_no_more(order):
    made = problem(order)
    nets, windows = field_of(made)
    for k, edge in enumerate(EDGES[1:-1], 1):
        sides = [Solution(made.signature, WindowField(nets[:n], windows)) for n in (k, k + 1)]
        for name, n in zip(made.fields, windows.orders, strict=True):
            for j in range(n + 1):
                both = [s[name].d(*"t" * j, "x")(t=edge, x=np.linspace(0, 2, 5)) for s in sides]
                apart = np.abs(both[0] - both[1]).max()
                assert apart < 1e-12 * np.abs(both[0]).max() if j < n else apart > 1e-3


def test_a_point_belongs_to_its_window_and_an_edge_to_the_later_one():
    made = problem()
    nets, windows = field_of(made)
    net = PiecewiseNet(nets, windows)
    for t, k in ((0.0, 0), (0.1, 0), (0.2, 1), (0.3, 1), (0.5, 2), (1.0, 2)):
        x = torch.tensor([[t, 0.7]], dtype=FLOAT)
        own = WindowField(nets[: k + 1], windows)
        for wanted in ((), (0,), (0, 0), (1,)):
            here, there = (by_autograd(f, x, 0, *wanted) for f in (net, own))
            assert torch.allclose(here, there, rtol=0, atol=1e-13)


def test_windows_that_are_missing_are_nan():
    made = problem()
    nets, windows = field_of(made)
    net = PiecewiseNet(nets[:2], windows)
    solution = Solution(made.signature, net)
    t = torch.tensor([0.1, 0.4, 0.5, 0.9], dtype=FLOAT)
    for values in (solution.u(t=t, x=0.5), solution.u.t(t=t, x=0.5), solution.u.xx(t=t, x=0.5)):
        assert values.isnan().tolist() == [False, False, True, True]


def test_only_the_last_net_is_trained_and_linearised():
    made = problem(2)
    nets, windows = field_of(made)
    system = System(made.window(2), WindowField(nets, windows))
    own = sum(p.numel() for p in nets[2].parameters())
    assert system.layout.number == own
    drawn = system.prepare(
        [t.where.draw(20, pinnkfac.Uniform(), torch.Generator()) for t in system.problem.terms]
    )
    before = [p.clone() for net in nets[:2] for p in net.parameters()]
    here = system.get_parameters()
    linear = system.linearise(drawn)
    step = [torch.full_like(v, 1e-6) for v in here]
    up, down = (
        system.residual(drawn, [v + s * d for v, d in zip(here, step, strict=True)])
        for s in (1, -1)
    )
    slope = linear.jvp(step)
    torch.testing.assert_close(slope, 0.5 * (up - down), rtol=1e-5, atol=1e-10)
    assert all(
        torch.equal(a, b)
        for a, b in zip(before, [p for net in nets[:2] for p in net.parameters()], strict=True)
    )
    assert not any(p.requires_grad for net in nets[:2] for p in net.parameters())


@torch.no_grad()
def test_rows_that_are_kept_follow_points_that_change_in_place():
    made = problem()
    field = WindowField(*field_of(made))
    plan = make_plan([(((0, "", (1, 0)), 1.0),)], 2)
    graph, x = Graph(field, 2, 1), points()
    first = graph.forward(x, plan)[0].dense().clone()
    assert torch.equal(first, graph.forward(x, plan)[0].dense())
    x[:, 1] *= 0.5
    now = graph.forward(x, plan)[0].dense()
    assert torch.equal(now, Graph(field, 2, 1).forward(x, plan)[0].dense())
    assert not torch.allclose(first, now)
    field.nets[0].layers[0].weight.mul_(1.1)  # as when a checkpoint is put in place
    now = graph.forward(x, plan)[0].dense()
    assert torch.equal(now, Graph(field, 2, 1).forward(x, plan)[0].dense())


def test_a_net_that_overflows_far_away_does_no_harm():
    made = problem()
    nets, windows = field_of(made, widths=(6,), activation="exp")
    with torch.no_grad():
        nets[0].layers[0].weight[:, 0] = 400.0  # exp(400 · 9) at the end of time
    net = PiecewiseNet(nets, windows)
    x = torch.tensor([[0.05, 0.3]], dtype=FLOAT)
    assert by_autograd(net, x, 0, 0).isfinite().all()


# -- the problems of windows -----------------------------------------------------------------------
def test_terms_of_a_window_are_on_the_part_of_their_regions_in_it():
    box = Box(t=(0, 1), x=(0, 2))
    made = Problem(
        fields=("u",),
        terms=[
            Term("heat", box.interior, lambda u, at: u.t - u.xx, points=50),
            Term("rim", box.at(t=0) | box.faces("x"), lambda u, at: u, weight=2.0),
            Term("start", box.at(t=0).where(lambda at: at.x > 1), lambda u, at: u),
            Term("period", box.opposite("x"), lambda u, at: u - u(at.opposite)),
            Term("early", box.interior.where(lambda at: at.t < 0.3), lambda u, at: u),
            Term("given", Points({"t": [0.0, 0.2, 0.9], "x": [1.0, 1.0, 1.0]}), lambda u, at: u.x),
        ],
        windows=EDGES,
    )
    always = ["heat", "rim", "period"]
    expected = [[*always, "start", "early"], [*always, "early"], always]
    for k, ends in enumerate(pairwise(EDGES)):
        own = made.window(k)
        assert own.domain.ranges["t"] == ends and not own.windows
        assert sorted(t.name for t in own.terms) == sorted([*expected[k], "given"])
        for term in own.terms:
            drawn = term.where.draw(60, pinnkfac.Uniform(), torch.Generator().manual_seed(0))
            for x in (drawn.coordinates, *drawn.links.values()):
                assert own.domain.contains(x).all()
        rim = next(t for t in own.terms if t.name == "rim")
        at_start = rim.where.draw(60, pinnkfac.Uniform(), torch.Generator()).coordinates[:, 0] == 0
        assert bool(at_start.any()) == (k == 0) and rim.weight == 2.0
        given = next(t for t in own.terms if t.name == "given")
        assert given.where.given["t"].tolist() == [[0.0], [0.2], [0.9]][k]


@pytest.mark.parametrize("number", [2, 5, np.int64(3)])
def test_a_number_of_windows_is_that_many_equal_ones(number):
    edges = problem(windows=number).windows
    assert edges[0] == 0 and edges[-1] == 1 and len(edges) == number + 1
    np.testing.assert_allclose(np.diff(edges), 1 / number)
    assert problem(windows=list(edges)).windows == edges


@pytest.mark.parametrize("one", [None, 1, (0, 1)])
def test_one_window_is_none(one):
    assert problem(windows=one).windows == ()


@pytest.mark.parametrize(
    ("order", "expected"), [(1, (1,)), (2, (2,)), (3, (3,)), ("mixed", (2, 1))]
)
def test_as_many_derivatives_go_on_as_equations_have_in_time(order, expected):
    assert time_orders(problem(order)) == expected


def test_what_the_start_asks_for_alone_does_not_go_on():
    box = Box(t=(0, 1), x=(0, 1))
    terms = [
        Term("heat", box.interior, lambda u, at: u.t - u.xx),
        Term("start", box.at(t=0), lambda u, at: (u, u.tt)),
    ]
    assert time_orders(Problem(fields=("u",), terms=terms, windows=2)) == (1,)


BAD = {
    "give at least 1": 0,
    "windows=-2": -2,
    "give a whole number": 2.5,
    "windows='many'": "many",
    "windows=True": True,
    r"windows=\(0, nan, 1\)": (0, math.nan, 1),
    "do not increase": (0, 0.6, 0.4, 1),
    "do not cover t, which goes from 0 to 1": (0, 0.5),
}


@pytest.mark.parametrize(("message", "windows"), BAD.items())
def test_windows_that_cannot_be_are_refused(message, windows):
    with pytest.raises(UserError, match=message):
        problem(windows=windows)


def refused(message, box=None, terms=(), start=True, **more):
    box = box or Box(t=(0, 1), x=(0, 1))
    own = [Term("heat", box.interior, lambda u, at: u.t - u.xx)]
    if start:
        own.append(Term("start", box.at(t=0), lambda u, at: u))
    with pytest.raises(UserError, match=message):
        Problem(fields=("u",), terms=[*own, *terms], windows=2, **more)


def test_problems_that_cannot_be_trained_window_by_window_are_refused():
    box = Box(t=(0, 1), x=(0, 1))
    kappa = Parameter("kappa", 1.0)
    data = Points({"t": [0.1, 0.7], "x": [0.2, 0.2]}, value=[1.0, 2.0])
    wide = Box(t=(0, 2), x=(0, 1))
    value = lambda u, at: u  # noqa: E731
    refused("'kappa' is the same in all of them", parameters=(kappa,))
    refused("it is periodic in t", periodic=("t",))
    refused("it holds at t = 1, .* put it at the start", terms=[Term("end", box.at(t=1), value)])
    refused("it holds at t = 0.5", terms=[Term("mid", box.at(t=0.5), value)])
    refused("links points at different t", terms=[Term("p", box.opposite("t"), value)])
    refused("values at given points", terms=[Term("data", data, lambda u, at: u - at.value)])
    refused("its t goes from 0 to 2", terms=[Term("w", wide.interior, value)], domain=box)
    refused("no term says what holds at t = 0", start=False)
    flat = Box(x=(0, 1), y=(0, 1))
    with pytest.raises(UserError, match=r"none of its coordinates \(x, y\) is time"):
        Problem(fields=("u",), terms=[Term("a", flat.interior, value)], windows=2)


def test_given_values_at_the_start_are_a_start():
    box = Box(t=(0, 1), x=(0, 1))
    data = Points({"t": [0.0, 0.0], "x": [0.2, 0.7]}, value=[1.0, 2.0])
    terms = [
        Term("heat", box.interior, lambda u, at: u.t - u.xx),
        Term("data", data, lambda u, at: u - at.value),
    ]
    made = Problem(fields=("u",), terms=terms, windows=2)
    assert [len(made.window(k).terms) for k in (0, 1)] == [2, 1]


# -- runs ------------------------------------------------------------------------------------------
OSCILLATOR = """
    from torch import cos, sin
    from pinnkfac import Box, Problem, Term

    def oscillator(windows: int = 4, end: float = 20.0) -> Problem:
        box = Box(t=(0, end), time=None)
        return Problem(
            fields=("x", "v"),
            terms=[
                Term("motion", box.interior, lambda x, v, at: (x.t - v, v.t + x)),
                Term("start", box.at(t=0), lambda x, v, at: (x - 1, v)),
            ],
            solution=lambda at: (cos(at.t), -sin(at.t)),
            windows=windows,
        )
"""


@pytest.fixture
def oscillator(tmp_path):
    path = tmp_path / "oscillator.py"
    path.write_text(textwrap.dedent(OSCILLATOR))
    return str(path)


def test_a_long_oscillation_is_solved(oscillator):
    options = ("pde.end=30", "stop.steps=60", "net.widths=[12]", "points.scale=0.3", "threads=1")
    at_once, split = (solve(oscillator, f"pde.windows={n}", *options).errors for n in (1, 6))
    assert split.relative_l2 < 0.05 < 0.3 < at_once.relative_l2


def heat(windows):
    box, k = Box(t=(0, 1), x=(0, 1)), math.pi
    return Problem(
        fields=("u",),
        terms=[
            Term("heat", box.interior, lambda u, at: u.t - u.xx),
            Term("ends", box.faces("x"), lambda u, at: u),
            Term("start", box.at(t=0), lambda u, at: 300 * (u - 50 * sin(k * at.x))),
        ],
        solution=lambda at: 50 * exp(-(k**2) * at.t) * sin(k * at.x),
        windows=windows,
    )


def wave(windows):
    box, k = Box(t=(0, 2), x=(0, 1)), math.pi
    return Problem(
        fields=("u",),
        terms=[
            Term("wave", box.interior, lambda u, at: u.tt - u.xx),
            Term("ends", box.faces("x"), lambda u, at: u),
            Term("start", box.at(t=0), lambda u, at: (u - sin(k * at.x), u.t)),
        ],
        solution=lambda at: sin(k * at.x) * torch.cos(k * at.t),
        windows=windows,
    )


@pytest.mark.parametrize(("made", "most"), [(heat, 2e-3), (wave, 2e-2)])
def test_partial_differential_equations_are_solved_window_by_window(made, most):
    options = ("threads=1", "net.widths=[16,16]", "points.scale=0.3", "stop.steps=50")
    result = solve(made((0, 0.3, 1) if made is heat else 2), *options)
    assert result.errors.relative_l2 < most
    assert set(result.summary["relative_residuals"]) == {made.__name__, "ends", "start"}


def test_a_run_says_which_window_it_is_in(oscillator, tmp_path, capfd):
    solve(oscillator, "stop.steps=10", *QUICK[:2], *QUICK[3:], folder=tmp_path / "run")
    out = capfd.readouterr().out
    assert "oscillator: 4 windows, 34 parameters" in out
    for k, (low, high) in enumerate(pairwise((0, 5, 10, 15, 20)), 1):
        assert f"window {k} of 4, t from {low} to {high}\n" in out
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").open()]
    assert sorted({r["window"] for r in records}) == [1, 2, 3, 4]
    steps = [r["step"] for r in records]
    assert steps == sorted(steps) and steps[-1] == 10
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [w["steps"] for w in summary["windows"]] == [3, 3, 2, 2]
    worst = max(w["relative_residuals"]["motion"] for w in summary["windows"])
    assert summary["relative_residuals"]["motion"] == worst
    assert summary["steps"] == 10 and summary["stop_reason"] == "10 steps done (stop.steps)"
    assert [w for w in summary["warnings"] if w.startswith("window 4 of 4, t from 15 to 20: term")]


def test_what_a_window_does_not_need_is_left_to_the_later_ones():
    stop = Stop(seconds=100.0, steps=90)
    first = share(stop, Before(1), 3)
    assert (first.steps, first.seconds) == (30, 100 / 3)
    second = share(stop, Before(2, 10, 20.0), 2)
    assert (second.steps, second.seconds) == (40, 40.0)
    late = share(stop, Before(3, 90, 101.0), 1)
    assert late.steps == 1 and 0 < late.seconds < 1e-3


def test_the_solution_is_stored_whole_and_loads_without_the_file(oscillator, tmp_path):
    folder = tmp_path / "run"
    result = solve(oscillator, "stop.steps=8", *QUICK, folder=folder)
    (tmp_path / "oscillator.py").unlink()
    (folder / "pde.py").unlink()
    t = torch.linspace(0, 20, 101, dtype=FLOAT)[:, None]
    for which in ("last", "best"):
        loaded = Solution.load(folder, which)
        assert loaded(t).isfinite().all()
    loaded = Solution.load(folder)
    assert torch.equal(loaded(t), result.solution(t))
    assert torch.equal(loaded.x.tt(t=t[:, 0]), result.solution.x.tt(t=t[:, 0]))
    assert main(["export", str(folder), str(tmp_path / "a.npz")]) == 0
    (path,) = result.solution.export(tmp_path / "net.pt2")
    program = torch.export.load(path).module()
    torch.testing.assert_close(program(t), result.solution(t), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "change", [{"edges": [0.0, 5.0, 4.0, 20.0]}, {"orders": [1]}, {"number": 4}, {"number": "x"}]
)
def test_windows_of_a_damaged_checkpoint_are_refused(change, oscillator, tmp_path):
    solve(oscillator, "stop.steps=4", *QUICK, folder=tmp_path)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["windows"] |= change
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match=r"the windows of the checkpoint do not fit the problem"):
        Solution.load(tmp_path)


def test_a_wave_is_no_program_of_torch_export(tmp_path):
    made = problem(2)
    solution = Solution(made.signature, PiecewiseNet(*field_of(made)))
    with pytest.raises(UserError, match="cannot hold windows over which derivatives"):
        solution.export(tmp_path / "net.pt2")


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C after so many calls of the watcher."""

    def after(number):
        calls, original = [], Watcher.__call__

        def call(self, progress):
            calls.append(progress.step)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGINT)
            return original(self, progress)

        monkeypatch.setattr(Watcher, "__call__", call)

    return after


@pytest.mark.parametrize("number", [2, 3, 5, 8])
def test_an_interrupted_run_goes_on_bit_for_bit(number, oscillator, tmp_path, interrupted):
    """Within the first window, at its end, within the second one, within the last one."""
    options = ("stop.steps=9", "pde.windows=3", *QUICK)
    whole = solve(oscillator, *options)
    interrupted(number)
    part = solve(oscillator, *options, folder=tmp_path / "run")
    done = len(part.summary["windows"])
    assert part.status == "interrupted" and part.stop_reason.startswith("Ctrl-C ")
    assert f"in window {done} of 3" in part.stop_reason
    t = torch.linspace(0, 20, 61, dtype=FLOAT)[:, None]
    missing = part.solution(t)[:, 0].isnan()
    assert torch.equal(missing, (t[:, 0] >= 20 * done / 3) & (done < 3))
    assert part.errors.relative_l2 > 0  # of what there is
    warned = [w for w in part.summary["warnings"] if "not trained, resume goes on" in w]
    assert len(warned) == (done < 3)
    stored = Solution.load(tmp_path / "run")(t)
    torch.testing.assert_close(stored, part.solution(t), rtol=0, atol=0, equal_nan=True)
    result = resume(tmp_path / "run")
    assert result.status == "finished" and torch.equal(result.solution(t), whole.solution(t))
    assert [w["steps"] for w in result.summary["windows"]] == [3, 3, 3]
    steps = [r["step"] for r in result.history]
    assert steps == sorted(set(steps)) and {r["step"] for r in whole.history} <= set(steps)


def test_what_cannot_change_when_a_run_goes_on(oscillator, tmp_path):
    folder = tmp_path / "run"
    solve(oscillator, "stop.steps=8", *QUICK, folder=folder)
    with pytest.raises(UserError, match=r"nothing is left to do, 8 steps .*stop\.steps=16"):
        resume(folder)
    with pytest.raises(UserError, match="windows have changed"):
        resume(folder, "pde.windows=2", "stop.steps=16")
    with pytest.raises(UserError, match="windows have changed"):
        resume(folder, "pde.windows=1", "stop.steps=16")
    result = resume(folder, "stop.steps=12")
    assert [w["steps"] for w in result.summary["windows"]] == [2, 2, 2, 6]


def test_settings_that_windows_cannot_have(oscillator):
    with pytest.raises(UserError, match="give at least 4, one for each"):
        solve(oscillator, "stop.steps=3")
    with pytest.raises(UserError, match="every window trains a net of its own"):
        solve(oscillator, net=Mlp(1, 2, (4,)))
    with pytest.raises(UserError, match="periodic in t does not go on"):
        solve(oscillator, "net.periodic=[t]")
    with pytest.raises(UserError, match="no such term"):
        solve(oscillator, "points.numbers.motoin=10")


def test_numbers_of_points_of_the_start_are_of_the_first_window_only():
    made = problem(1, (0, 0.5, 1))
    options = ("points.numbers.start=7", "points.numbers.ends=9", "stop.steps=2", *QUICK)
    first, second = solve(made, *options).history
    assert first["points"]["start"] == 7 and "start" not in second["points"]
    assert first["points"]["ends"] == second["points"]["ends"] == 9


def test_a_window_that_ends_early_says_why(oscillator):
    result = solve(oscillator, "stop.steps=40", "stop.loss=1.0", *QUICK)
    assert result.summary["windows"][0]["steps"] < 10
    assert result.summary["windows"][0]["stop_reason"] == "loss below 1 (stop.loss)"
    assert result.status == "finished"


def test_nets_in_single_precision(oscillator):
    result = solve(oscillator, "stop.steps=8", "dtype=float32", *QUICK)
    assert result.solution(torch.linspace(0, 20, 11)[:, None]).dtype == torch.float32
    assert result.errors.relative_l2 < 10


def test_check_and_show_name_the_windows(oscillator, capsys):
    line = "4 of t, from 0, 5, 10, 15 to 20; x and v go on from one to the next"
    assert main(["check", oscillator]) == 0
    assert f"windows: {line}" in capsys.readouterr().out
    assert main(["show", oscillator]) == 0
    assert f"windows         {line}" in capsys.readouterr().out
