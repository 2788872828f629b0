"""Rules of linear operations: the same on every row, constants on row 0 alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from pinnkfac.common.errors import UserError
from pinnkfac.taylor.jet import MODULES, Adjoint, Adjoints, Jet, Rule, Sink
from pinnkfac.taylor.plan import Plan

NAMES = {
    *("cat", "hstack", "stack", "split", "tensor_split", "chunk", "unbind"),
    *("getitem", "narrow", "select", "index_select", "diagonal", "tril", "triu", "flip", "roll"),
    *("reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "unfold", "contiguous", "clone"),
    *("transpose", "swapaxes", "permute", "movedim", "moveaxis"),
    *("expand", "broadcast_to", "repeat", "tile", "repeat_interleave", "pad"),
    *("neg", "sum", "mean", "cumsum", "diff", "trapezoid", "matmul", "einsum", "linear"),
}
"""Functions and methods of torch that are linear in the layers that they get."""


@dataclass
class Linearly(Rule):
    """y = op(f, g, …) on all rows, + ``constant`` on row 0.

    ``op`` is a function of tensors [batch, …] that is linear in all of them together and acts on
    every point alone, so that rows are just more points. ``transposed`` maps the adjoint of y to
    those of the inputs before what was broadcast is summed; torch differentiates where it is None.
    """

    op: Callable[..., Tensor]
    constant: Tensor | float | None = None
    transposed: Callable[[Tensor], Sequence[Tensor]] | None = None

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        y = self._apply(inputs)
        if self.constant is not None:
            y.value += self.constant
        return y, [z.value.shape[1:] for z in inputs]

    def _apply(self, inputs: list[Jet]) -> Jet:
        return Jet(self.op(*(z.value for z in inputs)), self._on_rows([z.rows for z in inputs]))

    def _on_rows(self, inputs: list[Tensor]) -> Tensor:
        width = max(rows.shape[1] for rows in inputs)
        flat = [rows.expand(-1, width, *rows.shape[2:]).flatten(0, 1) for rows in inputs]
        return self.op(*flat).unflatten(0, (len(inputs[0]), width))

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints:
        g = adjoint.tensor.flatten(0, 1)
        parts = self.transposed(g) if self.transposed else self._differentiate(g, kept)
        return [
            Adjoint(adjoint.rows, part.unflatten(0, adjoint.tensor.shape[:2])).narrowed(axes)
            for part, axes in zip(parts, kept, strict=True)
        ]

    @torch.enable_grad()
    def _differentiate(self, g: Tensor, features: Sequence[Sequence[int]]) -> Sequence[Tensor]:
        inputs = [g.new_zeros(len(g), *axes).requires_grad_() for axes in features]
        return torch.autograd.grad(self.op(*inputs), inputs, g, materialize_grads=True)

    @torch.no_grad()
    def check(self, name: str, sample: Sequence[Tensor]) -> None:
        """Raise UserError where the operation mixes points or is not linear, tried on tensors of
        the shapes of ``sample``."""
        z = [torch.arange(1, v.numel() + 1).to(v).sin().view(v.shape) for v in sample]
        y = self.op(*z)
        rounding = torch.finfo(y.dtype).eps ** 0.5 * (1.0 + float(y.abs().max()))

        def close(one: Tensor, other: Tensor) -> bool:
            return one.shape == other.shape and torch.allclose(one, other, 0.0, rounding)

        try:
            apart = [self.op(*parts) for parts in zip(*(v.split(1) for v in z), strict=True)]
            mixed = not close(y, torch.cat(apart))
        except Exception:  # of torch, for a single point
            mixed = True
        if mixed:
            raise UserError(
                f"net: '{name}' mixes the points of the batch: let it act on features, axis 1 and "
                "later, as with dim=-1; give -1 where it asks for the size of the batch"
            )
        if not close(self.op(*(v - 2 * v.roll(1, 0) for v in z)), y - 2 * y.roll(1, 0)):
            raise UserError(
                f"net: '{name}' is not linear in the layers that it is called on: multiply layers "
                "with *, and give other operations one layer and fixed tensors"
            )


def shift(factor: Any = 1.0, constant: Any = None) -> Linearly:
    """y = factor · z + constant, both fixed numbers or tensors over features."""
    if isinstance(constant, Tensor):
        factor = torch.ones_like(constant) * factor  # z may have one feature only
    return Linearly(lambda z: z * factor, constant, lambda g: (g * factor,))


def add(sign: float = 1.0) -> Linearly:
    """y = f + sign · g."""
    return Linearly(
        lambda f, g: torch.add(f, g, alpha=sign), None, lambda g: (g, g if sign == 1 else sign * g)
    )


class Fixed(Linearly):
    """y = W z + b of a module with weight W [out, in] and bias b that are not trained."""

    def __init__(self, module: Any) -> None:
        super().__init__(self._product, module.bias, lambda g: (g @ module.weight,))
        self.module = module

    def _product(self, z: Tensor) -> Tensor:
        weight = self.module.weight
        if z.shape[1:][-1:] != weight.shape[1:]:
            raise UserError(
                f"net: a {type(self.module).__name__} layer expects {weight.shape[1]} features "
                f"but gets {z.shape[-1] if z.dim() > 1 else 'no axis of them'}"
            )
        return z @ weight.T

    def _apply(self, inputs: list[Jet]) -> Jet:
        full = inputs[0].full
        return super()._apply(inputs) if full is None else Jet.of(self._on_rows([full]))


class Linear(Fixed):
    """A trained nn.Linear. ``layer`` is its number, ``use`` that of the call."""

    def __init__(self, module: nn.Linear) -> None:
        super().__init__(module)
        self.trained = tuple(module.parameters())
        self.layer = self.use = 0

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        if (axes := inputs[0].value.dim()) > 2:
            raise UserError(
                f"net: a trained Linear layer gets a tensor of {axes} axes: make it "
                "[batch, feature], as flatten(1) does"
            )
        return super().forward(inputs, plan, keep)

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints:
        sink.linear(self.layer, self.use, adjoint)
        return super().backward(adjoint, kept, sink, wanted) if wanted[0] else [None]


class AffineLayer(Linearly):
    """The rule of a module that is affine in its input, y = A z + b on row 0, A z on the others.

    A z is the module's forward at z without that at 0. Its trained parameters may enter A and b in
    any way: derivatives by them are taken point by point.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__(lambda z: module(z) - module(torch.zeros_like(z[:1])))
        self.module = module
        self.named = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.trained = tuple(self.named.values())

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]:
        y, features = super().forward(inputs, plan, keep)
        y.value += self.module(torch.zeros_like(inputs[0].value[:1]))
        return y, (features, inputs[0])

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints:
        features, z = kept
        if self.named:
            derivatives = self._by_parameters(adjoint, z)
            for name, parameter in self.named.items():
                sink.dense(parameter, derivatives[name])
        return super().backward(adjoint, features, sink, wanted) if wanted[0] else [None]

    def _by_parameters(self, adjoint: Adjoint, z: Jet) -> dict[str, Tensor]:
        """Σ_s g_s ∂y_s/∂θ, [batch, *shape of θ]."""
        # A copy with the same tensors: functional_call changes the module while it runs.
        tensors = (*self.module.parameters(), *self.module.buffers())
        module = copy.deepcopy(self.module, {id(t): t for t in tensors})
        values = int(adjoint.rows[0] == 0)

        def at_point(rows: Tensor, g: Tensor) -> dict[str, Tensor]:
            def output(parameters: dict[str, Tensor]) -> Tensor:
                y = functional_call(module, parameters, (rows,))
                zero = functional_call(module, parameters, (torch.zeros_like(rows[:1]),))
                return torch.cat([y[:values], y[values:] - zero])

            return vjp(output, {n: p.detach() for n, p in self.named.items()})[1](g)[0]

        rows = torch.stack([z.row(s).expand_as(z.value) for s in adjoint.rows])
        return vmap(at_point, in_dims=1)(rows, adjoint.tensor)


Kind = TypeVar("Kind", bound=type[nn.Module])


def affine_layer(kind: Kind) -> Kind:
    """Decorator: nets may use this class of modules, whose forward is affine in its input."""
    MODULES[kind] = AffineLayer
    return kind


def _of_linear(module: nn.Linear) -> Rule:
    return Linear(module) if any(p.requires_grad for p in module.parameters()) else Fixed(module)


MODULES[nn.Linear] = _of_linear
MODULES.update(dict.fromkeys((nn.Flatten, nn.Unflatten, nn.Identity), Linearly))
