"""A trained net as a solution: evaluated anywhere, on grids, stored and exported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pinnkfac.common.errors import abbreviated, suggest
from pinnkfac.domain.domain import left_out
from pinnkfac.export.content import Content
from pinnkfac.export.formats import export
from pinnkfac.problem.signature import Signature
from pinnkfac.residual import fields_in
from pinnkfac.solution.field_function import FieldFunction, UnknownName
from pinnkfac.solution.grid import Array, Axes, FieldsOnGrid
from pinnkfac.solution.net_fields import NetFields
from pinnkfac.solution.places import places, warn_outside
from pinnkfac.solution.stored import trained
from pinnkfac.store.run_folder import Which
from pinnkfac.store.stored_run import StoredRun


class Solution:
    """The fields u(x) of a problem as its net gives them.

        solution(points)                          [batch, coord] → [batch, field]
        solution.u(x=0.3, t=[0.1, 0.2])           a field by name, see FieldFunction
        solution.u.xx(...), solution.u.lap(...)   its derivatives, by Taylor mode
        solution.velocity(...)                    a vector of the problem
        solution.evaluate(lambda u, at: u * u.x, x=..., t=...)
        solution.on_grid(x=100, t=0.5)            arrays for a picture
        solution.export("u.vtu", x=100)           .npz, .csv, .vtu, .pt2
        Solution.load("outputs/heat/run")         from a run folder

    ``solution["u"]`` is the field where an attribute is called u already. ``coefficients`` are
    those of an inverse problem, by name. The net's parameters are read at every call.
    """

    def __init__(
        self,
        signature: Signature,
        net: nn.Module,
        coefficients: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.signature = signature
        self.net = net
        self.coefficients = dict(coefficients)
        self._fields = NetFields(signature, net)

    @staticmethod
    def load(
        folder: str | Path | StoredRun, which: Which = "last", net: nn.Module | None = None
    ) -> Solution:
        """The solution of a stored run, on the CPU; the PDE file is not needed, and no code of the
        folder is run. Raises UserError where it holds no run or a file in it does not fit.

        ``which`` is 'last' or 'best' (lowest loss). ``net`` must be given where the run trained a
        net of the user's own: the same net, built anew; the stored weights are put into it.
        """
        run = folder if isinstance(folder, StoredRun) else StoredRun.open(folder)
        return Solution(run.signature, *trained(run, which, net))

    def __call__(self, points: Tensor) -> Tensor:
        """The fields [batch, field] at points [batch, coord], in the net's dtype on its device;
        raises UserError for points of another shape."""
        return self._fields(points)

    def __getitem__(self, name: str) -> FieldFunction:
        """A field or a vector by its name; UserError where there is none."""
        fields, vectors = self.signature.fields, self.signature.vectors
        if name not in fields and name not in vectors:
            raise UnknownName(f"there is no field '{name}'. {suggest(name, (*fields, *vectors))}")
        by_name = dict(zip(fields, fields_in(self._fields, len(fields)), strict=True))
        forms = [by_name[n] for n in ((name,) if name in fields else vectors[name])]
        return FieldFunction(self._fields, name, forms, vector=name not in fields)

    def __getattr__(self, name: str) -> FieldFunction:
        if name.startswith("_") or "signature" not in self.__dict__:
            raise AttributeError(name)
        return self[name]

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *self.signature.fields, *self.signature.vectors})

    def evaluate(self, expression: Callable[..., Any], /, **coordinates: Any) -> Any:
        """An expression of the fields, written as in a residual, at named coordinates.

            solution.evaluate(lambda u, v, at: (v.x - u.y, at.x * u), x=[0.1, 0.2], y=0.5)

        A tuple gives a tuple; a vector, such as grad(u), has its components on the last axis.
        Coordinates and what comes back are as in FieldFunction; mistakes in them are UserErrors.
        """
        asked = places(self.signature.domain, coordinates, "evaluate")
        values, is_tuple = self._fields.expression(expression, asked.points)
        shaped = tuple(asked.shaped(value) for value in values)
        return shaped if is_tuple else shaped[0]

    def on_grid(self, /, **axes: Any) -> FieldsOnGrid:
        """The fields on a grid: ``on_grid(x=100, y=50, t=0.5)``.

        A whole number is that many equispaced points over the bounds of the domain, another number
        fixes the coordinate, an array is the axis itself. Coordinates that are left out: with up
        to three, an axis over the whole range (101 points, 41 in three dimensions); with more, the
        middle of the range, and where no axis is given at all, the first two of space that are
        left are axes of 101 points. What the domain leaves out of its bounds is NaN. Raises
        UserError, naming the coordinate, for a wrong axis; warns of points outside the bounds.
        """
        grid, domain = Axes.of(self.signature, axes), self.signature.domain
        points = grid.points
        warn_outside(domain.bounds, points, "on_grid")
        values = self(points).cpu().numpy()
        values[left_out(domain, points).numpy()] = np.nan
        fields = {n: values[:, k].reshape(grid.shape) for k, n in enumerate(self.signature.fields)}
        return FieldsOnGrid(self.signature, grid.axes, grid.fixed, fields)

    def export(
        self, path: str | Path, /, *, points: Mapping[str, Any] | None = None, **axes: Any
    ) -> list[Path]:
        """Write the solution to a file of the kind that its ending says; returns what was written.

        * ``.npz``: axes and fields on a grid, and ``description``, JSON of names and units;
        * ``.csv``: a row per point of a grid, or of ``points={"x": xs, "t": ts}``;
        * ``.vtu``: a mesh for ParaView (needs meshio); several times: a file each, and a ``.pvd``;
        * ``.pt2``: the net as a program of torch.export, [batch, coord] → [batch, field].

        ``axes`` are those of ``on_grid``. Files appear whole or not at all. Raises UserError for
        another ending, axes that do not fit, or a file that cannot be written.
        """

        def table(points: Mapping[str, Any]) -> Array:
            asked = places(self.signature.domain, points, "export").points
            return torch.cat([asked.cpu(), self(asked).double().cpu()], dim=1).numpy()

        chosen = partial(Axes.of, self.signature)
        content = Content(
            self.signature, self.net, self.coefficients, chosen, self.on_grid, table, axes, points
        )
        return export(content, Path(path))

    def __repr__(self) -> str:
        names = abbreviated(self.signature.coordinates.names)
        return f"Solution({', '.join(self.signature.fields)} of {names})"
