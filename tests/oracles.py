"""Slow and obvious: what the package computes in other ways, from nested automatic differentiation.

Residuals come from ``references``; here a net takes the place of the exact solution. Flat vectors
of parameters have the order of ``System.get_parameters()``: [weight | bias] of every layer in the
order of the first calls, then trained scales, then unknown coefficients over their first values (1
where these are 0).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import references
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacfwd, jacrev, vmap

from pinnkfac.linearisation.compiled import TermPoints
from pinnkfac.linearisation.direction import Direction
from pinnkfac.linearisation.layer import Layer
from pinnkfac.linearisation.system import System
from pinnkfac.problem import bind


# -- comparing -----------------------------------------------------------------------------------
def deviation(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected entry (absolute where that is 0)."""
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    assert actual.dtype == expected.dtype, (actual.dtype, expected.dtype)
    if not actual.numel():
        return 0.0
    size = expected.abs().max().item()
    return (actual - expected).abs().max().item() / (size if size > 0 else 1.0)


def assert_close(actual: Tensor, expected: Tensor, rtol: float, what: object = "") -> None:
    found = deviation(actual, expected)
    assert found <= rtol, f"{what}: relative deviation {found:.2e}, allowed {rtol:.0e}"


# -- derivatives of nets -------------------------------------------------------------------------
def derivatives(net: nn.Module, x: Tensor, order: int) -> list[Tensor]:
    """Full derivatives [batch, field, coord, …, coord] of orders 0 … ``order``."""
    result = []
    f: Callable[[Tensor], Tensor] = lambda point: net(point[None])[0]  # noqa: E731
    for _ in range(order + 1):
        result.append(vmap(f)(x).detach())
        f = jacfwd(f)
    return result


def operator(net: nn.Module, x: Tensor, linear: Sequence) -> Tensor:
    """Σ c D^α u_k at x, [batch], for a slot such as (((k, '', α), c), …)."""
    full = derivatives(net, x, max(sum(alpha) for (_, _, alpha), _ in linear))
    total = x.new_zeros(len(x))
    for (k, _, alpha), c in linear:
        index = [i for i, a in enumerate(alpha) for _ in range(a)]
        total = total + c * full[len(index)][(slice(None), k, *index)]
    return total


# -- the Jacobian of all residuals ---------------------------------------------------------------
def flat(direction: Direction) -> Tensor:
    return torch.cat([v.reshape(-1) for v in direction])


def unflat(vector: Tensor, like: Direction) -> Direction:
    parts = vector.split([v.numel() for v in like])
    return [p.reshape(v.shape) for p, v in zip(parts, like, strict=True)]


def random_direction(system: System, seed: int = 0) -> Direction:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v)
        for v in system.get_parameters()
    ]


def named(system: System, vector: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """The net's parameters by name, and the coefficients, out of a flat vector."""
    names = {id(p): name for name, p in system.net.named_parameters()}
    pieces = unflat(vector, system.get_parameters())
    result = {}
    for linear, piece in zip(system.graph.linears, pieces, strict=False):
        result[names[id(linear.weight)]] = piece[:, : linear.in_features]
        if linear.bias is not None:
            result[names[id(linear.bias)]] = piece[:, linear.in_features]
    start = 0
    for scale in system.graph.dense:
        result[names[id(scale)]] = pieces[-1][start : start + scale.numel()].view_as(scale)
        start += scale.numel()
    return result, pieces[-1][start:] if start or len(system.coefficients) else vector[:0]


def residuals(system: System, vector: Tensor, points: Sequence[TermPoints]) -> list[Tensor]:
    """The residual of every term, [batch, equation], at any parameters."""
    parameters, coefficients = named(system, vector)

    def fields(point: Tensor) -> Tensor:
        return functional_call(system.net, parameters, (point[None],))[0]

    values = coefficients * system.coefficient_sizes
    with bind(system.problem.parameters, list(values.unbind())):
        return [
            references.residual(term, system.problem, own.points, fields)
            for term, own in zip(system.problem.terms, points, strict=True)
        ]


def weighted(system: System, vector: Tensor, points: Sequence[TermPoints]) -> Tensor:
    """√(weight / number of points) · residual, flat over terms, points and equations."""
    parts = residuals(system, vector, points)
    return torch.cat(
        [
            ((term.weight / len(r)) ** 0.5 * r).reshape(-1)
            for term, r in zip(system.problem.terms, parts, strict=True)
        ]
    )


def jacobian(system: System, points: Sequence[TermPoints]) -> Tensor:
    """J [residual, param] by automatic differentiation of nested automatic differentiation."""
    theta = flat(system.get_parameters())
    return jacrev(lambda v: weighted(system, v, points))(theta).detach()


def layer_blocks(matrix: Tensor, system: System) -> list[Tensor]:
    """Diagonal blocks [layer's param, layer's param] of a matrix over all parameters."""
    sizes = [v.numel() for v in system.get_parameters()]
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [matrix[a : a + n, a : a + n] for a, n in zip(starts, sizes, strict=True)]


# -- Jacobians from (Z, G) one product at a time -------------------------------------------------
def layer_jacobian(layer: Layer, equation: int) -> Tensor:
    """∂ residual / ∂[W | b] of one equation, [batch, out · (in + bias)], row by row."""
    total: Tensor = torch.zeros(())
    for i, s in enumerate(layer.active[equation]):
        g = layer.gradients[equation][i]
        total = total + torch.einsum("bo,bi->boi", g, layer.inputs[s])
    return total.flatten(1)


# -- algebra -------------------------------------------------------------------------------------
def kronecker(a: Tensor, b: Tensor) -> Tensor:
    """The matrix of V ↦ B V A on V [out, in] flattened as torch does, for symmetric A."""
    return torch.einsum("oO,iI->oiOI", b, a).reshape(len(a) * len(b), -1)


def conjugate_gradients(
    matrix: Tensor, right: Tensor, precondition: Callable[[Tensor], Tensor], iterations: int
) -> Tensor:
    """The textbook method for matrix · x = right from x = 0 (Shewchuk 1994)."""
    x = torch.zeros_like(right)
    r = right.clone()
    z = precondition(r)
    p = z.clone()
    for _ in range(iterations):
        image = matrix @ p
        length = (r @ z) / (p @ image)
        x = x + length * p
        r_new = r - length * image
        z_new = precondition(r_new)
        p = z_new + (r_new @ z_new) / (r @ z) * p
        r, z = r_new, z_new
    return x


def random_spd(size: int, seed: int, rank: int | None = None) -> Tensor:
    """A random symmetric positive (semi)definite matrix."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, rank or size + 3, generator=generator, dtype=torch.float64)
    return x @ x.T / x.shape[1]
