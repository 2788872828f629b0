"""Which module may import which: read from the files, not from a run."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pinnkfac"

LAYERS = (
    "version",
    "errors",
    "whole",
    "command_line",
    "settings",
    "memory",
    "workers",
    "direction",
    "field",
    "domain",
    "signature",
    "problem",
    "residual",
    "taylor",
    "nets",
    "block",
    "collect",
    "linearise",
    "curvature",
    "step",
    "balance",
    "allocation",
    "adaptive",
    "sources",
    "loop",
    "run_folder",
    "accuracy",
    "solution",
    "plots",
    "loading",
    "configuration",
    "assembly",
    "checkpoints",
    "interruption",
    "display",
    "watching",
)
"""From bottom to top. What is not named here (solving, commands) lies above all."""


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def statements(tree, *, at_import_only):
    """Import statements; those in functions and under TYPE_CHECKING do not run at import."""
    pending = list(ast.iter_child_nodes(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif at_import_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        elif at_import_only and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
        else:
            pending += ast.iter_child_nodes(node)


def imported(path, *, at_import_only=False):
    """Modules that a file imports, with the line."""
    for node in statements(
        ast.parse(path.read_text(encoding="utf-8")), at_import_only=at_import_only
    ):
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
    layer = layer_of(module)
    return LAYERS.index(layer) if layer in LAYERS else len(LAYERS)


def test_the_named_layers_are_there():
    assert {layer_of(module) for module in FILES} >= set(LAYERS)


@pytest.mark.parametrize("module", [m for m in FILES if m != "pinnkfac"])
def test_imports_point_down_only(module):
    """In functions too: an import that is hidden in one points just as far."""
    for other, line in imported(FILES[module]):
        if other.split(".")[0] != "pinnkfac":
            continue
        assert other in FILES, f"{module}:{line} imports {other}, which is not a module"
        public = other == "pinnkfac"  # the names of the package itself are for its users
        assert not public or rank(module) == len(LAYERS), f"{module}:{line}"
        assert public or rank(other) <= rank(module), f"{module}:{line} imports {other}, above it"


def test_no_module_imports_itself_through_others():
    edges = {
        module: {
            other
            for other, _ in imported(path, at_import_only=True)
            if other in FILES and other not in (module, "pinnkfac")
        }
        for module, path in FILES.items()
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
        for node in statements(tree, at_import_only=False):
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
