"""What one thread does of a job: it takes units until none is left, and performs the kernels on each.

A unit is a block of samples, worked on from moments to affine map (or from dots to combine) while it is in cache, or,
for norms that pool over the batch, a part of one sample in one of the passes. Every job is described by the same
plain numbers, for all threads (`normlab.planes._job`).

With an activation, the gradient that the kernels see is dz = g * act'(z), z being computed again. It is written to
where the residual's gradient goes, if there is a residual; else in a block to where dx goes, in a pass to a part of
its own.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from normlab.planes._activations import pull_activation
from normlab.planes._compile import compiled
from normlab.planes._counters import ARRIVED, LINE, fetch_add, next_of_shares, number_at, pointer, unit_done
from normlab.planes._counters import SIZE as COUNTERS
from normlab.planes._job import (
    ACT,
    CHANNELS,
    CHUNKS,
    CODE,
    CONSTANT_COUNT,
    CONSTANTS,
    CONTROL,
    EPS,
    EXTENT,
    FLAG,
    HELPERS,
    KIND,
    LANES,
    LAST,
    LENGTH,
    MEMORY,
    NUMBER,
    OUTPUT_COUNT,
    OUTPUTS,
    REGISTERS,
    RESIDUAL,
    ROWS,
    SAMPLES,
    SHARES,
    SIZE,
    SLOPE,
    SUMS,
    SUMS_0,
    SUMS_1,
    SUMS_2,
    TABLE,
    TO_RESIDUAL,
    UNITS,
    G,
    X,
    Y,
)
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
    recombine_first,
    recombine_last,
)

FORWARD_BLOCKS, BACKWARD_BLOCKS, MOMENTS, AFFINE, DOTS, COMBINE = range(6)


@compiled
def real_at(job: Any, i: int) -> float:
    """The float whose bits are a number of the job."""
    return job[i : i + 1].view(np.float64)[0]


@compiled
def program(job: Any) -> Any:
    """Instructions, constants and outputs of the job's program."""
    return (
        carray(pointer(job[CODE]), (job[LENGTH], 6), np.int64),
        carray(pointer(job[CONSTANTS]), (job[CONSTANT_COUNT],), np.float64),
        carray(pointer(job[OUTPUTS]), (job[OUTPUT_COUNT], 2), np.int64),
    )


@compiled
def grids_of(job: Any) -> Any:
    """mean, var, scale, center and shift of the planes (5, N, C)."""
    return carray(pointer(job[MEMORY]), (5, job[SAMPLES], job[CHANNELS]), np.float64)


@compiled
def rows_of(job: Any) -> Any:
    """Running mean and variance, parameters, and after them the batch's mean and variance: C numbers each."""
    channels = job[CHANNELS]
    after = job[MEMORY] + 8 * 5 * job[SAMPLES] * channels
    return carray(pointer(after), (job[ROWS] + 2, channels), np.float64)


@compiled
def sums_of(job: Any) -> Any:
    return carray(pointer(job[SUMS]), (job[SUMS_0], job[SUMS_1], job[SUMS_2]), np.float64)


@compiled
def _elements(job: Any, i: int, otherwise: int, real: Any) -> Any:
    """The tensor at an address of the job, (N, C * S), or another one where that address is 0."""
    address = job[i] if job[i] != 0 else job[otherwise]
    return carray(pointer(address), (job[SAMPLES], job[CHANNELS] * job[SIZE]), real.dtype)


