"""From a configuration to the parts of a run: net, system, points, step, generators."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Annotated, Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Generator, nn

from pinnkfac.common.errors import UserError, first_line
from pinnkfac.common.memory import GIB
from pinnkfac.common.settings import Count, Positive, Range, check
from pinnkfac.common.state import restore
from pinnkfac.config.build import build
from pinnkfac.config.options import GROUPS
from pinnkfac.domain import Uniform
from pinnkfac.linearisation.balance import Balance
from pinnkfac.linearisation.system import System
from pinnkfac.linearisation.units import choose_units
from pinnkfac.nets import Mlp, WindowField
from pinnkfac.points.functions import functions_of
from pinnkfac.points.source import PointSource
from pinnkfac.problem import Problem
from pinnkfac.residual import check_finite
from pinnkfac.run.progress import Best, Progress, Stop
from pinnkfac.step.base import Step, Stepper
from pinnkfac.taylor.plan import make_plan
from pinnkfac.taylor.published import published_plan


@dataclass(frozen=True)
class RunSettings:
    """Where a run is written, and what beside its result (the node ``run``)."""

    dir: str | None = None
    """folder of the run; null: outputs/NAME/DATE_TIME, a new one for every run"""
    error_points: Count = 10_000
    """points of the domain that errors are measured on, where a solution is known"""
    checkpoint: Annotated[float, Range(least=0)] = 30.0
    """seconds between checkpoints; 0: after every step"""
    plot: bool = True
    """draw the pictures at the end"""
    quiet: bool = False
    """show warnings only"""


@dataclass(frozen=True)
class General:
    """The settings at the root of the configuration."""

    seed: Annotated[int, Range(least=0, most=2**40)] = 0
    """draws the weights and the points"""
    device: str = "cpu"
    """cpu, cuda, cuda:1 …"""
    dtype: str = "float64"
    """float64 or float32"""
    threads: Count | None = None
    """threads that share the points, on the CPU; null: one a core"""
    published_rows: bool = False
    """the rows of arXiv:2405.15603 instead of the fewest, for comparison"""
    memory: Positive = 4.0
    """GiB that one linearisation may keep; above it, parts are computed anew"""
    debug: bool = False
    """show the traceback of a mistake"""


EARLIER = "is of an earlier version of pinnkfac"
INSTEAD = "its run cannot go on, start a new one; plot, compare and export still read it"

NODES: dict[str, Any] = {"run": RunSettings, "stop": Stop}


@dataclass(frozen=True)
class Carried:
    """What of a checkpoint is put in place: all of it, unless the configuration has changed."""

    step: bool = True
    damping: bool = True
    points: bool = True
    horizon: bool = True
    generators: bool = True
    scales: bool = True


@dataclass
class Assembly:
    """Everything that a run consists of; its state is what a checkpoint holds."""

    system: System
    source: PointSource
    start: Callable[..., Stepper]
    balance: Balance
    stop: Stop
    generators: dict[str, Generator]
    damping: float
    stepper: Stepper = field(init=False)

    def __post_init__(self) -> None:
        self.stepper = self.start()

    def state_dict(self, progress: Progress) -> dict[str, Any]:
        """Tensors, numbers and plain containers, enough to go on bit for bit."""
        return {
            "net": self.system.net.state_dict(),
            "coefficients": self.system.coefficients,
            "scales": self.source.scales,
            "equation_sizes": self.system.equation_sizes,
            "stepper": self.stepper.state_dict(),
            "points": self.source.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "progress": progress.state_dict(),
            "threads": self.system.workers.number,
        }

    def best_state(self, progress: Progress) -> dict[str, Any]:
        """The net and the coefficients of the best state, as ``state_dict`` names them."""
        now = self.system.get_parameters()
        try:
            self.system.set_parameters(progress.best.parameters)
            return {
                "net": {k: v.clone() for k, v in self.system.net.state_dict().items()},
                "coefficients": self.system.coefficients.clone(),
                "step": progress.best.step,
                "loss": progress.best.written,
            }
        finally:
            self.system.set_parameters(now)

    def load_state_dict(self, state: Mapping[str, Any], carried: Carried | None = None) -> Progress:
        """Put a saved state in place; returns where the run was.

        Raises UserError where the state is that of an earlier version, of another net or step, or
        of no run at all.
        """
        lacking = self._lacking(state)
        if lacking:
            raise UserError(f"the checkpoint {EARLIER}: it lacks {lacking}, so that {INSTEAD}")
        with of_this_net():
            self.system.net.load_state_dict(state["net"])
            self.system.coefficients.copy_(state["coefficients"])
        try:
            return self._load(state, carried or Carried())
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"the checkpoint does not fit this configuration: it {EARLIER}, or of another "
                f"problem or step ({_in_a_line(error)}), so that {INSTEAD}"
            ) from error

    def _lacking(self, state: Mapping[str, Any]) -> str:
        """What every checkpoint has today, and one with a net that fits has not: in words."""
        net = state.get("net")
        own = self.system.net.state_dict()
        if not isinstance(net, Mapping) or not net.keys() <= own.keys():
            return ""
        missing = [name for name in self.state_dict(Progress()) if name not in state]
        missing += [f"{name} of the net" for name in own if name not in net]
        return ", ".join(missing)

    def _load(self, state: Mapping[str, Any], carried: Carried) -> Progress:
        device, dtype = self.system.device, self.system.dtype
        if carried.scales and state["scales"] is not None:
            self.source.scales = [s.to(device=device, dtype=dtype) for s in state["scales"]]
        if carried.scales:
            sizes = state["equation_sizes"]
            self.system.equation_sizes = sizes and [s.to(device, dtype) for s in sizes]
        if carried.generators:
            for name, generator in self.generators.items():
                generator.set_state(state["generators"][name])
        if carried.points:
            self.source.load_state_dict(state["points"])
        else:
            self.source.current = []
            if carried.horizon:  # what is solved already is not left for its beginning
                horizon = restore(self.source.horizon, state["points"]["horizon"])
                self.source.horizon = horizon
        if carried.step:
            damping = None if carried.damping else self.damping
            self.stepper.load_state_dict(_to(state["stepper"], device), damping)
        else:
            self.stepper = self.start(fresh=False)
        progress = Progress.from_state(dict(state["progress"]))
        progress.best.parameters = [v.to(device, dtype) for v in progress.best.parameters]
        if not carried.points:  # losses so far were those of other points, or of another problem
            progress.trained_loss = progress.reached = progress.first_loss = math.inf
            progress.drawn, progress.best = 0, Best()
        return progress


@contextmanager
def of_this_net() -> Iterator[None]:
    """Within it, weights of a checkpoint that cannot be put in place are a UserError."""
    try:
        yield
    except Exception as error:  # whatever a foreign state may cause
        raise UserError(
            "the checkpoint does not fit this configuration: it is of another net or problem "
            f"({_in_a_line(error)})"
        ) from error


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error, 160)}"


def _to(value: Any, device: torch.device) -> Any:
    """All tensors in plain containers on a device; generators' states stay where they are."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, Mapping):
        return {k: _to(v, device) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_to(v, device) for v in value)
    return value


