"""What passes through the operations of a net: jets forward, adjoints back, by one rule each.

Jets are ``[shared, batch, feature]``: the shared axis comes first in memory, so that a row is one
contiguous block and a linear layer on all rows is one matrix product. Within a net there may be
several axes of features, or none. No rule knows any PDE.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from pinnkfac.taylor.plan import Plan


@dataclass
class Jet:
    """A layer's rows: ``value`` [batch, feature] and ``rows`` [shared − 1, batch or 1, feature].

    A batch axis of 1 means the same row at every point (near the input they are columns of the
    first weight). ``full`` [shared, batch, feature] is set where both live in one tensor.
    """

    value: Tensor
    rows: Tensor
    full: Tensor | None = None

    @staticmethod
    def of(full: Tensor) -> Jet:
        return Jet(full[0], full[1:], full)

    def row(self, s: int) -> Tensor:
        return self.value if s == 0 else self.rows[s - 1]

    def dense(self) -> Tensor:
        """All rows as one tensor [shared, batch, feature]."""
        if self.full is None:
            self.full = self.value.new_empty(len(self.rows) + 1, *self.value.shape)
            self.full[0] = self.value
            self.full[1:] = self.rows
        return self.full


@dataclass
class Adjoint:
    """Derivatives of one equation by some rows of a jet; all other rows have none.

    ``rows`` are sorted row numbers, ``tensor`` is [len(rows), batch, feature].
    """

    rows: tuple[int, ...]
    tensor: Tensor

    def plus(self, other: Adjoint | None) -> Adjoint:
        if other is None:
            return self
        if self.rows == other.rows:
            return Adjoint(self.rows, self.tensor + other.tensor)
        rows = tuple(sorted({*self.rows, *other.rows}))
        total = self.tensor.new_zeros(len(rows), *self.tensor.shape[1:])
        for part in (self, other):
            for i, s in enumerate(part.rows):
                total[rows.index(s)] += part.tensor[i]
        return Adjoint(rows, total)

    def narrowed(self, features: tuple[int, ...]) -> Adjoint:
        """That of an input with these axes of features: summed where they were broadcast."""
        return Adjoint(self.rows, self.tensor.sum_to_size(*self.tensor.shape[:2], *features))


@dataclass
class Sink:
    """Where a backward pass leaves what it finds at trained parameters.

    ``linear(layer, use, adjoint)`` gets G of a Linear layer; ``dense(parameter, derivative)``
    gets [batch, *shape of the parameter] for every other trained parameter.
    """

    linear: Callable[[int, int, Adjoint], None]
    dense: Callable[[nn.Parameter, Tensor], None]


Adjoints = Sequence[Adjoint | None]


class Rule(Protocol):
    """One operation of a net. ``trained`` are the trained parameters that it reads.

    ``forward`` returns the jet, and what ``backward`` needs where ``keep`` is set. From the adjoint
    of the output ``backward`` makes those of the inputs (None will do where one is not ``wanted``),
    and hands the derivatives by the trained parameters to the sink.
    """

    trained: tuple[nn.Parameter, ...] = ()

    def forward(self, inputs: list[Jet], plan: Plan, keep: bool) -> tuple[Jet, Any]: ...

    def backward(self, adjoint: Adjoint, kept: Any, sink: Sink, wanted: list[bool]) -> Adjoints: ...


MODULES: dict[type[nn.Module], Callable[[Any], Rule]] = {}
"""What makes the rule of a layer, by its class: that of the nearest class counts."""
