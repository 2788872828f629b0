"""From a configuration to the parts of a run: net, system, points, step, generators."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Generator, nn

from pinnkfac.balance import Balance
from pinnkfac.configuration import build
from pinnkfac.errors import UserError, suggest
from pinnkfac.linearise import System
from pinnkfac.loop import PointSource, Progress, Stop
from pinnkfac.nets import FourierFeatures, InputScaling, Mlp, PeriodicEmbedding
from pinnkfac.problem import Problem
from pinnkfac.residual import check_finite
from pinnkfac.step.base import Step, Stepper


@dataclass
class Assembly:
    """Everything that a run consists of; its state is what a checkpoint holds."""

    system: System
    source: PointSource
    stepper: Stepper
    balance: Balance
    stop: Stop
    generators: dict[str, Generator]

    def state_dict(self, progress: Progress) -> dict[str, Any]:
        """Tensors, numbers and plain containers, enough to go on bit for bit."""
        return {
            "net": self.system.net.state_dict(),
            "coefficients": self.system.coefficients,
            "scales": self.system.scales,
            "stepper": self.stepper.state_dict(),
            "points": self.source.state_dict(),
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "progress": {k: v for k, v in vars(progress).items() if k != "report"},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> Progress:
        """Put a saved state in place; returns where the run was."""
        self.system.net.load_state_dict(state["net"])
        self.system.coefficients.copy_(state["coefficients"])
        self.system.scales = state["scales"]
        self.stepper.load_state_dict(state["stepper"])
        self.source.load_state_dict(state["points"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        return Progress(**state["progress"])


def assemble(config: DictConfig, problem: Problem, net: nn.Module | None = None) -> Assembly:
    """Build all parts, and look at the first residuals.

    ``net`` replaces the configured one. Raises UserError for settings that cannot be, and where a
    residual is not finite at the start.
    """
    dtype, device = _dtype(config.dtype), _device(config.device)
    net = make_net(problem, config.net, int(config.seed)) if net is None else net
    system = System(
        problem,
        net.to(device=device, dtype=dtype),
        published_rows=config.published_rows,
        memory=config.memory * 2**30,
        workers=_workers(config.threads, device),
    )
    generators = _generators(int(config.seed))
    source = PointSource(system, build(config.points), generators["points"])
    step: Step = build(config.step)
    search, damping = build(config.search), build(config.damping)
    stepper = step.start(system, search, damping, generators["step"])
    with one_thread_in_torch(device):
        first = source.at(0)
        residuals = system.residuals(first)
    names = problem.coordinates.names
    for term, own, residual in zip(system.terms, first, residuals, strict=True):
        check_finite(term.residual.term.name, residual, own.points.coordinates, names)
    stop = Stop(**OmegaConf.to_container(config.stop))  # type: ignore[arg-type]
    return Assembly(system, source, stepper, build(config.balance), stop, generators)


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


def _generators(seed: int) -> dict[str, Generator]:
    """Independent streams, so that a change to one part does not move the others."""
    return {
        name: Generator().manual_seed(1_000_003 * seed + number)
        for number, name in enumerate(("points", "step"))
    }


def make_net(problem: Problem, config: DictConfig, seed: int) -> nn.Module:
    """The configured net with weights drawn from ``seed``, in float64 on the CPU.

    Raises UserError for widths that are not positive whole numbers or an unknown activation.
    """
    # nn.Linear draws from torch's global generator: seed it here, and leave it as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Mlp(
            len(problem.coordinates.names),
            len(problem.fields),
            list(config.widths),
            config.activation,
            embedding=_embedding(problem, config),
            residual=config.residual,
        )


def _embedding(problem: Problem, config: DictConfig) -> list[nn.Module]:
    """Maps in front of the net: scaling to [−1, 1], periodic coordinates, Fourier features."""
    names, domain = problem.coordinates.names, problem.domain
    for name in config.periodic:
        if name not in names:
            raise UserError(f"net.periodic: unknown coordinate '{name}'. {suggest(name, names)}")
    result: list[nn.Module] = []
    features = len(names)
    lengths = [b - a for a, b in zip(domain.low, domain.high, strict=True)]
    if config.input_scaling:
        result.append(InputScaling(domain.low, domain.high))
        lengths = [2.0] * len(names)
    if config.periodic:
        periods = [
            length if n in config.periodic else None
            for n, length in zip(names, lengths, strict=True)
        ]
        periodic = PeriodicEmbedding(periods, int(config.harmonics))
        features = periodic.features
        result.append(periodic)
    number, scale = int(config.fourier_features), float(config.fourier_scale)
    if number < 0 or number % 2:
        raise UserError(f"net.fourier_features={number}: an even number (sin and cos), 0 for none")
    if number:
        result.append(FourierFeatures(features, number, scale))
    return result


def _dtype(name: str) -> torch.dtype:
    known = {"float64": torch.float64, "float32": torch.float32}
    if name not in known:
        raise UserError(f"dtype={name}: choose float64 (accurate) or float32")
    return known[name]


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("not supported here")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        line = str(error).splitlines()[0][:120]
        raise UserError(
            f"device={name} cannot be used ({line}): choose cpu, or cuda on a machine with a "
            "CUDA build of torch"
        ) from error
    return device


def _workers(threads: int | None, device: torch.device) -> int:
    """How many threads share the chunks of points."""
    if threads is not None and threads < 1:
        raise UserError(f"threads={threads}: at least 1, or null for all")
    if device.type != "cpu":
        return 1
    return threads or available_cores()


def available_cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        return os.cpu_count() or 1
