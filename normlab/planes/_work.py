"""What one thread does of a job: it takes units until none is left, and performs the kernels on each.

A unit is a block of samples, worked on from moments to affine map (or from dots to combine) while it is in cache, or,
for norms that pool over the batch, a part of one sample in one of the passes. Every job is described by the same
arguments, written down as plain numbers for all threads (`normlab.planes._team`):

| argument | what |
|---|---|
| `x`, `g`, `y` | whole tensors as rows of elements: input, upstream gradient, and output |
| `shape` | N, C, S, whether channels-last, elements of a joined row |
| `extent`, `chunks` | samples in a block and 1; or planes (channels-last: rows) in a part, and parts in a sample |
| `code`, `constants`, `count`, `outputs` | a program, and how many registers it needs |
| `flag` | forward: whether moments are needed; backward: whether dx is only scale * g |
| `rows`, `eps` | running mean and variance, and parameters, a row of C each |
| `grids` | mean, var, scale, center, shift: (5, N, C) |
| `sums` | sum_g, sum_gx, b, c, parameters' gradients: (k, N, C); or partial moments and dots: (2, N * chunks, C) |
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from normlab.planes._compile import compiled
from normlab.planes._counters import SIZE, next_unit, pointer, unit_done
from normlab.planes._machine import load, perform
from normlab.planes._rows import (
    affine_first,
    affine_last,
    combine_first,
    combine_last,
    dots_first,
    dots_last,
    moments_first,
    moments_last,
)

FORWARD_BLOCKS, BACKWARD_BLOCKS, MOMENTS, AFFINE, DOTS, COMBINE = range(6)


@compiled
def describe(
    job: Any, entry: int, x: Any, g: Any, y: Any, shape: Any, extent: int, chunks: int, code: Any, constants: Any,
    count: int, outputs: Any, flag: bool, rows: Any, eps: float, grids: Any,
) -> None:  # fmt: skip
    """Write what the jobs of one direction have in common as plain numbers, for the work at the address `entry`."""
    job[0], job[3], job[4], job[5] = entry, _address(x), _address(g), _address(y)
    job[6], job[7], job[8], job[9], job[10] = shape[0], shape[1], shape[2], int(shape[3]), shape[4]
    job[11], job[12], job[13], job[14] = extent, max(chunks, 1), _address(code), code.shape[0]
    job[15], job[16], job[17] = _address(constants), constants.size, count
    job[18], job[19], job[20], job[21], job[22] = _address(outputs), len(outputs), int(flag), _address(rows), len(rows)
    job[23], job[24] = _address(grids), grids.shape[0]
    job[29:30].view(np.float64)[0] = eps


@compiled
def assign(job: Any, kind: int, units: int, sums: Any) -> None:
    """Complete the description of a job; `sums` must outlive it."""
    job[1], job[2] = kind, units
    job[25], job[26], job[27], job[28] = _address(sums), sums.shape[0], sums.shape[1], sums.shape[2]


@compiled
def _address(a: Any) -> Any:
    return np.int64(a.ctypes.data)


@compiled
def _work(job: Any, control: Any, real: Any) -> None:
    """Take units of the job until there are none; `real` is an array of the elements' dtype."""
    samples, channels, size, last = job[6], job[7], job[8], job[9] != 0
    shape = (samples, channels, size, last, job[10])
    elements = samples * channels * size
    x = carray(pointer(job[3]), (elements,), real.dtype)
    g = carray(pointer(job[4]), (elements,), real.dtype)
    y = carray(pointer(job[5]), (elements,), real.dtype)
    kind, units, extent, chunks, flag = job[1], job[2], job[11], job[12], job[20] != 0
    code = carray(pointer(job[13]), (job[14], 6), np.int64)
    constants = carray(pointer(job[15]), (job[16],), np.float64)
    outputs = carray(pointer(job[18]), (job[19], 2), np.int64)
    rows = carray(pointer(job[21]), (job[22], channels), np.float64)
    grids = carray(pointer(job[23]), (job[24], samples, channels), np.float64)
    sums = carray(pointer(job[25]), (job[26], job[27], job[28]), np.float64)
    u = next_unit(control)
    if kind <= BACKWARD_BLOCKS and u < units:
        registers = np.empty((job[17], extent, channels))
        load(registers, extent, rows, size, job[29:30].view(np.float64)[0], constants)
        while u < units:
            first, stop = u * extent, min((u + 1) * extent, samples)
            if kind == FORWARD_BLOCKS:
                _forward_block(x, y, shape, first, stop, code, registers, outputs, flag, grids)
            else:
                _backward_block(g, x, y, shape, first, stop, code, registers, outputs, flag, grids, sums)
            unit_done(control)
            u = next_unit(control)
        return
    whole = size if last else channels
    while u < units:
        n, p = u // chunks, u % chunks * extent
        q = min(p + extent, whole)
        if kind == MOMENTS:
            _moments_part(x, shape, n, p, q, _place(sums[0], last, u, n, p, q), _place(sums[1], last, u, n, p, q))
        elif kind == AFFINE:
            _affine_part(x, y, shape, n, p, q, grids[2, n], grids[3, n], grids[4, n])
        elif kind == DOTS:
            to_g, to_gx = _place(sums[0], last, u, n, p, q), _place(sums[1], last, u, n, p, q)
            _dots_part(g, x, shape, n, p, q, grids[3, n], to_g, to_gx)
        else:
            _combine_part(g, x, y, shape, n, p, q, flag, grids[3, n], grids[2, n], sums[2, n], sums[3, n])
        unit_done(control)
        u = next_unit(control)


