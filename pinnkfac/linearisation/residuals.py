"""How large residuals are beside the parts of their equations, on points that no step has seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pinnkfac.domain import Points, PointSet, Uniform
from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.jumps import Jump, find_jumps
from pinnkfac.linearisation.parts import Affine, Parts, size
from pinnkfac.linearisation.system import System
from pinnkfac.nets import output_scaling

FEWEST, MOST = 32, 500
"""Points of a term; between these, as many as MULTIPLICATIONS allow."""
MULTIPLICATIONS = 3e9
NOTHING = 1e-6
"""Part of a field's size that counts as a change of it, where it changes less."""
ALIKE, SURE = 0.5, 3.0
"""Correlation of residuals at neighbouring points above which they are no noise, where it is so
many of its standard deviations, 1/√(points), too."""


@dataclass(frozen=True)
class Judged:
    """A term, and the points that it is judged on."""

    parts: Parts
    points: TermPoints


class ResidualMeter:
    """Measures the relative residuals of terms,

        ρ = max_e RMS(r_e) / max(RMS(a_ej m_j), RMS(a_ej) · M_j, RMS(rest_e) over all j),

    with the parts a m of an equation as parts.py has them, and M_j the RMS of the derivative m_j
    over the domain, but not less than that of a smooth function which changes as much as its field
    does: Π_i (2 / length_i)^α_i times the standard deviation of u for D^α u. So ρ has no unit, it
    is about 1 for a net that knows nothing of the equation, and says something of conditions such
    as u = 0, too, of which nothing else is a part. Points are drawn once, from a generator of their
    own. Given points are those that are given, but where a term with derivatives has no values on
    them: it is meant to hold between them too, and is judged there, halfway to a neighbour.
    """

    def __init__(self, system: System, seed: int = 0) -> None:
        self.system = system
        problem = system.problem
        generator = Generator().manual_seed(0x9E51D + seed)
        self.judged: list[Judged] = []
        self.given: list[Judged] = []
        """Terms that are judged between given points, on these."""
        for term, compiled in zip(problem.terms, system.terms, strict=True):
            parts = Parts(compiled)
            drawn = term.where.draw(self._number(parts), Uniform(), generator)
            points = compiled.prepare(drawn, problem.coordinates.names)
            if isinstance(term.where, Points) and _stands_for_a_region(term.where, parts):
                self.given.append(Judged(parts, points))
                between = PointSet(_between(drawn.coordinates))
                points = compiled.prepare(between, problem.coordinates.names)
            self.judged.append(Judged(parts, points))
        self.inside = self._inside(generator)
        box = problem.domain.bounds
        self.lengths = [high - low for low, high in zip(box.low, box.high, strict=True)]

    def _inside(self, generator: Generator) -> Tensor:
        """Where terms say what fields are: their regions of full dimension, of which the box of a
        domain may have much more; the domain where there are none."""
        problem = self.system.problem
        full = len(problem.coordinates.names)
        pairs = zip(problem.terms, self.judged, strict=True)
        places = [
            judged.points.points.coordinates for t, judged in pairs if t.where.dimension == full
        ]
        if places:
            return torch.cat(places)
        number = min(len(judged.points) for judged in self.judged)
        inside = problem.domain.interior.draw(max(FEWEST, number), Uniform(), generator)
        return inside.to(self.system.device, self.system.dtype).coordinates

    def _number(self, parts: Parts) -> int:
        """How many points of a term are affordable."""
        rows = sum(len(plan.rows) for plan in parts.plans.values())
        return max(FEWEST, min(MOST, int(MULTIPLICATIONS / (rows * self.system.layout.number))))

    def least(self) -> Tensor:
        """A small part of what the net takes fields for, [field]: one that is 0 has no size beside
        which its errors could be small."""
        output = output_scaling(self.system.net)
        none = self.inside.new_zeros(len(self.system.problem.fields))
        return NOTHING * (none if output is None else output.scales).double()

    def measure(self) -> dict[str, float]:
        """ρ of every term now, by its name; infinite where it is not a number."""
        return self._measured(self.judged)

    def jumps(self) -> list[Jump]:
        """Jumping coefficients under second derivatives."""
        terms = [judged.parts for judged in self.judged]
        return find_jumps(terms, [judged.points for judged in self.judged])

    def on_given_points(self) -> dict[str, float]:
        """ρ on the given points themselves, of terms that are judged between these."""
        return self._measured(self.given)

    def systematic(self) -> dict[str, bool]:
        """Of terms on given points with values, by name, whether what is left of them is no noise:
        that is as often of the other sign at a neighbour, a misfit is not,

            Σ_n r_n r_n' / Σ_n r_n² with the nearest neighbour n' of n, in the worst equation.

        Of few points, and of a misfit that changes from one to the next, it is not known.
        """
        return {
            judged.parts.term.name: self._alike(judged)
            for judged in self.judged
            if judged.points.points.values
        }

    def _alike(self, judged: Judged) -> bool:
        x = judged.points.points.coordinates
        if len(x) < 2:
            return False
        r = judged.parts.at(judged.parts.monomials(judged.points), judged.points).value
        worst = r[int(size(r).argmax())]
        alike = float((worst * worst[_nearest(x)]).sum() / worst.square().sum())
        return alike > max(ALIKE, SURE / math.sqrt(len(x)))

    @torch.no_grad()
    def _measured(self, all_judged: Sequence[Judged]) -> dict[str, float]:
        values = self.system.net(self.inside).double()
        changes = torch.maximum(values.std(0) + NOTHING * size(values, dim=0), self.least())
        return {
            judged.parts.term.name: self._relative(judged, changes.tolist())
            for judged in all_judged
        }

    def _relative(self, judged: Judged, changes: list[float]) -> float:
        monomials = judged.parts.monomials(judged.points)
        affine = judged.parts.at(monomials, judged.points)
        typical = torch.maximum(size(monomials, dim=0), self._typical(judged.parts, changes))
        largest = self._largest(affine, monomials, typical)
        ratios = affine.value.double().square().mean(1).sqrt() / largest
        return float(ratios.nan_to_num(math.inf).max())

    def _typical(self, parts: Parts, changes: list[float]) -> Tensor:
        """What derivatives are in size over the domain, [monomial]."""
        inside = size(parts.monomials_at({"": self.inside}), dim=0)
        least = [
            changes[column.field] * self._per_length(column.operator[0][0][2])
            for column in parts.columns
        ]
        return torch.maximum(inside, inside.new_tensor(least))

    def _per_length(self, alpha: tuple[int, ...]) -> float:
        return math.prod((2.0 / length) ** a for length, a in zip(self.lengths, alpha, strict=True))

    @staticmethod
    def _largest(affine: Affine, monomials: Tensor, typical: Tensor) -> Tensor:
        """The size of the largest part of every equation, [equation]."""
        parts = torch.maximum(
            size(affine.slopes * monomials, dim=1), size(affine.slopes, dim=1) * typical
        )
        tiny = torch.finfo(parts.dtype).tiny
        return torch.cat([parts, size(affine.rest)[:, None]], dim=1).amax(1).clamp_min(tiny)


def _stands_for_a_region(points: Points, parts: Parts) -> bool:
    """Whether a term on given points is meant to hold between them: it has derivatives, and no
    values that are known at the points only."""
    return not points.values and parts.derivatives


def _between(x: Tensor) -> Tensor:
    """Points halfway from each of x [batch, coord] to its nearest neighbour."""
    return 0.5 * (x + x[_nearest(x)]) if len(x) > 1 else x


def _nearest(x: Tensor) -> Tensor:
    """The number of the nearest neighbour of each of x [batch, coord], distances in units of the
    extent of all."""
    extent = x.amax(0) - x.amin(0)
    scaled = x / extent.where(extent > 0, 1.0)
    exactly = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(scaled, scaled, compute_mode=exactly).fill_diagonal_(math.inf)
    return distances.argmin(1)
