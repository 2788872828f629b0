"""The Laplacian of a big net: Taylor mode against nested autodiff and bare matrix products.

    python experiments/taylor_cost.py [--points 20] [--repeats 5] [--threads 1] [--widths 768 ...]

Net 50 → 768 → 768 → 512 → 512 → 1, tanh, float64. 'nested' is forward over reverse
(torch.func.jvp of grad, one direction after another in a vmap); 'products' are the matrix products
of the same shapes that Taylor mode needs, and nothing else.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap

from pinnkfac import Box, Problem, Term, lap
from pinnkfac.linearisation.system import System
from pinnkfac.nets import Mlp


def median(call: Callable[[], object], repeats: int) -> float:
    call()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def nested_laplacian(net: torch.nn.Module, x: Tensor, *, laps: bool = True) -> Tensor:
    parameters = {k: v.detach() for k, v in net.named_parameters()}
    buffers = dict(net.named_buffers())
    directions = torch.eye(x.shape[1], dtype=x.dtype)

    def value(point: Tensor) -> Tensor:
        return functional_call(net, (parameters, buffers), (point[None],))[0, 0]

    def one(point: Tensor) -> Tensor:
        def along(v: Tensor) -> Tensor:
            return torch.dot(jvp(grad(value), (point,), (v,))[1], v)

        return vmap(along)(directions).sum()

    return vmap(one)(x)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dimension", type=int, default=50)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 768, 512, 512])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    d, n, widths = arguments.dimension, arguments.points, arguments.widths
    net = Mlp(d, 1, widths)
    box = Box.cube(d)
    problem = Problem(fields=("u",), terms=[Term("laplacian", box.interior, lambda u, at: lap(u))])
    system = System(problem, net)
    x = torch.rand(n, d, dtype=torch.float64)
    points = system.prepare([box.interior.draw(n, _Given(x), torch.Generator())])
    ours = system.residuals(points)[0][:, 0]
    reference = nested_laplacian(net, x)
    deviation = float((ours - reference).abs().max() / reference.abs().max())

    rows = d + 2
    weights = [layer.weight.detach() for layer in net.layers]
    inputs = [torch.randn(n * rows, w.shape[1], dtype=torch.float64) for w in weights[1:]]
    outputs = [z.new_empty(n * rows, w.shape[0]) for z, w in zip(inputs, weights[1:], strict=True)]

    def products() -> None:
        torch.mm(x, weights[0].T)
        for z, w, out in zip(inputs, weights[1:], outputs, strict=True):
            torch.mm(z, w.T, out=out)

    taylor = median(lambda: system.residuals(points), arguments.repeats)
    bare = median(products, arguments.repeats)
    nested = median(lambda: nested_laplacian(net, x), arguments.repeats)
    print(f"net {d} -> {' -> '.join(map(str, widths))} -> 1, tanh, {n} points, float64")
    print(f"deviation from nested autodiff: {deviation:.1e}")
    print(f"Taylor mode {taylor:.3f} s, nested {nested:.3f} s, products {bare:.3f} s")
    print(f"Taylor mode / nested: {taylor / nested:.3f}")
    print(f"Taylor mode / products: {taylor / bare:.3f}")


class _Given:
    """A sampling that returns the given points."""

    regular = False

    def __init__(self, points: Tensor) -> None:
        self.points = points

    def unit(self, number: int, dimension: int, generator: torch.Generator) -> Tensor:
        return self.points


if __name__ == "__main__":
    main()
