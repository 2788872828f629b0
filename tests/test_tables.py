"""The tables of settings in docs/ are those that the classes make."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from pinnkfac.inspection import catalog

ROOT = Path(__file__).parent.parent
TABLES = runpy.run_path(str(ROOT / "docs" / "tables.py"))
PAGES = TABLES["PAGES"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_no_table_is_stale(page):
    text = page.read_text(encoding="utf-8")
    assert TABLES["filled"](text) == text, "run: python docs/tables.py"


def test_every_group_has_a_table():
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    groups = [folder.name for folder in catalog.groups().values()]
    assert sorted(re.findall(r"^<!-- settings of (\w+) -->$", text, re.M)) == sorted(groups)


def test_a_setting_stands_once_with_all_that_differs():
    table = TABLES["table"]("step")
    assert len(re.findall(r"^\| `step\.factors\.every` ", table, re.M)) == 1
    row = next(line for line in table.splitlines() if "`step.factors.every`" in line)
    assert "| `2`; `1` of `kfac_cg`, " in row
    assert "step.factored.factors" not in table and "damping.start" not in table


@pytest.mark.parametrize("group", [None, *(f for f in catalog.groups().values())], ids=str)
def test_every_setting_of_the_package_has_a_meaning(group):
    options = [] if group is None else catalog.options(group)
    settings = [s for option in options for s in option.settings()] or catalog.general()
    assert [s.key for s in settings if s.owner and not s.remark] == []
