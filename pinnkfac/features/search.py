"""Which random features fit a problem: their activation, their scale and their number, by what they
leave of the residual on points that they were not fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Generator, nn

from pinnkfac.common.errors import UserError
from pinnkfac.domain import Points, Uniform
from pinnkfac.features.solve import ITERATIONS, solve
from pinnkfac.linearisation.compiled import TermPoints, with_scales
from pinnkfac.linearisation.parts import size
from pinnkfac.linearisation.residuals import ResidualMeter
from pinnkfac.linearisation.system import System
from pinnkfac.linearisation.units import choose_units
from pinnkfac.nets import FeatureSettings, RandomFeatures, output_scaling
from pinnkfac.problem import Problem

ACTIVATIONS = ("tanh", "sin")
SHORTEST = {1: 10, 2: 7, 3: 7}
"""By number of coordinates, the largest scale that is tried, as a power of two; for more it is 2,
as no number of features has short waves there."""
MANY = 20
"""Coordinates for which no number of features that can be had is enough."""
FURTHER = 100.0
"""How many times more than the best one a scale leaves beyond which no larger one is tried."""
COLUMNS, MOST = 256, 4096
"""Coefficients of all fields at first, and at most."""
ROWS = 2.5
"""Residuals inside of the domain for each coefficient."""
ON_FACES = 6.0
"""Points on a region of lower dimension d, in units of n^(d / D) for n in all D dimensions."""
LARGER = (2.0, 1.4)
"""How many times the features come next: fewer where the first is too dear."""
BETTER = 0.5
"""Part of the residual that more features must leave to be worth it."""
WAVES = 12.0
"""Features of a larger scale have waves that a net does not find."""
SOLVED = 1e-6
"""Relative residual below which a net begins with the features that leave it: above, it comes
further by itself."""
UNRESOLVED = 0.3
"""Relative residual of features that say nothing of the solution."""
ABSURD = 1e3
"""How many times its scale no field is."""
ROUNDED = 5e-10
"""Relative residual that is not improved: rounding is near."""
SQUARED, ENTRY, FIXED = 2.0, 500.0, 3e8
"""Multiplications that a step takes: by residuals · coefficients², by rows of Taylor mode at all
points · features, and besides; measured."""
FIRST = 4
"""Steps of Newton's method for few features."""
ALIKE, APART = 1e-5, 0.1
"""Other features that leave no more than that are a solution, too, and how far apart two of these
are, of their size, where a field is not determined."""
CHECKS = 10
"""How many times more points say whether features are a solution than which of them fit best."""


@dataclass(frozen=True)
class Candidate:
    """Features with their coefficients, in a net, the largest relative residual of a term that
    they leave, and whether the problem is ``linear`` in them."""

    settings: FeatureSettings
    net: nn.Sequential
    residual: float
    linear: bool

    @property
    def features(self) -> RandomFeatures:
        return next(m for m in self.net.modules() if isinstance(m, RandomFeatures))


@dataclass(frozen=True)
class Found:
    """The best of ``few`` features by activation, as many of each, and the ``best`` of all."""

    few: Mapping[str, Candidate]
    best: Candidate


@dataclass(frozen=True)
class Draft:
    """Features as they are compiled: how many points every term gets, how many coefficients there
    are, and what a step costs in multiplications and bytes."""

    net: nn.Sequential
    system: System
    numbers: list[int]
    columns: int
    cost: float
    bytes: float


