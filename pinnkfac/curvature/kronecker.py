"""Algebra of Kronecker products A ⊗ B acting on layer matrices: (A ⊗ B) vec V ↔ B V A.

A [in, in] belongs to a layer's inputs, B [out, out] to its outputs, V is [out, in] (columns
stacked). No statistics here: see factors.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import torch
from torch import Tensor

from pinnkfac.common.errors import Diverged, UserError
from pinnkfac.linearisation.direction import is_finite

DampingKind = Literal["same", "trace-norm", "exact"]
Pair = tuple[Tensor, Tensor]
"""(A, B) of one Kronecker product."""


def symmetric_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and -vectors of a symmetric matrix; where a driver fails to converge, those of
    the CPU in float64. Raises Diverged where the matrix is not finite."""
    if not is_finite(matrix):
        raise Diverged(
            "a curvature factor is NaN or infinite: training diverged; raise the damping or "
            "use dtype=float64"
        )
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError:
        values, vectors = torch.linalg.eigh(matrix.double().cpu())
        return values.to(matrix), vectors.to(matrix)


@dataclass
class EigenInverse:
    """K_B ((K_Bᵀ V K_A) / D) K_Aᵀ, with bases that need not be orthogonal."""

    base_a: Tensor
    base_b: Tensor
    denominator: Tensor

    def apply(self, v: Tensor) -> Tensor:
        """C⁻¹ V for V [out, in]."""
        inside = (self.base_b.T @ v @ self.base_a) / self.denominator
        return self.base_b @ inside @ self.base_a.T


def damp(pair: Pair, damping: float, kind: DampingKind) -> Pair:
    """Add damping to both factors: λ to each ('same'), or √λ·π and √λ/π ('trace-norm').

    π² = (tr A / dim A) / (tr B / dim B); Martens & Grosse 2015, arXiv:1503.05671, eq. 6.3.
    """
    a, b = pair
    if kind == "same":
        to_a = to_b = damping
    elif kind == "trace-norm":
        mean_a, mean_b = float(a.trace()) / len(a), float(b.trace()) / len(b)
        pi = math.sqrt(mean_a / mean_b) if mean_a > 0 and mean_b > 0 else 1.0
        to_a, to_b = math.sqrt(damping) * pi, math.sqrt(damping) / pi
    else:
        raise UserError(
            f"damping={kind} cannot be added to the factors of a sum of Kronecker products: "
            "use 'same' or 'trace-norm', or merge the terms into one product"
        )
    return _shifted(a, to_a), _shifted(b, to_b)


def _shifted(matrix: Tensor, shift: float) -> Tensor:
    result = matrix.clone()
    result.diagonal().add_(shift)
    return result


def floored(values: Tensor, floor: float) -> Tensor:
    """Eigenvalues, at least ``floor`` times the largest (and never zero).

    A floor below ε of the dtype counts as ε, since smaller eigenvalues are rounding (float32 has
    ε = 1.2e-7); floor = 0 leaves all positive eigenvalues as they are.
    """
    info = torch.finfo(values.dtype)
    relative = max(floor, info.eps) if floor else 0.0
    return values.clamp_min(max(relative * float(values.max()), info.tiny**0.5))


def inverse(
    pairs: list[Pair], damping: float, kind: DampingKind = "exact", floor: float = 1e-15
) -> EigenInverse:
    """The inverse of a damped sum of one or two Kronecker products.

    One product: (A ⊗ B + λ)⁻¹ ('exact'), or (A + λ_A)⁻¹ ⊗ (B + λ_B)⁻¹. Two: with bases that turn
    (A_2, B_2) into identities and (A_1, B_1) into diagonals s, t, (A_1 ⊗ B_1 + A_2 ⊗ B_2)⁻¹ has the
    denominator 1 + t_i s_j. Eigenvalues are ``floored``, so that rank-deficient factors give finite
    steps at any damping. Raises UserError for more than two products.
    """
    if len(pairs) == 1:
        return _one(pairs[0], damping, kind, floor)
    if len(pairs) != 2:
        raise UserError(
            f"a sum of {len(pairs)} Kronecker products has no cheap inverse: merge the terms "
            "into one product (step.inverse.terms=merged)"
        )
    (a1, b1), (a2, b2) = (damp(pair, damping, kind) for pair in pairs)
    base_a, s = _generalised(a1, a2, floor)
    base_b, t = _generalised(b1, b2, floor)
    return EigenInverse(base_a, base_b, 1.0 + torch.outer(t, s))


def _one(pair: Pair, damping: float, kind: DampingKind, floor: float) -> EigenInverse:
    damped = pair if kind == "exact" else damp(pair, damping, kind)
    (a, base_a), (b, base_b) = map(symmetric_eigen, damped)
    if kind == "exact":
        denominator = torch.outer(b.clamp_min(0.0), a.clamp_min(0.0)) + damping
        return EigenInverse(base_a, base_b, floored(denominator, floor))
    return EigenInverse(base_a, base_b, torch.outer(floored(b, floor), floored(a, floor)))


def _generalised(m1: Tensor, m2: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """K and s with Kᵀ M_2 K = I and Kᵀ M_1 K = diag(s)."""
    values, vectors = symmetric_eigen(m2)
    root = vectors * floored(values, floor).rsqrt()
    middle = root.T @ m1 @ root
    s, inner = symmetric_eigen((middle + middle.T) / 2)
    return root @ inner, s.clamp_min(0.0)


def merge(pairs: list[Pair]) -> Pair:
    """One Kronecker product with the partial traces of a sum of them.

    A = Σ tr(B_t) A_t / √τ, B = Σ tr(A_t) B_t / √τ, τ = Σ tr(A_t) tr(B_t): exact for a single
    product, and for sums whose A_t or B_t are multiples of each other.
    """
    if len(pairs) == 1:
        return pairs[0]
    trace_a = [float(a.trace()) for a, _ in pairs]
    trace_b = [float(b.trace()) for _, b in pairs]
    tau = math.sqrt(sum(x * y for x, y in zip(trace_a, trace_b, strict=True)))
    if tau == 0.0:
        return pairs[0]
    a = reduce(torch.add, (t / tau * a for t, (a, _) in zip(trace_b, pairs, strict=True)))
    b = reduce(torch.add, (t / tau * b for t, (_, b) in zip(trace_a, pairs, strict=True)))
    return a, b
