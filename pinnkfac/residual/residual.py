"""A term as a function F(z, at) of its slots z, and its derivatives ∂F/∂z.

F is evaluated with ``torch.func.vmap`` over points. Where it is affine in the slots with constant
coefficients (the usual case for linear PDEs) no user code runs again for the same points:
r = C z + remainder(at).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from pinnkfac.common.errors import UserError
from pinnkfac.domain import PointSet
from pinnkfac.field import At, Context, Coordinates, Form, LinearPart, Vector
from pinnkfac.problem import Term, bind
from pinnkfac.residual.mistakes import check_entry, explain


@dataclass(eq=False)
class Evaluator(Context):
    """Answers with the slots' values z [slot] of one point."""

    coordinates: Coordinates
    slots: dict[LinearPart, int]
    z: Tensor | tuple[Tensor, ...]
    like: Tensor

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
            check_entry(entry)
        if not entries:
            raise UserError("the residual returned nothing; return a number or a tuple of numbers")
        return entries
    except UserError as error:
        message = str(error)
        prefix = f"term '{term.name}': "
        raise UserError(message if message.startswith(prefix) else prefix + message) from error
    except Exception as error:
        raise UserError(f"term '{term.name}': {explain(error, fields)}") from error


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
            return remainder + z @ _matrix(self.constant, z.dtype, z.device).T
        return self._checked(self._function(points)(z, theta.expand(len(points), -1)), points)

    def derivative(
        self, z: Tensor, theta: Tensor, points: PointSet, remainder: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """r [batch, equation], ∂F/∂z [equation, batch or 1, slot], ∂F/∂θ [equation, batch, param].

        The batch axis of ∂F/∂z is 1 where F is affine; ∂F/∂θ is None where no parameter enters.
        """
        if remainder is not None:
            matrix = _matrix(self.constant, z.dtype, z.device)
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
        """The residual with ``reads`` and ``reads_parameters``: where F is not affine, what
        autograd's graph connects to an equation. No value enters into that: both branches of
        torch.where count at all points."""
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
            reached = _connected(output, leaves)
            reads.append(tuple(i for i in reached if i < len(self.slots)))
            parameters.update(i - len(self.slots) for i in reached if i >= len(self.slots))
        return replace(self, reads=tuple(reads), reads_parameters=tuple(sorted(parameters)))


@lru_cache
def _matrix(constant: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    """C of an affine F: the same for every chunk of points, and so made once."""
    return torch.tensor(constant, dtype=dtype, device=device)


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
    gradients = torch.autograd.grad(output.sum(), leaves, allow_unused=True, retain_graph=True)
    return [i for i, gradient in enumerate(gradients) if gradient is not None]