def assemble(config: DictConfig, problem: Problem, net: nn.Module | None = None) -> Assembly:
    """Build all parts, and look at the first residuals.

    ``net`` replaces the configured one. Raises UserError for settings that cannot be, for a net
    that is not periodic where the problem is, and where a residual is not finite at the start.
    """
    general = general_settings(config)
    stop = stop_of(config)
    if net is None:
        net = build(config.net, "net").make(problem.signature, general.seed)
    system = compiled(config, problem, net)
    device = system.device
    balance = build(config.balance, "balance")
    with one_thread_in_torch(device):
        choose_units(system, equations=balance.every > 0)
    generators = {  # independent, so that a change to one part does not move the others
        name: Generator().manual_seed(1_000_003 * general.seed + number)
        for number, name in enumerate(("points", "step"))
    }
    step: Step = build(config.step, "step")
    price = partial(step.cost, system.workload) if hasattr(step, "cost") else None
    functions = functions_of(system, price)
    source = PointSource(problem, build(config.points, "points"), functions, generators["points"])
    # features are a solution everywhere already, and windows go from the start on
    if isinstance(net, WindowField) or (isinstance(net, Mlp) and net.features is not None):
        source.horizon = replace(source.horizon, part=1.0)
    if not hasattr(step, "start"):
        raise UserError("step has no _target_ of a step: choose one of its options")
    if hasattr(step, "share_of_points"):
        share = step.share_of_points(system.workload, source.plan.first)
        source.plan = source.plan.thinned(share)
    search, damping = build(config.search, "search"), build(config.damping, "damping")
    with one_thread_in_torch(device):
        first = source.at(0)
        residuals = system.residuals(first)
    names = problem.coordinates.names
    for term, prepared, residual in zip(system.terms, first, residuals, strict=True):
        check_finite(term.name, residual, prepared.points.coordinates, names)
    _check_periodic(system, problem)
    start = partial(step.start, system, search, damping, generators["step"])
    return Assembly(system, source, start, balance, stop, generators, damping.start)


