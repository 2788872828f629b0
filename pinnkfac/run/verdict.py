"""What a run that ended should be told with its result: signs that it is not the solution.

Pure functions of what was recorded. A warning says what was seen, what is likely behind it, and
what to try; none says that a result is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from pinnkfac.linearisation.jumps import Jump
from pinnkfac.problem import Problem

KEY = "relative_residuals"
SOLVED = 1e-2
"""Relative residual above which a term does not hold."""
LEARNT = 0.3
"""Relative residual of all terms above which nothing was learnt."""
NOISE = 1e-3
"""Relative residual of given values above which their noise may spoil the other terms."""
APART = 30.0
"""How many times larger than that of the next term the residual of one that is left behind is."""
FALLING = 0.5
"""Part that the largest residual falls to over the last half of a run that more time would help."""
RISEN = 10.0
"""How many times its lowest value a residual that rose is."""
FITTED = 10.0
"""How many times larger than on given points the residual between them is where these were
fitted."""
STALLED = (
    "Where the solution has a corner, a layer or a shock, try more points and a larger net "
    "(points.scale=2, net.widths=[96,96,96]); else terms may contradict each other, or waves be "
    "too short (net.activation=sin)"
)
EARLY = 30
"""Steps after which residuals say more than that there were few of them."""
AWAY = 1e3
"""Factor by which a coefficient that ran off differs from its first value."""


def warnings_of(
    problem: Problem,
    history: Sequence[Mapping[str, Any]],
    residuals: Mapping[str, float],
    on_given_points: Mapping[str, float],
    coefficients: Mapping[str, float],
    jumps: Sequence[Jump],
    systematic: Mapping[str, bool] = MappingProxyType({}),
) -> list[str]:
    """Sentences, the most telling first; none where nothing was seen.

    ``history`` are the records of the run, ``residuals`` the relative residuals of terms at its
    end (see ResidualMeter), ``on_given_points`` those on given points of terms that are judged
    between these, ``systematic`` whether those of terms with given values are no noise.
    """
    found = [jump_warning(problem, jump) for jump in jumps]
    fitted = [
        name
        for name, rho in on_given_points.items()
        if residuals[name] > SOLVED and residuals[name] > FITTED * rho
    ]
    found += [_fitted(name, residuals[name], on_given_points[name]) for name in fitted]
    found += _coefficients(problem, coefficients)
    records = [record for record in history if record.get(KEY, {}).keys() >= residuals.keys()]
    trace = [
        {name: math.inf if rho is None else rho for name, rho in record[KEY].items()}
        for record in records
    ]
    early = bool(records) and records[-1]["step"] < EARLY
    rest = {name: rho for name, rho in residuals.items() if name not in fitted}
    given = {name: alike for name, alike in systematic.items() if name in rest}
    return found + (_residuals(trace, rest, given, early=early) if rest else [])


def _fitted(name: str, between: float, on_points: float) -> str:
    """That a net fulfils a term at its given points only."""
    times = f"{between / on_points:.1g} times" if on_points > 0 else "far"
    return (
        f"term '{name}': its residual is {times} larger between its given points than on them: the "
        "net fits the points, not the equation. Give more of them, or a region instead, "
        "box.interior.where(lambda at: ...)"
    )


def jump_warning(problem: Problem, jump: Jump) -> str:
    """What a jumping coefficient means, and how to write it."""
    names = problem.coordinates.names
    derivative = "".join(n * a for n, a in zip(names, jump.alpha, strict=True))
    place = ", ".join(f"{n} = {x:.3g}" for n, x in zip(names, jump.place, strict=True))
    low, high = jump.values
    field = problem.fields[jump.field]
    return (
        f"term '{jump.term}': the coefficient of {field}.{derivative} jumps at {place} ({low:.3g}, "
        f"{high:.3g}): there the term says nothing of the flux, and other functions than the "
        "solution fulfil it. Make the flux a field (q = k u.x in one equation, q.x in the other), "
        "or give each side a field, and a term on the interface"
    )


def _coefficients(problem: Problem, coefficients: Mapping[str, float]) -> list[str]:
    found = []
    for parameter in problem.parameters:
        value = coefficients[parameter.name]
        first = abs(parameter.initial) or 1.0
        collapsed = parameter.initial != 0 and abs(value) < first / AWAY**2
        if collapsed or abs(value) > first * AWAY:
            found.append(
                f"the coefficient {parameter.name} went from {parameter.initial:g} to {value:.3g}: "
                "the data may not determine it; give a first value closer to it, or more data"
            )
    return found


def _residuals(
    trace: Sequence[Mapping[str, float]],
    now: Mapping[str, float],
    systematic: Mapping[str, bool],
    *,
    early: bool,
) -> list[str]:
    """What the residuals of the terms at the end, and on the way there, say. What noise can explain
    is no reason to warn."""
    noisy = {name: now[name] for name, alike in systematic.items() if not alike}
    others = {name: rho for name, rho in now.items() if name not in noisy}
    worst = max(others, key=others.__getitem__, default=None)
    found = []
    if worst is not None and others[worst] > SOLVED:
        found.append(_open(worst, trace, now, systematic, early=early))
    learnt = early or min(now.values()) <= LEARNT
    found += [
        f"term '{name}': its values are fitted to {_percent(rho)} only; what is left of them has "
        "any sign at neighbouring points, as noise has, or a solution with waves that are too "
        "short for so few"
        for name, rho in noisy.items()
        if rho > LEARNT and not early and (learnt or not found)
    ]
    return found


def _open(
    worst: str,
    trace: Sequence[Mapping[str, float]],
    now: Mapping[str, float],
    systematic: Mapping[str, bool],
    *,
    early: bool,
) -> str:
    """Why a term does not hold."""
    shown = f"its residual is {now[worst]:.1g} of its largest part"
    if early:
        return f"term '{worst}' does not hold yet, {shown} after so few steps: give it more time"
    if min(now.values()) > LEARNT:
        return (
            "nothing was learnt: the residual of every term is as large as its parts. The solution "
            "may have waves that are too short for the net (net.activation=sin, "
            "net.fourier_features=64), or the terms may contradict each other (check)"
        )
    half = trace[len(trace) // 2][worst] if trace else now[worst]
    lowest = min((record[worst] for record in trace), default=now[worst])
    risen = now[worst] > RISEN * lowest
    if not risen and now[worst] < FALLING * half:
        return f"term '{worst}' does not hold yet, {shown} and still falls: give it more time"
    seen = f"{shown}, after {lowest:.1g} on the way" if risen else f"{shown}, and falls no more"
    noisy = [name for name, alike in systematic.items() if not alike and now[name] > NOISE]
    if noisy:
        name = max(noisy, key=now.__getitem__)
        return (
            f"term '{worst}' does not hold: {seen}, while the values of '{name}' are fitted to "
            f"{_percent(now[name])}. If that is noise, it is fitted at the cost of '{worst}': give "
            f"'{name}' less weight, Term(..., weight=0.01)"
        )
    if risen:
        return (
            f"term '{worst}': {seen}: training went astray. Try another seed, "
            "balance.every=100000, or best.pt (plot RUN --checkpoint best)"
        )
    if systematic.get(worst):
        return (
            f"term '{worst}' does not hold: {seen}. It is alike at neighbouring points, which "
            "noise is not: the other terms may contradict these values (a coefficient, a sign, a "
            "unit), or the net be too small (net.widths=[96,96,96])"
        )
    return (
        f"term '{worst}' does not hold: {shown}{_beside(worst, now)}, and falls no more. {STALLED}"
    )


def _beside(worst: str, now: Mapping[str, float]) -> str:
    """The term that comes next, where it holds far better."""
    others = [name for name in now if name != worst]
    after = max(others, key=now.__getitem__, default=None)
    if after is None or now[worst] <= APART * now[after]:
        return ""
    return f", while '{after}' has {now[after]:.1g}"


def _percent(part: float) -> str:
    return f"{100 * part:.2g} %"
