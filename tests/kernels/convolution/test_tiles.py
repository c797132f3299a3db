"""The tiles of a compiled convolution cover a row exactly, on every processor."""

from __future__ import annotations

import pytest

from normlab.kernels.convolution._shifts import LANES
from normlab.kernels.convolution._tiles import rest


# Where registers hold 3 vectors across (AVX without AVX-512), the last tile of a row was two vectors wide and wrote
# over the beginning of the next row: wrong outputs, and a write past the end of the array.
@pytest.mark.parametrize("across", [3, 6])
@pytest.mark.parametrize("lanes", [2, 4, 8, 16])
@pytest.mark.parametrize("rows", range(1, 12))
def test_tiles_end_where_a_row_ends(rows: int, lanes: int, across: int) -> None:
    span = rows * LANES
    left = span % (across * lanes)
    assert left % (rest(across) * lanes) == 0
