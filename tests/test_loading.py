"""PDE functions from files and from Python: how they are imported, called and refused."""

from __future__ import annotations

import functools
import sys

import pytest

from pinnkfac import Box, Problem, Term, UserError
from pinnkfac.config.pde_file import PdeFile, find

PDE = """
from __future__ import annotations
from dataclasses import dataclass
from pinnkfac import Box, Problem, Term
{more}
@dataclass
class _Settings:
    factor: float = {factor}

def mine(factor: float = _Settings().factor):
    return Problem(fields="u", terms=[Term("eq", Box(x=(0, 1)).interior, lambda u, at: u - factor)])
"""


def problem(factor=1.0, name="eq"):
    return Problem(fields="u", terms=[Term(name, Box(x=(0, 1)).interior, lambda u, at: u - factor)])


def write(folder, text, name="mine.py"):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


# -- files ---------------------------------------------------------------------------------------
def test_a_file_may_define_dataclasses(tmp_path):
    found = find(write(tmp_path, PDE.format(more="", factor=2.0)))
    assert found.name == "mine" and found.defaults == {"factor": 2.0}
    assert isinstance(found.problem({"factor": 3.0}), Problem)


def test_files_import_what_lies_beside_them_each_their_own(tmp_path):
    path, modules = list(sys.path), set(sys.modules)
    for factor in (2.0, 5.0):
        folder = tmp_path / str(factor)
        write(folder, f"FACTOR = {factor}", "beside_mine.py")
        more = "from beside_mine import FACTOR"
        assert find(write(folder, PDE.format(more=more, factor="FACTOR"))).defaults == {
            "factor": factor
        }
    assert sys.path == path
    assert set(sys.modules) - modules <= {"pinnkfac_pde_mine"}


def test_functions_import_what_lies_beside_them_when_they_are_called(tmp_path):
    write(tmp_path, PDE.format(more="", factor=1.0), "later_mine.py")
    text = "def mine():\n    from later_mine import mine\n    return mine()\n"
    assert isinstance(find(write(tmp_path, text)).problem({}), Problem)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x = 1\ny = 1 / 0", ["broken.py, line 2,", "ZeroDivisionError"]),
        ("x = 1\nx = = 2", ["broken.py, line 2,", "SyntaxError"]),
        ("import nothing_like_this", ["broken.py, line 1,", "nothing_like_this"]),
        ("\n\nimport beside_broken", ["broken.py, line 3,", "SyntaxError"]),
        ("from pinnkfac import Box\nBox(x=1)", ["broken.py: Box"]),
    ],
)
def test_a_file_that_fails_leaves_nothing_behind(tmp_path, text, words):
    write(tmp_path, "x = 1\n" * 20 + "x = = 2", "beside_broken.py")
    path = list(sys.path)
    with pytest.raises(UserError) as caught:
        find(write(tmp_path, text, "broken.py"))
    for word in words:
        assert word in str(caught.value)
    assert sys.path == path
    assert not {"pinnkfac_pde_broken", "beside_broken"} & sys.modules.keys()


# -- functions from Python -----------------------------------------------------------------------
class Made:
    def __call__(self, factor=4.0):
        return problem(factor)


@pytest.mark.parametrize(
    ("function", "name", "defaults"),
    [
        (problem, "problem", {"factor": 1.0, "name": "eq"}),
        (functools.partial(problem, factor=2.0), "problem", {"factor": 2.0, "name": "eq"}),
        (functools.partial(functools.partial(problem, 2.0), name="b"), "problem", {"name": "b"}),
        (Made(), "Made", {"factor": 4.0}),
        (lambda factor=1.0, **more: problem(factor), "pde", {"factor": 1.0}),
    ],
)
def test_any_callable_is_a_pde(function, name, defaults):
    found = PdeFile.of(function)
    assert (found.path, found.name, found.defaults) == (None, name, defaults)
    assert isinstance(found.problem(defaults), Problem)


def needs(factor):
    return problem(factor)


def empty():
    return Problem(fields=(), terms=[])


@pytest.mark.parametrize(
    ("use", "start"),
    [
        (lambda: PdeFile.of(needs).defaults, "needs(factor) has no default"),
        (lambda: PdeFile.of(int).problem({}), "int() returned int; it must return a pinnkfac.Pr"),
        (lambda: PdeFile.of(empty).problem({}), "Problem: fields is empty"),
        (lambda: PdeFile.of(3), "a PDE is given as int: give a name, a file"),
    ],
)
def test_messages_about_functions_from_python(use, start):
    with pytest.raises(UserError) as caught:
        use()
    assert str(caught.value).startswith(start)
