"""A job on positions: behind the numbers that the protocol of threads reads, these.

Items are rows (D elements, one after the other), or tiles: some columns of a sample (C, S).
"""

from __future__ import annotations

from normlab.kernels.runtime.job import TABLE

(
    X, G, Y, KEPT, WEIGHT, BIAS,  # addresses: x, its output's gradient, y or dx, (3, rows or N * S), (D,), (D,)
    SUMS, D_WEIGHT, D_BIAS,  # (2, units, D) partial sums of the gradients of weight and bias, and where they go, or 0
    OUTER, SIZE, INNER,  # rows, D and 0; or N, C and S
    X_OUTER, X_STEP, G_OUTER, G_STEP,  # elements from one row or sample to the next, and from one channel to the next
    TILES, WIDTH,  # in a sample; columns in a tile
    EXTENT,  # items in a unit
    ITEMSIZE,  # bytes of a number
    CENTRED, LEARNS,
    EPS,
    NUMBERS,
) = range(TABLE, TABLE + 24)  # fmt: skip
