"""The Python way: solve() from names, functions and problems, with the overrides of the command."""

from __future__ import annotations

import json
import math
import re
from functools import partial

import pytest
import torch
from oracles import assert_close
from torch import nn

from pinnkfac import Box, Parameter, Points, Problem, Term, UserError, lap, resume, solve
from pinnkfac.config.compose import compose
from pinnkfac.nets import Mlp, MlpSettings, PeriodicEmbedding
from pinnkfac.run.assembly import assemble
from pinnkfac.run.loop import run
from pinnkfac.run.progress import Stop
from pinnkfac.run.summary import parameters_sha256
from pinnkfac.solution import Solution

SMALL = ("net.widths=[16,16]", "stop.seconds=null", "threads=1")


def poisson() -> Problem:
    box = Box(x=(0, 1), y=(0, 1))

    def solution(at):
        return torch.sin(math.pi * at.x) * torch.sin(math.pi * at.y)

    return Problem(
        fields=("u",),
        terms=[
            Term("inside", box.interior, lambda u, at: lap(u) + 2 * math.pi**2 * solution(at)),
            Term("edge", box.boundary, lambda u, at: u),
        ],
        solution=solution,
    )


@pytest.mark.parametrize("step", ["kfac", "kfac_star", "adam", "sgd", "lbfgs", "kfac_published"])
def test_every_step_lowers_the_loss_through_the_same_loop(step):
    result = solve(poisson, *SMALL, f"step={step}", "stop.steps=10", "points.interior=100")
    assert result.summary["step"] == step
    assert result.summary["steps"] == 10
    assert result.stop_reason == "10 steps done (stop.steps)"
    assert result.history[-1]["loss"] < result.history[0]["loss"]


@pytest.mark.parametrize("step", ["kfac", "kfac_star"])
def test_kfac_reaches_a_small_error_in_few_steps(step):
    result = solve(poisson(), *SMALL, f"step={step}", "stop.steps=150", "points.interior=300")
    assert result.errors is not None
    assert result.errors.relative_l2 < 5e-2


def test_equal_seeds_give_equal_parameters_and_other_seeds_do_not():
    runs = [
        solve(poisson, *SMALL, "stop.steps=5", "points.interior=50", f"seed={seed}")
        for seed in (3, 3, 4)
    ]
    digests = [run.summary["parameters_sha256"] for run in runs]
    assert digests[0] == digests[1] != digests[2]


def test_the_digest_is_that_of_the_final_parameters():
    result = solve(poisson, *SMALL, "stop.steps=2", "points.interior=50")
    net = result.solution.net
    values = [
        torch.cat([layer.weight.detach(), layer.bias.detach()[:, None]], 1) for layer in net.layers
    ]
    assert parameters_sha256(values) == result.summary["parameters_sha256"]
    assert sum(p.numel() for p in net.parameters()) == result.summary["parameters"]


def test_errors_are_those_of_the_solution_on_unseen_points():
    result = solve(poisson, *SMALL, "stop.steps=3", "points.interior=50")
    x = torch.rand(20_000, 2, dtype=torch.float64)
    exact = (torch.sin(math.pi * x[:, 0]) * torch.sin(math.pi * x[:, 1]))[:, None]
    difference = result.solution(x) - exact
    rms = float(difference.square().mean().sqrt())
    relative = float(difference.norm() / exact.norm())
    assert result.summary["rms_error"] == pytest.approx(rms, rel=0.1)
    assert result.summary["relative_l2_error"] == pytest.approx(relative, rel=0.1)


