"""Problem × net × points → residuals and their derivatives by every trained parameter."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from pinnkfac.common.memory import available, making
from pinnkfac.common.parallel import Workers
from pinnkfac.domain import PointSet
from pinnkfac.linearisation.block import Block
from pinnkfac.linearisation.compiled import CompiledTerm, TermPoints, compile_term
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layout import Layout
from pinnkfac.linearisation.linearisation import Head, Linearisation, TermLosses
from pinnkfac.linearisation.objective import Losses
from pinnkfac.linearisation.workload import Workload
from pinnkfac.problem import Problem
from pinnkfac.residual import check_parameters
from pinnkfac.taylor.graph import Graph
from pinnkfac.taylor.plan import Planner, make_plan


class System:
    """A problem and a net, compiled: evaluates losses and linearisations at given points.

    Methods move the net to the parameters ``at`` which they evaluate, and leave it there. Above
    ``memory`` bytes, or half of what is free at the start, blocks are computed anew each time they
    are needed. ``planner`` chooses the rows of Taylor mode; ``workers``, a number of threads or
    what shares the work in another way, share the chunks of points (of at most ``chunk_bytes`` a
    layer). Coefficients are trained in units of the power of two next to their first values.
    ``equation_sizes`` [equation] of all terms are what residuals are judged by (None: all 1), on
    points that are prepared from then on.

    Raises UserError where a residual is wrong or the net has a layer without a rule.
    """

    def __init__(
        self,
        problem: Problem,
        net: nn.Module,
        *,
        planner: Planner = make_plan,
        memory: float = 4 * 2**30,
        chunk_bytes: int | None = None,
        workers: int | Workers = 1,
    ) -> None:
        self.problem = problem
        self.net = net
        self.workers = Workers(workers) if isinstance(workers, int) else workers
        self.graph = Graph(net, len(problem.coordinates.names), len(problem.fields))
        reference = next(net.parameters())
        self.device, self.dtype = reference.device, reference.dtype
        self.memory = min(memory, available(self.device) / 2)
        self.coefficients = torch.tensor(
            [p.initial for p in problem.parameters], dtype=self.dtype, device=self.device
        )
        self.terms: list[CompiledTerm] = [
            compile_term(t, problem, self.graph, self.coefficients, planner) for t in problem.terms
        ]
        check_parameters(problem, [term.residual for term in self.terms])
        self.equation_sizes: list[Tensor] | None = None
        self.coefficient_sizes = powers_of_two(self.coefficients)
        self.chunk_bytes = chunk_bytes or (2**29 if self.device.type == "cuda" else 2**20)

    @cached_property
    def workload(self) -> Workload:
        pairs = zip(self.graph.linears, self.graph.uses, strict=True)
        return Workload(
            tuple((m.in_features, m.out_features, uses) for m, uses in pairs),
            tuple((term.rows, term.equations) for term in self.terms),
            self.layout.number,
            self.memory,
        )

    @cached_property
    def layout(self) -> Layout:
        layers = tuple((len(w), w.shape[1]) for w in self.graph.weights())
        return Layout(layers, sum(p.numel() for p in self._dense), self.dtype, self.device)

    @property
    def _dense(self) -> list[Tensor]:
        """Trained tensors outside linear layers: those of the net, then the coefficients, in units
        of their first values."""
        relative = self.coefficients / self.coefficient_sizes
        return [*self.graph.dense, *([relative] if len(relative) else [])]

    @torch.no_grad()
    def get_parameters(self) -> Direction:
        """A copy of all trained numbers, as a list of tensors (see direction.py)."""
        result = self.graph.weights()
        if self.layout.dense:
            result.append(torch.cat([p.reshape(-1) for p in self._dense]))
        return result

    @torch.no_grad()
    def set_parameters(self, values: Direction) -> None:
        """Move the net, and the coefficients."""
        self.graph.set_weights(values)
        if self.layout.dense:
            pieces = values[-1].split([p.numel() for p in self._dense])
            for p, piece in zip(self.graph.dense, pieces, strict=False):
                p.copy_(piece.view_as(p))
            if len(self.coefficients):
                self.coefficients.copy_(pieces[-1] * self.coefficient_sizes)

    def _place(self, at: Direction | None) -> None:
        if at is not None:
            self.set_parameters(at)

    def prepare(self, points: Sequence[PointSet]) -> list[TermPoints]:
        """Move drawn points to the net's device and dtype, and evaluate what needs them alone."""
        names = self.problem.coordinates.names
        sizes: Sequence[Tensor | None] = self.equation_sizes or [None] * len(self.terms)
        triples = zip(self.terms, points, sizes, strict=True)
        return [replace(t.prepare(drawn, names), size=size) for t, drawn, size in triples]

    def in_units(self, points: Sequence[TermPoints]) -> list[TermPoints]:
        """Points of equations without scales, with those that bring them to order one: powers of
        two, by which nothing is rounded."""
        if self.equation_sizes is None:
            return list(points)
        pairs = zip(points, self.equation_sizes, strict=True)
        return [
            replace(p, scale=1.0 / powers_of_two(s)) if p.scale is None else p for p, s in pairs
        ]

    def numbers(self, points: Sequence[TermPoints]) -> list[int]:
        """How many points every term has."""
        return [len(part) for part in points]

    def _pieces(self, points: Sequence[TermPoints]) -> list[tuple[int, float, TermPoints]]:
        """Chunks of the points of all terms: number of the term, weight of a point, points."""
        widest = max(max(m.in_features, m.out_features) for m in self.graph.linears)
        pieces: list[tuple[int, float, TermPoints]] = []
        for number, (term, part) in enumerate(zip(self.terms, points, strict=True)):
            per_point = term.rows * widest * torch.finfo(self.dtype).bits // 8
            chunks = max(1, math.ceil(len(part) / max(16, self.chunk_bytes // per_point)))
            size, weight = math.ceil(len(part) / chunks), term.weight / len(part)
            starts = range(0, len(part), size)
            pieces += [(number, weight, part[start : start + size]) for start in starts]
        return pieces

    def residuals(self, points: Sequence[TermPoints], at: Direction | None = None) -> list[Tensor]:
        """The residual of every term as written, [batch, equation], times the root of the points'
        weights."""
        self._place(at)
        pieces = self._pieces(points)
        parts = self.workers.map(lambda piece: self.terms[piece[0]].value(piece[2]), pieces)
        of_terms: list[list[Tensor]] = [[] for _ in self.terms]
        for (number, _, _), part in zip(pieces, parts, strict=True):
            of_terms[number].append(part)
        return [torch.cat(parts) for parts in of_terms]

    def trained_residuals(
        self, points: Sequence[TermPoints], at: Direction | None = None
    ) -> list[Tensor]:
        """As they are trained: each equation with its scale."""
        pairs = zip(points, self.residuals(points, at), strict=True)
        return [part.scaled(residual) for part, residual in pairs]

    def residual(self, points: Sequence[TermPoints], at: Direction | None = None) -> Tensor:
        """The residual of a linearisation at the same points, flat: the loss is half its square."""
        pairs = zip(self.terms, self.trained_residuals(points, at), strict=True)
        return torch.cat([math.sqrt(t.weight / len(r)) * r.reshape(-1) for t, r in pairs])

    def evaluate(self, points: Sequence[TermPoints], at: Direction | None = None) -> Losses:
        residuals = self.residuals(points, at)
        losses = _losses(points, residuals)
        trained = [part.scaled(r) for part, r in zip(points, residuals, strict=True)]
        kinds = losses.written, losses.relative, _half_means(trained)
        return Losses(*(self.weighted(kind) for kind in kinds))

    def losses(self, points: Sequence[TermPoints], at: Direction | None = None) -> TermLosses:
        """Those of every term."""
        return _losses(points, self.residuals(points, at))

    def loss(self, points: Sequence[TermPoints], at: Direction | None = None) -> float:
        """The loss that is trained on, Σ weight · ½ · mean |scale ∘ residual|²; infinite where it
        is not a number."""
        return self.weighted(_half_means(self.trained_residuals(points, at)))

    def weighted(self, losses: Sequence[float]) -> float:
        """Σ weight · loss of the terms; infinite where it is not a number."""
        total = sum(t.weight * v for t, v in zip(self.terms, losses, strict=True))
        return total if math.isfinite(total) else math.inf

    def linearise(self, points: Sequence[TermPoints], at: Direction | None = None) -> Linearisation:
        """Residuals and (Z, G) at all points, kept in memory where the budget allows."""
        self._place(at)
        dense = self.layout.dense
        pieces = self._pieces(points)
        tasks = [
            partial(self.terms[number].block, number, weight, chunk, dense, self.coefficient_sizes)
            for number, weight, chunk in pieces
        ]
        pairs = zip(self.terms, points, strict=True)
        kept = sum(t.bytes_per_point(dense) * len(p) for t, p in pairs) <= self.memory
        place = None
        if kept:
            with making("the linearisation", "memory, points.scale or net.widths"):
                blocks = self.workers.map(lambda task: task(), tasks)
            values = [block.residual for block in blocks]
            tasks = [partial(_itself, block) for block in blocks]
        else:
            values = self.workers.map(
                lambda piece: piece[2].scaled(self.terms[piece[0]].value(piece[2])), pieces
            )
            place = partial(self.set_parameters, self.get_parameters() if at is None else at)
        heads = []
        losses = TermLosses([0.0] * len(self.terms), [0.0] * len(self.terms))
        for (number, weight, chunk), value in zip(pieces, values, strict=True):
            share, written = 0.5 * weight / self.terms[number].weight, chunk.written(value)
            total = float(square_sum(written))
            judged = total if chunk.size is None else float(square_sum(chunk.relative(written)))
            losses.written[number] += share * total
            losses.relative[number] += share * judged
            heads.append(Head(number, weight, value))
        scales = [part.scale for part in points if part.scale is not None]
        return Linearisation(
            self.layout,
            self.workload,
            [term.weight for term in self.terms],
            tasks,
            heads,
            losses=losses,
            workers=self.workers,
            scales=scales or None,
            equation_sizes=self.equation_sizes,
            place=place,
        )


def powers_of_two(values: Tensor) -> Tensor:
    """The closest ones to the sizes of values, by which they are divided without rounding; 1 for
    0."""
    powers = values.abs().log2().round().exp2()
    return powers.where(powers > 0, 1.0)


def _losses(points: Sequence[TermPoints], residuals: Sequence[Tensor]) -> TermLosses:
    written = _half_means(residuals)
    if all(part.size is None for part in points):
        return TermLosses(written, list(written))
    relative = [part.relative(r) for part, r in zip(points, residuals, strict=True)]
    return TermLosses(written, _half_means(relative))


def _half_means(residuals: Sequence[Tensor]) -> list[float]:
    return [0.5 * float(square_sum(r) / len(r)) for r in residuals]


def square_sum(values: Tensor) -> Tensor:
    """Σ v², in float64: squares of float32 may lie beyond what it holds."""
    return values.double().square().sum()


def _itself(block: Block) -> Block:
    return block
