"""What is solved: terms on regions, the fields they share, unknown coefficients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from pinnkfac.common.errors import UserError
from pinnkfac.domain import Box, Points, Region
from pinnkfac.field import ELEMENTWISE, Coordinates, Form, tensors
from pinnkfac.problem.signature import Signature

_bound: ContextVar[dict[int, Tensor] | None] = ContextVar("bound parameters", default=None)


class Parameter:
    """An unknown coefficient of an inverse problem, trained together with the net.

    It stands for its value wherever a residual uses it: ``kappa * lap(u)``, ``kappa.exp()``. List
    it in ``Problem(parameters=(kappa,))``; its first value is ``initial``.
    """

    __array_ufunc__ = None

    def __init__(self, name: str, initial: float) -> None:
        if not isinstance(name, str) or not name.isidentifier():
            raise UserError(f"Parameter: {name!r} is not a name; use letters and digits")
        if not _is_finite(initial):
            raise UserError(f"Parameter '{name}': initial={initial!r}; give a finite number")
        self.name = name
        self.initial = float(initial)

    def as_tensor(self) -> Tensor:
        values = _bound.get()
        if values is None or id(self) not in values:
            raise UserError(
                f"Parameter '{self.name}' is used in a term but is not listed in "
                f"Problem(parameters=...): add it there"
            )
        return values[id(self)]

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return function(*tensors(args), **tensors(kwargs or {}))

    def __bool__(self) -> bool:
        raise UserError(f"a branch on the Parameter '{self.name}': use torch.where instead")

    def __getattr__(self, name: str) -> Any:
        if name in ELEMENTWISE:
            return getattr(self.as_tensor(), name)
        raise AttributeError(f"a Parameter has no '{name}'")

    def __neg__(self) -> Tensor:
        return -self.as_tensor()

    def __pos__(self) -> Tensor:
        return self.as_tensor()

    def __abs__(self) -> Tensor:
        return self.as_tensor().abs()

    __hash__ = object.__hash__

    def __repr__(self) -> str:
        return f"Parameter({self.name!r}, initial={self.initial:g})"


def _delegate(name: str) -> Callable[[Parameter, Any], Any]:
    def method(self: Parameter, other: Any) -> Any:
        if name in ("__eq__", "__ne__") and _bound.get() is None:
            return NotImplemented  # outside a residual a Parameter is an object like others
        if isinstance(other, Parameter):
            other = other.as_tensor()
        if isinstance(other, Form) and name == "__mul__":
            return other * self.as_tensor()
        return getattr(torch.Tensor, name)(self.as_tensor(), other)

    return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
    setattr(Parameter, f"__{_name}__", _delegate(f"__{_name}__"))
    setattr(Parameter, f"__r{_name}__", _delegate(f"__r{_name}__"))
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    setattr(Parameter, f"__{_name}__", _delegate(f"__{_name}__"))


class bind:
    """Within ``with bind(parameters, values):`` each Parameter stands for its value."""

    def __init__(self, parameters: Sequence[Parameter], values: Sequence[Tensor] | Tensor) -> None:
        self.values = {id(p): v for p, v in zip(parameters, values, strict=True)}

    def __enter__(self) -> None:
        self.token = _bound.set(self.values)

    def __exit__(self, *_: Any) -> None:
        _bound.reset(self.token)


@dataclass(frozen=True)
class Term:
    """One condition: ``residual(u, …, at) = 0`` on the region ``where``.

    ``residual`` gets one form per field and ``at``, the point: coordinates by name (``at.x`` is
    the vector where they are x1 … xd), ``at.normal`` on faces, values of given points, linked
    points. It returns one number, or a tuple of them for a system. The term enters the loss as
    ``weight · ½ · mean over points of Σ residual²``. ``points`` is the number of points to draw
    (default: the configuration's).
    """

    name: str
    where: Region | Points
    residual: Callable[..., Any]
    weight: float = 1.0
    points: int | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise UserError(f"Term: the name is {self.name!r}; give each term a short name")
        if not hasattr(self.where, "draw"):
            raise UserError(
                f"term '{self.name}': where is {type(self.where).__name__}; give a region such "
                "as box.interior, box.boundary, box.at(t=0) or Points(...)"
            )
        if not callable(self.residual):
            raise UserError(f"term '{self.name}': residual must be a function (u, at) -> number")
        if not (_is_finite(self.weight) and self.weight > 0):
            raise UserError(f"term '{self.name}': weight={self.weight!r}; give a positive number")
        if self.points is not None and not isinstance(self.points, Integral):
            raise UserError(f"term '{self.name}': points={self.points!r}; give a whole number")
        if self.points is not None and self.points < 1:
            raise UserError(
                f"term '{self.name}': points={self.points}: a term without points cannot hold "
                "anywhere; give at least 1, or leave it out for the default"
            )
        if isinstance(self.where, Points) and self.where.number == 0:
            raise UserError(f"term '{self.name}' has no points: its Points are empty")


EXAMPLES = {
    "fields": "('u',)",
    "terms": "[Term(name, where, residual)]",
    "parameters": "(kappa,)",
    "units": "{'u': 'K'}",
    "vectors": "{'velocity': ('u', 'v')}",
    "periodic": "('x',)",
}


def _several(what: str, given: Any, kind: type) -> tuple[Any, ...]:
    """The entries of an argument of Problem; raises UserError where they are not all ``kind``."""
    example = f"{what}={EXAMPLES[what]}"
    if isinstance(given, kind | str) or not isinstance(given, Iterable):
        raise UserError(
            f"Problem: {what} is {type(given).__name__}; give a tuple or a list, {example}"
        )
    entries = tuple(given)
    for number, entry in enumerate(entries):
        if not isinstance(entry, kind):
            name = "a string" if kind is str else f"a {kind.__name__}"
            raise UserError(
                f"Problem: {what}[{number}] is {type(entry).__name__}, not {name}; give {example}"
            )
    return entries


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except (TypeError, ValueError):
        return False


class Problem:
    """Fields on a domain, the terms that define them, and what is known of the solution.

    ``solution(at)`` returns the exact value of each field (a number, or a tuple in the order of
    ``fields``); with it, errors are reported. ``parameters`` are unknown coefficients.
    ``domain`` is the box that errors and pictures use (default: the box of the first term).
    ``units`` are shown with the names of fields and coordinates: ``units={"x": "m", "u": "K"}``.
    ``vectors`` says which fields are the components of a vector, one per coordinate of space:
    ``vectors={"velocity": ("u", "v")}``. In the coordinates named in ``periodic`` every field has
    the period of the domain, by the net: no term is needed. ``source`` says where the problem is
    from.

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
        domain: Box | None = None,
        units: Mapping[str, str] | None = None,
        vectors: Mapping[str, Sequence[str]] | None = None,
        periodic: Sequence[str] = (),
        source: str = "",
    ) -> None:
        self.fields = _several("fields", (fields,) if isinstance(fields, str) else fields, str)
        self.terms = _several("terms", terms, Term)
        self.solution = solution
        self.parameters = _several("parameters", parameters, Parameter)
        self.source = source
        if domain is not None and not isinstance(domain, Box):
            raise UserError(
                f"Problem: domain={domain!r} is {type(domain).__name__}; give a Box, such as "
                "Box(x=(0, 1))"
            )
        for what, mapping in (("units", units), ("vectors", vectors)):
            if mapping is not None and not isinstance(mapping, Mapping):
                raise UserError(
                    f"Problem: {what}={mapping!r} is {type(mapping).__name__}; give a dictionary, "
                    f"{what}={EXAMPLES[what]}"
                )
        if not self.fields:
            raise UserError("Problem: fields is empty; name at least one, such as fields=('u',)")
        if not self.terms:
            raise UserError("Problem: terms is empty; give at least one Term")
        for what, names in (
            ("field", self.fields),
            ("term", [t.name for t in self.terms]),
            ("Parameter", [p.name for p in self.parameters]),
        ):
            twice = {n for n in names if list(names).count(n) > 1}
            if twice:
                raise UserError(f"Problem: two {what}s are called '{twice.pop()}'; rename one")
        self.coordinates = self._common_coordinates(domain)
        self.terms = tuple(self._bound(term) for term in self.terms)
        self.domain = domain or self._bounding_box()
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

    def _common_coordinates(self, domain: Box | None) -> Coordinates:
        regions = [t for t in self.terms if not isinstance(t.where, Points)]
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
            i, (low, high) = self.coordinates.index(name), self.domain.ranges[name]
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

    def _bounding_box(self) -> Box:
        """The box that the regions of all terms were taken from."""
        names = self.coordinates.names
        bounds = [b for t in self.terms if (b := getattr(t.where, "bounds", None))]
        ranges = {
            name: (min(b[i][0] for b in bounds), max(b[i][1] for b in bounds))
            for i, name in enumerate(names)
        }
        return Box(ranges, time=self.coordinates.time)

    def __repr__(self) -> str:
        terms = ", ".join(f"{t.name} on {t.where}" for t in self.terms)
        names = self.coordinates.names
        shown = ", ".join(names if len(names) <= 6 else (*names[:2], "…", names[-1]))
        return f"Problem({', '.join(self.fields)} of {shown}: {terms})"