def test_a_folder_holds_configuration_metrics_summary_checkpoint_and_pictures(tmp_path):
    result = solve(poisson, *SMALL, "stop.steps=4", "points.interior=50", folder=tmp_path / "run")
    files = {p.name for p in (tmp_path / "run").iterdir()}
    assert files - {".lock"} == {
        "best.pt",
        "checkpoint.pt",
        "config.yaml",
        "history.png",
        "metrics.jsonl",
        "problem.json",
        "solution.png",
        "summary.json",
    }
    records = [json.loads(s) for s in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records][:3] == [1, 2, 4]
    assert set(records[0]["losses"]) == {"inside", "edge"}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["parameters_sha256"] == result.summary["parameters_sha256"]
    state = torch.load(tmp_path / "run/checkpoint.pt", weights_only=True)
    assert state["progress"]["step"] == 4
    with pytest.raises(UserError, match="holds a finished run"):
        solve(poisson, *SMALL, "stop.steps=1", folder=tmp_path / "run")


def test_an_unknown_coefficient_is_found():
    true = 0.3
    box = Box(x=(0, 1), t=(0, 1))

    def field(x, t):
        return torch.exp(-true * math.pi**2 * t) * torch.sin(math.pi * x)

    def inverse() -> Problem:
        generator = torch.Generator().manual_seed(1)
        x, t = torch.rand(2, 200, dtype=torch.float64, generator=generator)
        kappa = Parameter("kappa", initial=1.0)
        return Problem(
            fields=("u",),
            parameters=(kappa,),
            terms=[
                Term("heat", box.interior, lambda u, at: u.t - kappa * lap(u)),
                Term(
                    "data",
                    Points({"x": x, "t": t}, measured=field(x, t)),
                    lambda u, at: u - at.measured,
                ),
            ],
        )

    result = solve(inverse, *SMALL, "stop.steps=300", "points.interior=200")
    assert result.coefficients["kappa"] == pytest.approx(true, rel=2e-2)
    assert result.errors is None
    assert result.summary["relative_l2_error"] is None
    assert result.history[0]["coefficients"]["kappa"] != result.coefficients["kappa"]


def test_float32_runs_and_is_kept():
    result = solve(poisson, *SMALL, "stop.steps=5", "points.interior=50", "dtype=float32")
    assert result.summary["dtype"] == "float32"
    assert next(result.solution.net.parameters()).dtype == torch.float32
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_arguments_of_the_function_are_settings():
    def scaled(factor: float = 1.0) -> Problem:
        box = Box(x=(0, 1))
        return Problem(
            fields=("u",),
            terms=[Term("value", box.interior, lambda u, at: u - factor)],
            solution=lambda at: factor + 0 * at.x,
        )

    result = solve(scaled, *SMALL, "pde.factor=2.5", "stop.steps=30")
    x = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    assert torch.allclose(
        result.solution(x), torch.full((5, 1), 2.5, dtype=torch.float64), atol=1e-2
    )


@pytest.mark.parametrize("option", ["uniform", "sobol", "grid"])
def test_points_are_drawn_as_configured(option):
    result = solve(
        poisson,
        *SMALL,
        f"points={option}",
        "points.every=2",
        "stop.steps=4",
        "points.interior=64",
        "points.lower=16",
    )
    assert result.summary["steps"] == 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("net.width=[3]",), "net.width"),
        (("step=kfak",), "Known: adam"),
        (("pde.kappa=1",), "pde.kappa"),
        (("dtype=float16",), "float64"),
        (("device=warp",), "device=warp"),
        (("net.activation=relu",), "tanh"),
        (("net.widths=[0]",), "at least 1"),
        (("threads=0",), "at least 1"),
        (("net.fourier_features=3",), "even number"),
        (("device=meta",), "device=meta"),
        (("device=gpu",), "choose cpu, or cuda"),
        (("step=adam", "damping.start=5"), "'damping.start' does not exist: step=adam brings"),
        (("step=adam", "search.foo=2"), "step=adam brings search=none, which has no settings"),
        (("damping=constant", "damping.good=2"), "damping=constant has no setting 'good'; it is"),
        (
            ("step=kfac", "step.beta1=0.5"),
            "step=kfac has no setting 'beta1'; it is one of step=adam",
        ),
        (("pde.kappa=1",), "the PDE's function has no arguments"),
        (("points.numbers.innside=5",), "Did you mean 'inside'"),
    ],
)
def test_a_wrong_setting_ends_in_one_message(overrides, message):
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        solve(poisson, *SMALL, "stop.steps=1", *overrides)


