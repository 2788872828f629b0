"""Which functions of which coordinates a problem is about: enough to evaluate and draw them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.domain import Domain
from pinnkfac.domain.domain import as_stored, from_stored
from pinnkfac.field import Coordinates


@dataclass(frozen=True)
class Signature:
    """Fields u, v … of the coordinates of a domain, with the units that they are labelled with.

    ``vectors`` maps the name of a vector field to its components, one field per coordinate of
    space. ``units`` maps the name of a field or coordinate to its unit, as it is to be shown.
    ``parameters`` are the names of unknown coefficients. Every field is the same at both ends of
    each coordinate in ``periodic``, with all derivatives.

    Raises UserError for a unit, a component or a period of something that does not exist.
    """

    fields: tuple[str, ...]
    domain: Domain
    units: Mapping[str, str] = field(default_factory=dict)
    vectors: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    parameters: tuple[str, ...] = ()
    periodic: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        names = (*self.fields, *self.coordinates.names)
        for name in self.units:
            if name not in names:
                raise UserError(f"units: there is no '{name}'. {suggest(name, names)}")
        for name in self.periodic:
            if name not in self.coordinates.names:
                raise UserError(
                    f"periodic: there is no coordinate '{name}'. "
                    f"{suggest(name, self.coordinates.names)}"
                )
        space = self.coordinates.space
        for vector, components in self.vectors.items():
            for name in components:
                if name not in self.fields:
                    raise UserError(
                        f"vectors: '{vector}' has the component '{name}', which is no field. "
                        f"{suggest(name, self.fields)}"
                    )
            if len(components) != len(space):
                raise UserError(
                    f"vectors: '{vector}' has {len(components)} components; give one field for "
                    f"each coordinate of space ({', '.join(space)})"
                )

    @property
    def coordinates(self) -> Coordinates:
        return self.domain.coordinates

    @property
    def shown_units(self) -> dict[str, str]:
        """The units that are shown: '1', of what has none, is not."""
        return {name: unit for name, unit in self.units.items() if unit and unit != "1"}

    def label(self, name: str) -> str:
        """A name with its unit, such as 'u [K]'."""
        unit = self.shown_units.get(name)
        return f"{name} [{unit}]" if unit else name

    def as_dict(self) -> dict[str, Any]:
        """Plain values, as a run folder keeps them."""
        return {
            "fields": list(self.fields),
            **as_stored(self.domain),
            "units": dict(self.units),
            "vectors": {name: list(components) for name, components in self.vectors.items()},
            "parameters": list(self.parameters),
            "periodic": list(self.periodic),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> Signature:
        """The opposite of ``as_dict``; raises KeyError, TypeError or UserError for other values."""
        return Signature(
            tuple(values["fields"]),
            from_stored(values),
            dict(values["units"]),
            {name: tuple(components) for name, components in values["vectors"].items()},
            tuple(values["parameters"]),
            tuple(values.get("periodic", ())),
        )
