"""What holds of every step and every preconditioner that the configuration offers."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path

import pytest
import torch
from nets import net_for
from oracles import flat
from problems import inverse, poisson

from pinnkfac import Uniform, UserError
from pinnkfac.common.errors import Diverged
from pinnkfac.config import options as conf
from pinnkfac.config.build import build
from pinnkfac.config.compose import compose
from pinnkfac.linearisation.compiled import with_scales
from pinnkfac.linearisation.system import System
from pinnkfac.step.auto import AutoStepper
from pinnkfac.step.base import Batch
from pinnkfac.step.gauss_newton import GaussNewtonStepper
from pinnkfac.step.search import Fixed
from pinnkfac.taylor.plan import make_plan
from pinnkfac.taylor.published import published_plan

FIRST_ORDER = ("adam", "lbfgs", "sgd", "ssbfgs", "ssbroyden")


def options(group):
    return sorted(path.stem for path in Path(conf.folder(), group).glob("*.yaml"))


OVERRIDES = {
    **{name: [f"step={name}"] for name in options("step")},
    **{
        f"gauss_newton_cg, {name}": ["step=gauss_newton_cg", f"preconditioner={name}"]
        for name in options("preconditioner")
    },
    "auto, often judged": ["step=auto", "step.patience=2", "step.multiplications=1"],
    "kfac, momentum": ["step=kfac", "step.lengths=null", "step.momentum=0.5"],
    "kfac, fixed": ["step=kfac", "search=fixed", "search.length=0.3"],
    "ekfac, averaged": ["step=ekfac", "step.moments.decay=0.5", "step.moments.every=3"],
    "engd_full, averaged": ["step=engd_full", "step.gramian.decay=0.5"],
    "engd_diagonal, averaged": ["step=engd_diagonal", "step.gramian.decay=0.5"],
    "two levels of others": [
        *("step=gauss_newton_cg", "preconditioner=two_level", "step.preconditioner.coarse=4"),
        *("step.preconditioner.smoother._target_=pinnkfac.curvature.nystrom.NystromSketch",),
        *("~step.preconditioner.smoother.factors", "~step.preconditioner.smoother.inverse"),
    ],
}
every_option = pytest.mark.parametrize("name", OVERRIDES)
every_gauss_newton_option = pytest.mark.parametrize(
    "name", [name for name in OVERRIDES if name.partition(",")[0] not in FIRST_ORDER]
)


class Walled(System):
    """A problem whose loss is infinite everywhere but at ``only``, where there is one."""

    only = None

    def _beyond(self, at):
        return self.only is not None and not torch.equal(flat(at), flat(self.only))

    def loss(self, points, at=None):
        return math.inf if self._beyond(at) else super().loss(points, at)

    def residual(self, points, at=None):
        residual = super().residual(points, at)
        return residual + math.inf if self._beyond(at) else residual

    def linearise(self, points, at=None):
        linearisation = super().linearise(points, at)
        if self._beyond(at):
            linearisation.loss = math.inf
        return linearisation


class Run:
    """A step of the configuration at work on a problem, as the loop has it."""

    def __init__(self, name, build_problem=poisson, net=None):
        config = compose("any", {}, OVERRIDES[name])
        problem = build_problem()
        planner = published_plan if config.published_rows else make_plan
        self.system = Walled(problem, net or net_for(problem), planner=planner)
        parts = [build(config[group], group) for group in ("step", "search", "damping")]
        self.generator = torch.Generator().manual_seed(0)
        step, self.search, self.damping = parts
        self.stepper = step.start(self.system, self.search, self.damping, self.generator)
        self.parameters = self.system.get_parameters()

    def points(self, seed, scale=1.0):
        """As many points as there are in a run whose number of points is fixed."""
        generator = torch.Generator().manual_seed(seed)
        terms = self.system.problem.terms
        drawn = [term.where.draw(9, Uniform(), generator) for term in terms]
        scales = [torch.full((t.equations,), scale).double() for t in self.system.terms]
        scales[0] = torch.ones_like(scales[0])
        return with_scales(self.system.prepare(drawn), scales)

    def batch(self, number=0):
        """New points in the sixth step, new scales of the equations in the third and seventh."""
        scale = 1.0 + (number >= 2) + (number >= 6)
        points = self.points(int(number >= 5), scale)
        unseen = self.points(7, scale) if self.stepper.guarded else None
        return Batch(points, unseen, same_loss=number not in (2, 5, 6))

    def take(self, number=0):
        report = self.stepper.update(self.parameters, self.batch(number))
        self.parameters = report.parameters
        return dataclasses.replace(report, parameters=[])


def equal(a, b):
    """Of states: to the last bit, in the same containers."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b or (a != a and b != b)