def _work_float32(job: int, control: int) -> None:
    _work(
        carray(pointer(job), (64,), np.int64), carray(pointer(control), (SIZE,), np.int64), np.empty(0, np.float32)
    )  # fmt: skip


def _work_float64(job: int, control: int) -> None:
    _work(
        carray(pointer(job), (64,), np.int64), carray(pointer(control), (SIZE,), np.int64), np.empty(0, np.float64)
    )  # fmt: skip


@cache
def entry(itemsize: int) -> int:
    """Address of the work for elements of this many bytes (4: float32, 8: float64), compiled when first asked for."""
    return int(_compiled_entry({4: _work_float32, 8: _work_float64}[itemsize]).address)


@cache
def _compiled_entry(function: Any) -> Any:
    return cfunc(types.void(types.intp, types.intp), cache=True)(function)


@compiled
def _place(sums: Any, last: bool, u: int, n: int, p: int, q: int) -> Any:
    """Where the sums of a part go: the planes p to q of sample n, or channels-last a row for each part."""
    return sums[u] if last else sums[n][p:q]


@compiled
def _forward_block(
    x: Any, y: Any, shape: Any, first: int, stop: int, code: Any, registers: Any, outputs: Any, measures: bool,
    grids: Any,
) -> None:  # fmt: skip
    whole = shape[2] if shape[3] else shape[1]
    if measures:
        for n in range(first, stop):
            _moments_part(x, shape, n, 0, whole, registers[0, n - first], registers[1, n - first])
    perform(code, registers)
    scale, center, shift = registers[outputs[0, 0]], registers[outputs[1, 0]], registers[outputs[2, 0]]
    for n in range(first, stop):
        i = n - first
        _affine_part(x, y, shape, n, 0, whole, scale[i], center[i], shift[i])
        for c in range(shape[1]):
            grids[0, n, c] = registers[0, i, c]
            grids[1, n, c] = registers[1, i, c]
            grids[2, n, c] = scale[i, c]
            grids[3, n, c] = center[i, c]


@compiled
def _backward_block(
    g: Any, x: Any, dx: Any, shape: Any, first: int, stop: int, code: Any, registers: Any, outputs: Any, linear: bool,
    grids: Any, sums: Any,
) -> None:  # fmt: skip
    whole = shape[2] if shape[3] else shape[1]
    for n in range(first, stop):
        i = n - first
        _dots_part(g, x, shape, n, 0, whole, grids[3, n], registers[2, i], registers[3, i])
        for c in range(shape[1]):
            registers[0, i, c] = grids[0, n, c]
            registers[1, i, c] = grids[1, n, c]
            registers[4, i, c] = grids[2, n, c]
            registers[5, i, c] = grids[3, n, c]
    perform(code, registers)
    b, c = registers[outputs[0, 0]], registers[outputs[1, 0]]
    for n in range(first, stop):
        i = n - first
        _combine_part(g, x, dx, shape, n, 0, whole, linear, grids[3, n], grids[2, n], b[i], c[i])
        for k in range(2, len(outputs)):
            for channel in range(shape[1]):
                sums[2 + k, n, channel] = registers[outputs[k, 0], i, channel]


