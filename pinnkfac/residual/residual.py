"""From a term to slots z, the function F(z, at), and its derivatives ∂F/∂z.

One call of the user's function on placeholders lists the slots. After that, F is evaluated with
``torch.func.vmap`` over points. Where F is affine in the slots with constant coefficients (the
usual case for linear PDEs) no user code runs again for the same points: r = C z + remainder(at).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from pinnkfac.common.errors import UserError
from pinnkfac.domain import PointSet
from pinnkfac.field import At, Context, Coordinates, Form, LinearPart, Vector, shadowed
from pinnkfac.problem import Problem, Term, bind


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


class Evaluator(Context):
    """Answers with the slots' values z [slot] of one point."""

    def __init__(
        self,
        coordinates: Coordinates,
        slots: dict[LinearPart, int],
        z: Tensor | tuple[Tensor, ...],
        like: Tensor,
    ) -> None:
        self.coordinates = coordinates
        self.slots = slots
        self.z = z
        self.like = like

    def value(self, linear: LinearPart) -> Tensor:
        if linear not in self.slots:
            raise UserError(
                "the residual asked for a derivative that it did not ask for when it was "
                "recorded: it must do the same at every call"
            )
        return self.z[self.slots[linear]]


def fields_in(context: Context, number: int) -> list[Form]:
    """The fields themselves, as forms of a context."""
    zero = (0,) * len(context.coordinates.names)
    return [Form(context, {(k, "", zero): 1.0}) for k in range(number)]


def flatten(output: Any) -> list[Any]:
    """The equations of a residual: one number, or a (nested) tuple or vector of them.

    A tensor with an axis is not one of these: it is a forgotten sum more often than a system.
    """
    if isinstance(output, tuple | list | Vector):
        return [entry for item in output for entry in flatten(item)]
    return [output]


def call(term: Term, context: Context, at: At, fields: int) -> list[Any]:
    """Run the user's function once; every mistake in it ends in a UserError that names the term."""
    try:
        output = term.residual(*fields_in(context, fields), at)
        entries = flatten(output)
        for entry in entries:
            _check_entry(entry)
        if not entries:
            raise UserError("the residual returned nothing; return a number or a tuple of numbers")
        return entries
    except UserError as error:
        message = str(error)
        prefix = f"term '{term.name}': "
        raise UserError(message if message.startswith(prefix) else prefix + message) from error
    except Exception as error:
        raise UserError(f"term '{term.name}': {explain(error, fields)}") from error


def _check_entry(entry: Any) -> None:
    """Raise UserError unless an equation is one real number; of a form, its remainder is."""
    if isinstance(entry, Form):
        entry = entry.remainder
    if isinstance(entry, Real) and not isinstance(entry, bool):
        return
    if hasattr(entry, "as_tensor"):
        entry = entry.as_tensor()
    if callable(entry) and not isinstance(entry, Tensor):
        raise UserError(
            f"the residual returned a function ({getattr(entry, '__name__', entry)}): a "
            "derivative of a product has to be expanded by hand, and a method needs its brackets"
        )
    if not isinstance(entry, Tensor):
        raise UserError(
            f"the residual returned {type(entry).__name__}; return a number per equation: "
            "a field, a tensor, or a tuple of them"
        )
    if entry.dim() > 0:
        raise UserError(
            f"the residual has shape {tuple(entry.shape)} at a point; return one number per "
            "equation, several as a tuple (a residual sees one point at a time: no batch axis; "
            "was a sum forgotten?)"
        )
    if not entry.is_floating_point():
        raise UserError(f"the residual has dtype {entry.dtype}; return real floating-point numbers")


