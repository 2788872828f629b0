"""Heat in a rod, u_t = κ u_xx, with both ends at temperature zero: replace it with your PDE.

Check it:   python -m pinnkfac check my_pde.py
Look at it: python -m pinnkfac show my_pde.py
Solve it:   python -m pinnkfac solve my_pde.py stop.seconds=20
"""

from math import pi

from torch import exp, sin

from pinnkfac import Box, Problem, Term

# from pinnkfac import Parameter, Points  # data


# An argument needs a default value; on the command line it is pde.kappa=0.1.
def my_pde(kappa: float = 0.25) -> Problem:
    # The domain: a range for each coordinate. The coordinate t is time; every other one is space.
    # More of space: Box(t=(0, 1), x=(0, 1), y=(-2, 2)).
    box = Box(t=(0, 1), x=(0, 1))

    # The equation as residual = 0. A residual gets every field, then the point.
    # u.t, u.xx, u.xxy are derivatives; grad(u), div((u, v)), lap(u), dot(a, b) are imported from
    # pinnkfac; at.x is a coordinate. Functions (sin, exp, where) come from torch.
    # A system of equations returns a tuple of residuals.
    def heat(u, at):
        return u.t - conductivity * u.xx

    # The exact solution at a point, a tuple for several fields. With it errors are reported, and
    # 'check' puts it into every term. If you have none, delete it, and solution=solution below.
    def solution(at):
        return exp(-kappa * pi**2 * at.t) * sin(pi * at.x)

    conductivity = kappa
    # An inverse problem: the conductivity is unknown, and is found from measurements of u, here
    # three. Remove the first '# ' of the lines that end in '# data'.
    # conductivity = Parameter("conductivity", initial=1.0)  # data
    # where = {"t": [0.1, 0.4, 0.8], "x": [0.3, 0.5, 0.6]}  # data
    # measured = Points(where, value=[0.6321204, 0.3727078, 0.1321123])  # data

    return Problem(
        fields=("u",),
        terms=[
            # A name, a region, a residual; then points=2000 (how many to draw) or weight=10.0.
            # Regions: box.interior, box.boundary (all faces of space), box.faces("x", side="low"),
            # box.at(t=0), and unions a | b. Slope at a face: dot(grad(u), at.normal).
            Term("heat", box.interior, heat),
            Term("ends", box.faces("x"), lambda u, at: u),
            # Periodic instead: no term "ends", and periodic=("x",) below.
            Term("start", box.at(t=0), lambda u, at: u - sin(pi * at.x)),
            # Term("data", measured, lambda u, at: u - at.value),  # data
        ],
        # parameters=(conductivity,),  # data
        solution=solution,
        units={"t": "s", "x": "m", "u": "K"},  # shown in tables and pictures
        source="",  # where the problem is from
    )