@compiled
def _work(job: Any, real: Any) -> None:
    """Take units of the job until there are none; `real` is an array of the elements' dtype."""
    control = carray(pointer(job[CONTROL]), (COUNTERS,), np.int64)
    count = 1 + job[HELPERS]
    shares = carray(pointer(job[SHARES]), (count * LINE,), np.int64)
    own = (number_at(job[NUMBER]) if job[NUMBER] != 0 else fetch_add(control, ARRIVED, 1)) % count
    samples, channels, size, last = job[SAMPLES], job[CHANNELS], job[SIZE], job[LAST] != 0
    shape = (channels, size, last, job[LANES])
    x, y = _elements(job, X, X, real), _elements(job, Y, Y, real)
    g = _elements(job, G, X, real)
    residual, to_residual = _elements(job, RESIDUAL, X, real), _elements(job, TO_RESIDUAL, Y, real)
    extra = (job[RESIDUAL] != 0, job[ACT], real_at(job, SLOPE))
    kind, units, extent, chunks, flag = job[KIND], job[UNITS], job[EXTENT], max(job[CHUNKS], 1), job[FLAG] != 0
    grids, sums = grids_of(job), sums_of(job)
    # the second pass over the batch begins with what the first one has left in the cache
    backwards = kind == AFFINE or kind == COMBINE
    u = next_of_shares(shares, own, units, backwards)
    if kind <= BACKWARD_BLOCKS and u < units:
        code, constants, outputs = program(job)
        registers = np.empty((job[REGISTERS], extent, channels))
        load(registers, extent, rows_of(job)[: job[ROWS]], size, real_at(job, EPS), constants)
        while u < units:
            first, stop = u * extent, min((u + 1) * extent, samples)
            if kind == FORWARD_BLOCKS:
                _forward_block(x, residual, extra, y, shape, first, stop, code, registers, outputs, flag, grids)
            else:
                _backward_block(
                    g, x, residual, extra, to_residual, y, shape, first, stop, code, registers, outputs, flag, grids,
                    sums,
                )  # fmt: skip
            unit_done(control)
            u = next_of_shares(shares, own, units, backwards)
        return
    whole = size if last else channels
    width = channels if last else size
    scratch = np.empty(extent * width if kind >= DOTS and extra[1] != 0 and not extra[0] else 0, real.dtype)
    while u < units:
        n, p = u // chunks, u % chunks * extent
        q = min(p + extent, whole)
        i, j = p * width, q * width
        part, other, out = x[n, i:j], residual[n, i:j], y[n, i:j]
        if kind == MOMENTS:
            _moments(part, shape, _place(sums[0], last, u, n, p, q), _place(sums[1], last, u, n, p, q))
        elif kind == AFFINE:
            scale, center, shift = (
                _of(grids[2, n], last, p, q),
                _of(grids[3, n], last, p, q),
                _of(grids[4, n], last, p, q),
            )
            _affine(part, other, extra, shape, scale, center, shift, out)
        else:
            up = g[n, i:j]
            if extra[1] != 0:
                down = to_residual[n, i:j] if extra[0] else scratch[: j - i]
                if kind == DOTS or not extra[0]:
                    scale, shift = _of(grids[2, n], last, p, q), _of(grids[4, n], last, p, q)
                    _upstream(up, part, other, extra, shape, scale, _of(grids[3, n], last, p, q), shift, down)
                up = down
            center = _of(grids[3, n], last, p, q)
            if kind == DOTS:
                _dots(up, part, shape, center, _place(sums[0], last, u, n, p, q), _place(sums[1], last, u, n, p, q))
            else:
                a, b, c = _of(grids[2, n], last, p, q), _of(sums[2, n], last, p, q), _of(sums[3, n], last, p, q)
                _combine(up, part, shape, flag, False, center, a, b, c, out)
        unit_done(control)
        u = next_of_shares(shares, own, units, backwards)


def _work_float32(job: int) -> None:
    _work(carray(pointer(job), (TABLE,), np.int64), np.empty(0, np.float32))


def _work_float64(job: int) -> None:
    _work(carray(pointer(job), (TABLE,), np.int64), np.empty(0, np.float64))


@cache
def work(itemsize: int) -> int:
    """Address of the work for elements of this many bytes (4: float32, 8: float64), compiled when first asked for."""
    function: Any = cfunc(types.void(types.intp), cache=True)({4: _work_float32, 8: _work_float64}[itemsize])
    _kept.append(function)
    return int(function.address)


_kept: list[Any] = []  # compiled code lives as long as its object


@compiled
def _place(sums: Any, last: bool, u: int, n: int, p: int, q: int) -> Any:
    """Where the sums of a part go: the planes p to q of sample n, or channels-last a row for each part."""
    return sums[u] if last else sums[n][p:q]


@compiled
def _of(row: Any, last: bool, p: int, q: int) -> Any:
    """A sample's row of a grid for a part of it: the planes p to q, or channels-last all of them."""
    return row if last else row[p:q]


@compiled
def _forward_block(
    x: Any, residual: Any, extra: Any, y: Any, shape: Any, first: int, stop: int, code: Any, registers: Any,
    outputs: Any, measures: bool, grids: Any,
) -> None:  # fmt: skip
    if measures:
        for n in range(first, stop):
            _moments(x[n], shape, registers[0, n - first], registers[1, n - first])
    perform(code, registers)
    scale, center, shift = registers[outputs[0, 0]], registers[outputs[1, 0]], registers[outputs[2, 0]]
    for n in range(first, stop):
        i = n - first
        _affine(x[n], residual[n], extra, shape, scale[i], center[i], shift[i], y[n])
        for c in range(shape[0]):
            grids[0, n, c] = registers[0, i, c]
            grids[1, n, c] = registers[1, i, c]
            grids[2, n, c] = scale[i, c]
            grids[3, n, c] = center[i, c]
            grids[4, n, c] = shift[i, c]


