"""Which module may import which: read from the files, not from a run."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pinnkfac"

FOLDERS = (
    *("version", "common", "field", "domain", "problem", "residual", "taylor", "nets"),
    *(
        "linearisation",
        "features",
        "curvature",
        "step",
        "points",
        "store",
        "config",
        "export",
        "solution",
    ),
    *("plots", "run", "inspection", "compare", "bench", "commands", "__main__"),
)
"""From bottom to top: what stands in one may import what stands in it and below it."""


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def statements(tree):
    """All import statements, also those in functions and under TYPE_CHECKING."""
    return (n for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom))


def imported(path):
    """Modules that a file imports, with the line."""
    for node in statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        else:
            assert node.level == 0, f"{path.name}:{node.lineno}: imports are written in full"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield (full if full in FILES else node.module), node.lineno


def layer_of(module):
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def rank(module):
    return FOLDERS.index(layer_of(module))


def test_every_module_is_in_a_folder_that_has_a_place():
    assert {layer_of(module) for module in FILES if module != "pinnkfac"} == set(FOLDERS)
    modules = [path.stem for path in PACKAGE.glob("*.py")]
    assert len(modules) <= 5, "the folders of pinnkfac/ show the way: put a module into one"


@pytest.mark.parametrize("module", [m for m in FILES if m != "pinnkfac"])
def test_imports_point_down_only(module):
    """In functions too, and for type checkers: an import that is hidden points just as far."""
    for other, line in imported(FILES[module]):
        if other.split(".")[0] != "pinnkfac":
            continue
        assert other in FILES, f"{module}:{line} imports {other}, which is not a module"
        public = other == "pinnkfac"  # the names of the package itself are for its users
        assert not public or layer_of(module) == "commands", f"{module}:{line}"
        assert public or rank(other) <= rank(module), f"{module}:{line} imports {other}, above it"


def test_no_module_imports_itself_through_others():
    """Inside a folder, too: hidden imports and those for type checkers count."""
    edges = {
        module: {
            other
            for other, _ in imported(path)
            if other in FILES and other not in (module, "pinnkfac")
        }
        for module, path in FILES.items()
        if module != "pinnkfac"  # names its own modules, on first use
    }
    left = dict(edges)
    while True:
        free = [module for module, needs in left.items() if not needs & left.keys()]
        if not free:
            break
        for module in free:
            del left[module]
    assert not left, f"a circle of imports among {sorted(left)}"


@pytest.mark.parametrize("module", FILES)
def test_the_package_imports_neither_problems_nor_tests(module):
    for other, line in imported(FILES[module]):
        assert other.split(".")[0] not in ("pdes", "tests", "experiments"), f"{module}:{line}"


def test_problems_use_public_names_only():
    import pinnkfac

    for path in sorted((ROOT / "pdes").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in statements(tree):
            names = [a.name for a in node.names]
            if isinstance(node, ast.ImportFrom) and node.module == "pinnkfac":
                assert set(names) <= set(pinnkfac.__all__), f"{path.name}:{node.lineno}"
            else:
                module = node.module if isinstance(node, ast.ImportFrom) else names[0]
                assert not module.startswith("pinnkfac"), f"{path.name}:{node.lineno}"


STARTS = ["pinnkfac", *(["pinnkfac.__main__"] if "pinnkfac.__main__" in FILES else [])]


@pytest.mark.parametrize("module", STARTS)
def test_the_command_starts_without_torch(module):
    code = (
        f"import sys, {module}; "
        "print([m for m in ('torch', 'numpy', 'scipy', 'matplotlib', 'hydra') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_imported():
    import pinnkfac

    for name in pinnkfac.__all__:
        assert getattr(pinnkfac, name) is not None
    assert set(pinnkfac.__all__) <= set(dir(pinnkfac))
    with pytest.raises(AttributeError, match="nothing_like_this"):
        _ = pinnkfac.nothing_like_this


# -- the page on the architecture ------------------------------------------------------------------
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`(pinnkfac(?:\.\w+)+)`", PAGE)))


@pytest.mark.parametrize("name", NAMED)
def test_every_name_on_the_page_of_the_architecture_exists(name):
    module, _, attribute = name.rpartition(".")
    if name not in FILES:
        assert hasattr(importlib.import_module(module), attribute)


def test_the_page_of_the_architecture_names_every_folder_on_the_path():
    assert len(NAMED) > 40 and len(PAGE.splitlines()) <= 75
    on_the_path = set(FOLDERS) - {"version", "plots", "export", "inspection", "compare", "bench"}
    assert {layer_of(name) for name in NAMED} >= on_the_path - {"nets", "__main__"}
