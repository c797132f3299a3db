"""The four kernels compiled by Numba, for NumPy arrays and views of CPU tensors, float32 and float64.

Channels-first data is taken as rows of S contiguous elements, one plane each. Channels-last data is taken as
S rows of C contiguous elements; so that short rows fill vector registers, several are joined into one row of
`lanes` elements, with the grid repeated to match, and long planes are cut into chunks that fit in cache, whose
moments are merged by Chan's formula.

Sums are kept in float64. Elements are centred before they are scaled: the centre is rounded to the elements'
dtype, where the subtraction is exact for elements near it, and what the rounding lost goes into the shift.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from normlab.planes._threads import split

_CHUNK_BYTES = (
    1 << 17
)  # of a channels-last plane group, read twice by `moments`: stays in the second-level cache
_LANES = 64  # shortest joined row
# sums may be reordered, so that they vectorize; NaN and infinity keep their meaning
_compile = njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"}, error_model="numpy")


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    n, channels, size = x.shape
    if _rows_first(x):
        mean, var = np.empty(n * channels), np.empty(n * channels)
        split(_moments_first, n * channels, x.size, _flat(x), mean, var)
        return mean.reshape(n, channels), var.reshape(n, channels)
    chunk = _chunk(x)
    chunks = -(-size // chunk)
    mean, var = np.empty((n * chunks, channels)), np.empty((n * chunks, channels))
    split(
        _moments_last, n * chunks, x.size, x.transpose(0, 2, 1), chunk, chunks, _joined(channels), mean, var
    )
    if chunks == 1:
        return mean, var
    share = np.full((chunks, 1), chunk / size)
    share[-1] = 1 - (chunks - 1) * chunk / size
    mean, var = mean.reshape(n, chunks, channels), var.reshape(n, chunks, channels)
    pooled = (share * mean).sum(1, keepdims=True)
    return pooled[:, 0], (share * (var + (mean - pooled) ** 2)).sum(1)


def affine(x: np.ndarray, scale: Any, center: Any, shift: Any, out: np.ndarray) -> None:
    near, lost = _round(center, x.dtype)
    shift = shift + scale * lost
    if _rows_first(x):
        grids = _per_plane(x, scale, near, shift)
        split(_affine_first, len(grids[0]), x.size, _flat(x), *grids, _flat(out))
        return
    chunk, chunks, joined = _cut(x)
    grids = _per_lane(x, joined, scale, near, shift)
    split(_affine_last, x.shape[0] * chunks, x.size, _last(x), chunk, chunks, joined, *grids, _last(out))


def dots(g: np.ndarray, x: np.ndarray, center: Any) -> tuple[np.ndarray, np.ndarray]:
    n, channels, _ = x.shape
    near, lost = _round(center, x.dtype)
    if _rows_first(x):
        sum_g, sum_gx = np.empty(n * channels), np.empty(n * channels)
        split(_dots_first, n * channels, x.size, _flat(g), _flat(x), *_per_plane(x, near), sum_g, sum_gx)
        sum_g, sum_gx = sum_g.reshape(n, channels), sum_gx.reshape(n, channels)
    else:
        chunk, chunks, joined = _cut(x)
        sum_g, sum_gx = np.empty((n * chunks, channels)), np.empty((n * chunks, channels))
        grid = _per_lane(x, joined, near)
        split(_dots_last, n * chunks, x.size, _last(g), _last(x), chunk, chunks, joined, *grid, sum_g, sum_gx)
        if chunks > 1:
            sum_g = sum_g.reshape(n, chunks, channels).sum(1)
            sum_gx = sum_gx.reshape(n, chunks, channels).sum(1)
    return sum_g, sum_gx + lost * sum_g


def combine(g: np.ndarray, x: np.ndarray, center: Any, a: Any, b: Any, c: Any, out: np.ndarray) -> None:
    if b is None:
        affine(g, a, np.zeros((1, 1)), np.zeros((1, 1)), out)
        return
    near, lost = _round(center, x.dtype)
    c = c + b * lost
    if _rows_first(x):
        grids = _per_plane(x, near, a, b, c)
        split(_combine_first, len(grids[0]), x.size, _flat(g), _flat(x), *grids, _flat(out))
        return
    chunk, chunks, joined = _cut(x)
    grids = _per_lane(x, joined, near, a, b, c)
    split(
        _combine_last,
        x.shape[0] * chunks,
        x.size,
        _last(g),
        _last(x),
        chunk,
        chunks,
        joined,
        *grids,
        _last(out),
    )


# --- how an (N, C, S) view lies in memory ------------------------------------------------------------------------


def _rows_first(x: np.ndarray) -> bool:
    return x.flags.c_contiguous


def _flat(x: np.ndarray) -> np.ndarray:
    n, channels, size = x.shape
    return x.reshape(n * channels, size)


def _last(x: np.ndarray) -> np.ndarray:
    return x.transpose(0, 2, 1)


def _joined(channels: int) -> int:
    """How many rows of a channels-last plane are worked on as one."""
    return max(1, -(-_LANES // channels))


def _chunk(x: np.ndarray) -> int:
    """Rows of a channels-last plane group that are worked on at a time, a multiple of the joined ones."""
    _, channels, size = x.shape
    joined = _joined(channels)
    rows = max(1, _CHUNK_BYTES // (channels * x.itemsize * joined)) * joined
    return max(1, min(rows, size))


def _cut(x: np.ndarray) -> tuple[int, int, int]:
    chunk = _chunk(x)
    return chunk, -(-x.shape[2] // chunk), _joined(x.shape[1])


def _round(center: np.ndarray, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """The centre in the elements' dtype, and what the rounding lost (rounded - exact)."""
    near = center.astype(dtype)
    return near, near - center


