"""Rows of text in columns, for a terminal: the one printer of tables, over rich's."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

BLANK = "\u2800"  # stands for a space at the end of a cell, where rich drops spaces
_GAP = 2


def widths(rows: Sequence[Sequence[str]]) -> list[int]:
    """The width of the longest cell of each column."""
    return [max(map(cell_len, column)) for column in zip(*rows, strict=True)]


def line(cells: Sequence[str], widths: Sequence[int], left: Collection[int] = (0,)) -> str:
    """One row as text; columns are as wide as given, so that a row can be printed before the next is measured.

    The columns in `left` begin at the left, the others end at the right.
    """
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, _GAP, 0, 0))
    for i, width in enumerate(widths):
        table.add_column(justify="left" if i in left else "right", width=width, no_wrap=True)
    table.add_row(*map(Text, cells))
    out = io.StringIO()
    Console(file=out, width=sum(widths) + _GAP * len(widths), color_system=None, force_terminal=False).print(table)
    return out.getvalue().replace(BLANK, " ").rstrip()


def lines(rows: Sequence[Sequence[str]], left: Collection[int] = (0,)) -> list[str]:
    """All rows as text, the names of the columns first."""
    wide = widths(rows)
    return [line(cells, wide, left) for cells in rows]
