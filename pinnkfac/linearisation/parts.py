"""What an equation is made of: the part of every derivative of every field in it, and the rest.

With slots z = C m of monomials m_j = D^α u_k, derivatives of single fields, an equation is

    F_e(z, at) = Σ_j a_ej m_j + rest_e,    a_ej = Σ_s ∂F_e/∂z_s C_sj,

at any state. Sizes of these parts are what tells a small residual from one in small units, and a
small solution from one in large units.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pinnkfac.field import Key, LinearPart
from pinnkfac.linearisation.compiled import CompiledTerm, TermPoints
from pinnkfac.taylor.graph import slot_values
from pinnkfac.taylor.plan import make_plan

MOST = 300
"""Derivatives of a term that are told apart; where it has more, those of a field in a slot are one
part."""


@dataclass(frozen=True)
class Column:
    """One part: derivatives of one ``field`` at one place; ``value``: the field itself, at the
    point."""

    field: int
    place: str
    value: bool
    operator: LinearPart


@dataclass(frozen=True)
class Affine:
    """An equation at a state: ``slopes`` a [equation, batch, monomial], ``rest`` and the residual
    ``value`` [equation, batch]."""

    slopes: Tensor
    rest: Tensor
    value: Tensor


class Parts:
    """The parts of a term: ``columns`` says what monomial j is."""

    def __init__(self, term: CompiledTerm) -> None:
        self.term = term
        slots = [dict(slot) for slot in term.residual.slots]
        keys = sorted({key for slot in slots for key in slot})
        if len(keys) <= MOST:
            operators: list[LinearPart] = [((key, 1.0),) for key in keys]
            rows = [[slot.get(key, 0.0) for key in keys] for slot in slots]
        else:
            groups = [group for slot in slots for group in _grouped(slot)]
            operators = [tuple(sorted(group.items())) for group in groups]
            rows = [[float(group.items() <= slot.items()) for group in groups] for slot in slots]
        self.columns = [_column(operator) for operator in operators]
        self.combinations = term.coefficients.new_tensor(rows)
        """C [slot, monomial]."""
        dimension = len(term.residual.coordinates.names)
        self.plans = {
            place: make_plan(operators, dimension, place)
            for place in sorted({column.place for column in self.columns})
        }

    @property
    def derivatives(self) -> bool:
        """Whether any part is a derivative."""
        return any(any(alpha) for column in self.columns for (_, _, alpha), _ in column.operator)

    def fields(self) -> list[int]:
        """The field of each monomial."""
        return [column.field for column in self.columns]

    @torch.no_grad()
    def monomials(self, points: TermPoints) -> Tensor:
        """m [batch, monomial] of the net as it is."""
        return self.monomials_at({"": points.points.coordinates, **points.points.links})

    @torch.no_grad()
    def monomials_at(self, places: Mapping[str, Tensor]) -> Tensor:
        """m [batch, monomial] at these coordinates [batch, coord] of places; 0 at those that are
        not there."""
        total = self.combinations.new_zeros(len(places[""]), len(self.columns))
        for place, plan in self.plans.items():
            if place in places:
                jet, _ = self.term.graph.forward(places[place], plan)
                total += slot_values(plan, jet)
        return total

    @torch.no_grad()
    def at(self, monomials: Tensor, points: TermPoints) -> Affine:
        """The equations where the derivatives of the fields are m [batch, monomial]."""
        z = monomials @ self.combinations.T
        coefficients = self.term.coefficients
        value, by_slot, _ = self.term.residual.derivative(
            z, coefficients, points.points, points.remainder
        )
        slopes = (by_slot @ self.combinations).expand(-1, len(z), -1)
        rest = value.T - (slopes * monomials).sum(-1)
        return Affine(slopes, rest, value.T)


def _grouped(slot: dict[Key, float]) -> list[dict[Key, float]]:
    """A slot by field and place, the field itself apart."""
    groups: dict[Any, dict[Key, float]] = {}
    for key, c in slot.items():
        field, place, alpha = key
        groups.setdefault((field, place, any(alpha)), {})[key] = c
    return list(groups.values())


def _column(operator: LinearPart) -> Column:
    (field, place, alpha), _ = operator[0]
    return Column(field, place, not any(alpha) and not place, operator)


def size(values: Tensor, dim: int = -1) -> Tensor:
    """Root mean square over points, leaving out what is not finite; squares of float32 may lie
    beyond what it holds."""
    squares = values.double().square()
    mean = torch.where(squares.isfinite(), squares, torch.nan).nanmean(dim).nan_to_num(0.0)
    return mean.sqrt().to(values.dtype)
