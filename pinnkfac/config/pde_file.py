"""Finding PDE files: a path, FILE.py:function, or the name of a bundled one."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from pinnkfac.common.errors import UserError, suggest
from pinnkfac.common.files import resource

if TYPE_CHECKING:  # torch is slow to import, and finding a file does not need it
    from pinnkfac.problem import Problem
    from pinnkfac.store.stored_run import StoredRun

KINDS: tuple[tuple[Any, str], ...] = (
    (bool, "true or false"),
    ((int, float), "a number"),
    (str, "a word"),
    ((list, tuple), "a list"),
)


@dataclass(frozen=True)
class PdeFile:
    """A PDE function: its file (None where it was given from Python), its name, how to call it."""

    path: Path | None
    name: str
    function: Callable[..., Any]
    siblings: tuple[Path, ...] = ()
    """Files beside it that it imports."""

    @property
    def sha256(self) -> str | None:
        """A hash of the file and its siblings; None where there is no file."""
        if self.path is None:
            return None
        digest = hashlib.sha256()
        for path in (self.path, *self.siblings):
            digest.update(path.read_bytes())
        return digest.hexdigest()

    @staticmethod
    def of(function: Callable[..., Any]) -> PdeFile:
        """A function that was given from Python: any callable, such as a functools.partial.

        Raises UserError for anything else.
        """
        if not callable(function):
            raise UserError(
                f"a PDE is given as {type(function).__name__}: give a name, a file, a function "
                "that returns a Problem, or a Problem"
            )
        named: Any = function
        while isinstance(named, functools.partial):
            named = named.func
        name = getattr(named, "__name__", type(named).__name__)
        return PdeFile(None, name if name.isidentifier() else "pde", function)

    @property
    def _where(self) -> str:
        return "" if self.path is None else f"{self.path.name}: "

    @property
    def defaults(self) -> dict[str, Any]:
        """Keyword arguments of the function with their default values."""
        result = {}
        for parameter in inspect.signature(self.function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            if parameter.default is inspect.Parameter.empty:
                raise UserError(
                    f"{self._where}{self.name}({parameter.name}) has no default value: "
                    f"give one, such as {parameter.name}=1.0, to make pde.{parameter.name} optional"
                )
            result[parameter.name] = parameter.default
        return result

    def problem(self, arguments: dict[str, Any]) -> Any:
        """Call the function; raises UserError where it does not return a Problem."""
        from pinnkfac.problem import Problem

        self._check_kinds(arguments)
        try:
            with _beside(self.path):
                problem = self.function(**arguments)
        except UserError as error:
            raise UserError(f"{self._where}{error}") from error
        except (Exception, SystemExit) as error:
            where = "" if self.path is None else f"{self.path.name}{_line_in(error, self.path)} "
            raise UserError(
                f"{where}{self.name}() failed: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(problem, Problem):
            raise UserError(
                f"{self._where}{self.name}() returned {type(problem).__name__}; it must return a "
                "pinnkfac.Problem"
            )
        return problem

    def _check_kinds(self, arguments: dict[str, Any]) -> None:
        """Raise UserError for an argument that is unknown, or of another kind than its default."""
        if not arguments:
            return
        defaults, parameters = self.defaults, inspect.signature(self.function).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name, value in arguments.items():
            if name not in defaults and not takes_any:
                raise UserError(
                    f"{self._where}{self.name}() has no argument '{name}', which the run set "
                    f"(pde.{name}={value}). {suggest(name, defaults)} Give the file with that "
                    "argument, or start a new run"
                )
            default = defaults.get(name)
            for kinds, words in KINDS:
                if isinstance(default, kinds) and not isinstance(value, kinds):
                    raise UserError(
                        f"pde.{name}={value}: give {words}, as its default {default!r} is one"
                    )


def bundled() -> dict[str, Path]:
    """The PDE files that come with the package, by name in natural order."""
    files = {p.stem: p for p in resource("pdes").glob("*.py") if not p.stem.startswith("_")}
    return dict(sorted(files.items(), key=lambda item: _natural(item[0])))


def _natural(name: str) -> list[Any]:
    return [(int(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def summary(path: Path) -> tuple[str, str]:
    """(first line of the docstring, signature) of a bundled PDE, read without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    line = "".join((ast.get_docstring(tree) or "").strip().splitlines()[:1])
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name == path.stem:
            return line, ast.unparse(node.args)
    return line, ""


