"""What is solved: terms on regions, the fields they share, unknown coefficients."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Real
from typing import Any

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.domain import Domain, Points
from pinnkfac.domain.domain import around, lacking
from pinnkfac.field import Coordinates
from pinnkfac.problem.parameter import Parameter, is_finite
from pinnkfac.problem.signature import Signature
from pinnkfac.problem.term import Term
from pinnkfac.problem.windows import box_of, check_windows, edges_of, terms_of

EXAMPLES = {
    "fields": "('u',)",
    "terms": "[Term(name, where, residual)]",
    "parameters": "(kappa,)",
    "units": "{'u': 'K'}",
    "vectors": "{'velocity': ('u', 'v')}",
    "periodic": "('x',)",
    "scales": "{'T': (400, 800)}",
}


def _several(what: str, argument: Any, kind: type) -> tuple[Any, ...]:
    """The entries of an argument of Problem; raises UserError where they are not all ``kind``."""
    example = f"{what}={EXAMPLES[what]}"
    if isinstance(argument, kind | str) or not isinstance(argument, Iterable):
        raise UserError(
            f"Problem: {what} is {type(argument).__name__}; give a tuple or a list, {example}"
        )
    entries = tuple(argument)
    for number, entry in enumerate(entries):
        if not isinstance(entry, kind):
            name = "a string" if kind is str else f"a {kind.__name__}"
            raise UserError(
                f"Problem: {what}[{number}] is {type(entry).__name__}, not {name}; give {example}"
            )
    return entries


def _check_unique(what: str, names: Sequence[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise UserError(f"Problem: two {what}s are called '{twice[0]}'; rename one")


def _check_shape(domain: Any) -> None:
    """Raise UserError where an object is no domain, or cannot be stored as one."""
    members = lacking(domain)
    if members:
        raise UserError(
            f"Problem: domain={domain!r} is {type(domain).__name__}; give a Box, such as "
            f"Box(x=(0, 1)), or a shape that has {', '.join(members)} too"
        )
    try:
        json.dumps(domain.as_dict())
    except (TypeError, ValueError) as error:
        raise UserError(
            f"Problem: as_dict of its domain, {domain!r}, is not made of plain values ({error}): "
            "give numbers, texts, lists and dictionaries of them"
        ) from error


class Problem:
    """Fields on a domain, the terms that define them, and what is known of the solution.

    ``solution(at)`` returns the exact value of each field (a number, or a tuple in the order of
    ``fields``); with it, errors are reported. ``parameters`` are unknown coefficients.
    ``domain`` is the shape that errors and pictures use (default: the one that the regions of the
    terms were taken from).
    ``units`` are shown with the names of fields and coordinates: ``units={"x": "m", "u": "K"}``.
    ``vectors`` says which fields are the components of a vector, one per coordinate of space:
    ``vectors={"velocity": ("u", "v")}``. In the coordinates named in ``periodic`` every field has
    the period of the domain, by the net: no term is needed. ``scales`` says how large fields are,
    ``scales={"T": (400, 800)}`` for 800 ± 400 (scale, offset; a scale alone where the offset is 0);
    those that are not named are estimated. ``windows`` splits a long time into windows, which are
    trained one after the other, each from where the one before ended: a number of equal ones, or
    their edges, ``windows=(0, 0.2, 0.5, 1)``. ``source`` says where the problem is from.

    Raises UserError where terms disagree about coordinates or do not fill a period, names repeat,
    or nothing is given.
    """

    def __init__(
        self,
        *,
        fields: Sequence[str],
        terms: Sequence[Term],
        solution: Callable[[Any], Any] | None = None,
        parameters: Sequence[Parameter] = (),
        domain: Domain | None = None,
        units: Mapping[str, str] | None = None,
        vectors: Mapping[str, Sequence[str]] | None = None,
        periodic: Sequence[str] = (),
        scales: Mapping[str, float | Sequence[float]] | None = None,
        windows: int | Sequence[float] | None = None,
        source: str = "",
    ) -> None:
        self.fields = _several("fields", (fields,) if isinstance(fields, str) else fields, str)
        self.terms = _several("terms", terms, Term)
        self.solution = solution
        self.parameters = _several("parameters", parameters, Parameter)
        self.source = source
        if domain is not None:
            _check_shape(domain)
        for what, mapping in (("units", units), ("vectors", vectors), ("scales", scales)):
            if mapping is not None and not isinstance(mapping, Mapping):
                raise UserError(
                    f"Problem: {what}={mapping!r} is {type(mapping).__name__}; give a dictionary, "
                    f"{what}={EXAMPLES[what]}"
                )
        if not self.fields:
            raise UserError("Problem: fields is empty; name at least one, such as fields=('u',)")
        if not self.terms:
            raise UserError("Problem: terms is empty; give at least one Term")
        _check_unique("field", self.fields)
        _check_unique("term", [t.name for t in self.terms])
        _check_unique("Parameter", [p.name for p in self.parameters])
        self.coordinates = self._common_coordinates(domain)
        self.terms = tuple(self._bound(term) for term in self.terms)
        if domain is None:
            domain = around([term.where for term in self._on_regions])
        self.domain = domain
        periodic = _several("periodic", (periodic,) if isinstance(periodic, str) else periodic, str)
        self.signature = Signature(
            self.fields,
            self.domain,
            dict(units or {}),
            {name: tuple(components) for name, components in (vectors or {}).items()},
            tuple(p.name for p in self.parameters),
            periodic,
        )
        self._check_periods()
        self.scales = {name: self._scale(name, value) for name, value in (scales or {}).items()}
        self.windows = edges_of(windows, self.domain)
        if self.windows:
            check_windows(self.domain, self.terms, self.parameters, periodic)

    def window(self, k: int, scales: Mapping[str, tuple[float, float]] | None = None) -> Problem:
        """The problem of a window, with other scales where they are given: all terms where they lie
        in it, and what holds at the start in the first one only."""
        box = self.domain.bounds
        signature = self.signature
        return Problem(
            fields=self.fields,
            terms=terms_of(self.terms, box, self.windows, k),
            solution=self.solution,
            domain=box_of(box, self.windows, k),
            units=signature.units,
            vectors=signature.vectors,
            periodic=signature.periodic,
            scales=self.scales if scales is None else scales,
            source=self.source,
        )

    def _scale(self, field: str, value: Any) -> tuple[float, float]:
        """Scale and offset of a field, as they are given."""
        if field not in self.fields:
            raise UserError(f"scales: there is no field '{field}'. {suggest(field, self.fields)}")
        pair: Any = (value, 0.0) if isinstance(value, Real) else value
        if (
            not isinstance(pair, tuple | list)
            or len(pair) != 2
            or not all(is_finite(v) for v in pair)
            or not pair[0] > 0
        ):
            raise UserError(
                f"scales: '{field}' has {value!r}; give a positive scale, or (scale, offset) for "
                "offset ± scale, such as (400, 800)"
            )
        return float(pair[0]), float(pair[1])

    @property
    def _on_regions(self) -> list[Term]:
        """The terms that are not on given points."""
        return [t for t in self.terms if not isinstance(t.where, Points)]

    def _common_coordinates(self, domain: Domain | None) -> Coordinates:
        regions = self._on_regions
        if domain is None and not regions:
            raise UserError("Problem: every term is on given Points; give domain=Box(...) too")
        first = domain.coordinates if domain else regions[0].where.coordinates
        whose = "the domain" if domain else f"'{regions[0].name}'"
        for term in regions:
            if term.where.coordinates != first:
                raise UserError(
                    f"term '{term.name}' lives on coordinates "
                    f"({', '.join(term.where.coordinates.names)}), but {whose} on "
                    f"({', '.join(first.names)}): use one box for all terms"
                )
        return first

    def _check_periods(self) -> None:
        """The period is the domain's, so that terms have to fill it."""
        for name in self.signature.periodic:
            i, (low, high) = self.coordinates.index(name), self.domain.bounds.ranges[name]
            ends = [b[i] for t in self.terms if (b := getattr(t.where, "bounds", None))]
            filled = min((a for a, _ in ends), default=low), max((b for _, b in ends), default=high)
            if filled != (low, high):
                raise UserError(
                    f"Problem: it is periodic in {name}, with the period of its domain, [{low:g}, "
                    f"{high:g}], but its terms lie in [{filled[0]:g}, {filled[1]:g}]: give both "
                    "the same range"
                )

    def _bound(self, term: Term) -> Term:
        """The term with its given points in the order of the problem's coordinates."""
        if not isinstance(term.where, Points):
            return term
        return replace(term, where=term.where.bound(self.coordinates))

    def __repr__(self) -> str:
        terms = ", ".join(f"{t.name} on {t.where}" for t in self.terms)
        names = self.coordinates.names
        shown = ", ".join(names if len(names) <= 6 else (*names[:2], "…", names[-1]))
        return f"Problem({', '.join(self.fields)} of {shown}: {terms})"
