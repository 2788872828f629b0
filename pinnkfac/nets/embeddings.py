"""Maps in front of a net (scaling, Fourier features, periodic embedding), and behind it (units)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn

from pinnkfac.common.errors import UserError
from pinnkfac.nets.layers import FixedLinear


class InputScaling(FixedLinear):
    """Map the box [low, high] onto [−1, 1], coordinate by coordinate.

    Raises UserError where low < high does not hold.
    """

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise UserError(
                f"InputScaling: low={tuple(low)}, high={tuple(high)}; give low < high for every "
                "coordinate"
            )
        a = torch.tensor(low, dtype=torch.float64)
        b = torch.tensor(high, dtype=torch.float64)
        super().__init__(torch.diag(2.0 / (b - a)), -(b + a) / (b - a))


class OutputScaling(FixedLinear):
    """u_k = offset_k + scale_k · z_k, field by field: z without units, u in those of the user.

    It begins as the identity; a run chooses what fits its problem where the configuration wants
    that (net.output_scaling), in any net that has one.
    """

    def __init__(self, fields: int) -> None:
        super().__init__(torch.eye(fields, dtype=torch.float64))
        self.chosen = False

    @property
    def identity(self) -> bool:
        """Whether nothing was chosen yet."""
        one = torch.eye(len(self.weight)).to(self.weight)
        return not self.chosen and torch.equal(self.weight, one) and not bool(self.bias.any())

    @torch.no_grad()
    def choose(self, scales: Sequence[float], offsets: Sequence[float]) -> None:
        """Take these scales and offsets, one a field."""
        self.chosen = True
        self.weight.copy_(torch.diag(self.weight.new_tensor(scales)))
        self.bias.copy_(self.bias.new_tensor(offsets))

    def take_over(self, other: OutputScaling) -> None:
        """Those of another one."""
        self.choose(other.scales.tolist(), other.bias.tolist())

    @property
    def scales(self) -> Tensor:
        """scale_k, [field]."""
        return self.weight.diag()


def output_scaling(net: nn.Module) -> OutputScaling | None:
    """The scales of the fields of a net, the last where it has several; None where it has none."""
    found = [module for module in net.modules() if isinstance(module, OutputScaling)]
    return found[-1] if found else None


class FourierFeatures(nn.Module):
    """(sin 2πFx, cos 2πFx) with fixed frequencies F ~ N(0, scale²), [features / 2, in].

    Source: Tancik et al. 2020, arXiv:2006.10739, eq. 5.
    """

    def __init__(
        self, inputs: int, features: int, scale: float, generator: Generator | None = None
    ) -> None:
        super().__init__()
        frequencies = torch.randn(features // 2, inputs, generator=generator, dtype=torch.float64)
        self.map = FixedLinear(2 * math.pi * scale * frequencies)
        self.features = 2 * (features // 2)

    def forward(self, x: Tensor) -> Tensor:
        z = self.map(x)
        return torch.cat([torch.sin(z), torch.cos(z)], dim=-1)


class PeriodicEmbedding(nn.Module):
    """Replace periodic coordinates x_i by cos and sin of k·2πx_i/L_i, k = 1 … harmonics.

    Every function of the embedding is periodic with period L_i, all derivatives included.
    ``periods`` has one entry per coordinate, None where it is not periodic (it passes unchanged).
    Source: Dong & Ni 2021, arXiv:2007.07442.

    Raises UserError where no coordinate is periodic, or a period or ``harmonics`` is not positive.
    """

    def __init__(self, periods: Sequence[float | None], harmonics: int = 1) -> None:
        super().__init__()
        if all(period is None for period in periods):
            raise UserError(
                "PeriodicEmbedding: no coordinate has a period: leave it out of the net"
            )
        if harmonics < 1 or not all(p is None or 0 < p < math.inf for p in periods):
            raise UserError(
                f"PeriodicEmbedding: periods={tuple(periods)}, harmonics={harmonics}; give "
                "positive numbers, and None for a coordinate that is not periodic"
            )
        waves, plain = [], []
        for i, period in enumerate(periods):
            unit = torch.zeros(len(periods), dtype=torch.float64)
            unit[i] = 1.0
            if period is None:
                plain.append(unit)
            else:
                waves += [2 * math.pi * k / period * unit for k in range(1, harmonics + 1)]
        self.waves = FixedLinear(torch.stack(waves))
        self.plain = FixedLinear(torch.stack(plain)) if plain else None
        self.features = 2 * len(waves) + len(plain)

    def forward(self, x: Tensor) -> Tensor:
        z = self.waves(x)
        parts = [torch.cos(z), torch.sin(z)]
        if self.plain is not None:
            parts.append(self.plain(x))
        return torch.cat(parts, dim=-1)