# -- a run that was stopped ------------------------------------------------------------------------
@every_option
@pytest.mark.parametrize("problem", [poisson, inverse])
def test_a_stored_step_goes_on_bit_for_bit(name, problem, tmp_path):
    """Points, scales and points that are unseen included; states are plain."""
    run = Run(name, problem)
    for number in range(4):
        run.take(number)
    torch.save(run.stepper.state_dict(), tmp_path / "state.pt")
    drawn, parameters = run.generator.get_state(), [v.clone() for v in run.parameters]
    reports = [run.take(number) for number in range(4, 9)]
    assert any(report.length > 0 for report in reports)

    other = Run(name, problem)
    other.stepper.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    other.generator.set_state(drawn)
    other.parameters = parameters
    for number, report in enumerate(reports, 4):
        assert repr(other.take(number)) == repr(report)
    assert torch.equal(flat(other.parameters), flat(run.parameters))
    assert equal(other.stepper.state_dict(), run.stepper.state_dict())


@every_option
def test_a_state_stays_as_it_was_while_its_step_goes_on(name):
    """So that a run may keep it without a copy, but for one large matrix and torch's own."""
    if name in FIRST_ORDER:
        pytest.skip("changes its state in place")
    run = Run(name)
    for number in range(3):
        run.take(number)
    state = run.stepper.state_dict()
    before = copy.deepcopy(state)
    for number in range(3, 7):
        run.take(number)
    assert equal(state, before) and not equal(run.stepper.state_dict(), before)


@every_gauss_newton_option
def test_another_damping_may_be_given_to_a_stored_step(name):
    run, other = Run(name), Run(name)
    run.take()
    other.stepper.load_state_dict(run.stepper.state_dict(), 0.125)
    steppers = run.stepper, other.stepper
    if isinstance(run.stepper, AutoStepper):  # that of the configuration is the exact steps'
        first, second = (stepper.methods["factored"].memory for stepper in steppers)
        assert first.damping == second.damping
        steppers = [stepper.methods["exact"] for stepper in steppers]
    first, second = (stepper.memory for stepper in steppers)
    assert second.damping == 0.125 and second.steps == first.steps


# -- steps that fail -------------------------------------------------------------------------------
def goes_on(run):
    """The next steps are as good as any."""
    before = run.system.loss(run.batch().points, run.parameters)
    reports = [run.take() for _ in range(4)]
    assert all(math.isfinite(report.trained_loss) for report in reports)
    assert all(math.isfinite(report.direction_norm) for report in reports)
    if isinstance(run.search, Fixed):  # which looks at no loss
        return
    after = run.system.loss(run.batch().points, run.parameters)
    assert after < before and any(report.length > 0 for report in reports)


@every_option
def test_a_rejected_step_leaves_the_parameters_and_a_memory_that_can_be_used(name):
    run = Run(name)
    if isinstance(run.search, Fixed) or name in ("adam", "sgd", "lbfgs"):
        pytest.skip("takes every step")
    run.take()
    before = [v.clone() for v in run.parameters]
    run.system.only = run.parameters
    for _ in range(2):
        report = run.take()
        assert report.length == 0.0 and math.isfinite(report.trained_loss)
        assert torch.equal(flat(run.parameters), flat(before))
    run.system.only = None
    goes_on(run)