def find(place: str) -> PdeFile:
    """The PDE function behind FILE.py, FILE.py:function or NAME.

    A name without its dimension is the smallest such problem ('poisson' is 'poisson2d').
    Raises UserError where nothing or several things are found, or the file fails to import.
    """
    text, _, wanted = place.partition(":")
    if text.endswith(".py") or "/" in text or Path(text).suffix == ".py":
        path = Path(text).expanduser()
        if not path.is_file():
            names = ", ".join(bundled())
            raise UserError(f"{text}: there is no such file. Bundled PDEs: {names}")
        return _choose(path, wanted)
    files = bundled()
    pattern = re.escape(text) + r"\d+d"
    for name in (text, *(name for name in files if re.fullmatch(pattern, name))):
        if name in files:
            return _choose(files[name], wanted)
    raise UserError(
        f"there is no bundled PDE '{text}' and no file of that name. {suggest(text, files)} "
        "A PDE file of your own is given by its path, such as ./my_pde.py"
    )


def stored_problem(run: StoredRun) -> Problem:
    """The Problem of a stored run, from its PDE file where that lies, with the run's arguments.

    Raises UserError where the problem was given from Python, or its file is gone or broken.
    """
    from omegaconf import OmegaConf

    return stored_pde(run).problem(OmegaConf.to_container(run.config.pde, resolve=True))  # type: ignore


def stored_pde(run: StoredRun) -> PdeFile:
    """The PDE function of a stored run; raises UserError where it cannot be found."""
    file, name = run.problem.get("file"), run.name
    if file is None:
        raise UserError(
            f"{run.path}: the problem '{name}' was given from Python and is in no file: use "
            "pinnkfac.resume and pinnkfac.Solution.load from there"
        )
    if name in (files := bundled()) and not Path(file).is_file():
        return _choose(files[name], name)  # the package was installed elsewhere
    if not Path(file).is_absolute() or run.path.resolve() in Path(file).resolve().parents:
        raise UserError(
            f"{run.path} names a PDE file of its own ({file}), which is not run unless you say so: "
            f"problem={run.path / Path(file).name}"
        )
    if not Path(file).is_file():
        raise UserError(
            f"{run.path}: its PDE file {file} is gone: put it back, or go on with the copy, "
            f"problem={run.path / 'pde.py'}"
        )
    return _choose(Path(file), name)


def _choose(path: Path, wanted: str) -> PdeFile:
    path = path.resolve()
    module, siblings = _import(path)
    public = {
        name: value
        for name, value in vars(module).items()
        if inspect.isfunction(value)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    }
    if wanted and wanted not in public:
        raise UserError(f"{path.name} has no function '{wanted}'. {suggest(wanted, public)}")
    if not public:
        raise UserError(
            f"{path.name} has no public function: write one that returns a pinnkfac.Problem"
        )
    if len(public) > 1 and not wanted:
        raise UserError(
            f"{path.name} has several public functions ({', '.join(public)}): name one as "
            f"{path}:{next(iter(public))}, or start the names of helpers with _"
        )
    name = wanted or next(iter(public))
    return PdeFile(path, name, public[name], siblings)


def _import(path: Path) -> tuple[ModuleType, tuple[Path, ...]]:
    """The module of a file, and the files beside it that it imports."""
    name = f"pinnkfac_pde_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        # Dataclasses look their module up while it runs.
        sys.modules[name] = module
        with _beside(path) as siblings:
            spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        if isinstance(error, UserError):
            raise UserError(f"{path.name}: {error}") from error
        if not isinstance(error, Exception | SystemExit):
            raise
        line = _line_in(error, path)
        raise UserError(
            f"{path.name}{line} could not be imported: {type(error).__name__}: {error}"
        ) from error
    return module, tuple(sorted(siblings))


@contextmanager
def _beside(path: Path | None) -> Iterator[list[Path]]:
    """Within it, files in the folder of a PDE file can be imported, as beside a script; the list
    holds them when they are forgotten, as the next PDE file may lie beside others of these names.
    """
    siblings: list[Path] = []
    if path is None:
        yield siblings
        return
    folder, before = path.resolve().parent, set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        yield siblings
    finally:
        if str(folder) in sys.path:
            sys.path.remove(str(folder))
        for name in set(sys.modules) - before:
            if getattr(sys.modules[name], "__file__", None) == str(folder / f"{name}.py"):
                siblings.append(folder / f"{name}.py")
                del sys.modules[name]


def _line_in(error: BaseException, path: Path) -> str:
    if isinstance(error, SyntaxError) and Path(error.filename or "").resolve() == path.resolve():
        return f", line {error.lineno},"
    line = ""
    for frame, number in traceback.walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename).resolve() == path.resolve():
            line = f", line {number},"
    return line
