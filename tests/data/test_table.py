"""The order of the labels in a table."""

from __future__ import annotations

import pytest

from normlab.data._table import ordered


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