@compiled
def _backward_block(
    g: Any, x: Any, residual: Any, extra: Any, to_residual: Any, dx: Any, shape: Any, first: int, stop: int, code: Any,
    registers: Any, outputs: Any, linear: bool, grids: Any, sums: Any,
) -> None:  # fmt: skip
    active = extra[1] != 0
    if active:
        down = to_residual if extra[0] else dx
        for n in range(first, stop):
            _upstream(g[n], x[n], residual[n], extra, shape, grids[2, n], grids[3, n], grids[4, n], down[n])
        g = down
    for n in range(first, stop):
        i = n - first
        _dots(g[n], x[n], shape, grids[3, n], registers[2, i], registers[3, i])
        for c in range(shape[0]):
            registers[0, i, c] = grids[0, n, c]
            registers[1, i, c] = grids[1, n, c]
            registers[4, i, c] = grids[2, n, c]
            registers[5, i, c] = grids[3, n, c]
    perform(code, registers)
    b, c = registers[outputs[0, 0]], registers[outputs[1, 0]]
    for n in range(first, stop):
        i = n - first
        _combine(g[n], x[n], shape, linear, active and not extra[0], grids[3, n], grids[2, n], b[i], c[i], dx[n])
        for k in range(2, len(outputs)):
            for channel in range(shape[0]):
                sums[2 + k, n, channel] = registers[outputs[k, 0], i, channel]


# --- the four kernels on part of a sample, from grids in float64 ------------------------------------------------------


@compiled
def _moments(x: Any, shape: Any, mean: Any, var: Any) -> None:
    channels, size, last, lanes = shape
    if last:
        moments_last(x, channels, lanes, mean, var)
    else:
        moments_first(x, size, mean, var)


@compiled
def _affine(x: Any, residual: Any, extra: Any, shape: Any, scale: Any, center: Any, shift: Any, y: Any) -> None:
    channels, size, last, lanes = shape
    add, act, slope = extra
    grid = np.empty((3, max(lanes, center.size)), x.dtype)
    a, m, t = grid[0], grid[1], grid[2]
    for c in range(center.size):
        m[c] = center[c]
        a[c] = scale[c]
        t[c] = shift[c] + scale[c] * (m[c] - center[c])
    if last:
        _repeat(grid, channels)
        affine_last(x, residual, add, act, slope, lanes, a, m, t, y)
    else:
        affine_first(x, residual, add, act, slope, size, a, m, t, y)


@compiled
def _upstream(
    g: Any, x: Any, residual: Any, extra: Any, shape: Any, scale: Any, center: Any, shift: Any, dz: Any
) -> None:
    """dz = g * act'(z), with z computed as in the forward pass."""
    _affine(x, residual, (extra[0], 0, 0.0), shape, scale, center, shift, dz)
    pull_activation(extra[1], extra[2], g, dz)


@compiled
def _dots(g: Any, x: Any, shape: Any, center: Any, sum_g: Any, sum_gx: Any) -> None:
    channels, size, last, lanes = shape
    grid = np.empty((1, max(lanes, center.size)), x.dtype)
    for c in range(center.size):
        grid[0, c] = center[c]
    if last:
        _repeat(grid, channels)
        dots_last(g, x, channels, lanes, grid[0], sum_g, sum_gx)
    else:
        dots_first(g, x, size, grid[0], sum_g, sum_gx)
    for c in range(center.size):
        sum_gx[c] += (grid[0, c] - center[c]) * sum_g[c]


@compiled
def _combine(
    g: Any, x: Any, shape: Any, linear: bool, in_place: bool, center: Any, a: Any, b: Any, c: Any, dx: Any
) -> None:
    """dx = a * g + b * (x - center) + c; `in_place` says that g lies in dx."""
    channels, size, last, lanes = shape
    if linear and not in_place:  # nothing depends on the moments: dx = a * g
        nothing = np.zeros(a.size)
        _affine(g, g, (False, 0, 0.0), shape, a, nothing, nothing, dx)
        return
    grid = np.empty((4, max(lanes, center.size)), x.dtype)
    for k in range(center.size):
        grid[0, k] = center[k]
        grid[1, k] = a[k]
        grid[2, k] = b[k]
        grid[3, k] = c[k] + b[k] * (grid[0, k] - center[k])
    if last:
        _repeat(grid, channels)
        if in_place:
            recombine_last(x, lanes, grid[0], grid[1], grid[2], grid[3], dx)
        else:
            combine_last(g, x, lanes, grid[0], grid[1], grid[2], grid[3], dx)
    elif in_place:
        recombine_first(x, size, grid[0], grid[1], grid[2], grid[3], dx)
    else:
        combine_first(g, x, size, grid[0], grid[1], grid[2], grid[3], dx)


@compiled
def _repeat(grid: Any, channels: int) -> None:
    """Repeat the first `channels` numbers of every row to its end."""
    for i in range(grid.shape[0]):
        row = grid[i]
        for at in range(channels, row.size, channels):
            for c in range(channels):
                row[at + c] = row[c]
