"""python -m pinnkfac new FILE.py"""

from __future__ import annotations

import ast
import keyword
import re
import shlex
import sys
from importlib.util import find_spec
from pathlib import Path

from pinnkfac.commands.command_line import Parser
from pinnkfac.common.errors import UserError
from pinnkfac.inspection.text import say

TEMPLATE = Path(__file__).with_name("templates") / "pde.py"


def main(arguments: list[str]) -> int:
    parser = Parser(
        "new",
        "Write a PDE file to start from: a small problem that can be solved at once, with\n"
        "comments on every part. An existing file is never overwritten.",
        "new my_pde.py",
    )
    parser.add_argument("file", metavar="FILE.py", help="the file to write")
    options = parser.parse_args(arguments)
    path = Path(options.file).expanduser()
    _check(path)
    text = written(TEMPLATE.read_text(encoding="utf-8"), path)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise UserError(f"{path} is there already and stays as it is: give another name") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error
    name = shlex.quote(str(path))
    commands = (f"check {name}", f"show {name}", f"solve {name} stop.seconds=20")
    say([f"{path} is written. What to do next:", *(f"  python -m pinnkfac {c}" for c in commands)])
    return 0


def written(template: str, path: Path) -> str:
    """The template for a file: its function is named after the file, its commands name the file."""
    name = path.stem.lstrip("_")
    imported = {
        alias.asname or alias.name
        for node in ast.walk(ast.parse(template))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    if name in imported:
        name += "_problem"  # a function called sin would hide the one that the file imports
    text = template.replace("my_pde.py", path.name)
    return re.sub(r"\bdef my_pde\(", f"def {name}(", text)


def _check(path: Path) -> None:
    """Raise UserError for what cannot be the name of a Python file that is imported."""
    stem = path.stem
    name = re.sub(r"\W+", "_", stem.removeprefix(".py")).strip("_") or "my_pde"
    name = f"pde_{name}" if name[0].isdigit() else name
    proposal = path.with_name(f"{name}_problem.py" if keyword.iskeyword(name) else f"{name}.py")
    if path.suffix != ".py":
        raise UserError(
            f"{path} is no Python file: give a name that ends in .py, such as {proposal}"
        )
    if not stem.isidentifier() or keyword.iskeyword(stem) or not stem.strip("_"):
        raise UserError(
            f"{path}: '{stem}' is no name of a Python module: use letters, digits and _, such as "
            f"{proposal}"
        )
    if stem in sys.stdlib_module_names or _is_installed(stem, path):
        raise UserError(
            f"{path}: the module '{stem}' is an installed one, which this file would hide from "
            f"others: give another name, such as {path.with_name(f'{stem}_problem.py')}"
        )
    if not path.parent.is_dir():
        raise UserError(f"{path}: there is no folder {path.parent}: make it first")


def _is_installed(name: str, path: Path) -> bool:
    """Whether a package of that name can be imported from elsewhere than beside the file."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return False
    beside = {path.resolve().parent, Path.cwd()}
    origin = Path(spec.origin).resolve()
    return origin.parent not in beside and origin.parent.parent not in beside
