"""CG-FAC: steps by conjugate gradients on Kronecker products that are never formed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator

from pinnkfac.common.errors import Diverged, check_choice
from pinnkfac.common.settings import Count, NonNegative
from pinnkfac.curvature.cg_fac import KroneckerOperator, Sharing, conjugate_gradients_by_layer
from pinnkfac.curvature.kfac import dense_gramian
from pinnkfac.curvature.solve import solve_damped
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.system import Linearisation, System
from pinnkfac.step.damping import Damping
from pinnkfac.step.gauss_newton import Automatic, Descent, GaussNewtonStepper
from pinnkfac.step.search import Search


@dataclass(frozen=True)
class CgFac:
    """δ by at most ``iterations`` of conjugate gradients a layer for (C + λ) δ = −∇loss, with C
    the Kronecker products of the last step's points, not formed (Chen 2021, arXiv:2101.00218).

    A layer stops where ‖r‖² < ``tolerance`` · ‖r_0‖², and takes the gradient where the method
    breaks down. ``sharing``: 'expand' as published for one row, 'reduce', or 'rows', a product for
    every row. With ``lengths=None`` the search decides how far to go along δ; with ``Automatic``
    the quadratic model decides, and the search only checks.
    """

    sharing: Sharing = "expand"
    """how rows share a layer: expand or reduce; rows: one product for every row"""
    iterations: Count = 10
    """the most conjugate-gradient iterations a layer"""
    tolerance: NonNegative = 0.01
    """a layer stops where ‖r‖² is below this part of its start"""
    lengths: Automatic | None = None
    """lengths and momentum from the exact quadratic model, checked by the search; null: the search
    decides"""

    def __post_init__(self) -> None:
        check_choice("step.sharing", self.sharing, Sharing)

    def start(
        self, system: System, search: Search, damping: Damping, generator: Generator
    ) -> GaussNewtonStepper:
        descent = CgFacDescent(self)
        return GaussNewtonStepper(system, descent, search, damping, lengths=self.lengths)


class CgFacDescent(Descent):
    """Nothing is kept between steps."""

    def __init__(self, settings: CgFac) -> None:
        self.settings = settings

    def direction(
        self, linearisation: Linearisation, gradient: Direction, damping: float
    ) -> Direction:
        """Raises Diverged where the gradient is not finite."""
        if not all(bool(torch.isfinite(v).all()) for v in gradient):
            raise Diverged("the gradient is NaN or infinite: training diverged")
        own = self.settings
        downhill = [-v for v in gradient]
        layers = len(linearisation.system.graph.linears)
        product = KroneckerOperator(linearisation, own.sharing)
        result = conjugate_gradients_by_layer(
            product, downhill[:layers], damping, own.iterations, own.tolerance
        )
        if len(downhill) > layers:
            result.append(solve_damped(dense_gramian(linearisation), downhill[-1], damping))
        return result
