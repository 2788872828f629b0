"""One rule an operation: how rows pass forward through it, and adjoints back.

Jets are ``[shared, batch, feature]``: the shared axis comes first in memory, so that a row is one
contiguous block and a linear layer on all rows is one matrix product. No rule knows any PDE.
"""

from __future__ import annotations

import operator as op
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.taylor import activations
from pinnkfac.taylor.layers import FixedLinear, Scale
from pinnkfac.taylor.plan import Monomial, Plan


@dataclass
class Jet:
    """A layer's rows: ``value`` [batch, feature] and ``rows`` [shared − 1, batch or 1, feature].

    A batch axis of 1 means the same row at every point (near the input they are columns of the
    first weight). ``full`` [shared, batch, feature] is set where both live in one tensor.
    """

    value: Tensor
    rows: Tensor
    full: Tensor | None = None

    @staticmethod
    def of(full: Tensor) -> Jet:
        return Jet(full[0], full[1:], full)

    @staticmethod
    def empty(rows: int, value: Tensor, features: int) -> Jet:
        return Jet.of(value.new_empty(rows, value.shape[0], features))

    def row(self, s: int) -> Tensor:
        return self.value if s == 0 else self.rows[s - 1]

    def dense(self) -> Tensor:
        """All rows as one tensor [shared, batch, feature]."""
        if self.full is None:
            batch, features = self.value.shape
            self.full = self.value.new_empty(len(self.rows) + 1, batch, features)
            self.full[0] = self.value
            self.full[1:] = self.rows
        return self.full


@dataclass
class Adjoint:
    """Derivatives of one equation by some rows of a jet; all other rows have none.

    ``rows`` are sorted row numbers, ``tensor`` is [len(rows), batch, feature].
    """

    rows: tuple[int, ...]
    tensor: Tensor

    def row(self, s: int) -> Tensor:
        return self.tensor[self.rows.index(s)]

    def plus(self, other: Adjoint | None) -> Adjoint:
        if other is None:
            return self
        if self.rows == other.rows:
            return Adjoint(self.rows, self.tensor + other.tensor)
        rows = tuple(sorted({*self.rows, *other.rows}))
        total = self.tensor.new_zeros(len(rows), *self.tensor.shape[1:])
        for part in (self, other):
            for i, s in enumerate(part.rows):
                total[rows.index(s)] += part.tensor[i]
        return Adjoint(rows, total)


@dataclass
class Sink:
    """Where a backward pass leaves what it finds at trained parameters.

    ``linear(layer, use, adjoint)`` gets G of a Linear layer; ``dense(parameter, derivative)``
    gets [batch, *shape of the parameter] for every other trained parameter.
    """

    linear: Callable[[int, int, Adjoint], None]
    dense: Callable[[nn.Parameter, Tensor], None]


class Rule(Protocol):
    """One operation of a net. ``forward`` returns the jet and what ``backward`` needs of it."""

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]: ...

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]: ...


# -- linear operations ----------------------------------------------------------------------------
def _linear_rows(jet: Jet, weight: Tensor, bias: Tensor | None) -> Jet:
    if jet.full is None:
        value = jet.value @ weight.T
        if bias is not None:
            value += bias
        return Jet(value, jet.rows @ weight.T)
    shared, batch, features = jet.full.shape
    full = (jet.full.reshape(-1, features) @ weight.T).view(shared, batch, -1)
    if bias is not None:
        full[0] += bias
    return Jet.of(full)


def _linear_adjoint(adjoint: Adjoint, weight: Tensor) -> Adjoint:
    rows, batch, features = adjoint.tensor.shape
    back = adjoint.tensor.reshape(-1, features) @ weight
    return Adjoint(adjoint.rows, back.view(rows, batch, -1))


def _narrowed(adjoint: Adjoint, width: int) -> Adjoint:
    """The adjoint of an input of ``width`` features: summed where one was broadcast over many."""
    if width == adjoint.tensor.shape[-1]:
        return adjoint
    return Adjoint(adjoint.rows, adjoint.tensor.sum(-1, keepdim=True))


@dataclass
class Linear:
    """y = W z + b on row 0, W z on the others. ``layer`` is its number, ``use`` its call's."""

    module: nn.Linear
    layer: int
    use: int

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        (z,) = inputs
        _check_features("Linear", z, self.module.in_features)
        return _linear_rows(z, self.module.weight, self.module.bias), z if keep else None

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        sink.linear(self.layer, self.use, adjoint)
        return [_linear_adjoint(adjoint, self.module.weight) if wanted[0] else None]


