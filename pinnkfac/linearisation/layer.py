"""(Z, G) of one linear layer, and all that is made of them.

For a layer y = W z + b the derivative of one equation's residual at one point is Σ_s g_s z̃_sᵀ with
the rows s of the shared axis, its inputs z̃_s = (z_s, 1 or 0), the bias entry last (1 on rows of
values, 0 on rows of derivatives), and the derivatives g_s of the residual by its outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEW = 3
"""Up to so many active rows, sums over pairs of rows cost less than rows of the Jacobian."""
CACHED = 2**18
"""Numbers in rows of the Jacobian that are squared and summed on the spot: they stay in the
cache."""


@dataclass(frozen=True)
class Layer:
    """Inputs and output derivatives of one linear layer at the points of one block.

    ``inputs`` z̃ are [shared, batch, in + bias]. ``gradients[e]`` [active, batch, out] are
    derivatives of equation e by the rows ``active[e]`` of the output; the other rows do not enter
    that equation.
    """

    inputs: Tensor
    active: tuple[tuple[int, ...], ...]
    gradients: tuple[Tensor, ...]

    def inputs_on(self, rows: Sequence[int]) -> Tensor:
        """z̃ on some rows, [len(rows), batch, in + bias], as a view where they are contiguous."""
        if len(rows) == len(self.inputs):
            return self.inputs
        if rows and list(rows) == list(range(rows[0], rows[-1] + 1)):
            return self.inputs[rows[0] : rows[-1] + 1]
        return self.inputs[list(rows)]

    def rows(self, equation: int) -> tuple[Tensor, Tensor]:
        """(z̃ [active, batch, in + bias], g [active, batch, out]) of an equation."""
        return self.inputs_on(self.active[equation]), self.gradients[equation]

    def equations(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(equation, z̃, g) of all equations that some row enters."""
        for equation, g in enumerate(self.gradients):
            if len(g):
                yield equation, *self.rows(equation)

    @property
    def all_active(self) -> list[int]:
        """The rows that enter some equation."""
        return sorted({s for rows in self.active for s in rows})

    def at(self, points: slice) -> Layer:
        """The layer at some of the points, as views."""
        gradients = tuple(g[:, points] for g in self.gradients)
        return Layer(self.inputs[:, points], self.active, gradients)

    # -- products: V [out, in + bias], w [batch, equation] -----------------------------------------
    def jvp(self, vs: Sequence[Tensor], out: Tensor) -> None:
        """out[direction, batch, equation] = Σ_s ⟨g_s, V z̃_s⟩, all directions in one product."""
        weights = torch.cat(list(vs))
        for e, z, g in self.equations():
            product = (z.flatten(0, 1) @ weights.T).view(*g.shape[:2], len(vs), g.shape[-1])
            out[:, :, e] = product.mul_(g[:, :, None]).sum(0).sum(-1).T

    def vjp(self, w: Tensor, total: Tensor) -> None:
        """total [out, in + bias] += Σ_n w_n Σ_s g_ns z̃_nsᵀ."""
        for e, z, g in self.equations():
            total.addmm_((g * w[:, e, None]).flatten(0, 1).T, z.flatten(0, 1))

    def jacobian(self, equation: int, scale: float = 1.0) -> Tensor:
        """scale · ∂ residual / ∂[W | b] of one equation, [batch, out, in + bias]."""
        z, g = self.rows(equation)
        if not len(g):
            return g.new_zeros(*g.shape[1:], self.inputs.shape[-1])
        if scale != 1.0:
            g = g * scale
        return torch.bmm(g.permute(1, 2, 0), z.transpose(0, 1))

    def square_norms(self) -> Tensor:
        """Σ_n ‖Σ_s g_ns z̃_nsᵀ‖² of every equation, [equation], as Σ_st (z̃_s·z̃_t)(g_s·g_t)."""
        result = self.inputs.new_zeros(len(self.gradients))
        for e, z, g in self.equations():
            z, g = z.transpose(0, 1), g.transpose(0, 1)
            result[e] = ((z @ z.transpose(1, 2)) * (g @ g.transpose(1, 2))).sum()
        return result

    def add_squares(
        self, total: Tensor, weight: float, bases: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """total [out, in + bias] += weight · Σ_n (Q_Bᵀ Σ_s g_ns z̃_nsᵀ Q_A)², entry by entry, with
        ``bases`` (Q_A, Q_B), or the diagonal itself."""
        for _, z, g in self.equations():
            if bases is not None:
                z, g = z @ bases[0], g @ bases[1]
            total.add_(square_sum(g, z), alpha=weight)


@torch.no_grad()
def square_sum(g: Tensor, z: Tensor) -> Tensor:
    """Σ_n (Σ_s g_ns z_nsᵀ)² entry by entry, [out, in], for g [active, batch, out] and
    z [active, batch, in]: the diagonal of a layer's block of JᵀJ.

    With few rows Σ_st (g_ns ∘ g_nt)(z_ns ∘ z_nt)ᵀ, which forms no row of J.
    """
    active, batch, out = g.shape
    total = g.new_zeros(out, z.shape[-1])
    if active <= FEW:
        for s in range(active):
            left = (g[: s + 1] * g[s]).view(-1, out)
            left[: s * batch] *= 2.0  # pairs s ≠ t count twice
            total.addmm_(left.T, (z[: s + 1] * z[s]).view(-1, z.shape[-1]))
        return total.clamp_min_(0.0)
    size = max(1, CACHED // total.numel())
    for start in range(0, batch, size):
        points = slice(start, start + size)
        rows = torch.bmm(g[:, points].permute(1, 2, 0), z[:, points].transpose(0, 1))
        total += rows.square_().sum(0)
    return total
