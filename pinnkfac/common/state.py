"""The state of an object as plain values, and back: what a checkpoint holds.

The state of a dataclass is all of its fields, except those of type ``Fixed[...]``, which it is
made with:

    @dataclass
    class Average:
        settings: Fixed[Factors]
        pairs: list[Pair] = field(default_factory=list)
        updates: int = 0

so that a field that is added is saved without being listed anywhere. The types of the fields are
looked up, so what they name must be imported for more than type checkers.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Generator, Tensor

Value = TypeVar("Value")
FIXED = "no part of the state"
Fixed = Annotated[Value, FIXED]
"""The type of a field that an object is made with, such as its settings: no part of its state."""


def state_of(value: Any) -> Any:
    """The state of an object in plain containers, as ``torch.load(weights_only=True)`` reads them.

    Tensors are not copied: write them before the object goes on. Raises TypeError for a field that
    is none of numbers, strings, tensors, generators, dataclasses, containers of these, and what has
    ``state_dict``.
    """
    if isinstance(value, Generator):
        return value.get_state()
    if _is_record(value):
        return {name: state_of(getattr(value, name)) for name in _fields(type(value))}
    if hasattr(value, "load_state_dict"):
        return value.state_dict()
    if isinstance(value, Mapping):
        return {key: state_of(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [state_of(part) for part in value]
        return tuple(parts) if isinstance(value, tuple) else parts
    if isinstance(value, float):  # one of numpy's would be saved, and refused when it is read
        return float(value)
    if value is None or isinstance(value, Tensor | str | int):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a state: make it a dataclass")


def restore(value: Value, state: Any, device: torch.device | None = None) -> Value:
    """The object in that state: changed in place, or a new one where its class is frozen.

    What the state lacks keeps its present value; a field that holds nothing yet is made from its
    type. Tensors are copied, to ``device``. Raises ValueError for the state of something else.
    """
    if isinstance(value, Generator):
        value.set_state(state)
    elif _is_record(value):
        parts = _parts(type(value), state, device, value)
        if value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            return dataclasses.replace(value, **parts)  # type: ignore[type-var]
        for name, part in parts.items():
            setattr(value, name, part)
    elif hasattr(value, "load_state_dict"):
        value.load_state_dict(state)
    else:
        raise TypeError(f"{type(value).__name__} has no state that can be restored")
    return value


def _parts(
    record: type, state: Any, device: torch.device | None, value: Any = None
) -> dict[str, Any]:
    """The fields of a dataclass that a state holds; ``value`` is the object that has them now."""
    fields = _fields(record)
    if not isinstance(state, Mapping) or (fields and not fields.keys() & state.keys()):
        raise ValueError(f"a state of {record.__name__} has {', '.join(fields)}")
    return {
        name: _part(hint, state[name], device, getattr(value, name, None))
        for name, hint in fields.items()
        if name in state
    }


def _part(hint: Any, state: Any, device: torch.device | None, value: Any) -> Any:
    """What a field of this type holds in that state, and ``value`` now."""
    if state is None:
        return None
    if isinstance(value, Generator) or hasattr(value, "load_state_dict") or _is_record(value):
        return restore(value, state, device)
    if isinstance(state, Tensor):
        return state.detach().to(device, copy=True)
    hint = _present(hint)
    arguments = get_args(hint)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return hint(**_parts(hint, state, device))
    if isinstance(state, Mapping):
        now = value if isinstance(value, Mapping) else {}
        inner = arguments[-1] if arguments else Any
        return {key: _part(inner, part, device, now.get(key)) for key, part in state.items()}
    if isinstance(state, list | tuple):
        same = isinstance(value, list | tuple) and len(value) == len(state)
        values = value if same else [None] * len(state)
        fixed_length = get_origin(hint) is tuple and Ellipsis not in arguments
        inners = arguments if fixed_length else [*arguments[:1], Any][:1] * len(state)
        pairs = zip(inners, state, values, strict=True)
        parts = [_part(inner, part, device, now) for inner, part, now in pairs]
        return tuple(parts) if isinstance(state, tuple) else parts
    return state


def _is_record(value: Any) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _fields(record: type) -> dict[str, Any]:
    """The fields that are state, and their types."""
    hints = get_type_hints(record, include_extras=True)
    names = [field.name for field in dataclasses.fields(record)]
    return {n: hints[n] for n in names if FIXED not in getattr(hints[n], "__metadata__", ())}


def _present(hint: Any) -> Any:
    """A type without the None that it allows, and without what is noted beside it."""
    if get_origin(hint) is Annotated:
        return _present(get_args(hint)[0])
    if get_origin(hint) in (Union, types.UnionType):
        options = [option for option in get_args(hint) if option is not type(None)]
        return _present(options[0]) if len(options) == 1 else Any
    return hint
