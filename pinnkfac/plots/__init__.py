"""Pictures: of solutions, of how runs went, of sweeps; and animations.

Every ``draw_…`` returns a matplotlib Figure that no window knows of; ``save`` writes it.
"""

from pinnkfac.plots.animation import animate, check_animation
from pinnkfac.plots.history import draw_comparison, draw_history
from pinnkfac.plots.saving import save
from pinnkfac.plots.solution import draw_solution
from pinnkfac.plots.sweep import draw_sweep

__all__ = [
    "animate",
    "check_animation",
    "draw_comparison",
    "draw_history",
    "draw_solution",
    "draw_sweep",
    "save",
]