@dataclass
class Search:
    """The features that fit a problem best, within a ``budget`` of multiplications and, where more
    of them help much, a ``reserve``.

    ``make(settings)`` is a net of such features alone, ``compiled(net)`` its system.
    """

    problem: Problem
    make: Callable[[FeatureSettings], nn.Sequential]
    compiled: Callable[[nn.Module], System]
    budget: float
    reserve: float = 0.0
    tried: list[Candidate] = field(default_factory=list)

    def found(self) -> Found | None:
        """The best of few features of all scales, by activation; that which leaves least has its
        number doubled, and its scale improved, as long as that helps and the budget lasts. None
        where that does not last for the few, or nothing can be solved."""
        scales = self._scales()
        draft = self._drafted(FeatureSettings(self._few))
        too_many = len(self.problem.coordinates.names) > MANY
        if too_many or self.budget < len(ACTIVATIONS) * len(scales) * draft.cost:
            return None
        tried = {name: self._scanned(name, self._few, scales) for name in ACTIVATIONS}
        few = {name: candidate for name, candidate in tried.items() if candidate is not None}
        if not few:
            return None
        first = min(few.values(), key=_residual)
        return Found(few, self._grown(self._resolved(first, scales)))

    def _resolved(self, first: Candidate, scales: Sequence[float]) -> Candidate:
        """Where few features say nothing of the solution of linear equations, its waves are short:
        the best of more features of all scales, as long as the budget lasts."""
        number = self._few
        while first.residual > UNRESOLVED and first.linear:
            number *= 2
            cost = self._drafted(FeatureSettings(number)).cost
            if 2 * number * len(self.problem.fields) > MOST or len(scales) * cost > self.budget:
                break
            more = self._scanned("sin", number, scales)
            first = first if more is None else min(first, more, key=_residual)
        return first

    @property
    def _few(self) -> int:
        return max(1, round(COLUMNS / len(self.problem.fields)))

    def checked(self, candidate: Candidate) -> Candidate:
        """With the residual that it leaves on far more points: a source or a jump in a small part
        of the domain may be between the few that candidates are compared on."""
        system = self.compiled(candidate.net)
        left = [_largest(ResidualMeter(system, seed)) for seed in range(1, CHECKS + 1)]
        return replace(candidate, residual=max(candidate.residual, *left))

    def undetermined(self, best: Candidate) -> str | None:
        """A field of which other features that fulfil all terms say something else."""
        others = [c for c in self.tried if c.net is not best.net and c.residual < ALIKE]
        if not others:
            return None
        meter = ResidualMeter(self.compiled(best.net))
        other = min(others, key=_residual)
        with torch.no_grad():
            here, there = best.net(meter.inside), other.net(meter.inside)
        apart = size(there - here, dim=0) / torch.maximum(size(here, dim=0), meter.least())
        worst = int(apart.argmax())
        return self.problem.fields[worst] if float(apart[worst]) > APART else None

    def _scales(self) -> list[float]:
        most = SHORTEST.get(len(self.problem.coordinates.names), 1)
        return [2.0**k for k in range(-1, most + 1)]

    def _scanned(self, name: str, number: int, scales: Sequence[float]) -> Candidate | None:
        """The best scale of so many features of one activation."""
        best: Candidate | None = None
        for scale in scales:
            candidate = self.candidate(FeatureSettings(number, name, scale), FIRST)
            if candidate is None:
                continue
            if best is not None and candidate.residual > FURTHER * best.residual:
                break
            best = candidate if best is None else min(best, candidate, key=_residual)
        return best

    def _grown(self, best: Candidate) -> Candidate:
        """With more features, at the best scale beside that of the fewer ones, as long as these
        leave much less, or solve linear equations: where waves are short, few do not help at all.
        """
        last, factor = best, math.sqrt(0.5)
        while best.residual > ROUNDED:
            larger = self._larger(last.settings)
            if larger is None:
                break
            other = self.candidate(replace(larger.settings, scale=factor * larger.settings.scale))
            if other is not None and other.residual < larger.residual:
                larger = other
            else:
                factor = 1.0 / factor
            before, last, best = best, larger, min(best, larger, key=_residual)
            part = best.residual / before.residual
            waves = best.settings.scale > WAVES and best.residual > SOLVED and part < BETTER
            if waves or part * best.residual < SOLVED < best.residual:
                self.budget, self.reserve = self.budget + self.reserve, 0.0
            if not best.linear and part > BETTER:
                break
        return best

    def _larger(self, settings: FeatureSettings) -> Candidate | None:
        numbers = (round(factor * settings.number) for factor in LARGER)
        tried = (self.candidate(replace(settings, number=number)) for number in numbers)
        return next((candidate for candidate in tried if candidate is not None), None)

    def candidate(self, settings: FeatureSettings, steps: int = ITERATIONS) -> Candidate | None:
        """Features whose coefficients were found in at most so many steps; None where they are too
        many or too dear, or where the equations cannot be evaluated."""
        draft = self._drafted(settings)
        system, cost = draft.system, draft.cost
        if draft.columns > MOST or cost > self.budget or draft.bytes > system.memory:
            return None
        try:
            points = self._drawn(system, draft.numbers)
            solved = solve(system, points, max(1, min(steps, int(self.budget / cost))))
            residual = _left(system, points)
        except (UserError, torch.linalg.LinAlgError):
            self.budget -= cost
            return None
        self.budget -= solved.steps * cost
        if not math.isfinite(residual):
            return None
        self.tried.append(Candidate(settings, draft.net, residual, solved.linear))
        return self.tried[-1]

    def _drafted(self, settings: FeatureSettings) -> Draft:
        """Features before anything is solved."""
        net = self.make(settings)
        system = self.compiled(net)
        columns = settings.number * len(self.problem.fields)
        numbers = self._numbers(system, columns)
        pairs = list(zip(system.terms, numbers, strict=True))
        residuals = sum(term.equations * n for term, n in pairs)
        rows = sum(term.rows * n for term, n in pairs)
        cost = SQUARED * residuals * columns**2 + ENTRY * rows * settings.number + FIXED
        return Draft(net, system, numbers, columns, cost, 16.0 * residuals * columns)

    def _numbers(self, system: System, columns: int) -> list[int]:
        """Points of every term for so many coefficients."""
        whole = len(self.problem.coordinates.names)
        regions = [term.where for term in self.problem.terms]
        # given points stand for a region of full dimension
        dimensions = [whole if isinstance(r, Points) else r.dimension for r in regions]
        inside = [
            term.equations
            for term, dimension in zip(system.terms, dimensions, strict=True)
            if dimension == whole
        ]
        full = ROWS * columns / max(1, sum(inside))
        numbers = [math.ceil(min(full, ON_FACES * full ** (d / whole))) for d in dimensions]
        return [
            min(n, region.number) if isinstance(region, Points) else n
            for n, region in zip(numbers, regions, strict=True)
        ]

    def _drawn(self, system: System, numbers: Sequence[int]) -> list[TermPoints]:
        """Points of the terms, with residuals in units of how sensitive they are to
        coefficients."""
        choose_units(system)
        generator = Generator().manual_seed(sum(numbers))
        pairs = zip(self.problem.terms, numbers, strict=True)
        points = system.prepare([t.where.draw(n, Uniform(), generator) for t, n in pairs])
        sizes = system.equation_sizes
        return points if sizes is None else with_scales(points, [1.0 / size for size in sizes])


def _left(system: System, points: Sequence[TermPoints]) -> float:
    """The largest relative residual of a term; infinite where fields are far larger than they can
    be, beside which any residual is small."""
    with torch.no_grad():
        values = system.net(torch.cat([part.points.coordinates for part in points]))
    output = output_scaling(system.net)
    if output is not None:
        values = (values - output.bias) / output.scales
    if not bool((size(values, dim=0) < ABSURD).all()):
        return math.inf
    return _largest(ResidualMeter(system))


def _largest(meter: ResidualMeter) -> float:
    return max(meter.measure().values())


def _residual(candidate: Candidate) -> float:
    return candidate.residual
