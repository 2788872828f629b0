"""Problem × net × points → residuals and their derivatives by every trained parameter.

One forward pass and one backward pass per equation yield all (Z, G) of block.py; every product
with the Jacobian is then a matrix product a layer, and nothing is ever differentiated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.common.memory import available, making
from pinnkfac.common.parallel import Workers
from pinnkfac.domain import PointSet, Uniform
from pinnkfac.linearisation.block import Block, add_block_vjp, block_jvp
from pinnkfac.linearisation.collect import Collector, seed_of
from pinnkfac.linearisation.direction import Direction
from pinnkfac.problem import Problem, Term
from pinnkfac.residual import Residual, check_finite, check_parameters, record
from pinnkfac.taylor.graph import Graph, Tape
from pinnkfac.taylor.jet import Jet
from pinnkfac.taylor.plan import Plan, Planner, make_plan


@dataclass(frozen=True)
class Head:
    """What is known of a block without its derivatives: residual [batch, equation], scaled."""

    term: int
    weight: float
    residual: Tensor


@dataclass(frozen=True)
class CompiledTerm:
    """A term with its residual function and one plan of rows per place."""

    residual: Residual
    places: tuple[str, ...]
    plans: tuple[Plan, ...]

    @property
    def rows(self) -> int:
        return sum(len(plan.rows) for plan in self.plans)


@dataclass(frozen=True)
class TermPoints:
    """The points of one term, with the part of its residual that depends on them alone."""

    points: PointSet
    remainder: Tensor | None

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, rows: slice) -> TermPoints:
        return TermPoints(
            self.points[rows], None if self.remainder is None else self.remainder[rows]
        )


class System:
    """A problem and a net, compiled: evaluates losses and linearisations at given points.

    ``memory`` bytes, or half of what is free at the start, bound what a linearisation keeps; above
    it, blocks are computed anew each time they are needed. ``planner`` chooses the rows of Taylor
    mode. ``workers`` threads share the chunks of points (of at most
    ``chunk_bytes`` a layer).

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
        workers: int = 1,
    ) -> None:
        self.problem = problem
        self.net = net
        self.memory = min(memory, available() / 2)
        self.planner = planner
        self.workers = Workers(workers)
        self.graph = Graph(net, len(problem.coordinates.names), len(problem.fields))
        reference = next(net.parameters())
        self.device, self.dtype = reference.device, reference.dtype
        self.coefficients = torch.tensor(
            [p.initial for p in problem.parameters], dtype=self.dtype, device=self.device
        )
        self.terms = [self._compile(term) for term in problem.terms]
        check_parameters(problem, [term.residual for term in self.terms])
        self.scales: list[Tensor] | None = None
        """Factors [equation] on the residuals of each term (see balance.py); None: all 1."""
        self.chunk_bytes = chunk_bytes or (2**29 if self.device.type == "cuda" else 2**20)

    def _compile(self, term: Term) -> CompiledTerm:
        sample = term.where.draw(3, Uniform(), torch.Generator().manual_seed(0))
        if len(sample) == 0:
            raise UserError(f"term '{term.name}' has no points")
        residual = record(term, self.problem, sample)
        used = {place for slot in residual.slots for (_, place, _), _ in slot}
        places = tuple(sorted(used))
        dimension = len(self.problem.coordinates.names)
        plans = tuple(self.planner(residual.slots, dimension, place) for place in places)
        for plan in plans:
            self._try_plan(term, plan, sample)
        return CompiledTerm(residual, places, plans)

    @torch.no_grad()
    def _try_plan(self, term: Term, plan: Plan, sample: PointSet) -> None:
        """Refuse derivatives that the net cannot give, before anything is trained."""
        x = sample.coordinates.to(device=self.device, dtype=self.dtype)
        try:
            self.graph.forward(x, plan, keep=True)
        except UserError as error:
            raise UserError(f"term '{term.name}': {error}") from error

    # -- parameters ------------------------------------------------------------------------------
    @property
    def _dense_parameters(self) -> list[Tensor]:
        return [*self.graph.dense, *([self.coefficients] if len(self.coefficients) else [])]

    @property
    def dense_size(self) -> int:
        return sum(p.numel() for p in self._dense_parameters)

    @cached_property
    def parameter_number(self) -> int:
        return sum(v.numel() for v in self.get_parameters())

    def get_parameters(self) -> Direction:
        """A copy of all trained numbers, as a list of tensors (see the module's text)."""
        result = []
        for linear in self.graph.linears:
            weight = linear.weight.detach()
            if linear.bias is None:
                result.append(weight.clone())
            else:
                result.append(torch.cat([weight, linear.bias.detach()[:, None]], dim=1))
        if self.dense_size:
            result.append(torch.cat([p.detach().reshape(-1) for p in self._dense_parameters]))
        return result

    @torch.no_grad()
    def set_parameters(self, values: Direction) -> None:
        for linear, value in zip(self.graph.linears, values, strict=False):
            inputs = linear.in_features
            linear.weight.copy_(value[:, :inputs])
            if linear.bias is not None:
                linear.bias.copy_(value[:, inputs])
        if self.dense_size:
            start = 0
            for p in self._dense_parameters:
                p.copy_(values[-1][start : start + p.numel()].view_as(p))
                start += p.numel()

    def zeros(self) -> Direction:
        return [torch.zeros_like(v) for v in self.get_parameters()]

    # -- points ------------------------------------------------------------------------------------
    def prepare(self, points: Sequence[PointSet]) -> list[TermPoints]:
        """Move drawn points to the net's device and dtype, and evaluate what needs them alone."""
        prepared = []
        for term, drawn in zip(self.terms, points, strict=True):
            if len(drawn) == 0:
                raise UserError(f"term '{term.residual.term.name}' has no points")
            here = drawn.to(self.device, self.dtype)
            remainder = term.residual.remainder(here)
            if remainder is not None:
                name = term.residual.term.name
                check_finite(name, remainder, here.coordinates, self.problem.coordinates.names)
            prepared.append(TermPoints(here, remainder))
        return prepared

    def _chunks(self, term: CompiledTerm, points: TermPoints) -> Iterator[TermPoints]:
        widest = max(max(m.in_features, m.out_features) for m in self.graph.linears)
        per_point = term.rows * widest * torch.finfo(self.dtype).bits // 8
        size = max(16, self.chunk_bytes // per_point)
        pieces = max(1, math.ceil(len(points) / size))
        size = math.ceil(len(points) / pieces)
        for start in range(0, len(points), size):
            yield points[slice(start, start + size)]

    # -- residuals ---------------------------------------------------------------------------------
    def _forward(
        self, term: CompiledTerm, points: PointSet, *, keep: bool
    ) -> tuple[Tensor, list[tuple[Jet, Tape | None]]]:
        """Slots z [batch, slot], and the passes behind them."""
        passes = []
        z: list[Tensor | None] = [None] * len(term.residual.slots)
        for place, plan in zip(term.places, term.plans, strict=True):
            x = points.links[place] if place else points.coordinates
            jet, tape = self.graph.forward(x, plan, keep=keep)
            passes.append((jet, tape))
            for i, rule in enumerate(plan.slots):
                for c, row, field in rule:
                    part = c * jet.row(row)[:, field].expand(len(x))
                    known = z[i]
                    z[i] = part if known is None else known + part
        return torch.stack([v for v in z if v is not None], dim=-1), passes

    def residuals(self, points: Sequence[TermPoints]) -> list[Tensor]:
        """The residual of every term, [batch, equation], times the root of the points' weights."""
        tasks = [
            (number, chunk)
            for number, (term, own) in enumerate(zip(self.terms, points, strict=True))
            for chunk in self._chunks(term, own)
        ]
        parts = self.workers.map(lambda task: self._residual(*task), tasks)
        return [
            torch.cat([part for (own, _), part in zip(tasks, parts, strict=True) if own == number])
            for number in range(len(self.terms))
        ]

    @torch.no_grad()
    def _residual(self, number: int, chunk: TermPoints) -> Tensor:
        term = self.terms[number]
        z, _ = self._forward(term, chunk.points, keep=False)
        r = term.residual.value(z, self.coefficients, chunk.points, chunk.remainder)
        weights = chunk.points.weights
        return r if weights is None else r * weights.sqrt()[:, None]

    def scaled(self, residuals: Sequence[Tensor]) -> list[Tensor]:
        """As they are trained: each equation with its scale."""
        if self.scales is None:
            return list(residuals)
        return [r * s for r, s in zip(residuals, self.scales, strict=True)]

    def weighted_residual(self, points: Sequence[TermPoints]) -> Tensor:
        """The residual of a linearisation at the same points, flat: the loss is half its square."""
        pairs = zip(self.terms, self.scaled(self.residuals(points)), strict=True)
        return torch.cat(
            [math.sqrt(t.residual.term.weight / len(r)) * r.reshape(-1) for t, r in pairs]
        )

    def losses(self, points: Sequence[TermPoints]) -> list[float]:
        """½ · mean over points of Σ residual² for every term, as written by the user."""
        return _half_means(self.residuals(points))

    def weighted(self, losses: Sequence[float]) -> float:
        """Σ weight · loss of the terms; infinite where it is not a number."""
        total = sum(t.residual.term.weight * v for t, v in zip(self.terms, losses, strict=True))
        return total if math.isfinite(total) else math.inf

    def loss(self, points: Sequence[TermPoints]) -> float:
        """The loss that is trained on, Σ weight · ½ · mean |scale ∘ residual|²; infinite where it
        is not a number."""
        return self.loss_of(self.scaled(self.residuals(points)))

    def loss_of(self, residuals: Sequence[Tensor]) -> float:
        """Σ weight · ½ · mean |residual|² of residuals of every term, [batch, equation]."""
        return self.weighted(_half_means(residuals))

    # -- linearisation -----------------------------------------------------------------------------
    def linearise(self, points: Sequence[TermPoints]) -> Linearisation:
        """Residuals and (Z, G) at all points, kept in memory where the budget allows."""

        pieces = [
            (number, term.residual.term.weight / len(own), chunk)
            for number, (term, own) in enumerate(zip(self.terms, points, strict=True))
            for chunk in self._chunks(term, own)
        ]
        tasks = [partial(self._block, *piece) for piece in pieces]
        needed = sum(
            self.bytes_per_point(t) * len(p) for t, p in zip(self.terms, points, strict=True)
        )
        if needed > self.memory:
            heads = self.workers.map(lambda piece: self._head(*piece), pieces)
            return Linearisation(self, tasks, heads, kept=False)
        with making("the linearisation", "memory, points.scale or net.widths"):
            blocks = self.workers.map(lambda task: task(), tasks)
        heads = [Head(block.term, block.weight, block.residual) for block in blocks]
        return Linearisation(self, [partial(_itself, block) for block in blocks], heads)

    def _head(self, number: int, weight: float, chunk: TermPoints) -> Head:
        residual = self._residual(number, chunk)
        if self.scales is not None:
            residual = residual * self.scales[number]
        return Head(number, weight, residual)

    def bytes_per_point(self, term: CompiledTerm) -> int:
        size = torch.finfo(self.dtype).bits // 8
        per_row = sum(
            uses * (m.in_features + term.residual.equations * m.out_features)
            for m, uses in zip(self.graph.linears, self.graph.uses, strict=True)
        )
        return size * (term.rows * per_row + term.residual.equations * (1 + self.dense_size))

    @torch.no_grad()
    def _block(self, number: int, weight: float, chunk: TermPoints) -> Block:
        term, points = self.terms[number], chunk.points
        z, passes = self._forward(term, points, keep=True)
        r, by_slot, by_parameter = term.residual.derivative(
            z, self.coefficients, points, chunk.remainder
        )
        if points.weights is not None:
            root = points.weights.sqrt()[:, None]
            r, by_slot = r * root, by_slot * root
            if by_parameter is not None:
                by_parameter = by_parameter * root
        if self.scales is not None:
            scale = self.scales[number]
            r, by_slot = r * scale, by_slot * scale[:, None, None]
            if by_parameter is not None:
                by_parameter = by_parameter * scale[:, None, None]
        collected = Collector(self.graph, r, self.dense_size)
        for equation in range(term.residual.equations):
            for place, (plan, (jet, tape)) in enumerate(zip(term.plans, passes, strict=True)):
                reads = term.residual.reads[equation]
                seed = seed_of(plan, by_slot[equation], reads, jet.value)
                if seed is not None:
                    assert tape is not None
                    self.graph.backward(seed, tape, collected.sink(equation, place))
            if by_parameter is not None:
                start = self.dense_size - len(self.coefficients)
                collected.dense_of()[equation, :, start:] = by_parameter[equation]
        tapes = [tape for _, tape in passes]
        return Block(number, weight, r, collected.layers(tapes), collected.dense)


def _half_means(residuals: Sequence[Tensor]) -> list[float]:
    return [0.5 * float(r.square().sum() / len(r)) for r in residuals]


class Linearisation:
    """The residual r and products with its Jacobian J, weighted so that the loss is ½‖r‖².

    Residual-space vectors are flat, over blocks, points and equations in that order. ``blocks``
    are functions that return them: ``kept``, or computed anew at each call; they are valid as long
    as the net's parameters don't change. ``terms`` are the numbers of their terms.
    """

    def __init__(
        self,
        system: System,
        blocks: Sequence[Callable[[], Block]],
        heads: Sequence[Head],
        *,
        kept: bool = True,
    ) -> None:
        self.system = system
        self.blocks = list(blocks)
        self.kept = kept
        self.terms = [head.term for head in heads]
        self._sizes = [head.residual.shape for head in heads]
        self.losses = [0.0] * len(system.terms)
        for head in heads:
            scales = None if system.scales is None else system.scales[head.term]
            plain = head.residual if scales is None else head.residual / scales
            share = head.weight / system.terms[head.term].residual.term.weight
            self.losses[head.term] += float(0.5 * share * plain.square().sum())
        self.residual = torch.cat([math.sqrt(h.weight) * h.residual.reshape(-1) for h in heads])
        self.loss = float(0.5 * self.residual.square().sum())

    def __iter__(self) -> Iterator[Block]:
        return (make() for make in self.blocks)

    @property
    def sizes(self) -> list[torch.Size]:
        """[batch, equation] of every block."""
        return self._sizes

    def _split(self, w: Tensor) -> list[Tensor]:
        pieces = w.split([math.prod(size) for size in self._sizes])
        return [p.view(size) for p, size in zip(pieces, self._sizes, strict=True)]

    def jvp(self, v: Direction) -> Tensor:
        """J v, flat."""
        return self.jvp_by_layer(v)[0].sum(0)

    def jvp_by_layer(self, *directions: Direction) -> list[Tensor]:
        """For every direction v the contributions of its entries to J v, [len(v), residuals];
        they sum to J v. Several directions share one pass over Z and G."""
        parts = self.system.workers.map(lambda make: block_jvp(make(), directions), self.blocks)
        return list(torch.cat(parts, dim=2).unbind(0))

    def vjp(self, w: Tensor) -> Direction:
        """Jᵀ w for a flat w."""
        workers = self.system.workers
        pairs = list(zip(self.blocks, self._split(w), strict=True))
        groups = workers.map(lambda group: _group_vjp(self.system, group), workers.groups(pairs))
        total, *rest = groups
        for other in rest:
            for own, value in zip(total, other, strict=True):
                own += value
        return total

    def gradient(self) -> Direction:
        """∇ loss = Jᵀ r."""
        return self.vjp(self.residual)


def _itself(block: Block) -> Block:
    return block


@torch.no_grad()
def _group_vjp(system: System, group: Sequence[tuple[Callable[[], Block], Tensor]]) -> Direction:
    total = system.zeros()
    for make, piece in group:
        add_block_vjp(make(), piece, total)
    return total