def _per_plane(x: np.ndarray, *grids: np.ndarray) -> list[np.ndarray]:
    """Grids as one number per plane, in the elements' dtype."""
    return [np.broadcast_to(v.astype(x.dtype, copy=False), x.shape[:2]).flatten() for v in grids]


def _per_lane(x: np.ndarray, joined: int, *grids: np.ndarray) -> list[np.ndarray]:
    """Grids as rows that match the joined rows: (N or 1, joined * C)."""
    rows = []
    for v in grids:
        row = np.broadcast_to(v.astype(x.dtype, copy=False), (v.shape[0], x.shape[1]))
        rows.append(np.tile(row, (1, joined)))
    return rows


# --- channels-first: x is (planes, S) ------------------------------------------------------------------------------


@_compile
def _moments_first(first: int, last: int, x: Any, mean: Any, var: Any) -> None:
    size = x.shape[1]
    for p in range(first, last):
        row = x[p]
        total = 0.0
        for s in range(size):
            total += np.float64(row[s])
        m = total / size
        square = 0.0
        for s in range(size):
            d = np.float64(row[s]) - m
            square += d * d
        mean[p] = m
        var[p] = square / size


@_compile
def _affine_first(first: int, last: int, x: Any, scale: Any, center: Any, shift: Any, out: Any) -> None:
    for p in range(first, last):
        row, result = x[p], out[p]
        a, m, t = scale[p], center[p], shift[p]
        for s in range(row.size):
            result[s] = a * (row[s] - m) + t


@_compile
def _dots_first(first: int, last: int, g: Any, x: Any, center: Any, sum_g: Any, sum_gx: Any) -> None:
    for p in range(first, last):
        grad, row, m = g[p], x[p], center[p]
        total = 0.0
        product = 0.0
        for s in range(row.size):
            total += np.float64(grad[s])
            product += np.float64(grad[s]) * np.float64(row[s] - m)
        sum_g[p] = total
        sum_gx[p] = product


@_compile
def _combine_first(
    first: int, last: int, g: Any, x: Any, center: Any, a: Any, b: Any, c: Any, out: Any
) -> None:
    for p in range(first, last):
        grad, row, result = g[p], x[p], out[p]
        m, a_p, b_p, c_p = center[p], a[p], b[p], c[p]
        for s in range(row.size):
            result[s] = a_p * grad[s] + b_p * (row[s] - m) + c_p


# --- channels-last: x is (N, S, C) -----------------------------------------------------------------------------------


