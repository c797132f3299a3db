"""The four kernels on the planes of one sample, compiled; `x` is the whole tensor as one contiguous row.

Channels-first, a sample is C rows of S elements. Channels-last it is S rows of C elements; so that short rows
fill vector registers, `joined` of them are worked on as one row of `lanes` elements, with the grid repeated to
match, and `first`, `last` bound the rows of S, so that a sample can be cut into chunks.

Sums run in the elements' precision over blocks short enough to lose nothing, and in float64 over the blocks. The
variance is taken about a provisional mean whose own error is then corrected for (the corrected two-pass
algorithm: Chan, Golub & LeVeque 1983).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

# sums may be reordered, so that they vectorize; NaN and infinity keep their meaning
compiled = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")

_BLOCK = 512  # elements of a row that are summed in the elements' own precision
_ROWS = 8  # joined rows likewise


# Inner loops run over slices, from zero: an index that might be negative would keep them from vectorizing.


# --- channels-first: rows of `size` elements, the first at `start` -----------------------------------------------


@compiled
def moments_first(x: Any, start: int, channels: int, size: int, mean: Any, var: Any) -> None:
    for c in range(channels):
        row = x[start + c * size : start + (c + 1) * size]
        total = 0.0
        for at in range(0, size, _BLOCK):
            total += _sum(row[at : at + _BLOCK])
        near = x.dtype.type(total / size)
        left = 0.0
        square = 0.0
        for at in range(0, size, _BLOCK):
            part, part_square = _sums_about(row[at : at + _BLOCK], near)
            left += part
            square += part_square
        left /= size
        mean[c] = near + left
        var[c] = _not_negative(square / size - left * left)


@compiled
def _sum(row: Any) -> Any:
    total = row.dtype.type(0)
    for k in range(row.size):
        total += row[k]
    return total


@compiled
def _sums_about(row: Any, center: Any) -> Any:
    total = row.dtype.type(0)
    square = row.dtype.type(0)
    for k in range(row.size):
        d = row[k] - center
        total += d
        square += d * d
    return total, square


@compiled
def _not_negative(v: float) -> float:
    return v if v > 0 or v != v else 0.0


@compiled
def affine_first(x: Any, start: int, channels: int, size: int, scale: Any, center: Any, shift: Any, y: Any) -> None:
    for c in range(channels):
        row, out = x[start + c * size : start + (c + 1) * size], y[start + c * size : start + (c + 1) * size]
        a, m, t = scale[c], center[c], shift[c]
        for k in range(size):
            out[k] = a * (row[k] - m) + t


@compiled
def dots_first(g: Any, x: Any, start: int, channels: int, size: int, center: Any, sum_g: Any, sum_gx: Any) -> None:
    for c in range(channels):
        row, up = x[start + c * size : start + (c + 1) * size], g[start + c * size : start + (c + 1) * size]
        total = 0.0
        product = 0.0
        for at in range(0, size, _BLOCK):
            part, part_product = _dots(up[at : at + _BLOCK], row[at : at + _BLOCK], center[c])
            total += part
            product += part_product
        sum_g[c] = total
        sum_gx[c] = product


@compiled
def _dots(g: Any, x: Any, center: Any) -> Any:
    total = x.dtype.type(0)
    product = x.dtype.type(0)
    for k in range(x.size):
        total += g[k]
        product += g[k] * (x[k] - center)
    return total, product


@compiled
def combine_first(
    g: Any, x: Any, start: int, channels: int, size: int, center: Any, a: Any, b: Any, c: Any, dx: Any
) -> None:
    for i in range(channels):
        first, last = start + i * size, start + (i + 1) * size
        up, row, out = g[first:last], x[first:last], dx[first:last]
        m, a_i, b_i, c_i = center[i], a[i], b[i], c[i]
        for k in range(size):
            out[k] = a_i * up[k] + (b_i * (row[k] - m) + c_i)


# --- channels-last: elements `first` to `last`, whole rows of C, `lanes` of them at a time ---------------------------


@compiled
def fold(lanes: Any, channels: int, result: Any) -> None:
    """Add up the joined rows: one number per channel. `result` may be `lanes` itself."""
    for c in range(channels):
        total = 0.0
        for k in range(c, lanes.size, channels):
            total += lanes[k]
        result[c] = total


@compiled
def moments_last(x: Any, first: int, last: int, channels: int, lanes: int, mean: Any, var: Any) -> None:
    count = (last - first) // channels
    total, square = np.zeros(lanes), np.zeros(lanes)
    part, part_square = np.zeros(lanes, x.dtype), np.zeros(lanes, x.dtype)
    near = np.empty(lanes, x.dtype)
    step = lanes * _ROWS
    for at in range(first, last, step):
        stop = min(at + step, last)
        if stop - at == step:
            for row in range(at, stop, 4 * lanes):
                i, j, k, end = row + lanes, row + 2 * lanes, row + 3 * lanes, row + 4 * lanes
                _add_four(x[row:i], x[i:j], x[j:k], x[k:end], part)
        else:
            for row in range(at, stop, lanes):
                _add(x[row : min(row + lanes, stop)], part)
        _flush(part, total)
    fold(total, channels, mean)
    for at in range(0, lanes, channels):
        for c in range(channels):
            near[at + c] = mean[c] / count
    total[:] = 0
    for at in range(first, last, step):
        stop = min(at + step, last)
        if stop - at == step:
            for row in range(at, stop, 4 * lanes):
                i, j, k, end = row + lanes, row + 2 * lanes, row + 3 * lanes, row + 4 * lanes
                _add_four_about(x[row:i], x[i:j], x[j:k], x[k:end], near, part, part_square)
        else:
            for row in range(at, stop, lanes):
                _add_about(x[row : min(row + lanes, stop)], near, part, part_square)
        _flush(part, total)
        _flush(part_square, square)
    fold(total, channels, total)
    fold(square, channels, var)
    for c in range(channels):
        left = total[c] / count
        mean[c] = near[c] + left
        var[c] = _not_negative(var[c] / count - left * left)


@compiled
def _add(row: Any, total: Any) -> None:
    for k in range(row.size):
        total[k] += row[k]


# Several rows at a time, so that the running sums are loaded and stored less often; one sum to a loop, since a loop
# that writes two arrays needs more checks for overlap than the compiler is willing to make before it vectorizes.


@compiled
def _add_four(r0: Any, r1: Any, r2: Any, r3: Any, total: Any) -> None:
    for k in range(total.size):
        total[k] += (r0[k] + r1[k]) + (r2[k] + r3[k])


@compiled
def _add_four_about(r0: Any, r1: Any, r2: Any, r3: Any, center: Any, total: Any, square: Any) -> None:
    for k in range(total.size):
        total[k] += ((r0[k] - center[k]) + (r1[k] - center[k])) + ((r2[k] - center[k]) + (r3[k] - center[k]))
    for k in range(square.size):
        d0, d1, d2, d3 = r0[k] - center[k], r1[k] - center[k], r2[k] - center[k], r3[k] - center[k]
        square[k] += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)


@compiled
def _add_two_dots(g0: Any, g1: Any, x0: Any, x1: Any, center: Any, total: Any, product: Any) -> None:
    for k in range(total.size):
        total[k] += g0[k] + g1[k]
    for k in range(product.size):
        product[k] += g0[k] * (x0[k] - center[k]) + g1[k] * (x1[k] - center[k])


@compiled
def _add_about(row: Any, center: Any, total: Any, square: Any) -> None:
    for k in range(row.size):
        d = row[k] - center[k]
        total[k] += d
        square[k] += d * d


@compiled
def _flush(part: Any, total: Any) -> None:
    for k in range(part.size):
        total[k] += part[k]
        part[k] = 0


@compiled
def affine_last(x: Any, first: int, last: int, lanes: int, scale: Any, center: Any, shift: Any, y: Any) -> None:
    for at in range(first, last, lanes):
        row, out = x[at : min(at + lanes, last)], y[at : min(at + lanes, last)]
        for k in range(row.size):
            out[k] = scale[k] * (row[k] - center[k]) + shift[k]


@compiled
def dots_last(
    g: Any, x: Any, first: int, last: int, channels: int, lanes: int, center: Any, sum_g: Any, sum_gx: Any
) -> None:
    total, product = np.zeros(lanes), np.zeros(lanes)
    part, part_product = np.zeros(lanes, x.dtype), np.zeros(lanes, x.dtype)
    step = lanes * _ROWS
    for at in range(first, last, step):
        stop = min(at + step, last)
        if stop - at == step:
            for row in range(at, stop, 2 * lanes):
                mid, end = row + lanes, row + 2 * lanes
                _add_two_dots(g[row:mid], g[mid:end], x[row:mid], x[mid:end], center, part, part_product)
        else:
            for row in range(at, stop, lanes):
                end = min(row + lanes, stop)
                _add_dots(g[row:end], x[row:end], center, part, part_product)
        _flush(part, total)
        _flush(part_product, product)
    fold(total, channels, sum_g)
    fold(product, channels, sum_gx)


@compiled
def _add_dots(g: Any, x: Any, center: Any, total: Any, product: Any) -> None:
    for k in range(x.size):
        total[k] += g[k]
        product[k] += g[k] * (x[k] - center[k])


@compiled
def combine_last(
    g: Any, x: Any, first: int, last: int, lanes: int, center: Any, a: Any, b: Any, c: Any, dx: Any
) -> None:
    for at in range(first, last, lanes):
        stop = min(at + lanes, last)
        up, row, out = g[at:stop], x[at:stop], dx[at:stop]
        for k in range(row.size):
            out[k] = a[k] * up[k] + (b[k] * (row[k] - center[k]) + c[k])
