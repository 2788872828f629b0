"""Kovasznay's flow behind a grid: the steady Navier-Stokes equations at Reynolds number 40.

    u u_x + v u_y + p_x = ν Δu,    u v_x + v v_y + p_y = ν Δv,    u_x + v_y = 0,    ν = 1/Re,

on [−0.5,1] × [−0.5,1.5]; the velocity is given on the boundary, the pressure at one point.
Exact solution, with λ = Re/2 − √(Re²/4 + 4π²):
u = 1 − e^{λx} cos 2πy, v = λ/(2π) e^{λx} sin 2πy, p = (1 − e^{2λx})/2.
Source: Kovasznay, Proc. Camb. Phil. Soc. 44 (1948); domain of arXiv:2003.06496 (NSFnets).
"""

from math import pi, sqrt

from torch import cos, exp, sin

from pinnkfac import Box, Problem, Term, lap


def kovasznay(reynolds: float = 40.0) -> Problem:
    box = Box(x=(-0.5, 1), y=(-0.5, 1.5))
    nu = 1 / reynolds
    rate = reynolds / 2 - sqrt(reynolds**2 / 4 + 4 * pi**2)

    def solution(at):
        growth, angle = exp(rate * at.x), 2 * pi * at.y
        return (
            1 - growth * cos(angle),
            rate / (2 * pi) * growth * sin(angle),
            (1 - growth**2) / 2,
        )

    def flow(u, v, p, at):
        return (
            u * u.x + v * u.y + p.x - nu * lap(u),
            u * v.x + v * v.y + p.y - nu * lap(v),
            u.x + v.y,
        )

    def velocity(u, v, p, at):
        exact_u, exact_v, _ = solution(at)
        return u - exact_u, v - exact_v

    return Problem(
        fields=("u", "v", "p"),
        terms=[
            Term("flow", box.interior, flow, points=1500),
            Term("velocity", box.boundary, velocity, points=300),
            # Pressure is determined up to a constant: it is zero at x = 0.
            Term("pressure", box.at(x=0, y=0), lambda u, v, p, at: p, points=1),
        ],
        solution=solution,
        vectors={"velocity": ("u", "v")},
        source="Kovasznay, Proc. Camb. Phil. Soc. 44 (1948)",
    )