def explain(error: Exception, fields: int) -> str:
    """In words, what was wrong in a residual that failed with an exception of torch or Python."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else ""
    if isinstance(error, TypeError) and "positional argument" in text:
        return f"{text}. A residual takes one argument per field ({fields} here), then `at`"
    if "called random operation" in text:
        return (
            "random numbers must not be drawn here, there is one value at a point: draw them once, "
            "outside, or give them with their points, Points({...}, NAME=values)"
        )
    if "data-dependent control flow" in text or "vmap: It looks like you're" in text:
        return (
            "a branch (if, min, max, float()) on a value, or a function of math: values differ "
            "from point to point; write torch.where(condition, a, b), and torch.sin for math.sin"
        )
    if isinstance(error, AttributeError) and "'Tensor' object has no attribute" in text:
        return (
            f"{text}: only constant-coefficient forms of the fields can be differentiated, so "
            "expand the product rule by hand: (k * u.x).x = k_x * u.x + k * u.xx"
        )
    if "does not support ufuncs" in text or "Cannot access data pointer of Tensor" in text:
        return "numpy was applied to a field or a point: use torch's functions (torch.sin, …)"
    if isinstance(error, TypeError) and "must be real number" in text:
        return f"{text}. Use torch's functions (torch.sin, not math.sin) in a residual"
    return f"the residual failed with {type(error).__name__}: {text}"


@dataclass(frozen=True)
class Residual:
    """A term, compiled: its slots and F.

    ``constant`` is C [equation, slot] where F = C z + remainder(at), else None. ``reads`` are the
    slots that each equation depends on at any point, ``reads_parameters`` the Parameters (by their
    number) that any equation does.
    """

    term: Term
    coordinates: Coordinates
    fields: int
    slots: tuple[LinearPart, ...]
    equations: int
    constant: tuple[tuple[float, ...], ...] | None
    parameters: tuple[Any, ...]
    reads: tuple[tuple[int, ...], ...] = ()
    reads_parameters: tuple[int, ...] = ()

    # -- evaluation -----------------------------------------------------------------------------
    def _equations(
        self,
        z: Tensor | tuple[Tensor, ...],
        theta: Tensor | tuple[Tensor, ...],
        arguments: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        """F at one point, a number per equation."""
        like = arguments["point"]
        context = Evaluator(self.coordinates, {s: i for i, s in enumerate(self.slots)}, z, like)
        at = At(self.coordinates, **arguments)
        with bind(self.parameters, list(theta)):
            entries = call(self.term, context, at, self.fields)
            numbers = [e.as_tensor() if hasattr(e, "as_tensor") else e for e in entries]
            return tuple(torch.as_tensor(n, dtype=like.dtype, device=like.device) for n in numbers)

    def _point(self, z: Tensor, theta: Tensor, arguments: dict[str, Any]) -> Tensor:
        return torch.stack(self._equations(z, theta.unbind(-1), arguments))

    def _function(self, points: PointSet) -> Callable[[Tensor, Tensor], Tensor]:
        arguments = arguments_of(points)
        return lambda z, theta: vmap(self._point)(z, theta, arguments)

    def remainder(self, points: PointSet) -> Tensor | None:
        """remainder(at) [batch, equation] of an affine F, computed once per set of points."""
        if self.constant is None:
            return None
        x = points.coordinates
        z = x.new_zeros(len(points), len(self.slots))
        theta = x.new_zeros(len(points), len(self.parameters))
        return self._checked(self._function(points)(z, theta), points)

    def _checked(self, r: Tensor, points: PointSet) -> Tensor:
        """r, where it is [batch, equation] with the equations that were recorded."""
        if r.shape != (len(points), self.equations):
            raise UserError(
                f"term '{self.term.name}': the residual has shape {tuple(r.shape)} at "
                f"{len(points)} points, but {self.equations} equation(s) when it was recorded: it "
                "must do the same at every call"
            )
        return r

    def value(self, z: Tensor, theta: Tensor, points: PointSet, remainder: Tensor | None) -> Tensor:
        """r = F(z, at) [batch, equation] from slots z [batch, slot] and parameters θ [param]."""
        if remainder is not None:
            return remainder + z @ self._matrix(z).T
        return self._checked(self._function(points)(z, theta.expand(len(points), -1)), points)

    def derivative(
        self, z: Tensor, theta: Tensor, points: PointSet, remainder: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """r [batch, equation], ∂F/∂z [equation, batch or 1, slot], ∂F/∂θ [equation, batch, param].

        The batch axis of ∂F/∂z is 1 where F is affine; ∂F/∂θ is None where no parameter enters.
        """
        if remainder is not None:
            matrix = self._matrix(z)
            return remainder + z @ matrix.T, matrix[:, None, :], None
        # Reverse mode, since chunks of points run in threads, and the nesting level of torch's
        # forward mode is global to the process.
        r, pull = vjp(  # type: ignore[misc]
            self._function(points), z, theta.expand(len(points), -1).contiguous()
        )
        self._checked(r, points)
        slots, parameters = [], []
        for e in range(self.equations):
            seed = torch.zeros_like(r)
            seed[:, e] = 1.0
            by_slot, by_parameter = pull(seed)  # type: ignore[misc]
            slots.append(by_slot)
            parameters.append(by_parameter)
        return r, torch.stack(slots), torch.stack(parameters) if self.parameters else None

    def with_reads(self, points: PointSet) -> Residual:
        """The residual with ``reads`` and ``reads_parameters``.

        Where F is not affine they are what autograd's graph connects to an equation. No value
        enters into that, so that both branches of torch.where count at all points: what is read
        is a property of the term and never of the points at hand.
        """
        if self.constant is not None:
            nonzero = tuple(tuple(i for i, c in enumerate(row) if c) for row in self.constant)
            return replace(self, reads=nonzero)
        number = len(self.slots) + len(self.parameters)
        with torch.enable_grad():
            ones = [torch.ones_like(points.coordinates[:, 0]) for _ in range(number)]
            leaves = tuple(one.requires_grad_() for one in ones)
            z, theta = leaves[: len(self.slots)], leaves[len(self.slots) :]
            outputs = vmap(self._equations)(z, theta, arguments_of(points))
        reads: list[tuple[int, ...]] = []
        parameters: set[int] = set()
        for output in outputs:
            found = _connected(output, leaves)
            reads.append(tuple(i for i in found if i < len(self.slots)))
            parameters.update(i - len(self.slots) for i in found if i >= len(self.slots))
        return replace(self, reads=tuple(reads), reads_parameters=tuple(sorted(parameters)))

    def _matrix(self, z: Tensor) -> Tensor:
        return torch.tensor(self.constant, dtype=z.dtype, device=z.device).reshape(
            self.equations, len(self.slots)
        )


def arguments_of(points: PointSet) -> dict[str, Any]:
    """What ``At`` is made of, with the batch axis in front."""
    arguments: dict[str, Any] = {"point": points.coordinates}
    if points.normals is not None:
        arguments["normal"] = points.normals
    if points.values:
        arguments["values"] = dict(points.values)
    if points.links:
        arguments["links"] = dict(points.links)
    return arguments


def _connected(output: Tensor, leaves: tuple[Tensor, ...]) -> list[int]:
    """The numbers of the leaves that autograd's graph of an output reaches."""
    if not output.requires_grad:
        return []
    found = torch.autograd.grad(output.sum(), leaves, allow_unused=True, retain_graph=True)
    return [i for i, derivative in enumerate(found) if derivative is not None]


