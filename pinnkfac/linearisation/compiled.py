"""A term with its net: plans of rows, slots, residuals and their linearisation at some points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain import PointSet, Uniform
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.collect import Collector, seed_of
from pinnkfac.problem import Problem, Term
from pinnkfac.residual import Residual, check_finite, record
from pinnkfac.taylor.graph import Graph, Tape, slot_values
from pinnkfac.taylor.jet import Jet
from pinnkfac.taylor.plan import Plan, Planner

Passes = list[tuple[Jet, Tape | None]]


@dataclass(frozen=True)
class TermPoints:
    """The points of one term, with the part of its residual that depends on them alone, the
    ``scale`` [equation] that its equations are trained with, and their ``size`` [equation], in
    units of which residuals are judged (None: all 1)."""

    points: PointSet
    remainder: Tensor | None
    scale: Tensor | None = None
    size: Tensor | None = None

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: slice) -> TermPoints:
        remainder = None if self.remainder is None else self.remainder[rows]
        return replace(self, points=self.points[rows], remainder=remainder)

    def scaled(self, residual: Tensor) -> Tensor:
        """A residual [batch, equation] as it is trained."""
        return residual if self.scale is None else residual * self.scale

    def written(self, residual: Tensor) -> Tensor:
        """The opposite of ``scaled``."""
        return residual if self.scale is None else residual / self.scale

    def relative(self, residual: Tensor) -> Tensor:
        """A residual [batch, equation] as it is judged: in units of the size of its equations."""
        return residual if self.size is None else residual / self.size


def with_scales(points: Sequence[TermPoints], scales: Sequence[Tensor] | None) -> list[TermPoints]:
    """The points of all terms, with other scales of their equations (see balance.py)."""
    each = [None] * len(points) if scales is None else scales
    return [replace(p, scale=s) for p, s in zip(points, each, strict=True)]


@dataclass(frozen=True)
class CompiledTerm:
    """A term with its residual function and one plan of rows per place.

    Where a net has to be evaluated, it is ``graph``; ``coefficients`` are the values of the
    problem's unknown ones.
    """

    residual: Residual
    places: tuple[str, ...]
    plans: tuple[Plan, ...]
    graph: Graph
    coefficients: Tensor

    @property
    def name(self) -> str:
        return self.residual.term.name

    @property
    def weight(self) -> float:
        return self.residual.term.weight

    @property
    def equations(self) -> int:
        return self.residual.equations

    @property
    def rows(self) -> int:
        return sum(len(plan.rows) for plan in self.plans)

    def bytes_per_point(self, dense: int) -> int:
        """What a linearisation keeps of a point; ``dense`` parameters are outside linear layers."""
        per_row = sum(
            uses * (m.in_features + (m.bias is not None) + self.equations * m.out_features)
            for m, uses in zip(self.graph.linears, self.graph.uses, strict=True)
        )
        numbers = self.rows * per_row + self.equations * (1 + dense)
        return torch.finfo(self.coefficients.dtype).bits // 8 * numbers

    def prepare(self, drawn: PointSet, coordinates: tuple[str, ...]) -> TermPoints:
        """Drawn points on the net's device, with what they alone make of the residual."""
        if len(drawn) == 0:
            raise UserError(f"term '{self.name}' has no points")
        here = drawn.to(self.coefficients.device, self.coefficients.dtype)
        remainder = self.residual.remainder(here)
        if remainder is not None:
            check_finite(self.name, remainder, here.coordinates, coordinates)
        return TermPoints(here, remainder)

    def _forward(self, points: PointSet, *, keep: bool) -> tuple[Tensor, Passes]:
        """Slots z [batch, slot], and the passes behind them."""
        passes: Passes = []
        z = points.coordinates.new_zeros(len(points), len(self.residual.slots))
        for place, plan in zip(self.places, self.plans, strict=True):
            x = points.links[place] if place else points.coordinates
            jet, tape = self.graph.forward(x, plan, keep=keep)
            passes.append((jet, tape))
            slot_values(plan, jet, z)
        return z, passes

    @torch.no_grad()
    def value(self, chunk: TermPoints) -> Tensor:
        """The residual as written, [batch, equation], times the root of the points' weights."""
        z, _ = self._forward(chunk.points, keep=False)
        r = self.residual.value(z, self.coefficients, chunk.points, chunk.remainder)
        weights = chunk.points.weights
        return r if weights is None else r * weights.sqrt()[:, None]

    @torch.no_grad()
    def block(
        self, number: int, weight: float, chunk: TermPoints, dense: int, coefficient_sizes: Tensor
    ) -> Block:
        """The linearisation of the residual as it is trained, by all parameters, of which
        ``dense`` are not in linear layers; coefficients are those in units of these sizes.
        ``number`` is that of the term."""
        points = chunk.points
        z, passes = self._forward(points, keep=True)
        r, by_slot, by_parameter = self.residual.derivative(
            z, self.coefficients, points, chunk.remainder
        )
        if by_parameter is not None:
            by_parameter = by_parameter * coefficient_sizes
        factors = [] if points.weights is None else [points.weights.sqrt()[:, None]]
        factors += [] if chunk.scale is None else [chunk.scale[None]]
        for factor in factors:  # [batch or 1, equation]
            r, by_slot = r * factor, by_slot * factor.T[:, :, None]
            if by_parameter is not None:
                by_parameter = by_parameter * factor.T[:, :, None]
        collected = Collector(self.graph, r, dense)
        for equation, reads in enumerate(self.residual.reads):
            for place, (plan, (jet, tape)) in enumerate(zip(self.plans, passes, strict=True)):
                seed = seed_of(plan, by_slot[equation], reads, jet.value)
                if seed is not None:
                    assert tape is not None
                    self.graph.backward(seed, tape, collected.sink(equation, place))
            if by_parameter is not None:
                start = dense - len(self.coefficients)
                collected.dense_of()[equation, :, start:] = by_parameter[equation]
        tapes = [tape for _, tape in passes]
        return Block(number, weight, r, collected.layers(tapes), collected.dense)


def compile_term(
    term: Term, problem: Problem, graph: Graph, coefficients: Tensor, planner: Planner
) -> CompiledTerm:
    """Record a term's residual and plan its rows.

    Raises UserError for a residual that is wrong, and for derivatives that the net cannot give,
    before anything is trained.
    """
    sample = term.where.draw(3, Uniform(), torch.Generator().manual_seed(0))
    if len(sample) == 0:
        raise UserError(f"term '{term.name}' has no points")
    residual = record(term, problem, sample)
    places = tuple(sorted({place for slot in residual.slots for (_, place, _), _ in slot}))
    dimension = len(problem.coordinates.names)
    plans = tuple(planner(residual.slots, dimension, place) for place in places)
    x = sample.coordinates.to(coefficients)
    for plan in plans:
        try:
            with torch.no_grad():
                graph.forward(x, plan, keep=True)
        except UserError as error:
            raise UserError(f"term '{term.name}': {error}") from error
    return CompiledTerm(residual, places, plans, graph, coefficients)
