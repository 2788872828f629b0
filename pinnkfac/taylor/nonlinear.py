"""Rules of nonlinear operations: how elementwise functions and products mix the rows of a plan."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.taylor.activations import TOWERS, Activation, Tower
from pinnkfac.taylor.jet import MODULES, Adjoint, Adjoints, Jet, Rule, Sink
from pinnkfac.taylor.plan import Monomial, Plan


def _polynomial(monomials: tuple[Monomial, ...], jet: Jet) -> Tensor:
    """Σ coefficient · Π rows, [batch or 1, feature]."""
    total: Tensor | None = None
    for monomial in monomials:
        head = reduce(torch.mul, map(jet.row, monomial.rows[:-1]))
        last = jet.row(monomial.rows[-1])
        if total is None:
            total = torch.mul(head, last)
            if monomial.coefficient != 1.0:
                total.mul_(monomial.coefficient)
        else:
            total.addcmul_(head, last, value=monomial.coefficient)
    assert total is not None
    return total


@dataclass
class Elementwise(Rule):
    """y = σ(z): P σ(z) = σ' P z + Σ_{m≥2} σ^(m) p_m, with p_m from the plan's ``powers``."""

    tower: Tower

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        (z,) = inputs
        order = max((m for powers in plan.powers for m in powers), default=min(1, len(z.rows)))
        tower = self.tower(z.value, order + keep)
        y = Jet.of(z.value.new_empty(len(plan.rows), *z.value.shape))
        y.value.copy_(tower[0])
        if len(plan.rows) > 1:
            torch.mul(tower[1], z.rows, out=y.rows)
        polynomials: dict[tuple[int, int], Tensor] = {}
        for s, powers in enumerate(plan.powers):
            for m, monomials in powers.items():
                p = _polynomial(monomials, z)
                y.rows[s - 1].addcmul_(tower[m], p)
                if keep:
                    polynomials[s, m] = p
        return y, (plan, z, tower, polynomials) if keep else None

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints:
        plan, z, tower, polynomials = kept
        rows = _reached(adjoint.rows, plan)
        back = _starting(adjoint, rows, tower[1])
        by_row = dict(zip(rows, back.unbind(0), strict=True))
        value = by_row[0]
        for i, s in enumerate(adjoint.rows):
            if s == 0:
                continue
            value.addcmul_(adjoint.tensor[i] * tower[2], z.row(s))
            for m, monomials in plan.powers[s].items():
                weight = adjoint.tensor[i] * tower[m]
                value.addcmul_(adjoint.tensor[i] * tower[m + 1], polynomials[s, m])
                for monomial in monomials:
                    _add_monomial(by_row, monomial, weight, z)
        return [Adjoint(rows, back)]


def _reached(active: tuple[int, ...], plan: Plan) -> tuple[int, ...]:
    """Rows of z that the active rows of y = σ(z) depend on."""
    monomials = [m for s in active for group in plan.powers[s].values() for m in group]
    return tuple(sorted({0, *active, *(row for monomial in monomials for row in monomial.rows)}))


def _starting(adjoint: Adjoint, rows: tuple[int, ...], slope: Tensor) -> Tensor:
    """σ' · adjoint on the active rows, zero on the others."""
    if rows == adjoint.rows:
        return slope * adjoint.tensor
    back = adjoint.tensor.new_zeros(len(rows), *adjoint.tensor.shape[1:])
    for i, s in enumerate(adjoint.rows):
        torch.mul(slope, adjoint.tensor[i], out=back[rows.index(s)])
    return back


def _add_monomial(by_row: dict[int, Tensor], monomial: Monomial, weight: Tensor, z: Jet) -> None:
    """Add weight · ∂(coefficient Π z_s)/∂z_a to every row a of the monomial."""
    for a in sorted(set(monomial.rows)):
        others = list(monomial.rows)
        count = others.count(a)
        others.remove(a)
        head = reduce(torch.mul, map(z.row, others[:-1]), weight)
        by_row[a].addcmul_(head, z.row(others[-1]), value=count * monomial.coefficient)


@dataclass
class Multiply(Rule):
    """y = f ∘ g (Leibniz): P(f g) = f P g + g P f + Σ coefficient · P_a f · P_b g."""

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        f, g = inputs
        if f.value.dim() != g.value.dim():
            raise UserError(
                "net: a product of layers with different numbers of axes mixes the points of the "
                "batch: keep the axis of features; one column is x[:, a:a + 1]"
            )
        shape = torch.broadcast_shapes(f.value.shape, g.value.shape)
        y = Jet.of(f.value.new_empty(len(plan.rows), *shape))
        torch.mul(f.value, g.value, out=y.value)
        if len(plan.rows) > 1:
            y.rows.copy_(f.value * g.rows)
            y.rows.addcmul_(g.value, f.rows)
        for s, products in enumerate(plan.products):
            for c, a, b in products:
                y.rows[s - 1].addcmul_(f.row(a), g.row(b), value=c)
        return y, (plan, f, g) if keep else None

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints:
        plan, f, g = kept
        swapped = [[(c, b, a) for c, a, b in products] for products in plan.products]
        sides = ((f, g, plan.products), (g, f, swapped))
        return [
            _factor(adjoint, other, products).narrowed(one.value.shape[1:]) if want else None
            for (one, other, products), want in zip(sides, wanted, strict=True)
        ]


def _factor(
    adjoint: Adjoint, other: Jet, products: Sequence[Sequence[tuple[float, int, int]]]
) -> Adjoint:
    """The adjoint of the factor beside ``other``, before what was broadcast is summed."""
    reached = {0, *adjoint.rows, *(a for s in adjoint.rows for _, a, _ in products[s])}
    rows = tuple(sorted(reached))
    back = adjoint.tensor.new_zeros(len(rows), *adjoint.tensor.shape[1:])
    by_row = dict(zip(rows, back.unbind(0), strict=True))
    for g, s in zip(adjoint.tensor, adjoint.rows, strict=True):
        by_row[s].addcmul_(g, other.value)
        if s:
            by_row[0].addcmul_(g, other.row(s))
        for c, a, b in products[s]:
            by_row[a].addcmul_(g, other.row(b), value=c)
    return Adjoint(rows, back)


def elementwise(name: str, *options: Any, **named: Any) -> Rule:
    """The rule of a function of ``TOWERS``; TypeError for options that its tower does not have."""
    tower = TOWERS[name]
    inspect.signature(tower).bind(None, 0, *options, **named)
    return Elementwise(lambda z, order: tower(z, order, *options, **named))


def _of_layer(name: str, module: nn.Module) -> Rule:
    options = list(inspect.signature(TOWERS[name]).parameters)[2:]
    return elementwise(name, **{option: getattr(module, option) for option in options})


for _kind in vars(nn).values():
    if isinstance(_kind, type) and _kind.__name__.lower() in TOWERS:
        MODULES[_kind] = partial(_of_layer, _kind.__name__.lower())
MODULES[Activation] = lambda module: Elementwise(module.checked_tower)
