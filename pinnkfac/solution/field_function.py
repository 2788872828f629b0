"""A field, a derivative or a vector of a solution, as a function of named coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from pinnkfac.common.errors import UserError, abbreviated, suggest
from pinnkfac.field import Form, div, grad, lap
from pinnkfac.solution.net_fields import NetFields
from pinnkfac.solution.places import places


class UnknownName(UserError, AttributeError):
    """No field, vector or derivative of that name; an AttributeError too, for ``hasattr``."""


class FieldFunction:
    """u(x, …) of a solution, or one of its derivatives, or a vector of such.

        solution.u(x=0.3, y=[0.1, 0.2])        numbers, lists, arrays, tensors that broadcast
        solution.u.xy(x=..., y=...)            ∂²u/∂x∂y; the same as solution.u.d("x", "y")
        solution.u.lap, .grad                  in space; grad has its components on the last axis
        solution.velocity.div                  of a vector

    It returns a float for plain numbers, a tensor where any coordinate is one, otherwise a numpy
    array of the shape that the coordinates broadcast to (and the components, for a vector).
    Nothing is recorded for autograd. Warns of points outside the domain. Raises UserError for an
    unknown, missing or wrong coordinate or derivative.
    """

    def __init__(
        self, fields: NetFields, name: str, forms: Sequence[Form], *, vector: bool = False
    ) -> None:
        self._fields, self._name = fields, name
        self._forms, self._vector = tuple(forms), vector

    def __call__(self, /, *positional: Any, **coordinates: Any) -> Any:
        if positional:
            example = ", ".join(f"{name}=..." for name in self._fields.coordinates.names[:3])
            raise UserError(f"{self._name}: give coordinates by name, {self._name}({example})")
        asked = places(self._fields.signature.domain, coordinates, self._name)
        values: Tensor = self._fields.forms(self._forms, asked.points)
        return asked.shaped(values if self._vector else values[:, 0])

    def d(self, *names: str) -> FieldFunction:
        """The derivative by the named coordinates; of a vector, that of every component."""
        label = f"{self._name}.d({', '.join(map(repr, names))})"
        return self._each(label, lambda form: form.d(*names))

    @property
    def lap(self) -> FieldFunction:
        """The Laplacian in space; of a vector, that of every component."""
        return self._each(f"{self._name}.lap", lap)

    @property
    def grad(self) -> FieldFunction:
        """The gradient in space, its components on the last axis."""
        if self._vector:
            raise UserError(
                f"{self._name}.grad: the gradient of a vector has no place in one vector: take "
                "that of each component"
            )
        forms = list(grad(self._forms[0]))
        return FieldFunction(self._fields, f"{self._name}.grad", forms, vector=True)

    @property
    def div(self) -> FieldFunction:
        """The divergence of a vector in space."""
        if not self._vector:
            raise UserError(f"{self._name}.div: a divergence is that of a vector, not of a field")
        return FieldFunction(self._fields, f"{self._name}.div", [div(self._forms)])

    def _each(self, name: str, f: Callable[[Form], Form]) -> FieldFunction:
        return FieldFunction(self._fields, name, [*map(f, self._forms)], vector=self._vector)

    def __getattr__(self, name: str) -> FieldFunction:
        if name.startswith("_"):
            raise AttributeError(name)
        coordinates = self._fields.coordinates
        parsed = coordinates.parse(name)
        if parsed:
            return self._each(f"{self._name}.{name}", lambda form: form.d(*parsed))
        if name == coordinates.vector:
            return self.grad
        raise UnknownName(
            f"unknown derivative '{self._name}.{name}': '{name}' is not made of coordinate names. "
            f"{suggest(name, (*coordinates.names, 'lap', 'grad', 'div', 'd'))}"
        )

    def __dir__(self) -> list[str]:
        return ["d", "div", "grad", "lap", *self._fields.coordinates.names]

    def __repr__(self) -> str:
        return f"<{self._name}, a function of {abbreviated(self._fields.coordinates.names)}>"
