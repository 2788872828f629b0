"""The units that a run works in: sizes of fields in the net, and of equations."""

from __future__ import annotations

from torch import Generator, Tensor

from pinnkfac.domain import Uniform
from pinnkfac.linearisation.balance import mean_square_norms
from pinnkfac.linearisation.compiled import TermPoints, with_scales
from pinnkfac.linearisation.field_scales import field_scales
from pinnkfac.linearisation.parts import Parts, size
from pinnkfac.linearisation.system import System, powers_of_two
from pinnkfac.nets import output_scaling

POINTS = 256
"""Points of every term that sizes are measured on."""


def choose_units(system: System, *, equations: bool = True) -> None:
    """Scale the fields of a net that has an OutputScaling, by Problem(scales=...) or as
    field_scales.py does, and, where ``equations`` is wanted, measure how sensitive these are to the
    parameters with that net: their sizes."""
    problem = system.problem
    generator = Generator().manual_seed(0)
    drawn = [t.where.draw(POINTS, Uniform(), generator) for t in problem.terms]
    points = system.prepare(drawn)
    parts = [Parts(term) for term in system.terms]
    output = output_scaling(system.net)
    if output is not None and output.identity:  # a net that was trained has its scales
        chosen = field_scales(system.net, parts, points)
        pairs = [
            problem.scales.get(name, (scale.scale, scale.offset))
            for name, scale in zip(problem.fields, chosen, strict=True)
        ]
        output.choose([scale for scale, _ in pairs], [offset for _, offset in pairs])
    if equations:
        # Measured in units of their own parts: float32 need not hold their squares.
        largest = [_largest_part(p, drawn) for p, drawn in zip(parts, points, strict=True)]
        scales = [1.0 / powers_of_two(part) for part in largest]
        norms = mean_square_norms(system.linearise(with_scales(points, scales)))
        sizes = [n.sqrt() / scale for n, scale in zip(norms, scales, strict=True)]
        system.equation_sizes = [s.where(s > 0, 1.0) for s in sizes]


def _largest_part(parts: Parts, points: TermPoints) -> Tensor:
    """The size of the largest part of every equation with the net as it is, [equation]; 1 for 0."""
    monomials = parts.monomials(points)
    sizes = size(parts.at(monomials, points).slopes * monomials, dim=1).amax(1)
    return sizes.where(sizes > 0, 1.0)