@pytest.mark.parametrize(
    ("arguments", "more", "message"),
    [
        (("stop.steps=1",), {"net": 3}, "net=3 is int: give a torch.nn.Module"),
        (("stop.steps=1",), {"net": torch.nn.Linear}, "is the class Linear: give"),
        (({"stop.steps": 1},), {}, "{'stop.steps': 1} is dict: give each as a string"),
        ((["stop.steps=1"],), {}, "is list: give each as a string"),
        (("stop.steps=1",), {"folder": 3}, "folder=3 is int: give the path"),
    ],
)
def test_an_argument_of_a_wrong_type_is_named(arguments, more, message, tmp_path):
    for call in (partial(solve, poisson), partial(resume, more.get("folder", tmp_path))):
        given = {k: v for k, v in more.items() if k != "folder" or call.func is solve}
        with pytest.raises(UserError, match=re.escape(message)):
            call(*arguments, **given)


def test_every_stop_says_why():
    done = solve(poisson, *SMALL, "stop.steps=500", "stop.loss=1e3", "points.interior=50")
    assert "stop.loss" in done.stop_reason
    done = solve(poisson, *SMALL, "stop.steps=500", "stop.error=1e9", "points.interior=50")
    assert "relative L2 error" in done.stop_reason
    done = solve(poisson, "net.widths=[8]", "stop.seconds=0.2", "points.interior=50")
    assert "stop.seconds" in done.stop_reason


def test_a_residual_that_is_not_finite_at_the_start_is_refused():
    box = Box(x=(0, 1))
    problem = Problem(
        fields=("u",), terms=[Term("root", box.interior, lambda u, at: torch.log(-u * u) + u.x)]
    )
    with pytest.raises(UserError, match="term 'root': the residual is NaN"):
        solve(problem, *SMALL, "stop.steps=1")


def test_a_solution_of_the_wrong_shape_is_refused():
    box = Box(x=(0, 1))
    terms = [Term("value", box.interior, lambda u, at: u)]
    for solution, message in (
        (lambda at: (at.x, at.x), "2 values"),
        (lambda at: torch.stack([at.x, at.x])[None], "shape"),
        (lambda at: torch.log(at.x - 2), "NaN"),
    ):
        problem = Problem(fields=("u",), terms=terms, solution=solution)
        with pytest.raises(UserError, match=message):
            solve(problem, *SMALL, "stop.steps=1")


def test_a_periodic_net_is_periodic_and_fourier_features_follow_it():
    result = solve(
        poisson,
        *SMALL,
        "stop.steps=2",
        "points.interior=50",
        "net.periodic=[x]",
        "net.harmonics=2",
        "net.fourier_features=6",
    )
    y = torch.rand(7, dtype=torch.float64)
    left, right = (
        result.solution(torch.stack([torch.full_like(y, x), y], dim=1)) for x in (0.0, 1.0)
    )
    assert torch.allclose(left, right, rtol=1e-12, atol=1e-12)
    middle = result.solution(torch.stack([torch.full_like(y, 0.4), y], dim=1))
    assert not torch.allclose(left, middle, rtol=1e-3)
    with pytest.raises(UserError, match="unknown coordinate 'z'"):
        solve(poisson, *SMALL, "stop.steps=1", "net.periodic=[z]")


def transport() -> Problem:
    box = Box(t=(0, 1), x=(0, 2))
    return Problem(
        fields=("u",),
        terms=[
            Term("transport", box.interior, lambda u, at: u.t + u.x),
            Term("start", box.at(t=0), lambda u, at: u - torch.sin(math.pi * at.x)),
        ],
        periodic="x",
    )


