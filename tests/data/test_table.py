"""The order of the labels in a table, and paths that are none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from normlab.data._table import ordered
from normlab.errors import DataError


# "²" is a digit to Python and no number, and of "--1" the first character was a sign: both ended in a ValueError;
# "07" and "7" came in the order of a set, which differs from one process to the next
@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["10", "9", "-1"], ["-1", "9", "10"]),
        (["10", "9", "²"], ["10", "9", "²"]),
        (["--1", "10", "9"], ["--1", "10", "9"]),
        (["7", "08", "07"], ["07", "7", "08"]),
    ],
)
def test_labels_are_in_order(labels: list[str], expected: list[str]) -> None:
    assert ordered(set(labels)) == expected


# ValueError: embedded null byte
def test_a_zero_byte_in_a_path_is_named(tmp_path: Path, load: Callable[..., object]) -> None:
    (tmp_path / "table.csv").write_bytes(b"path,label\na.png,x\nb\0.png,y\n")
    with pytest.raises(DataError, match=r"1 of 2 rows cannot be used\n  row 3: a zero byte in the path 'b\\x00.png'"):
        load(tmp_path / "table.csv")
