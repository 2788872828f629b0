"""What pyproject.toml and constraints.txt say agrees with the code, and with each other."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {"pillow": "PIL", "hydra-core": "hydra"}


def dependencies():
    """Names of the dependencies and their lower bounds."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[(.*?)^\]", text, flags=re.S | re.M).group(1)
    return dict(re.findall(r'"([\w-]+)>=([\d.]+)', block))


def version(text):
    return tuple(int(part) for part in text.split("."))


def test_dependencies_are_what_the_package_imports():
    found = set()
    for path in (ROOT / "pinnkfac").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    found -= {*sys.stdlib_module_names, "pinnkfac"}
    assert found - {"omegaconf"} == {MODULES.get(name, name) for name in dependencies()}


def test_constraints_lie_above_the_lower_bounds():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    for name, least in dependencies().items():
        pinned = re.findall(rf"^{name}==([\d.]+)", text, flags=re.M)
        assert pinned and all(version(v) >= version(least) for v in pinned), name


def test_the_source_archive_has_what_its_tests_need(tmp_path):
    pytest.importorskip("hatchling")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    for folder, ending in (
        *(("pinnkfac", "py"), ("pdes", "py"), ("conf", "yaml"), ("experiments", "py")),
        *(("tests", "py"), ("tests/golden", "npz")),
    ):
        files = {str(p.relative_to(ROOT)) for p in (ROOT / folder).rglob(f"*.{ending}")}
        assert files and files <= names, (folder, sorted(files - names))
    assert {"README.md", "LICENSE", "constraints.txt", "tests/golden/README.md"} <= names