def compiled(config: DictConfig, problem: Problem, net: nn.Module) -> System:
    """The problem with a net, on the device and in the precision that are asked for; raises
    UserError where there are none such."""
    general = general_settings(config)
    placed(config, net)
    device = _device(general.device)
    return System(
        problem,
        net,
        planner=published_plan if general.published_rows else make_plan,
        memory=general.memory * GIB,
        workers=(general.threads or available_cores()) if device.type == "cpu" else 1,
    )


def placed(config: DictConfig, net: nn.Module) -> nn.Module:
    """The net, moved to the device and the precision that are asked for; raises UserError."""
    general = general_settings(config)
    return net.to(device=_device(general.device), dtype=_dtype(general.dtype))


def _check_periodic(system: System, problem: Problem) -> None:
    """Compare the net at random places and one period further, with other weights than its own,
    as these may hide what it depends on."""
    if not problem.signature.periodic:
        return
    box, before = problem.domain.bounds, system.get_parameters()
    generator = Generator().manual_seed(0)
    places = box.interior.draw(16, Uniform(), generator).coordinates
    noise = [torch.randn(v.shape, generator=generator, dtype=torch.float64) for v in before]
    try:
        system.set_parameters([v + 0.1 * n.to(v) for v, n in zip(before, noise, strict=True)])
        for name in problem.signature.periodic:
            i = problem.coordinates.index(name)
            further = places.clone()
            further[:, i] += box.high[i] - box.low[i]
            with torch.no_grad():
                here, there = (
                    system.net(x.to(system.device, system.dtype)) for x in (places, further)
                )
            scale = float(here.abs().max()) * torch.finfo(system.dtype).eps ** 0.5
            if math.isfinite(scale) and not torch.allclose(here, there, rtol=0.0, atol=scale):
                raise UserError(
                    f"net: the problem is periodic in {name}, but the given net is not: begin it "
                    "with pinnkfac.nets.PeriodicEmbedding, or leave periodic out of the Problem "
                    f"and add a term on box.opposite('{name}')"
                )
    finally:
        system.set_parameters(before)


def check_settings(config: DictConfig) -> None:
    """Look at all settings that need no problem; raises UserError for one that cannot be."""
    general = general_settings(config)
    _dtype(general.dtype)
    _device(general.device)
    run_settings(config)
    stop_of(config)
    for group in GROUPS:
        build(config[group], group)


def general_settings(config: DictConfig) -> General:
    """The root of the configuration, checked; raises UserError."""
    nodes = {*GROUPS, *NODES, "pde", "problem", "choices"}
    values = {name: config[name] for name in config if name not in nodes}
    check("", General, values)  # type: ignore[arg-type]
    return General(**values)  # type: ignore[arg-type]


def run_settings(config: DictConfig) -> RunSettings:
    """The node ``run`` of the configuration, checked; raises UserError."""
    return _settings(config, "run")


def stop_of(config: DictConfig) -> Stop:
    """The node ``stop`` of the configuration, checked; raises UserError."""
    stop: Stop = _settings(config, "stop")
    if stop.seconds is None and stop.steps is None:
        raise UserError("stop.seconds=null and stop.steps=null: give one of them, or it never ends")
    return stop


def _settings(config: DictConfig, node: str) -> Any:
    if not OmegaConf.is_dict(config[node]):
        raise UserError(
            f"{node}={config[node]}: this is a group of settings; set one of them, such as "
            f"{node}.{fields(NODES[node])[0].name}"
        )
    values: Any = OmegaConf.to_container(config[node], resolve=True)
    check(node, NODES[node], values)
    return NODES[node](**values)


@contextmanager
def one_thread_in_torch(device: torch.device) -> Iterator[None]:
    """On the CPU, workers share the chunks of points: threads inside torch would disturb them."""
    before = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _dtype(name: str) -> torch.dtype:
    if name not in ("float64", "float32"):
        raise UserError(f"dtype={name}: choose float64 (accurate) or float32")
    return getattr(torch, name)


def _device(name: str) -> torch.device:
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise UserError(
            f"device={name} is not supported: choose cpu, or cuda (cuda:1 for the second one) for "
            "a GPU of NVIDIA"
        )
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0][:120]
        raise UserError(
            f"device={name} cannot be used ({line}): choose cpu, or cuda on a machine with a "
            "CUDA build of torch"
        ) from error
    return device


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