class _Watched(dict[int, Tensor]):
    """Bound parameters that remember whether anyone looked."""

    used = False

    def __getitem__(self, key: int) -> Tensor:
        self.used = True
        return super().__getitem__(key)


def record(term: Term, problem: Problem, points: PointSet) -> Residual:
    """Compile a term by one call of its residual on placeholders (at a few of its points).

    Raises UserError, naming the term, for every mistake in the residual.
    """
    coordinates, fields = problem.coordinates, len(problem.fields)
    _check_names(term, coordinates, points)
    found: dict[str, Any] = {}

    def once(arguments: dict[str, Any]) -> Tensor:
        point = arguments["point"]
        recorder = Recorder(coordinates, 0.7 + 0.01 * point.sum())
        at = At(coordinates, **arguments)
        binding = bind(
            problem.parameters, [point.new_tensor(p.initial) for p in problem.parameters]
        )
        binding.values = watched = _Watched(binding.values)
        with binding:
            entries = call(term, recorder, at, fields)
            nonlinear = bool(recorder.slots) or watched.used
            constant = []
            for entry in entries:
                if isinstance(entry, Form) and entry.linear:
                    _check_places(term, entry)
                    entry.as_tensor()
                    slot, lead = entry.normalised()
                    constant.append({recorder.slots.index(slot): lead})
                else:
                    constant.append({})
        for number, (entry, row) in enumerate(zip(entries, constant, strict=True)):
            if not row and (not nonlinear or not isinstance(entry, Tensor)):
                raise UserError(_no_field(term, number, len(entries)))
        found.update(slots=recorder.slots, constant=None if nonlinear else constant)
        found["equations"] = len(entries)
        return point.sum()

    vmap(once)(arguments_of(points[: min(3, len(points))]))
    slots = tuple(found["slots"])
    if not slots:
        raise UserError(f"term '{term.name}': the residual does not depend on any field")
    constant = found["constant"]
    matrix = None
    if constant is not None:
        matrix = tuple(tuple(row.get(s, 0.0) for s in range(len(slots))) for row in constant)
    residual = Residual(
        term, coordinates, fields, slots, found["equations"], matrix, problem.parameters
    )
    residual = residual.with_reads(points[: min(3, len(points))])
    if not residual.reads_parameters:
        for number, read in enumerate(residual.reads):
            if not read:
                raise UserError(_no_field(term, number, len(residual.reads)))
    return residual


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


