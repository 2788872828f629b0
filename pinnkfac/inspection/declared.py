"""Settings classes as their files declare them, read as text, so that torch need not be imported: a
setting is a field of a dataclass with a default, and a string below it says what it means."""

from __future__ import annotations

import ast
import functools
import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

from pinnkfac.common.files import PACKAGE


class Leaf(NamedTuple):
    """A value as a file of settings would have it, and a remark behind it."""

    value: str
    remark: str = ""


def defaults_of(target: str) -> dict[str, Any]:
    """The defaults of a class: a Leaf, or for an object ``_target_`` and the defaults of its own;
    none where there is no such class."""
    fields = _fields(target)
    return {f.name: _node(f.default, f.module) for f in fields if f.default is not None}


def meanings_of(target: str) -> dict[str, str]:
    """What the fields of a class mean, where that is said."""
    return {field.name: field.meaning for field in _fields(target) if field.meaning}


class _Field(NamedTuple):
    name: str
    default: ast.expr | None
    meaning: str
    module: str


@functools.cache
def _fields(target: str) -> list[_Field]:
    """The fields of a settings class, those of its bases first."""
    module, _, name = target.rpartition(".")
    place = _located(module, name)
    if place is None:
        return []
    module, class_ = place
    result = [field for base in class_.bases for field in _fields(f"{module}.{ast.unparse(base)}")]
    if not any("dataclass" in ast.unparse(decorator) for decorator in class_.decorator_list):
        return result
    for field, below in zip(class_.body, [*class_.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
            text = below.value if isinstance(below, ast.Expr) else None
            meaning = " ".join(str(text.value).split()) if isinstance(text, ast.Constant) else ""
            result.append(_Field(ast.unparse(field.target), field.value, meaning, module))
    return result


def _located(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """The module that defines a class, and its definition, through the modules that import it."""
    text = _text_of(module)  # of which no more is parsed than the class: all of it is slow
    lines = re.search(rf"^(?:@[^\n]*\n)*class {name}\b.*?(?=^\S|\Z)", text, re.M | re.S)
    if lines:
        (node,) = ast.parse(lines[0]).body
        return (module, node) if isinstance(node, ast.ClassDef) else None
    for other, names in re.findall(r"^from (\S+) import (\([^)]*\)|.*)$", text, re.M):
        if re.search(rf"\b{name}\b", names):
            return _located(other, name)
    return None


@functools.cache
def _text_of(module: str) -> str:
    if module and module.partition(".")[0] not in sys.stdlib_module_names:
        for root in (PACKAGE.parent, *map(Path, sys.path)):
            inside = root.joinpath(*module.split("."))
            for path in (inside.with_suffix(".py"), inside / "__init__.py"):
                if path.is_file():
                    return path.read_text(encoding="utf-8")
    return ""


def _node(value: ast.expr, module: str) -> Any:
    """A default: a Leaf, or the node of an object."""
    made = _made(value)
    if made is None:
        return Leaf(text_of(value))
    name, arguments = made
    place = _located(module, name)
    if place is None:
        return Leaf({"list": "[]", "dict": "{}"}.get(name, name))
    target = f"{place[0]}.{name}"
    changed = {a.arg: _node(a.value, module) for a in arguments if a.arg}
    return {"_target_": target, **defaults_of(target), **changed}


def _made(value: ast.expr) -> tuple[str, list[ast.keyword]] | None:
    """The class and the arguments of ``Class(name=...)`` and of a field that is made by either."""
    if not isinstance(value, ast.Call):
        return None
    if ast.unparse(value.func) != "field":
        return ast.unparse(value.func), value.keywords
    factory = next(k.value for k in value.keywords if k.arg == "default_factory")
    if isinstance(factory, ast.Lambda):
        return _made(factory.body)
    return ast.unparse(factory), []


def text_of(value: ast.expr) -> str:
    """A constant as a file of settings would have it, in one word of a shell."""
    if isinstance(value, ast.Tuple | ast.List):
        return f"[{','.join(map(text_of, value.elts))}]"
    if not isinstance(value, ast.Constant):
        return ast.unparse(value)
    if isinstance(value.value, float):
        short = f"{value.value:g}"
        return short if "e" in short else repr(value.value)
    return value.value if isinstance(value.value, str) else json.dumps(value.value)
