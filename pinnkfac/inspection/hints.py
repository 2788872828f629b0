"""What is missing in many problems, read from their slots and regions. Hints, never failures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pinnkfac.common.errors import counted
from pinnkfac.domain import Patches, Points
from pinnkfac.inspection.finding import Finding, hint
from pinnkfac.problem import Problem, Term
from pinnkfac.residual import Residual


def hints(
    problem: Problem, residuals: Sequence[Residual], periodic: Sequence[str]
) -> Iterator[Finding]:
    """All hints; ``periodic`` are coordinates that the net itself is periodic in."""
    for found in (
        *unread_fields(problem, residuals),
        *free_constants(problem, residuals),
        *missing_start(problem, residuals, periodic),
        *bare_faces(problem, residuals, periodic),
        *outside_domain(problem),
    ):
        yield hint("hint", found)


def fields_read(residual: Residual) -> list[set[int]]:
    """The fields that each equation depends on."""
    return [
        {field for i in reads for (field, _, _), _ in residual.slots[i]} for reads in residual.reads
    ]


def unread_fields(problem: Problem, residuals: Sequence[Residual]) -> Iterator[str]:
    """Fields that no equation depends on: the net gives them, and nothing says what they are."""
    read = {field for residual in residuals for fields in fields_read(residual) for field in fields}
    for k, name in enumerate(problem.fields):
        if k not in read:
            yield f"no term reads the field {name}: use it in a residual, or leave it out"


def free_constants(problem: Problem, residuals: Sequence[Residual]) -> Iterator[str]:
    """Fields of which no slot feels an added constant: they are found up to a constant only."""
    for k, name in enumerate(problem.fields):
        slots = [s for residual in residuals for s in residual.slots]
        mine = [s for s in slots if any(field == k for (field, _, _), _ in s)]
        felt = any(
            abs(sum(c for (field, _, alpha), c in s if field == k and not any(alpha))) > 1e-12
            for s in mine
        )
        if mine and not felt:
            arguments = ", ".join((*problem.fields, "at"))
            box = problem.domain.bounds
            point = ", ".join(f"{n}={low:g}" for n, (low, _) in box.ranges.items())
            yield (
                f"no term fixes the constant of {name}: every term has the same value for "
                f"{name} + 1; give it at a point, such as Term('level', box.at({point}), "
                f"lambda {arguments}: {name})"
            )


def _patches(term: Term) -> list[tuple[list[int], list[float]]]:
    """Of every patch of a region the fixed coordinates, and their values."""
    if not isinstance(term.where, Patches):
        return []
    result = []
    for patch in term.where.patches:
        fixed = [i for i in range(len(patch.low)) if i not in patch.free]
        result.append((fixed, [patch.low[i] for i in fixed]))
        for shift in patch.shift.values():
            result.append((fixed, [patch.low[i] + shift[i] for i in fixed]))
    return result


def missing_start(
    problem: Problem, residuals: Sequence[Residual], periodic: Sequence[str]
) -> Iterator[str]:
    """Fields with derivatives by time, and fewer conditions at the start than these need.

    Values at given points stand in for such conditions, as in an inverse problem.
    """
    time = problem.coordinates.time
    if time is None or time in periodic:
        return
    t = problem.coordinates.index(time)
    start, end = problem.domain.bounds.ranges[time]
    at_start = [
        residual
        for residual in residuals
        if any(
            fixed == [t] and values[0] in (start, end) for fixed, values in _patches(residual.term)
        )
    ]
    measured = {
        field
        for residual in residuals
        if isinstance(residual.term.where, Points) and residual.term.where.values
        for fields in fields_read(residual)
        for field in fields
    }
    for k, name in enumerate(problem.fields):
        if k in measured:
            continue
        orders = [
            alpha[t] for r in residuals for s in r.slots for (field, _, alpha), _ in s if field == k
        ]
        needed = max(orders, default=0)
        conditions = sum(k in fields for residual in at_start for fields in fields_read(residual))
        if needed and conditions < needed:
            have = "no condition" if not conditions else f"only {counted(conditions, 'condition')}"
            derivative = f"{name}, {name}.{time}" if needed > 1 else name
            yield (
                f"{name} is differentiated {'once' if needed == 1 else f'{needed} times'} by "
                f"{time}, and has {have} at the "
                f"start: give {derivative} on box.at({time}={start:g})"
            )


def bare_faces(
    problem: Problem, residuals: Sequence[Residual], periodic: Sequence[str]
) -> Iterator[str]:
    """Faces of space without a term, as far as derivatives across them ask for one: two faces
    from the second derivative on, one of the two for a first derivative."""
    regions = [term.where for term in problem.terms]
    if not all(isinstance(where, Patches | Points) for where in regions):
        return
    covered = {
        (fixed[0], values[0])
        for term in problem.terms
        for fixed, values in _patches(term)
        if len(fixed) == 1
    }
    alphas = [alpha for r in residuals for s in r.slots for (_, _, alpha), _ in s]
    bare = []
    # With one coordinate, conditions at one end may be all, as those of a start.
    for name in problem.coordinates.space if len(problem.coordinates.names) > 1 else ():
        i, bounds = problem.coordinates.index(name), problem.domain.bounds.ranges[name]
        order = max((alpha[i] for alpha in alphas), default=0)
        missing = [f"{name}={bound:g}" for bound in bounds if (i, bound) not in covered]
        if name not in periodic and len(missing) > (0 if order > 1 else 1) and order:
            bare += missing
    if bare:
        shown = bare if len(bare) <= 6 else [*bare[:3], "…", bare[-1]]
        yield (
            f"no term lies on the face{'s' if len(bare) > 1 else ''} {', '.join(shown)}: right "
            "where nothing flows in, or for Problem(periodic=...); else add one, such as "
            f"Term('wall', box.at({bare[0]}), …)"
        )


def outside_domain(problem: Problem) -> Iterator[str]:
    """Terms on regions that reach beyond ``Problem(domain=...)``."""
    for term in problem.terms:
        for name, (low, high), (a, b) in zip(
            problem.coordinates.names,
            problem.domain.bounds.ranges.values(),
            getattr(term.where, "bounds", None) or problem.domain.bounds.ranges.values(),
            strict=True,
        ):
            if a < low or b > high:
                yield (
                    f"term '{term.name}' lies in {name} from {a:g} to {b:g}, the domain reaches "
                    f"from {low:g} to {high:g}: errors and pictures leave the rest out"
                )
                break
