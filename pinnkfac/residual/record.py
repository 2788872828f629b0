"""From a term to its residual: one call of the user's function on placeholders lists the slots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.func import vmap

from pinnkfac.common.errors import UserError
from pinnkfac.domain import PointSet
from pinnkfac.field import At, Context, Coordinates, Form, LinearPart, shadowed
from pinnkfac.problem import Problem, Term, bind
from pinnkfac.residual.residual import Residual, arguments_of, call


class Recorder(Context):
    """Notes every slot that is asked for, and answers with a placeholder, a number."""

    def __init__(self, coordinates: Coordinates, placeholder: Tensor) -> None:
        self.coordinates = coordinates
        self.like = self.placeholder = placeholder
        self.slots: list[LinearPart] = []

    def value(self, linear: LinearPart) -> Tensor:
        if linear not in self.slots:
            self.slots.append(linear)
        return self.placeholder * (1.0 + 0.1 * self.slots.index(linear))


class _Watched(dict[int, Tensor]):
    """Bound parameters that remember whether anyone looked."""

    used = False

    def __getitem__(self, key: int) -> Tensor:
        self.used = True
        return super().__getitem__(key)


@dataclass(eq=False)
class _Recording:
    """What one call of a term's residual shows: its ``slots``, and by equation the coefficients of
    these, {slot: c}, where it is linear in them; ``nonlinear`` where any equation is not."""

    term: Term
    problem: Problem
    slots: list[LinearPart] = field(default_factory=list)
    rows: list[dict[int, float]] = field(default_factory=list)
    nonlinear: bool = False

    def __call__(self, arguments: dict[str, Any]) -> Tensor:
        """At one point; what is returned, a number, has no meaning."""
        point, coordinates = arguments["point"], self.problem.coordinates
        recorder = Recorder(coordinates, 0.7 + 0.01 * point.sum())
        parameters = self.problem.parameters
        binding = bind(parameters, [point.new_tensor(p.initial) for p in parameters])
        binding.values = watched = _Watched(binding.values)
        with binding:
            at = At(coordinates, **arguments)
            entries = call(self.term, recorder, at, len(self.problem.fields))
            self.nonlinear = bool(recorder.slots) or watched.used
            self.rows = [self._row(recorder, entry) for entry in entries]
        for number, (entry, row) in enumerate(zip(entries, self.rows, strict=True)):
            if not row and (not self.nonlinear or not isinstance(entry, Tensor)):
                raise UserError(_no_field(self.term, number, len(entries)))
        self.slots = recorder.slots
        return point.sum()

    def _row(self, recorder: Recorder, entry: Any) -> dict[int, float]:
        if not (isinstance(entry, Form) and entry.linear):
            return {}
        for _, place, _ in entry.linear:
            if place and place not in self.term.where.link_names:
                name = self.term.name
                raise UserError(f"term '{name}': '{place}' is not a linked point of its region")
        entry.as_tensor()
        slot, lead = entry.normalised()
        return {recorder.slots.index(slot): lead}

    @property
    def matrix(self) -> tuple[tuple[float, ...], ...] | None:
        """C [equation, slot] where the residual is affine with constant coefficients."""
        if self.nonlinear:
            return None
        return tuple(tuple(row.get(s, 0.0) for s in range(len(self.slots))) for row in self.rows)


def record(term: Term, problem: Problem, points: PointSet) -> Residual:
    """Compile a term by one call of its residual on placeholders (at a few of its points).

    Raises UserError, naming the term, for every mistake in the residual.
    """
    _check_names(term, problem.coordinates, points)
    few = points[: min(3, len(points))]
    recording = _Recording(term, problem)
    vmap(recording)(arguments_of(few))
    if not recording.slots:
        raise UserError(f"term '{term.name}': the residual does not depend on any field")
    residual = Residual(
        term,
        problem.coordinates,
        len(problem.fields),
        tuple(recording.slots),
        len(recording.rows),
        recording.matrix,
        problem.parameters,
    ).with_reads(few)
    if not residual.reads_parameters:
        for number, slots in enumerate(residual.reads):
            if not slots:
                raise UserError(_no_field(term, number, len(residual.reads)))
    return residual


def check_parameters(problem: Problem, residuals: Sequence[Residual]) -> None:
    """Raise UserError for a listed Parameter that no term depends on."""
    read = {i for residual in residuals for i in residual.reads_parameters}
    for i, parameter in enumerate(problem.parameters):
        if i not in read:
            raise UserError(
                f"Parameter '{parameter.name}' is listed in Problem(parameters=...), but no term "
                "depends on it: use it in a residual, or leave it out of the list"
            )


def _check_names(term: Term, coordinates: Coordinates, points: PointSet) -> None:
    """Raise UserError where ``at`` could not tell a given value or linked point from another."""
    for name in (*points.values, *points.links):
        hidden_by = shadowed(name, coordinates)
        if name in points.values and name in points.links:
            hidden_by = "both a given value and a linked point"
        if hidden_by:
            raise UserError(
                f"term '{term.name}': at.{name} of its points would be hidden: it is {hidden_by}; "
                "give it another name"
            )


def _no_field(term: Term, number: int, equations: int) -> str:
    which = f"equation {number + 1} of the residual" if equations > 1 else "the residual"
    return f"term '{term.name}': {which} does not depend on any field"
