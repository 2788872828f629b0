"""Which random features fit a problem: their activation, their scale and their number, by what they
leave of the residual on points that they were not fitted on."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, nn

from pinnkfac.common.errors import UserError
from pinnkfac.domain import Uniform
from pinnkfac.features.solve import solve
from pinnkfac.linearisation.compiled import TermPoints, with_scales
from pinnkfac.linearisation.parts import size
from pinnkfac.linearisation.residuals import ResidualMeter
from pinnkfac.linearisation.system import System
from pinnkfac.linearisation.units import choose_units
from pinnkfac.nets import FeatureSettings, OutputScaling, RandomFeatures
from pinnkfac.problem import Problem

ACTIVATIONS = ("tanh", "sin")
SHORTEST = {1: 10, 2: 7, 3: 7}
"""By number of coordinates, the largest scale that is tried, as a power of two; for more it is 2,
as no number of features has short waves there."""
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
BETTER, MUCH_BETTER = 0.5, 0.2
"""Part of the residual that more features must leave to be worth it, and to be worth the reserve
where a net may come as far."""
WAVES = 12.0
"""Features of a larger scale have waves that a net does not find."""
ABSURD = 1e3
"""How many times its scale no field is."""
FINISHED = 1e-11
"""Relative residual that is not improved."""
CHECKS = 20
"""How many times more points say whether features are a solution than which of them fit best."""
SQUARED, ENTRY, FIXED = 2.0, 1000.0, 3e8
"""Multiplications that a least squares solve takes: by rows · columns², by rows · columns, and
besides; measured."""


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

    def best(self) -> dict[str, Candidate]:
        """The best candidate of each activation, among few features of all scales; of these, that
        which leaves least has its number doubled, and its scale improved, as long as that helps and
        the budget lasts. Empty where that does not last for the few, or nothing can be solved."""
        scales = self._scales()
        if self.budget < len(ACTIVATIONS) * len(scales) * _cost(ROWS * COLUMNS, COLUMNS):
            return {}
        tried = {name: self._scanned(name, scales) for name in ACTIVATIONS}
        found = {name: candidate for name, candidate in tried.items() if candidate is not None}
        if found:
            best = min(found.values(), key=_residual)
            found[best.settings.activation] = self._grown(best)
        return found

    def checked(self, candidate: Candidate) -> Candidate:
        """With the residual that it leaves on far more points: a source or a jump in a small part
        of the domain may be between the few that candidates are compared on."""
        system = self.compiled(candidate.net)
        left = [_largest(ResidualMeter(system, seed)) for seed in range(1, CHECKS + 1)]
        return replace(candidate, residual=max(candidate.residual, *left))

    def _scales(self) -> list[float]:
        most = SHORTEST.get(len(self.problem.coordinates.names), 1)
        return [2.0**k for k in range(-1, most + 1)]

    def _scanned(self, name: str, scales: Sequence[float]) -> Candidate | None:
        """The best of few features of one activation."""
        number = max(1, round(COLUMNS / len(self.problem.fields)))
        best: Candidate | None = None
        for scale in scales:
            candidate = self.candidate(FeatureSettings(number, name, scale))
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
        while best.residual > FINISHED:
            larger = self._larger(last.settings)
            if larger is None:
                break
            other = self.candidate(replace(larger.settings, scale=factor * larger.settings.scale))
            if other is not None and other.residual < larger.residual:
                larger = other
            else:
                factor = 1.0 / factor
            before, last, best = best, larger, min(best, larger, key=_residual)
            worth = BETTER if best.settings.scale > WAVES else MUCH_BETTER
            if best.residual < worth * before.residual:
                self.budget, self.reserve = self.budget + self.reserve, 0.0
            elif not best.linear and best.residual > BETTER * before.residual:
                break
        return best

    def _larger(self, settings: FeatureSettings) -> Candidate | None:
        numbers = (round(factor * settings.number) for factor in LARGER)
        tried = (self.candidate(replace(settings, number=number)) for number in numbers)
        return next((candidate for candidate in tried if candidate is not None), None)

    def candidate(self, settings: FeatureSettings) -> Candidate | None:
        """Features whose coefficients were found; None where they are too many or too dear, or
        where the equations cannot be evaluated."""
        columns = settings.number * len(self.problem.fields)
        net = self.make(settings)
        system = self.compiled(net)
        numbers = self._numbers(system, columns)
        pairs = zip(system.terms, numbers, strict=True)
        rows = sum(term.equations * n for term, n in pairs)
        cost = _cost(rows, columns)
        if columns > MOST or cost > self.budget or 16.0 * rows * columns > system.memory:
            return None
        try:
            points = self._drawn(system, numbers)
            solved = solve(system, points, max(1, int(self.budget / cost)))
            residual = _left(system, points)
        except (UserError, torch.linalg.LinAlgError):
            self.budget -= cost
            return None
        self.budget -= solved.steps * cost
        if not math.isfinite(residual):
            return None
        return Candidate(settings, net, residual, solved.linear)

    def _numbers(self, system: System, columns: int) -> list[int]:
        """Points of every term for so many coefficients."""
        dimension = len(self.problem.coordinates.names)
        regions = [term.where for term in self.problem.terms]
        inside = [
            term.equations
            for term, region in zip(system.terms, regions, strict=True)
            if region.dimension == dimension
        ]
        full = ROWS * columns / max(1, sum(inside))
        return [
            math.ceil(min(full, ON_FACES * full ** (region.dimension / dimension)))
            for region in regions
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
        for module in system.net.modules():
            if isinstance(module, OutputScaling):
                values = (values - module.bias) / module.weight.diag()
    if not bool((size(values, dim=0) < ABSURD).all()):
        return math.inf
    return _largest(ResidualMeter(system))


def _largest(meter: ResidualMeter) -> float:
    return max(meter.measure().values())


def _cost(rows: float, columns: float) -> float:
    return SQUARED * rows * columns**2 + ENTRY * rows * columns + FIXED


def _residual(candidate: Candidate) -> float:
    return candidate.residual