@every_option
def test_a_loss_that_is_not_finite_moves_nothing(name):
    """The parameters are handed back, and a step from others goes on."""
    run = Run(name)
    run.take()
    good, bad = run.parameters, [v.clone() for v in run.parameters]
    bad[0][0, 0] = math.nan
    kept = copy.deepcopy(run.stepper.state_dict())
    if isinstance(run.stepper, AutoStepper):  # may note what it has decided
        kept = kept["methods"]
    report = run.stepper.update(bad, run.batch())
    assert not math.isfinite(report.trained_loss)
    if name in ("adam", "sgd", "lbfgs"):  # torch's own take it in
        assert "learning rate" in run.stepper.recover()
    else:
        assert report.length == 0.0
        for a, b in zip(report.parameters, bad, strict=True):
            assert torch.equal(a.nan_to_num(7.0), b.nan_to_num(7.0))
        state = run.stepper.state_dict()
        assert equal(state["methods"] if isinstance(run.stepper, AutoStepper) else state, kept)
    run.parameters = good
    goes_on(run)


@every_gauss_newton_option
def test_derivatives_that_are_not_finite_are_a_divergence_or_no_step(name):
    """The loss is finite. What the step remembers is what it did, or of no consequence."""
    run = Run(name)
    run.take()
    before = [v.clone() for v in run.parameters]
    linearise = run.system.linearise

    def broken(points, at):
        linearisation = linearise(points, at)
        for block in linearisation:
            for g in block.layers[0].gradients:
                g.fill_(math.nan)
        return linearisation

    run.system.linearise = broken
    kept = copy.deepcopy(run.stepper.state_dict())
    fixed = isinstance(run.search, Fixed)
    try:
        report = run.take()
        diverged = not all(bool(v.isfinite().all()) for v in run.parameters)
        assert fixed or (report.length == 0.0 and not diverged)
    except Diverged:
        diverged = True
        if not isinstance(run.stepper, AutoStepper):
            assert equal(run.stepper.state_dict(), kept)
    assert diverged or torch.equal(flat(run.parameters), flat(before))
    run.system.linearise = linearise
    run.parameters = before
    if diverged:
        assert run.stepper.recover()
    goes_on(run)


# -- parts that do not fit -------------------------------------------------------------------------
def option(group, name):
    return build(compose("any", {}, [f"{group}={name}"])[group], group)


def refusal(step, search, damping):
    system = System(poisson(), net_for(poisson()))
    with pytest.raises(UserError) as caught:
        step.start(system, search, damping, torch.Generator().manual_seed(0))
    return str(caught.value)


@every_gauss_newton_option
@pytest.mark.parametrize("group", ["search", "damping"])
def test_a_gauss_newton_step_needs_a_search_and_a_damping(name, group):
    config = compose("any", {}, OVERRIDES[name])
    parts = {key: build(config[key], key) for key in ("step", "search", "damping")}
    parts[group] = option(group, "none")
    words = f"{group}=none fits first-order steps only: choose another option"
    assert refusal(**parts) == words


@pytest.mark.parametrize("name", FIRST_ORDER)
@pytest.mark.parametrize(
    ("group", "other", "kind"), [("search", "grid", "Grid"), ("damping", "by_length", "ByLength")]
)
def test_a_first_order_step_takes_neither(name, group, other, kind):
    parts = {key: option(key, "none") for key in ("search", "damping")}
    parts[group] = option(group, other)
    assert refusal(option("step", name), **parts) == (
        f"{group}={kind} has no effect on a first-order step: leave it out, or set {group}=none"
    )


def test_every_option_is_at_work_here():
    assert {word for words in OVERRIDES.values() for word in words} >= {
        f"{group}={name}" for group in ("step", "preconditioner") for name in options(group)
    }
    assert isinstance(Run("spring").stepper, GaussNewtonStepper)
