"""Windows of time: where they begin and end, and the terms of each.

What holds at the start of time holds in the first window; every other one goes on from the one
before it, by its net (pinnkfac.nets.windows). Where that is not enough, windows are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import replace
from itertools import pairwise
from numbers import Integral
from typing import Any, TypeVar

import torch

from pinnkfac.common.errors import UserError
from pinnkfac.domain import Box, Domain, Part, Patches, Points, Region, Uniform
from pinnkfac.field import Coordinates
from pinnkfac.problem.parameter import is_finite
from pinnkfac.problem.term import Term

EXAMPLES = "windows=4, or the edges, such as windows=(0, 0.2, 0.5, 1)"
SAME = 1e-9
"""Part of the length of time by which an edge may miss its beginning or end."""


def time_of(coordinates: Coordinates) -> str | None:
    """The coordinate that is split into windows: time, or the only one there is."""
    single = coordinates.names[0] if len(coordinates.names) == 1 else None
    return coordinates.time or single


def edges_of(windows: Any, domain: Domain) -> tuple[float, ...]:
    """The edges of windows over the time of a domain, none for a single one; raises UserError where
    they do not cover it."""
    if windows is None:
        return ()
    time = time_of(domain.coordinates)
    if time is None:
        raise UserError(
            f"Problem: windows={windows!r}, but none of its coordinates "
            f"({', '.join(domain.coordinates.names)}) is time: call it t, or say Box(..., time=...)"
        )
    low, high = domain.bounds.ranges[time]
    if isinstance(windows, Integral) and not isinstance(windows, bool):
        number = int(windows)
        if number < 1:
            raise UserError(f"Problem: windows={number}; give at least 1, {EXAMPLES}")
        inner = [low + (high - low) * k / number for k in range(1, number)]
        return (low, *inner, high) if number > 1 else ()
    listed = isinstance(windows, Iterable) and not isinstance(windows, str)
    given = list(windows) if listed else []
    if len(given) < 2 or not all(map(is_finite, given)):
        raise UserError(f"Problem: windows={windows!r}; give a whole number, {EXAMPLES}")
    edges = [float(edge) for edge in given]
    if any(b <= a for a, b in pairwise(edges)):
        raise UserError(f"Problem: windows={windows!r} do not increase: give the edges in order")
    if max(abs(edges[0] - low), abs(edges[-1] - high)) > SAME * (high - low):
        raise UserError(
            f"Problem: windows={windows!r} do not cover {time}, which goes from {low:g} to "
            f"{high:g}: begin and end with these"
        )
    return (low, *edges[1:-1], high) if len(edges) > 2 else ()


def check_windows(
    domain: Domain, terms: Sequence[Term], parameters: Sequence[Any], periodic: Sequence[str]
) -> None:
    """Raise UserError for a problem whose windows cannot be trained one after the other."""
    time = time_of(domain.coordinates)
    assert time is not None
    if domain is not domain.bounds:
        raise UserError(
            f"Problem: windows split the time of a Box, not of {domain}: leave them out"
        )
    if parameters:
        raise UserError(
            f"Problem: windows are trained one after the other, but '{parameters[0].name}' is the "
            "same in all of them: leave windows out, or the Parameter"
        )
    if time in periodic:
        raise UserError(
            f"Problem: it is periodic in {time}, so that its end says what its start is: leave "
            "windows out"
        )
    low, high = domain.bounds.ranges[time]
    index = domain.coordinates.index(time)
    starts = [_check_term(term, index, time, (low, high)) for term in terms]
    if not any(starts):
        raise UserError(
            "Problem: windows go on from a start, but no term says what holds at "
            f"{time} = {low:g}: give one on box.at({time}={low:g}), or leave windows out"
        )


def _check_term(term: Term, index: int, time: str, ends: tuple[float, float]) -> bool:
    """Whether a term says something of the start; raises UserError for one that cannot be split."""
    low, high = ends
    where = term.where.region if isinstance(term.where, Part) else term.where
    if isinstance(where, Points):
        at_start = bool((where.given[time] == low).all())
        if where.values and not at_start:
            raise UserError(
                f"term '{term.name}': it has values at given points, and later ones cannot tell "
                "earlier windows anything: leave windows out"
            )
        return at_start
    if not isinstance(where, Patches):
        raise UserError(
            f"term '{term.name}': windows split the regions of a Box, not {type(where).__name__}: "
            "leave windows out"
        )
    for patch in where.patches:
        a, b = patch.low[index], patch.high[index]
        if any(shift[index] for shift in patch.shift.values()):
            raise UserError(
                f"term '{term.name}': it links points at different {time}, which windows cannot "
                "see at once: leave windows out"
            )
        if a < low or b > high:
            raise UserError(
                f"term '{term.name}': its {time} goes from {a:g} to {b:g}, that of the windows "
                f"from {low:g} to {high:g}: use one box for all terms"
            )
        if a == b and a != low:
            raise UserError(
                f"term '{term.name}': it holds at {time} = {a:g}, which windows before it would "
                f"know nothing of: put it at the start, {time} = {low:g}, or leave windows out"
            )
    return any(patch.low[index] == patch.high[index] for patch in where.patches)


def box_of(box: Box, edges: Sequence[float], k: int) -> Box:
    """The box of a window."""
    time = time_of(box.coordinates)
    assert time is not None
    ranges = {**box.ranges, time: (edges[k], edges[k + 1])}
    return Box(ranges, time=box.coordinates.time)


def terms_of(terms: Sequence[Term], box: Box, edges: Sequence[float], k: int) -> list[Term]:
    """The terms of a window of a box, on the part of their regions that lies in it."""
    pairs = [(term, _within(term.where, box, edges, k)) for term in terms]
    return [replace(term, where=where) for term, where in pairs if where is not None]


def _within(where: Any, box: Box, edges: Sequence[float], k: int) -> Region | Points | None:
    """The part of a region that lies in a window; None where there is none."""
    if isinstance(where, Part):
        region = _within(where.region, box, edges, k)
        if region is None:
            return None
        part = Part(region, where.condition)
        try:
            part.draw(1, Uniform(), torch.Generator().manual_seed(0))
        except UserError:  # its condition holds nowhere in this window
            return None
        return part
    time = time_of(box.coordinates)
    assert time is not None
    first, last = k == 0, k == len(edges) - 2
    if isinstance(where, Points):
        low = -math.inf if first else edges[k]
        high = math.inf if last else edges[k + 1]
        t = where.given[time]
        return _points(where, (t >= low) & (t < high))
    assert isinstance(where, Patches)
    i = box.coordinates.index(time)
    patches = []
    for patch in where.patches:
        a, b = max(patch.low[i], edges[k]), min(patch.high[i], edges[k + 1])
        if a < b or (first and patch.low[i] == patch.high[i]):
            patches.append(replace(patch, low=_with(patch.low, i, a), high=_with(patch.high, i, b)))
    bounds = _with(where.bounds, i, (edges[k], edges[k + 1]))
    return Patches(where.name, patches, bounds) if patches else None


Entry = TypeVar("Entry")


def _with(entries: tuple[Entry, ...], i: int, entry: Entry) -> tuple[Entry, ...]:
    return (*entries[:i], entry, *entries[i + 1 :])


def _points(points: Points, rows: torch.Tensor) -> Points | None:
    """Some of given points; None for none."""
    if not rows.any():
        return None
    result = copy(points)
    result.given = {name: v[rows] for name, v in points.given.items()}
    result.values = {name: v[rows] for name, v in points.values.items()}
    result.number = int(rows.sum())
    return result