@dataclass
class Affine:
    """A fixed map y = W z + b (input scaling, Fourier frequencies, a frozen Linear)."""

    module: FixedLinear | nn.Linear

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        weight = self.module.weight
        _check_features(type(self.module).__name__, inputs[0], weight.shape[1])
        return _linear_rows(inputs[0], weight, self.module.bias), None

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        return [_linear_adjoint(adjoint, self.module.weight)]


@dataclass
class Shift:
    """y = factor · z + constant, both fixed numbers or tensors over features."""

    factor: Any = 1.0
    constant: Any = 0.0

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        (z,) = inputs
        value = z.value * self.factor + self.constant
        rows = (z.rows * self.factor).expand(-1, -1, value.shape[-1])
        return Jet(value, rows), z.value.shape[-1]

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        return [_narrowed(Adjoint(adjoint.rows, adjoint.tensor * self.factor), kept)]


@dataclass
class ScaleBy:
    """y = a ∘ z with one number a or one a feature (an activation's scale).

    ``trained`` is False where a is frozen (requires_grad=False).
    """

    module: Scale
    trained: bool = True

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        (z,) = inputs
        a = self.module.scale
        return Jet(z.value * a, z.rows * a), z if keep else None

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        scale = self.module.scale
        if self.trained:
            total = sum(adjoint.tensor[i] * kept.row(s) for i, s in enumerate(adjoint.rows))
            assert isinstance(total, Tensor)
            derivative = total.sum(-1, keepdim=True) if scale.numel() == 1 else total
            sink.dense(scale, derivative.reshape(len(total), *scale.shape))
        back = Adjoint(adjoint.rows, adjoint.tensor * scale)
        return [_narrowed(back, kept.value.shape[-1])]


@dataclass
class Add:
    """y = f + sign · g; one of them may have one feature only."""

    sign: float = 1.0

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        f, g = inputs
        value = torch.add(f.value, g.value, alpha=self.sign)
        rows = torch.add(f.rows, g.rows, alpha=self.sign)
        return Jet(value, rows), (f.value.shape[-1], g.value.shape[-1])

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        other = adjoint if self.sign == 1 else Adjoint(adjoint.rows, self.sign * adjoint.tensor)
        return [_narrowed(part, w) for part, w in zip((adjoint, other), kept, strict=True)]


@dataclass
class Concatenate:
    """y = (f, g, …) along features."""

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        widest = max(jet.rows.shape[1] for jet in inputs)
        rows = [jet.rows.expand(-1, widest, -1) for jet in inputs]
        value = torch.cat([jet.value for jet in inputs], dim=-1)
        return Jet(value, torch.cat(rows, dim=-1)), [jet.value.shape[-1] for jet in inputs]

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        return [Adjoint(adjoint.rows, part) for part in adjoint.tensor.split(kept, dim=-1)]


@dataclass
class Slice:
    """y = z[:, features]."""

    features: slice

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        (z,) = inputs
        width = z.value.shape[-1]
        return Jet(z.value[:, self.features], z.rows[:, :, self.features]), width

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        full = adjoint.tensor.new_zeros(*adjoint.tensor.shape[:-1], kept)
        full[..., self.features] = adjoint.tensor
        return [Adjoint(adjoint.rows, full)]


# -- nonlinear operations -------------------------------------------------------------------------
def _product_of(rows: tuple[int, ...], jet: Jet) -> Tensor:
    result = jet.row(rows[0])
    for s in rows[1:]:
        result = result * jet.row(s)
    return result


def _polynomial(monomials: tuple[Monomial, ...], jet: Jet) -> Tensor:
    """Σ coefficient · Π rows, [batch or 1, feature]."""
    total: Tensor | None = None
    for monomial in monomials:
        head = _product_of(monomial.rows[:-1], jet)
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
class Elementwise:
    """y = σ(z): P σ(z) = σ' P z + Σ_{m≥2} σ^(m) p_m, with p_m from the plan's ``powers``."""

    tower: activations.Tower

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        (z,) = inputs
        order = max((m for powers in plan.powers for m in powers), default=1)
        if len(plan.rows) == 1:
            order = 0
        tower = self.tower(z.value, order + keep)
        y = Jet.empty(len(plan.rows), z.value, z.value.shape[-1])
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
        return y, (z, tower, polynomials) if keep else None

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        z, tower, polynomials = kept
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
    reached = {0, *active}
    for s in active:
        for monomials in plan.powers[s].values():
            for monomial in monomials:
                reached.update(monomial.rows)
    return tuple(sorted(reached))


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
        head = weight
        for s in others[:-1]:
            head = head * z.row(s)
        by_row[a].addcmul_(head, z.row(others[-1]), value=count * monomial.coefficient)


