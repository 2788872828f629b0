"""One home for a default: a file of settings says what differs from the classes that it names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Node = Mapping[str, Any]


def complete(
    node: Node, defaults_of: Callable[[str], Node], default: Node | None = None
) -> dict[str, Any]:
    """A node with what it leaves to the class that it names as ``_target_`` (``_settings_``, if it
    is no object of its own), or else to the ``default`` in whose place it is; inner nodes alike."""
    result = dict(default or {})
    for name in ("_target_", "_settings_"):
        if name in node:
            result = {name: node[name], **defaults_of(node[name])}
    for name, value in node.items():
        if isinstance(value, dict):
            before = result.get(name)
            value = complete(value, defaults_of, before if isinstance(before, dict) else None)
        result[name] = value
    return result