def test_fields_of_a_periodic_problem_are_periodic_by_the_net(tmp_path):
    result = solve(transport, *SMALL, "stop.steps=2", f"run.dir={tmp_path / 'run'}")
    ends = [float(result.solution["u"](t=0.3, x=x)) for x in (0.0, 2.0)]
    assert ends[0] == pytest.approx(ends[1], rel=1e-12)
    assert ends[0] != pytest.approx(float(result.solution["u"](t=0.3, x=1.0)), rel=1e-3)
    read = Solution.load(tmp_path / "run")
    assert read.signature.periodic == ("x",)
    assert float(read["u"](t=0.3, x=2.0)) == pytest.approx(ends[1], rel=1e-12)


class Vanishing(nn.Module):
    """Zero at both ends, with other slopes."""

    def __init__(self):
        super().__init__()
        self.inner = Mlp(2, 1, (6,))

    def forward(self, at):
        x = at[:, 1:2]
        return x * (2.0 - x) * self.inner(at)


def test_a_net_of_ones_own_has_to_be_periodic_where_the_problem_is():
    plain = Mlp(2, 1, (6,))
    with pytest.raises(UserError, match=r"net: the problem is periodic in x.*box\.opposite\('x'\)"):
        solve(transport, *SMALL, "stop.steps=1", net=plain)
    wrapped = nn.Sequential(PeriodicEmbedding([None, 2.0]), Mlp(3, 1, (6,)))
    solve(transport, *SMALL, "stop.steps=1", net=wrapped)
    wrong = nn.Sequential(PeriodicEmbedding([None, 3.0]), Mlp(3, 1, (6,)))
    hidden = Mlp(2, 1, (6,))
    nn.init.zeros_(hidden.layers[-1].weight)  # the same at both ends, until it is trained
    for net in (wrong, hidden, Vanishing()):
        with pytest.raises(UserError, match="periodic in x"):
            solve(transport, *SMALL, "stop.steps=1", net=net)


def unknown_load() -> Problem:
    """Poisson's equation with an unknown coefficient: parameters outside the Linear layers."""
    load = Parameter("load", initial=1.0)
    known = poisson()
    inside = Term("inside", known.terms[0].where, lambda u, at: lap(u) + load * at.x)
    return Problem(fields=("u",), terms=[inside, known.terms[1]], parameters=(load,))


@pytest.mark.parametrize("build", [poisson, unknown_load])
@pytest.mark.parametrize("step", ["kfac_cg", "kfac_star", "kfac", "adam", "lbfgs"])
def test_a_checkpoint_holds_all_that_is_needed_to_go_on_bit_for_bit(step, build, tmp_path):
    """A run of 12 steps equals one of 7, saved and loaded into fresh objects, and 5 more."""
    overrides = [f"step={step}", "net.widths=[8]", "points.interior=60", "points.check=3"]
    config = compose("poisson", {}, [*overrides, "points.gap=1e-6", "balance.every=4"])

    def go(parts, steps, progress=None):
        stop = Stop(seconds=None, steps=steps)
        run(parts.system, parts.stepper, parts.source, stop, parts.balance, watch, progress)
        return parameters_sha256(parts.system.get_parameters())

    def watch(progress):
        latest.append(progress)

    latest = []
    whole = assemble(config, build())
    expected = go(whole, 12)
    assert whole.source.exchange.exchanged > 0

    first = assemble(config, build())
    assert go(first, 7) != expected
    torch.save(first.state_dict(latest[-1]), tmp_path / "state.pt")

    second = assemble(config, build())
    progress = second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert progress.step == 7
    assert go(second, 12, progress) == expected


def test_a_derivative_beyond_what_the_activation_has_names_term_and_activation():
    from pinnkfac.linearisation.system import System
    from pinnkfac.nets import Activation

    class Cube(Activation):
        highest = 2

        def tower(self, z, order):
            return [z**3, 3 * z**2, 6 * z][: order + 1]

    net = torch.nn.Sequential(
        torch.nn.Linear(2, 4, dtype=torch.float64), Cube(), torch.nn.Linear(4, 1).double()
    )
    with pytest.raises(UserError, match="term 'inside': activation Cube has derivatives up to or"):
        System(poisson(), net)


