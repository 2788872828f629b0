"""Files that appear whole, JSON and CSV in them, and the lock of a folder."""

from __future__ import annotations

import json
import math

import pytest

from pinnkfac import UserError
from pinnkfac.common.errors import first_line
from pinnkfac.common.files import Damaged, as_json, read_json, whole, write_csv, write_text
from pinnkfac.common.locks import locked


def test_json_has_no_nan_and_is_read_back(tmp_path):
    content = {"a": [1.5, math.nan, (math.inf, 2)], "b": {"c": None, "µ": "x"}}
    path = write_text(tmp_path / "a.json", as_json(content, indent=2))
    assert read_json(path) == {"a": [1.5, None, [None, 2]], "b": {"c": None, "µ": "x"}}
    assert path.read_text().endswith("}\n") and json.loads(as_json(1)) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "Expecting property name"), ("[1]", "it holds list, not names"), (None, "No such file")],
)
def test_a_damaged_file_is_named_with_the_reason(tmp_path, text, reason):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(Damaged, match=r"a\.json is damaged") as caught:
        read_json(path)
    assert reason in caught.value.reason and reason in str(caught.value)


def test_csv_leaves_a_cell_empty_for_nothing(tmp_path):
    rows = ((i, None if i else 0.5) for i in range(2))
    assert write_csv(tmp_path / "a.csv", ["i", "é"], rows).read_bytes() == (
        "i,é\n0,0.5\n1,\n".encode()
    )


def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = write_text(tmp_path / "a.txt", "old")

    def refuse(aside):
        aside.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"a\.txt cannot be written \(No space left on device\)"):
        whole(path, refuse)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_folder_is_locked_once(tmp_path):
    busy = pytest.raises(UserError, match="another process is busy: wait")
    with locked(tmp_path, "is busy: wait"), busy, locked(tmp_path, "is busy: wait"):
        pass
    with locked(tmp_path, "is busy: wait"):
        pass


def test_the_first_line_of_an_exception():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("")) == "" and first_line(ValueError("abc"), 2) == "ab"
