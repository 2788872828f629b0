"""What is missing in many problems, read from their slots and regions. Hints, never failures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from torch import Generator

from pinnkfac.common.errors import abbreviated, counted
from pinnkfac.domain import Patches, Points, Uniform
from pinnkfac.field import MultiIndex
from pinnkfac.inspection.finding import Finding, hint
from pinnkfac.problem import Problem, Term
from pinnkfac.residual import Residual

NUMBER = 64
"""Points of a region that is no patches, by which it is seen where it lies."""


def hints(
    problem: Problem, residuals: Sequence[Residual], periodic: Sequence[str]
) -> Iterator[Finding]:
    """All hints; ``periodic`` are coordinates that the net itself is periodic in."""
    for text in (
        *unread_fields(problem, residuals),
        *free_constants(problem, residuals),
        *missing_start(problem, residuals, periodic),
        *bare_faces(problem, residuals, periodic),
        *outside_domain(problem),
    ):
        yield hint("hint", text)


def fields_of_equations(residual: Residual) -> list[set[int]]:
    """The fields that each equation depends on."""
    return [
        {field for i in reads for (field, _, _), _ in residual.slots[i]} for reads in residual.reads
    ]


def fields_read(residuals: Iterable[Residual]) -> set[int]:
    """The fields that any equation of these depends on."""
    return set().union(*(fields for r in residuals for fields in fields_of_equations(r)))


def derivatives_read(residuals: Iterable[Residual]) -> set[tuple[int, MultiIndex]]:
    """Fields with the derivatives of them that these residuals read, at whichever place."""
    return {(field, alpha) for r in residuals for s in r.slots for (field, _, alpha), _ in s}


def _fixed(term: Term) -> list[dict[int, float]]:
    """The fixed coordinates with values of every patch of a region, and of those linked to it; of
    another region those that its points share."""
    if isinstance(term.where, Points):
        return []
    if not isinstance(term.where, Patches):
        x = term.where.draw(NUMBER, Uniform(), Generator().manual_seed(0)).coordinates
        shared = (x == x[:1]).all(0).tolist()
        return [{i: value for i, value in enumerate(x[0].tolist()) if shared[i]}]
    return [
        {i: low + shift[i] for i, low in enumerate(patch.low) if i not in patch.free}
        for patch in term.where.patches
        for shift in ((0.0,) * len(patch.low), *patch.shift.values())
    ]


def unread_fields(problem: Problem, residuals: Sequence[Residual]) -> Iterator[str]:
    """Fields that no equation depends on: the net gives them, and nothing says what they are."""
    read = fields_read(residuals)
    for k, name in enumerate(problem.fields):
        if k not in read:
            yield f"no term reads the field {name}: use it in a residual, or leave it out"


def free_constants(problem: Problem, residuals: Sequence[Residual]) -> Iterator[str]:
    """Fields of which no slot feels an added constant: they are found up to a constant only."""
    slots = [slot for residual in residuals for slot in residual.slots]
    for k, name in enumerate(problem.fields):
        mine = [[(alpha, c) for (field, _, alpha), c in slot if field == k] for slot in slots]
        changes = [sum(c for alpha, c in part if not any(alpha)) for part in mine]
        if any(mine) and all(abs(change) <= 1e-12 for change in changes):
            arguments = ", ".join((*problem.fields, "at"))
            box = problem.domain.bounds
            point = ", ".join(f"{n}={low:g}" for n, (low, _) in box.ranges.items())
            yield (
                f"no term fixes the constant of {name}: every term has the same value for "
                f"{name} + 1; give it at a point, such as Term('level', box.at({point}), "
                f"lambda {arguments}: {name})"
            )


def missing_start(
    problem: Problem, residuals: Sequence[Residual], periodic: Sequence[str]
) -> Iterator[str]:
    """Fields with derivatives by time, and fewer conditions at the start than these need; values at
    given points stand in for these, as in an inverse problem."""
    time = problem.coordinates.time
    if time is None or time in periodic:
        return
    t = problem.coordinates.index(time)
    start, end = problem.domain.bounds.ranges[time]
    starts = [
        equation
        for residual in residuals
        if any(fixed in ({t: start}, {t: end}) for fixed in _fixed(residual.term))
        for equation in fields_of_equations(residual)
    ]
    places = [(residual, residual.term.where) for residual in residuals]
    measured = fields_read(r for r, where in places if isinstance(where, Points) and where.values)
    for k, name in enumerate(problem.fields):
        needed = max(
            (alpha[t] for field, alpha in derivatives_read(residuals) if field == k), default=0
        )
        conditions = sum(k in equation for equation in starts)
        if k not in measured and conditions < needed:
            times = "once" if needed == 1 else f"{needed} times"
            have = f"only {counted(conditions, 'condition')}" if conditions else "no condition"
            values = f"{name}, {name}.{time}" if needed > 1 else name
            yield (
                f"{name} is differentiated {times} by {time}, and has {have} at the start: "
                f"give {values} on box.at({time}={start:g})"
            )


def bare_faces(
    problem: Problem, residuals: Sequence[Residual], periodic: Sequence[str]
) -> Iterator[str]:
    """Faces of space without a term, as far as derivatives across them ask for one: two faces
    from the second derivative on, one of the two for a first derivative."""
    coordinates = problem.coordinates
    if not all(isinstance(term.where, Patches | Points) for term in problem.terms):
        return
    covered = [fixed for term in problem.terms for fixed in _fixed(term)]
    bare = []
    # With one coordinate, conditions at one end may be all, as those of a start.
    for name in coordinates.space if len(coordinates.names) > 1 else ():
        i, bounds = coordinates.index(name), problem.domain.bounds.ranges[name]
        order = max((alpha[i] for _, alpha in derivatives_read(residuals)), default=0)
        missing = [f"{name}={bound:g}" for bound in bounds if {i: bound} not in covered]
        if name not in periodic and order and len(missing) > (0 if order > 1 else 1):
            bare += missing
    if bare:
        yield (
            f"no term lies on the face{'s' if len(bare) > 1 else ''} {abbreviated(bare, first=3)}: "
            "right where nothing flows in, or for Problem(periodic=...); else add one, such as "
            f"Term('wall', box.at({bare[0]}), …)"
        )


def outside_domain(problem: Problem) -> Iterator[str]:
    """Terms on regions that reach beyond ``Problem(domain=...)``."""
    ranges = problem.domain.bounds.ranges
    for term in problem.terms:
        bounds = getattr(term.where, "bounds", None) or ranges.values()
        for (name, (low, high)), (a, b) in zip(ranges.items(), bounds, strict=True):
            if a < low or b > high:
                yield (
                    f"term '{term.name}' lies in {name} from {a:g} to {b:g}, the domain reaches "
                    f"from {low:g} to {high:g}: errors and pictures leave the rest out"
                )
                break
