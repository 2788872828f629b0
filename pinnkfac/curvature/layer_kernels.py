"""Solving with the blocks of layers of JᵀJ through their kernels, where residuals are fewer.

With J_l the columns of a layer, (J_lᵀJ_l + λ)⁻¹ J_lᵀ r = J_lᵀ (J_l J_lᵀ + λ)⁻¹ r: a system of as
many equations as there are residuals, however wide the layer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial

from torch import Tensor

from pinnkfac.curvature.kernel import kernel
from pinnkfac.curvature.solve import solve_damped
from pinnkfac.linearisation.block import Block, Layer
from pinnkfac.linearisation.system import Linearisation


def solve_layer(
    linearisation: Linearisation, number: int, right: Tensor, damping: float, *, jacobi: bool
) -> Tensor:
    """(J_lᵀJ_l + λ)⁻¹ J_lᵀ right of one Linear layer, [out, in + bias], for right [residual]."""
    own = layer_alone(linearisation, number)
    weights = solve_damped(kernel(own), right, damping, jacobi=jacobi)
    return own.vjp(weights)[number]


def layer_alone(linearisation: Linearisation, number: int) -> Linearisation:
    """The linearisation with the derivatives by all parameters but those of one Linear layer 0."""
    result = copy.copy(linearisation)
    result.blocks = [partial(_alone, make, number) for make in linearisation.blocks]
    return result


def _alone(make: Callable[[], Block], number: int) -> Block:
    block = make()
    layers = [own if i == number else _without(own) for i, own in enumerate(block.layers)]
    return replace(block, layers=layers, dense=None)


def _without(layer: Layer) -> Layer:
    """The layer where no row of it enters the residual."""
    return replace(
        layer, active=[() for _ in layer.active], gradients=[g[:0] for g in layer.gradients]
    )