@_compile
def _moments_last(
    first: int, last: int, x: Any, chunk: int, chunks: int, joined: int, mean: Any, var: Any
) -> None:
    size, channels = x.shape[1], x.shape[2]
    lanes = joined * channels
    total = np.empty(lanes)
    for u in range(first, last):
        n, start = u // chunks, (u % chunks) * chunk
        stop = min(start + chunk, size)
        flat = x[n].reshape(size * channels)
        begin, end = start * channels, stop * channels
        whole = begin + (end - begin) // lanes * lanes
        for k in range(lanes):
            total[k] = 0.0
        for at in range(begin, whole, lanes):
            row = flat[at : at + lanes]
            for k in range(lanes):
                total[k] += np.float64(row[k])
        for k in range(end - whole):
            total[k] += np.float64(flat[whole + k])
        _fold(total, mean[u], stop - start)
        center = np.empty(lanes)
        for k in range(lanes):
            center[k] = mean[u, k % channels]
            total[k] = 0.0
        for at in range(begin, whole, lanes):
            row = flat[at : at + lanes]
            for k in range(lanes):
                d = np.float64(row[k]) - center[k]
                total[k] += d * d
        for k in range(end - whole):
            d = np.float64(flat[whole + k]) - center[k]
            total[k] += d * d
        _fold(total, var[u], stop - start)


@_compile
def _affine_last(
    first: int, last: int, x: Any, chunk: int, chunks: int, joined: int,
    scale: Any, center: Any, shift: Any, out: Any,
) -> None:  # fmt: skip
    size, channels = x.shape[1], x.shape[2]
    lanes = joined * channels
    for u in range(first, last):
        n, start = u // chunks, (u % chunks) * chunk
        begin, end = start * channels, min(start + chunk, size) * channels
        flat, result = x[n].reshape(size * channels), out[n].reshape(size * channels)
        a = scale[min(n, scale.shape[0] - 1)]
        m = center[min(n, center.shape[0] - 1)]
        t = shift[min(n, shift.shape[0] - 1)]
        for at in range(begin, end, lanes):
            row, to = flat[at : min(at + lanes, end)], result[at : min(at + lanes, end)]
            for k in range(row.size):
                to[k] = a[k] * (row[k] - m[k]) + t[k]


@_compile
def _dots_last(
    first: int, last: int, g: Any, x: Any, chunk: int, chunks: int, joined: int,
    center: Any, sum_g: Any, sum_gx: Any,
) -> None:  # fmt: skip
    size, channels = x.shape[1], x.shape[2]
    lanes = joined * channels
    total, product = np.empty(lanes), np.empty(lanes)
    for u in range(first, last):
        n, start = u // chunks, (u % chunks) * chunk
        begin, end = start * channels, min(start + chunk, size) * channels
        grad, flat = g[n].reshape(size * channels), x[n].reshape(size * channels)
        m = center[min(n, center.shape[0] - 1)]
        for k in range(lanes):
            total[k] = 0.0
            product[k] = 0.0
        for at in range(begin, end, lanes):
            up, row = grad[at : min(at + lanes, end)], flat[at : min(at + lanes, end)]
            for k in range(row.size):
                total[k] += np.float64(up[k])
                product[k] += np.float64(up[k]) * np.float64(row[k] - m[k])
        _fold(total, sum_g[u], 1)
        _fold(product, sum_gx[u], 1)


@_compile
def _combine_last(
    first: int, last: int, g: Any, x: Any, chunk: int, chunks: int, joined: int,
    center: Any, a: Any, b: Any, c: Any, out: Any,
) -> None:  # fmt: skip
    size, channels = x.shape[1], x.shape[2]
    lanes = joined * channels
    for u in range(first, last):
        n, start = u // chunks, (u % chunks) * chunk
        begin, end = start * channels, min(start + chunk, size) * channels
        grad, flat = g[n].reshape(size * channels), x[n].reshape(size * channels)
        result = out[n].reshape(size * channels)
        m = center[min(n, center.shape[0] - 1)]
        a_n, b_n, c_n = a[min(n, a.shape[0] - 1)], b[min(n, b.shape[0] - 1)], c[min(n, c.shape[0] - 1)]
        for at in range(begin, end, lanes):
            stop = min(at + lanes, end)
            up, row, to = grad[at:stop], flat[at:stop], result[at:stop]
            for k in range(row.size):
                to[k] = a_n[k] * up[k] + b_n[k] * (row[k] - m[k]) + c_n[k]


@_compile
def _fold(lanes: Any, result: Any, count: int) -> None:
    """Sum the joined rows' lanes into one number per channel, divided by count."""
    channels = result.size
    for c in range(channels):
        total = 0.0
        for k in range(c, lanes.size, channels):
            total += lanes[k]
        result[c] = total / count
