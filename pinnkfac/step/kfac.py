"""KFAC and KFAC*: steps preconditioned by Kronecker-factored curvature (arXiv:2405.15603)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from pinnkfac.curvature.kfac import Average, Factors
from pinnkfac.curvature.kronecker import DampingKind, Inverse, inverse, merge, symmetric_eigen
from pinnkfac.errors import UserError
from pinnkfac.linearise import Direction, Linearisation, System, TermPoints, combine, inner
from pinnkfac.step.base import Report, Stepper
from pinnkfac.step.damping import Damping
from pinnkfac.step.model import Minimum, minimise
from pinnkfac.step.search import Accepted, Search


@dataclass(frozen=True)
class InverseSettings:
    """How factors of several terms become one inverse.

    ``terms``: 'merged' makes one trace-weighted Kronecker product of all terms; 'sum' inverts the
    sum of at most two, as published. ``damping`` is 'exact' (merged only), 'same' or
    'trace-norm'. ``every``: steps between inversions. ``floor``: relative eigenvalue floor.
    """

    terms: Literal["merged", "sum"] = "merged"
    damping: DampingKind = "exact"
    every: int = 1
    floor: float = 1e-15


@dataclass(frozen=True)
class Automatic:
    """Step length and momentum from the exact quadratic model (KFAC*).

    ``by_layer`` gives every layer its own length and momentum. ``momentum`` includes the last
    step as a direction. ``first_length`` scales the first step instead of the model, as published
    (1e-6); None uses the model from the start. ``damped`` adds λ‖step‖²/2 to the model.
    """

    by_layer: bool = True
    momentum: bool = True
    first_length: float | None = None
    damped: bool = True


@dataclass(frozen=True)
class Kfac:
    """δ = −C⁻¹∇loss with C from Kronecker factors; then momentum and step length.

    With ``lengths=None`` the direction is δ + momentum · (last direction) and the search decides
    how far to go (KFAC); with ``Automatic`` the quadratic model decides (KFAC*), and the search
    only checks.
    """

    factors: Factors = field(default_factory=Factors)
    inverse: InverseSettings = field(default_factory=InverseSettings)
    momentum: float = 0.0
    lengths: Automatic | None = None

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> KfacStepper:
        return KfacStepper(self, system, search, damping, generator)


class KfacStepper(Stepper):
    """KFAC in the course of a run."""

    def __init__(
        self,
        settings: Kfac,
        system: System,
        search: Search,
        damping: Damping,
        generator: Generator,
    ) -> None:
        if settings.inverse.terms == "sum" and len(system.terms) > 2:
            names = ", ".join(t.residual.term.name for t in system.terms)
            raise UserError(
                f"step.inverse.terms=sum inverts at most two terms, but there are "
                f"{len(system.terms)} ({names}): use step.inverse.terms=merged"
            )
        self.settings = settings
        self.system = system
        self.search = search
        self.schedule = damping
        self.generator = generator
        self.average = Average(settings.factors)
        self.damping = damping.start
        self.steps = 0
        self.last: Direction | None = None
        self.last_length: float | None = None
        self.pending: tuple[float, float] | None = None
        self._inverses: list[Inverse] = []

    # -- one step --------------------------------------------------------------------------------
    def update(self, points: Sequence[TermPoints]) -> Report:
        linearisation = self.system.linearise(points)
        self._settle(linearisation.loss)
        settings = self.settings
        if self.steps % settings.factors.every == 0:
            self.average.update(linearisation, self.generator)
        if self.steps % settings.inverse.every == 0 or not self._inverses:
            self._invert()
        gradient = linearisation.gradient()
        newton = [-v for v in self.precondition(gradient)]
        if settings.lengths is None:
            direction, predicted = self._with_momentum(newton, linearisation)
        else:
            direction, minimum = self._modelled(newton, gradient, linearisation, settings.lengths)
            predicted = minimum.predicted
        slope = inner(gradient, direction)
        accepted, losses = self._search(direction, slope, linearisation, points)
        used = self.damping
        ratio = self._ratio(linearisation.loss, accepted, slope, predicted)
        if math.isnan(accepted.loss):
            self.pending = (linearisation.loss, predicted)
        else:
            self.damping = self.schedule.after(self.damping, ratio, self.steps)
        self._remember(direction, accepted)
        self.steps += 1
        return Report(
            losses=linearisation.losses,
            length=accepted.length,
            damping=used,
            ratio=ratio,
            trials=accepted.trials,
            direction_norm=math.sqrt(inner(direction, direction)),
        )

    def _settle(self, loss: float) -> None:
        """A step whose loss was not evaluated is judged by the loss of this one."""
        if self.pending is not None:
            before, predicted = self.pending
            ratio = (before - loss) / predicted if predicted > 0 else math.nan
            self.damping = self.schedule.after(self.damping, ratio, self.steps - 1)
            self.pending = None

    # -- direction -------------------------------------------------------------------------------
    def _invert(self) -> None:
        weights = [t.residual.term.weight for t in self.system.terms]
        own = self.settings.inverse
        self._inverses = []
        for layer in range(len(self.system.graph.linears)):
            pairs = self.average.layer(layer, weights)
            if own.terms == "merged":
                pairs = [merge(pairs)]
            self._inverses.append(inverse(pairs, self.damping, own.damping, own.floor))

    def precondition(self, gradient: Direction) -> Direction:
        """C⁻¹ applied to a gradient, layer by layer."""
        result = [inv.apply(v) for inv, v in zip(self._inverses, gradient, strict=False)]
        dense = self.average.dense_block()
        if dense is not None:
            values, vectors = symmetric_eigen(dense)
            floor = self.settings.inverse.floor * float(values[-1].clamp_min(1e-300))
            damped = (values.clamp_min(0.0) + self.damping).clamp_min(floor)
            result.append(vectors @ ((vectors.T @ gradient[-1]) / damped))
        return result

    def _with_momentum(
        self, newton: Direction, linearisation: Linearisation
    ) -> tuple[Direction, float]:
        direction = newton
        if self.settings.momentum and self.last is not None:
            direction = combine((1.0, newton), (self.settings.momentum, self.last))
        curvature = math.nan
        if not isinstance(self.search, _NO_MODEL) and _uses_ratio(self.schedule):
            curvature = float(linearisation.jvp(direction).square().sum())
        return direction, curvature

    def _modelled(
        self,
        newton: Direction,
        gradient: Direction,
        linearisation: Linearisation,
        lengths: Automatic,
    ) -> tuple[Direction, Minimum]:
        if self.steps == 0 and lengths.first_length is not None:
            direction = [lengths.first_length * v for v in newton]
            return direction, Minimum(torch.ones(1), math.nan)
        sources = [newton]
        if lengths.momentum and self.last is not None:
            sources.append(self.last)
        images, slopes, norms = [], [], []
        for source in sources:
            parts = linearisation.jvp_by_layer(source)
            slope = torch.stack([(g * v).sum() for g, v in zip(gradient, source, strict=True)])
            if lengths.by_layer:
                images.append(parts)
                slopes.append(slope)
            else:
                images.append(parts.sum(0, keepdim=True))
                slopes.append(slope.sum(0, keepdim=True))
        for a in sources:
            row = []
            for b in sources:
                dots = torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)])
                row.append(torch.diag(dots) if lengths.by_layer else dots.sum().view(1, 1))
            norms.append(torch.cat(row, dim=1))
        image = torch.cat(images)
        damping = self.damping if lengths.damped else 0.0
        minimum = minimise(torch.cat(slopes), image @ image.T, torch.cat(norms), damping)
        c = minimum.coefficients.to(gradient[0])
        per_source = (
            c.view(len(sources), -1).expand(-1, len(newton))
            if not lengths.by_layer
            else (c.view(len(sources), -1))
        )
        direction = [
            sum(per_source[i, layer] * source[layer] for i, source in enumerate(sources))
            for layer in range(len(newton))
        ]
        return direction, minimum  # type: ignore[return-value]

    # -- length ------------------------------------------------------------------------------------
    def _search(
        self,
        direction: Direction,
        slope: float,
        linearisation: Linearisation,
        points: Sequence[TermPoints],
    ) -> tuple[Accepted, None]:
        start = self.system.get_parameters()
        where = 0.0

        def loss(length: float) -> float:
            nonlocal where
            self.system.set_parameters(combine((1.0, start), (length, direction)))
            where = length
            return self.system.loss(points)

        last = None if self.settings.lengths is not None else self.last_length
        accepted = self.search.run(loss, linearisation.loss, slope, last)
        if where != accepted.length:
            self.system.set_parameters(combine((1.0, start), (accepted.length, direction)))
        return accepted, None

    def _ratio(self, loss: float, accepted: Accepted, slope: float, predicted: float) -> float:
        """Actual over predicted reduction at the accepted length α."""
        if accepted.length == 0.0 or math.isnan(accepted.loss) or math.isnan(predicted):
            return math.nan
        if self.settings.lengths is None:
            a, curvature = accepted.length, predicted
            predicted = -(a * slope + 0.5 * a * a * curvature)
        elif accepted.length != 1.0:
            return 0.0  # the model's own step did not lower the loss
        return (loss - accepted.loss) / predicted if predicted > 0 else math.nan

    def _remember(self, direction: Direction, accepted: Accepted) -> None:
        if accepted.length > 0:
            self.last_length = accepted.length
        if self.settings.lengths is None:
            self.last = direction if self.settings.momentum else None
        else:
            self.last = [accepted.length * v for v in direction]

    def state_dict(self) -> dict[str, Any]:
        return {
            "average": self.average.state_dict(),
            "damping": self.damping,
            "steps": self.steps,
            "last": self.last,
            "last_length": self.last_length,
            "pending": self.pending,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.average.load_state_dict(state["average"])
        for name in ("damping", "steps", "last", "last_length", "pending"):
            setattr(self, name, state[name])


def _uses_ratio(schedule: Damping) -> bool:
    from pinnkfac.step.damping import LevenbergMarquardt

    return isinstance(schedule, LevenbergMarquardt)


_NO_MODEL: tuple[type, ...] = ()
_ = Tensor