@dataclass
class Multiply:
    """y = f ∘ g (Leibniz): P(f g) = f P g + g P f + Σ coefficient · P_a f · P_b g."""

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        f, g = inputs
        width = max(f.value.shape[-1], g.value.shape[-1])
        y = Jet.empty(len(plan.rows), f.value, width)
        torch.mul(f.value, g.value, out=y.value)
        if len(plan.rows) > 1:
            y.rows.copy_(f.value * g.rows)
            y.rows.addcmul_(g.value.expand_as(y.value), f.rows.expand(-1, len(f.value), -1))
        for s, products in enumerate(plan.products):
            for c, a, b in products:
                y.rows[s - 1].addcmul_(f.row(a), g.row(b), value=c)
        return y, (f, g) if keep else None

    def backward(
        self, adjoint: Adjoint, kept: Any, plan: Plan, sink: Sink, wanted: list[bool]
    ) -> list[Adjoint | None]:
        f, g = kept
        return [
            self._side(adjoint, f, g, plan, first=True),
            self._side(adjoint, g, f, plan, first=False),
        ]

    @staticmethod
    def _side(adjoint: Adjoint, own: Jet, other: Jet, plan: Plan, *, first: bool) -> Adjoint:
        reached = {0, *adjoint.rows}
        for s in adjoint.rows:
            reached.update(a if first else b for _, a, b in plan.products[s])
        rows = tuple(sorted(reached))
        by_row = {s: torch.zeros_like(adjoint.tensor[0]) for s in rows}
        for i, s in enumerate(adjoint.rows):
            by_row[s].addcmul_(adjoint.tensor[i], other.value)
            if s:
                by_row[0].addcmul_(adjoint.tensor[i], other.row(s))
            for c, a, b in plan.products[s]:
                mine, theirs = (a, b) if first else (b, a)
                by_row[mine].addcmul_(adjoint.tensor[i], other.row(theirs), value=c)
        tensor = torch.stack([by_row[s] for s in rows])
        if own.value.shape[-1] == 1 and tensor.shape[-1] > 1:
            tensor = tensor.sum(-1, keepdim=True)
        return Adjoint(rows, tensor)


def _check_features(name: str, jet: Jet, expected: int) -> None:
    if jet.value.shape[-1] != expected:
        raise UserError(
            f"net: a {name} layer expects {expected} features but gets {jet.value.shape[-1]}"
        )


# -- the table ---------------------------------------------------------------------------------
def elementwise_module(module: nn.Module) -> Rule | None:
    """The rule of an activation module, or None where it is not one."""
    for kind, tower_of in activations.MODULES.items():
        if isinstance(module, kind):
            return Elementwise(tower_of(module))
    return None


UNARY: dict[Any, Callable[[], Rule]] = {op.neg: lambda: Shift(-1.0), torch.neg: lambda: Shift(-1.0)}
for _function, _tower in activations.FUNCTIONS.items():
    UNARY[_function] = lambda tower=_tower: Elementwise(tower)  # type: ignore[misc]
BINARY: dict[Any, Callable[[], Rule]] = {
    **{f: (lambda: Add()) for f in (op.add, torch.add, op.iadd, "add")},
    **{f: (lambda: Add(-1.0)) for f in (op.sub, torch.sub, "sub")},
    **{f: (lambda: Multiply()) for f in (op.mul, torch.mul, "mul")},
}
WITH_CONSTANT: dict[Any, Callable[[Any, bool], Rule]] = {
    **{f: (lambda c, left: Shift(1.0, c)) for f in (op.add, torch.add, op.iadd, "add")},
    **{
        f: (lambda c, left: Shift(-1.0, c) if left else Shift(1.0, -c))
        for f in (op.sub, torch.sub, "sub")
    },
    **{f: (lambda c, left: Shift(c)) for f in (op.mul, torch.mul, "mul")},
}
MODULES: dict[type[nn.Module], Callable[[Any], Rule]] = {
    FixedLinear: Affine,
    Scale: lambda module: ScaleBy(module, module.scale.requires_grad),
}
