"""Rows of text in columns."""

from __future__ import annotations

from normlab.report import columns


def test_names_begin_at_the_left_and_figures_end_at_the_right() -> None:
    rows = [["norm", "accuracy", "at"], ["gn:groups=8", "9.5", "lr 0.1"], ["[bold]x[/]", "100.0", "lr 0.01"]]
    assert columns.lines(rows, left={0, 2}) == [
        "norm         accuracy  at",
        "gn:groups=8       9.5  lr 0.1",
        "[bold]x[/]      100.0  lr 0.01",
    ]


def test_wide_letters_take_two_places_and_a_blank_keeps_its_own() -> None:
    assert columns.lines([["\u732b", "1.0" + columns.BLANK], ["cat", "12.0<"]]) == ["\u732b    1.0", "cat  12.0<"]


def test_a_row_is_printed_before_the_next_is_measured() -> None:
    wide = columns.widths([["a", "bbb"], ["aaaa", "b"]])
    assert wide == [4, 3]
    assert columns.line(["a", "b"], wide) == "a       b"