# --- the four kernels on part of a sample: planes p to q, or channels-last rows p to q --------------------------------


@compiled
def _moments_part(x: Any, shape: Any, n: int, p: int, q: int, mean: Any, var: Any) -> None:
    _, channels, size, last, lanes = shape
    if last:
        start = n * size * channels
        moments_last(x, start + p * channels, start + q * channels, channels, lanes, mean, var)
    else:
        moments_first(x, (n * channels + p) * size, q - p, size, mean, var)


@compiled
def _affine_part(x: Any, y: Any, shape: Any, n: int, p: int, q: int, scale: Any, center: Any, shift: Any) -> None:
    _, channels, size, last, lanes = shape
    count = channels if last else q - p
    skip = 0 if last else p
    grid = np.empty((3, max(lanes, count)), x.dtype)
    a, m, t = grid[0], grid[1], grid[2]
    for c in range(count):
        m[c] = center[skip + c]
        a[c] = scale[skip + c]
        t[c] = shift[skip + c] + scale[skip + c] * (m[c] - center[skip + c])
    if last:
        _repeat(grid, channels)
        start = n * size * channels
        affine_last(x, start + p * channels, start + q * channels, lanes, a, m, t, y)
    else:
        affine_first(x, (n * channels + p) * size, count, size, a, m, t, y)


@compiled
def _dots_part(g: Any, x: Any, shape: Any, n: int, p: int, q: int, center: Any, sum_g: Any, sum_gx: Any) -> None:
    _, channels, size, last, lanes = shape
    count = channels if last else q - p
    skip = 0 if last else p
    grid = np.empty((1, max(lanes, count)), x.dtype)
    for c in range(count):
        grid[0, c] = center[skip + c]
    if last:
        _repeat(grid, channels)
        start = n * size * channels
        dots_last(g, x, start + p * channels, start + q * channels, channels, lanes, grid[0], sum_g, sum_gx)
    else:
        dots_first(g, x, (n * channels + p) * size, count, size, grid[0], sum_g, sum_gx)
    for c in range(count):
        sum_gx[c] += (grid[0, c] - center[skip + c]) * sum_g[c]


@compiled
def _combine_part(
    g: Any, x: Any, dx: Any, shape: Any, n: int, p: int, q: int, linear: bool, center: Any, a: Any, b: Any, c: Any
) -> None:
    _, channels, size, last, lanes = shape
    if linear:  # nothing depends on the moments: dx = a * g
        nothing = np.zeros(channels)
        _affine_part(g, dx, shape, n, p, q, a, nothing, nothing)
        return
    count = channels if last else q - p
    skip = 0 if last else p
    grid = np.empty((4, max(lanes, count)), x.dtype)
    for k in range(count):
        grid[0, k] = center[skip + k]
        grid[1, k] = a[skip + k]
        grid[2, k] = b[skip + k]
        grid[3, k] = c[skip + k] + b[skip + k] * (grid[0, k] - center[skip + k])
    if last:
        _repeat(grid, channels)
        start, stop = (n * size + p) * channels, (n * size + q) * channels
        combine_last(g, x, start, stop, lanes, grid[0], grid[1], grid[2], grid[3], dx)
    else:
        combine_first(g, x, (n * channels + p) * size, count, size, grid[0], grid[1], grid[2], grid[3], dx)


@compiled
def _repeat(grid: Any, channels: int) -> None:
    """Repeat the first `channels` numbers of every row to its end."""
    for i in range(grid.shape[0]):
        row = grid[i]
        for at in range(channels, row.size, channels):
            for c in range(channels):
                row[at + c] = row[c]
