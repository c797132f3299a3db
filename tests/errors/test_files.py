"""Files are whole or not there, and JSON is what every reader takes."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.errors import DataError, files


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_is_written_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    for text in ("one\r\n", "zwei: \u00e4\n"):
        files.write_text(path, text)
        assert path.read_bytes().decode() == text
    assert list(tmp_path.iterdir()) == [path]


# a full disk cut the report that was there down to what fitted, and was called a bug in normlab
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    files.write_text(path, "old")
    monkeypatch.setattr(os, where, full)
    with pytest.raises(DataError, match=r"cannot write '.*report.html': No space left .*; free some space") as raised:
        files.write_text(path, "new")
    assert isinstance(raised.value, OSError)
    assert (raised.value.errno, raised.value.exit_code) == (errno.ENOSPC, 6)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_writer_raises_is_raised_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    files.write_text(path, "old")

    def write() -> None:
        with files.whole(path) as part:
            part.write_text("half of")
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["absent/file", "folder"])
def test_where_nothing_can_be_written(name: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match="cannot write"):
        files.write_bytes(tmp_path / name, b"")


def test_a_pipe_takes_what_it_is_given(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        files.write_bytes(pipe, b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert list(tmp_path.iterdir()) == [pipe]


# results.json had null, the report the text "nan", and `check --json` NaN, which is no JSON
def test_numbers_that_are_not_finite_are_null_everywhere_in_json() -> None:
    values = {"a": [float("nan"), (float("inf"), 1.5)], 2: np.float32("-inf"), "n": np.array([1.0, np.nan])}
    assert json.loads(files.to_json(values)) == {"a": [None, [None, 1.5]], "2": None, "n": [1.0, None]}
    assert files.to_json([True, None, "nan", np.int64(3), np.bool_(False)]) == '[true, null, "nan", 3, false]'
    assert files.to_json(Path("x"), default=str) == '"x"'
    with pytest.raises(TypeError):
        files.to_json(object())


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner)
       | st.dictionaries(st.text(), inner), max_leaves=20))  # fmt: skip
def test_json_is_strict_and_what_is_finite_survives(value: object) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    back = json.loads(files.to_json(value), parse_constant=refuse)
    assert files.to_json(back) == files.to_json(value)