def check_parameters(problem: Problem, residuals: Sequence[Residual]) -> None:
    """Raise UserError for a listed Parameter that no term depends on."""
    read = {i for residual in residuals for i in residual.reads_parameters}
    for i, parameter in enumerate(problem.parameters):
        if i not in read:
            raise UserError(
                f"Parameter '{parameter.name}' is listed in Problem(parameters=...), but no term "
                "depends on it: use it in a residual, or leave it out of the list"
            )


def _check_places(term: Term, form: Form) -> None:
    for _, place, _ in form.linear:
        if place and place not in term.where.link_names:
            raise UserError(f"term '{term.name}': '{place}' is not a linked point of its region")


def exact_solution(problem: Problem, coordinates: Tensor) -> Tensor:
    """The problem's exact solution at points [batch, coord], as [batch, field].

    Raises UserError for a wrong number of values, a wrong shape or dtype, or NaN.
    """
    assert problem.solution is not None
    fields = len(problem.fields)

    def one(point: Tensor) -> Tensor:
        output = problem.solution(At(problem.coordinates, point))  # type: ignore[misc]
        stacked = isinstance(output, Tensor) and output.dim() == 1
        values = list(output.unbind(0)) if stacked else flatten(output)
        if len(values) != fields:
            raise UserError(
                f"solution returned {len(values)} values, but there are {fields} fields "
                f"({', '.join(problem.fields)}): return one number per field"
            )
        for value in values:
            _check_entry(value)
        return torch.stack(
            [torch.as_tensor(v, dtype=point.dtype, device=point.device) for v in values]
        )

    try:
        result = vmap(one)(coordinates)
    except UserError as error:
        message = str(error).replace("the residual", "the solution")
        raise UserError(message if "solution" in message else f"solution: {message}") from error
    except Exception as error:
        explained = explain(error, fields).replace("the residual", "it")
        raise UserError(f"solution: {explained}") from error
    if not torch.isfinite(result).all():
        bad = coordinates[~torch.isfinite(result).all(dim=-1)][0].tolist()
        raise UserError(f"solution is NaN or infinite at {problem.coordinates.names} = {bad}")
    return result


def check_finite(name: str, residual: Tensor, points: Tensor, names: Sequence[str]) -> None:
    """Raise UserError, naming the term and a point, where a first residual is not finite."""
    finite = torch.isfinite(residual).all(dim=-1)
    if not bool(finite.all()):
        point = dict(zip(names, points[~finite][0].tolist(), strict=True))
        raise UserError(
            f"term '{name}': the residual is NaN or infinite at {point} already at the start: "
            "check divisions, logarithms and roots in it"
        )
