"""A second look at an exact solution that leaves something of a term: is it wrong, or a coarse one?

A table that is interpolated by pieces of polynomials has wrong derivatives everywhere, and no
fourth derivative at all, while its values are right; those of a solution with a kink are wrong
beside it. Differences over a part of the domain do not see how a table is interpolated. Where they
fulfil a term that autodiff does not, the solution is coarse; where both say the same, it is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from pinnkfac.domain import PointSet
from pinnkfac.field import MultiIndex
from pinnkfac.inspection.autodiff import Derivative, Function, slots
from pinnkfac.residual import Residual

LENGTHS = tuple(2.0**-k for k in range(3, 8))
"""Between neighbouring points of a difference, in parts of the domain's extent."""
MORE = 3
"""Points of a difference beyond its order: its error is of the third power of the length, or, amid
the domain, the fourth."""
COARSE, BETTER = 0.1, 0.25
"""What differences may leave of a residual's size, and of what autodiff leaves, of a coarse
solution."""
SHARE = 0.75
"""Part of the points at which it has to be so small: near a kink it is not."""
CONFIRMED = 0.2
"""Part by which two residuals may differ that say the same."""


@dataclass(frozen=True)
class Left:
    """What a solution leaves of a term: the ``residual``, and its ``ratio`` to the residual's size,
    both [batch, equation]."""

    residual: Tensor
    ratio: Tensor


Judge = Callable[[Tensor, Derivative], Left]
"""From slots z [batch, slot], and how derivatives were computed, to what is left."""


def differences(
    function: Function, points: Tensor, alpha: MultiIndex, length: float, box: tuple[Tensor, Tensor]
) -> Tensor:
    """D^α of all fields at points [batch, coord] by differences of ``length``, [batch, field], from
    points within a box (low, high) [coord]."""
    low, high = box
    steps = length * (high - low)
    nodes, weights = points[:, None], points.new_ones(len(points), 1)
    for i, order in enumerate(alpha):
        if order == 0:
            continue
        away = torch.arange(order + MORE).to(points)
        away = away - away.mean()
        room = (torch.stack([low[i] - points[:, i], high[i] - points[:, i]])) / steps[i]
        moved = (room[0] - away[0]).clamp_min(0.0) + (room[1] - away[-1]).clamp_max(0.0)
        offsets = away + moved[:, None]
        shifts = points.new_zeros(*offsets.shape, points.shape[1])
        shifts[..., i] = offsets * steps[i]
        nodes = (nodes[:, :, None] + shifts[:, None]).flatten(1, 2)
        each = _weights(offsets, order) / steps[i] ** order
        weights = (weights[:, :, None] * each[:, None]).flatten(1, 2)
    values = vmap(function)(nodes.flatten(0, 1)).detach()
    return (weights[..., None] * values.view(*weights.shape, -1)).sum(1)


def _weights(offsets: Tensor, order: int) -> Tensor:
    """w [batch, node] with Σ w_j f(offset_j) the derivative of polynomials f at 0: those by which
    Σ w_j offset_j^i = i! where i is the order, and 0 for other i."""
    powers = torch.arange(offsets.shape[1]).to(offsets)
    right = offsets.new_zeros(offsets.shape)
    right[:, order] = math.factorial(order)
    return torch.linalg.solve(offsets[:, None] ** powers[:, None], right)


def excuse(
    function: Function,
    residual: Residual,
    points: PointSet,
    box: tuple[Tensor, Tensor],
    left: Left,
    judge: Judge,
    allowed: float,
) -> str:
    """Why a solution that leaves more than ``allowed`` of the size of a term may be right; '' where
    nothing says so."""
    if not any(any(alpha) for slot in residual.slots for (_, _, alpha), _ in slot):
        return ""

    def by(length: float) -> Left:
        def derivative(x: Tensor, alpha: MultiIndex) -> Tensor:
            return differences(function, x, alpha, length, box)

        return judge(slots(residual, points, derivative), derivative)

    looks = {length: by(length) for length in LENGTHS}
    bad = [e for e in range(residual.equations) if float(left.ratio[:, e].max()) > allowed]
    excuses = [_of_equation(e, left, looks, allowed) for e in bad]
    return excuses[0] if all(excuses) else ""


def _of_equation(e: int, left: Left, looks: dict[float, Left], allowed: float) -> str:
    ratio, residual = left.ratio[:, e], left.residual[:, e]
    most = _most(ratio)
    if most > allowed:
        rests = [_most(look.ratio[:, e]) for look in looks.values()]
        # An error of differences of one length may hide that of a solution.
        rest, length = min(zip(map(max, rests, rests[1:]), LENGTHS, strict=False))
        if rest > min(COARSE, BETTER * most):
            return ""
        return (
            f"differences over {length:.2g} of the domain leave {rest:.1g} at most "
            "points: right, but coarse, or interpolated from a table?"
        )
    bad = ratio > allowed
    seen = torch.stack([look.residual[:, e] for look in looks.values()])
    same = (seen - residual).abs() <= CONFIRMED * residual.abs()
    same = (same[1:] & same[:-1]).any(0)  # of one length it may be by chance
    if 2 * int((same & bad).sum()) > int(bad.sum()):
        return ""
    return (
        f"at {int((~bad).sum())} of {len(bad)} points no more than {float(ratio[~bad].max()):.1g}: "
        "has it a kink, or a layer, at the others?"
    )


def _most(ratio: Tensor) -> float:
    """What is not exceeded at SHARE of the points."""
    ordered = ratio.nan_to_num(math.inf).sort().values
    return float(ordered[math.ceil(SHARE * len(ordered)) - 1])