def test_numbers_of_points_are_set_by_term():
    result = solve(
        poisson,
        *SMALL,
        "stop.steps=1",
        "points.numbers.inside=33",
        "points.numbers.edge=7",
        "points.gap=null",
    )
    assert result.summary["steps"] == 1
    from pinnkfac.run.assembly import assemble

    config = compose("poisson", {}, ["points.numbers.inside=33"])
    parts = assemble(config, poisson())
    assert [len(p) for p in parts.source.current] == [33, 200]


def test_a_net_of_ones_own_is_trained():
    net = torch.nn.Sequential(torch.nn.Linear(2, 7), torch.nn.SiLU(), torch.nn.Linear(7, 1))
    result = solve(poisson, "stop.steps=3", "points.interior=50", net=net)
    assert result.solution.net is net
    assert result.summary["parameters"] == 29
    assert result.history[-1]["loss"] < result.history[0]["loss"]


def test_the_summary_has_the_loss_of_the_final_parameters():
    one = solve(poisson, *SMALL, "step=adam", "stop.steps=3", "points.gap=null")
    two = solve(poisson, *SMALL, "step=adam", "stop.steps=4", "points.gap=null")
    assert one.summary["loss"] == pytest.approx(two.history[-1]["loss"], rel=1e-12)
    assert [r["step"] for r in one.history] == [1, 2, 3]
    assert two.history[-1]["step"] == 4


def test_solving_leaves_the_threads_of_torch_as_they_were():
    before = torch.get_num_threads()
    solve(poisson, *SMALL, "stop.steps=1", "points.interior=10")
    assert torch.get_num_threads() == before


def test_a_run_that_diverges_ends_with_a_reason():
    result = solve(
        poisson,
        *SMALL,
        "step=kfac",
        "search=fixed",
        "search.length=1e200",
        "points.gap=null",
        "stop.steps=6",
    )
    assert "diverged" in result.stop_reason
    assert result.summary["steps"] < 6


def test_published_steps_leave_points_and_coordinates_as_the_paper_does():
    config = compose("poisson", {}, ["step=kfac_published"])
    assert config.points.gap is None
    assert config.net.input_scaling is False
    assert config.balance.every == 0
    assert config.published_rows is True
    assert compose("poisson", {}, ["step=kfac_published", "points.gap=2"]).points.gap == 2


@pytest.mark.parametrize("dimension", [1, 3, 4])
def test_first_weights_have_the_variance_that_was_asked_for(dimension):
    """By dimension where none was; the last layer and all biases are torch's."""
    terms = [Term("all", Box.cube(dimension).interior, lambda u, at: u)]
    signature = Problem(fields=("u",), terms=terms).signature

    def layers(**settings):
        return MlpSettings(widths=(200, 300), **settings).make(signature, seed=3).layers

    plain, wide, chosen = layers(initialisation="torch"), layers(initialisation="lecun"), layers()
    for i, (a, b, c) in enumerate(zip(plain, wide, chosen, strict=True)):
        factor = 1.0 if i == 2 else 3**0.5
        assert_close(b.weight, factor * a.weight, 1e-14)
        assert torch.equal(a.bias, b.bias) and torch.equal(a.bias, c.bias)
        assert torch.equal(c.weight, b.weight if dimension <= 3 else a.weight)
    assert float(wide[1].weight.detach().var()) == pytest.approx(1 / 200, rel=0.02)
    assert float(plain[1].weight.detach().var()) == pytest.approx(1 / 600, rel=0.02)


def test_unknown_first_weights_are_named():
    with pytest.raises(UserError, match=r"net\.initialisation=xavier is unknown.*auto"):
        solve("poisson2d", "net.initialisation=xavier")
