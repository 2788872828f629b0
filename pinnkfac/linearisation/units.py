"""The units that a run works in: sizes of fields in the net, and of equations."""

from __future__ import annotations

from torch import Generator

from pinnkfac.domain import Uniform
from pinnkfac.linearisation.balance import mean_square_norms
from pinnkfac.linearisation.field_scales import field_scales
from pinnkfac.linearisation.parts import Parts
from pinnkfac.linearisation.system import System
from pinnkfac.nets import OutputScaling

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
    outputs = [module for module in system.net.modules() if isinstance(module, OutputScaling)]
    if outputs and outputs[-1].identity:  # a net that was trained has its scales
        chosen = field_scales(system.net, parts, points)
        pairs = [
            problem.scales.get(name, (scale.scale, scale.offset))
            for name, scale in zip(problem.fields, chosen, strict=True)
        ]
        outputs[-1].choose([scale for scale, _ in pairs], [offset for _, offset in pairs])
    if equations:
        sizes = [norms.sqrt() for norms in mean_square_norms(system.linearise(points))]
        system.equation_sizes = [size.where(size > 0, 1.0) for size in sizes]
