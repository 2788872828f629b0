"""The checks of a PDE file, one finding each, in the order in which they can be made."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from pinnkfac.common.errors import UserError, abbreviated, counted
from pinnkfac.config.build import build
from pinnkfac.config.pde_file import find
from pinnkfac.domain import Points, PointSet, Uniform
from pinnkfac.domain.domain import left_out
from pinnkfac.inspection import autodiff
from pinnkfac.inspection.configured import configured
from pinnkfac.inspection.exact import ExactSolution, size
from pinnkfac.inspection.finding import Finding, Verdict, failed, not_checked, passed, place
from pinnkfac.inspection.hints import fields_read, hints
from pinnkfac.inspection.windows import windows_text
from pinnkfac.linearisation.jumps import find_jumps
from pinnkfac.linearisation.parts import Parts
from pinnkfac.linearisation.system import System
from pinnkfac.problem import Problem, Term
from pinnkfac.residual import Residual, check_finite, check_parameters, exact_solution, record
from pinnkfac.run.verdict import jump_warning
from pinnkfac.taylor.plan import make_plan
from pinnkfac.taylor.published import published_plan

NUMBER = 64
"""Points of a term that are looked at."""
FEW = 16
"""Points at which derivatives are compared."""
ROUNDING = 1e-9
"""Relative deviation of derivatives in float64 that is taken for rounding."""


@dataclass
class _Sample:
    """A term with some of its points, and what the checks before have found out about it: for one,
    the residual [batch, equation] and the slots [batch, slot] of the net."""

    term: Term
    points: PointSet
    residual: Residual | None = None
    values: tuple[Tensor, Tensor] | None = None

    @property
    def subject(self) -> str:
        return f"term '{self.term.name}'"


def examine(pde: str, overrides: Sequence[str]) -> Iterator[Finding]:
    """All findings on a PDE, as they are made; raises UserError for a PDE that does not exist and
    for wrong overrides."""
    try:
        file = find(pde)
        shown = ", ".join(f"{name}={value!r}" for name, value in file.defaults.items())
    except UserError as error:
        if not Path(pde.partition(":")[0]).expanduser().is_file():
            raise
        yield failed("file", error)
        return
    subject = configured(pde, overrides, file)
    yield passed("file", f"{subject.place}({shown}) can be loaded")
    try:
        problem = subject.problem()
    except UserError as error:
        yield failed("problem", error)
        return
    yield passed("problem", _contents(problem))
    config = subject.config
    yield from examine_problem(
        problem,
        build(config.net, "net").make(problem.signature, int(config.seed)).double(),
        seed=int(config.seed),
        published_rows=bool(config.published_rows),
        periodic=list(config.net.get("periodic") or ()),
    )


def _contents(problem: Problem) -> str:
    signature, names = problem.signature, problem.coordinates.names
    units = [label for n in (*names, *problem.fields) if "[" in (label := signature.label(n))]
    parts = [
        f"{', '.join(problem.fields)} of {abbreviated(names)}",
        counted(len(problem.terms), "term"),
        *([f"units {', '.join(units)}"] if units else []),
        *(f"vector {name} = ({', '.join(c)})" for name, c in signature.vectors.items()),
        *([f"periodic in {', '.join(signature.periodic)}"] if signature.periodic else []),
        *(f"unknown {p.name}" for p in problem.parameters),
    ]
    return "; ".join(parts)


def examine_problem(
    problem: Problem,
    net: nn.Module,
    *,
    seed: int = 0,
    published_rows: bool = False,
    periodic: Sequence[str] = (),
) -> Iterator[Finding]:
    """All findings on a problem, with an untrained net of it; ``periodic`` are the coordinates that
    the net is periodic in, beside those of the problem."""
    generator = Generator().manual_seed(seed)
    theta = torch.tensor([p.initial for p in problem.parameters], dtype=torch.float64)
    samples = [_Sample(term, _draw(term, generator)) for term in problem.terms]
    findings: list[Finding] = []
    for sample in samples:
        findings += [_inside(sample, problem), _start(sample, problem, net, theta)]
    residuals = [s.residual for s in samples if s.residual is not None]
    complete = len(residuals) == len(samples)
    if complete and problem.windows:
        findings.append(passed("windows", windows_text(problem)))
    if complete:
        findings += _derivatives(problem, net, samples, published_rows)
    findings += _solution(problem, samples, residuals, theta)
    subjects = [f.subject for f in findings]
    yield from sorted(findings, key=lambda f: subjects.index(f.subject))  # a term's ones together
    if complete:
        yield from hints(problem, residuals, [*periodic, *problem.signature.periodic])


def _draw(term: Term, generator: Generator) -> PointSet:
    """All given points, or some of a region; of corners and the like, each once."""
    number = term.where.number if isinstance(term.where, Points) else NUMBER
    points = term.where.draw(number, Uniform(), generator)
    if isinstance(term.where, Points) or term.where.dimension:
        return points
    every = points.coordinates.tolist()
    return points[torch.tensor([i for i, x in enumerate(every) if x not in every[:i]])]


def _some(points: PointSet, number: int) -> PointSet:
    if len(points) <= number:
        return points
    return points[torch.linspace(0, len(points) - 1, number).round().long()]


def _inside(sample: _Sample, problem: Problem) -> Finding:
    """Whether the points, and those they are linked to, lie in the domain."""
    box = problem.domain.bounds
    # A region may be of a larger box than the domain, and says so.
    bounds = getattr(sample.term.where, "bounds", None) or box.ranges.values()
    both = torch.tensor([[*box.ranges.values()], [*bounds]], dtype=torch.float64)
    low, high = both[..., 0].amin(0), both[..., 1].amax(0)
    slack = 1e-9 * (high - low)
    for name, x in {"": sample.points.coordinates, **sample.points.links}.items():
        outside = ((x < low - slack) | (x > high + slack)).any(-1) | left_out(problem.domain, x)
        if outside.any():
            linked = f" linked as '{name}'" if name else ""
            return failed(
                sample.subject,
                f"{int(outside.sum())} of {len(x)} points{linked} lie outside {problem.domain}, "
                f"such as {place(problem, x[outside][0])}: are the columns in order, the units the "
                "same?",
            )
    return passed(sample.subject, f"{counted(len(sample.points), 'point')} in the domain")


def _start(sample: _Sample, problem: Problem, net: nn.Module, theta: Tensor) -> Finding:
    """Compile the residual, and evaluate it with the untrained net by nested autodiff."""
    sample.points = _some(sample.points, NUMBER)
    few = _some(sample.points, FEW)
    try:
        sample.residual = residual = record(sample.term, problem, sample.points[:3])
        values = autodiff.evaluate(residual, few, lambda point: net(point[None])[0], theta)
        check_finite(sample.term.name, values[0], few.coordinates, problem.coordinates.names)
    except UserError as error:
        return failed(sample.subject, error)
    sample.values = values
    names = ", ".join(problem.fields[k] for k in sorted(fields_read([residual])))
    equations = counted(residual.equations, "equation")
    return passed(sample.subject, f"{equations} for {names}, finite with an untrained net")


def _derivatives(
    problem: Problem, net: nn.Module, samples: Sequence[_Sample], published_rows: bool
) -> Iterator[Finding]:
    """Taylor mode against nested autodiff, for the same net and points."""
    residuals = [s.residual for s in samples if s.residual is not None]
    culprit = "problem"
    try:
        check_parameters(problem, residuals)
        culprit = "net"
        system = System(problem, net, planner=published_plan if published_rows else make_plan)
    except UserError as error:
        yield failed(culprit, error)
        return
    if any(s.values is None for s in samples):
        return
    computed = system.residuals(system.prepare([_some(s.points, FEW) for s in samples]))
    for sample, taylor, residual in zip(samples, computed, residuals, strict=True):
        assert sample.values is not None
        expected, z = sample.values
        points, theta = _some(sample.points, FEW), system.coefficients
        # A large source is rounded too.
        whole = size(residual, z, theta, points, z.abs().amax(0), source=1e-6)
        deviation = float(((taylor - expected).abs() / whole.clamp(min=1e-300)).max())
        text = f"Taylor mode deviates from nested autodiff by {deviation:.1g}"
        please = "of the residual's size: please report it, with the file"
        right = deviation <= ROUNDING
        yield passed(sample.subject, text) if right else failed(sample.subject, f"{text} {please}")
    yield from _jumps(problem, system, samples)


def _jumps(problem: Problem, system: System, samples: Sequence[_Sample]) -> Iterator[Finding]:
    """Coefficients that jump under a second derivative."""
    points = system.prepare([sample.points for sample in samples])
    subjects = {sample.term.name: sample.subject for sample in samples}
    for jump in find_jumps([Parts(term) for term in system.terms], points):
        subject = subjects[jump.term]
        yield Finding(
            Verdict.HINT, subject, jump_warning(problem, jump).removeprefix(f"{subject}: ")
        )


def _periods(problem: Problem) -> Iterator[Finding]:
    """The exact solution at both ends of the coordinates that a box is periodic in."""
    box = problem.domain.bounds
    for name in problem.signature.periodic if box is problem.domain else ():
        ends = []
        for value in box.ranges[name]:
            region = box.at(**{name: value})
            points = region.draw(NUMBER, Uniform(), Generator().manual_seed(0))
            ends.append(exact_solution(problem, points.coordinates))
        away = float((ends[0] - ends[1]).abs().max())
        if away > 1e-6 * max(1.0, float(ends[0].abs().max())):
            yield failed("solution", f"is not periodic in {name}: {away:.2g} apart at its ends")
        else:
            yield passed("solution", f"the same at both ends of {name}")


def _solution(
    problem: Problem, samples: Sequence[_Sample], residuals: Sequence[Residual], theta: Tensor
) -> Iterator[Finding]:
    """The exact solution: its values, and what it leaves of each residual."""
    if problem.solution is None:
        yield not_checked("solution", "none is given, so that no errors will be reported")
        return
    inside = problem.domain.interior.draw(1000, Uniform(), Generator().manual_seed(2))
    try:
        for points in (inside, *(s.points for s in samples)):
            exact_solution(problem, points.coordinates)
        periods = list(_periods(problem))
    except UserError as error:
        yield failed("solution", str(error).removeprefix("solution").lstrip(": "))
        return
    yield passed("solution", "finite in the domain and at the points of all terms")
    yield from periods
    exact = ExactSolution(problem, residuals)
    if exact.trouble:
        yield not_checked("solution against the terms", exact.trouble)
        return
    for sample in samples:
        if sample.residual is not None and sample.values is not None:
            yield exact.against(sample.residual, sample.points, theta)
