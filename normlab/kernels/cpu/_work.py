"""What one thread does of a job: it takes units until none is left, and performs the kernels on each.

A unit is a block of samples, worked on from moments to affine map (or from dots to combine) while it is in cache, or,
for norms that pool over the batch, a part of one sample in one of the passes. Every job is described by the same
plain numbers, for all threads (`normlab.kernels.runtime.job`).

With an activation, the gradient that the kernels see is dz = g * act'(z), z being computed again. It is written to
where the residual's gradient goes, if there is a residual; else in a block to where dx goes, in a pass to a part of
its own. Of halves it is kept in float32, so that it is not rounded on the way.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from normlab.kernels.cpu._activations import pull_activation
from normlab.kernels.cpu._machine import load, perform
from normlab.kernels.cpu._rows import (
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
from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.counters import next_of_shares, pointer, unit_done
from normlab.kernels.runtime.job import (
    ACT,
    CHANNELS,
    CHUNKS,
    CODE,
    CONSTANT_COUNT,
    CONSTANTS,
    EPS,
    EXTENT,
    FLAG,
    FOLDED,
    GROUP,
    KIND,
    LANES,
    LAST,
    LENGTH,
    MEMORY,
    OUTPUT_COUNT,
    OUTPUTS,
    REGISTERS,
    RELU,
    RESIDUAL,
    ROWS,
    SAMPLES,
    SIZE,
    SLOPE,
    STRETCH,
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
from normlab.kernels.runtime.narrow import BFLOAT16, FLOAT16, is_narrow, numbers_for, put
from normlab.kernels.runtime.sharing import joined

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
def _elements(job: Any, i: int, otherwise: int, like: Any) -> Any:
    """The elements of the tensor at an address of the job as they lie, or of another one where that address is 0."""
    address = job[i] if job[i] != 0 else job[otherwise]
    return carray(pointer(address), (job[SAMPLES] * job[CHANNELS] * job[SIZE],), like.dtype)


@compiled
def _row(grid: Any) -> Any:
    """A grid as one row of numbers, those of one sample after the other's."""
    return grid.reshape(grid.size)


@compiled
def _work(job: Any, like: Any) -> None:
    """Take units of the job until there are none; `like` is an array of the elements' dtype, or what stands for it."""
    control, shares, own = joined(job)
    kind, units = job[KIND], job[UNITS]
    # the second pass over the batch begins with what the first one has left in the cache
    backwards = kind in (AFFINE, COMBINE)
    u = next_of_shares(shares, own, units, backwards)
    if u >= units:
        return
    last = job[LAST] != 0
    shape = (job[CHANNELS], job[STRETCH], last, job[LANES])
    x, y = _elements(job, X, X, like), _elements(job, Y, Y, like)
    g = _elements(job, G, X, like)
    residual, to_residual = _elements(job, RESIDUAL, X, like), _elements(job, TO_RESIDUAL, Y, like)
    extra = (job[RESIDUAL] != 0, job[ACT], real_at(job, SLOPE))
    adds, active = extra[0], extra[1] != 0
    flag, grids, sums = job[FLAG] != 0, grids_of(job), sums_of(job)
    dz = numbers_for(x, 1, 0)[0]  # (or z) where it cannot be kept in a tensor; so far there is no room for any
    if kind <= BACKWARD_BLOCKS:
        samples, extent = job[SAMPLES], job[EXTENT]
        width = job[CHANNELS] * job[SIZE]
        if is_narrow(x) and (job[ACT] > RELU or (active and kind == BACKWARD_BLOCKS)):
            dz = numbers_for(x, 1, extent * width)[0]
        code, constants, outputs = program(job)
        registers = np.empty((job[REGISTERS], extent, job[CHANNELS]))
        load(registers, extent, rows_of(job)[: job[ROWS]], job[SIZE], real_at(job, EPS), constants)
        while u < units:
            first, stop = u * extent, min((u + 1) * extent, samples)
            i, j = first * width, stop * width
            part, other, out = x[i:j], residual[i:j], y[i:j]
            if kind == FORWARD_BLOCKS:
                _forward_block(part, other, extra, out, dz, shape, first, stop, code, registers, outputs, flag, grids)
            elif is_narrow(x):
                _backward_block(
                    g[i:j], part, other, extra, dz[: j - i], False, out, shape, first, stop, code, registers, outputs,
                    flag, grids, sums,
                )  # fmt: skip
                if adds:
                    put(dz[: j - i], to_residual, i)
            else:
                _backward_block(
                    g[i:j], part, other, extra, to_residual[i:j] if adds else out, not adds, out, shape, first, stop,
                    code, registers, outputs, flag, grids, sums,
                )  # fmt: skip
            unit_done(control)
            u = next_of_shares(shares, own, units, backwards)
        return
    while u < units:
        i, j, r, q, k, m = _part(job, u)
        part, other, out, up = x[i:j], residual[i:j], y[i:j], g[i:j]
        scale, center, shift = _row(grids[2])[r:q], _row(grids[3])[r:q], _row(grids[4])[r:q]
        if kind == AFFINE:
            apart = is_narrow(x) and job[ACT] > RELU
        else:
            apart = kind >= DOTS and active and (is_narrow(x) or not adds)
        if apart and dz.size < j - i:
            dz = numbers_for(x, 1, j - i)[0]
        if kind == MOMENTS:
            _moments(part, shape, _row(sums[0])[k:m], _row(sums[1])[k:m])
        elif kind == AFFINE:
            _activated(part, other, extra, shape, scale, center, shift, dz, out)
        elif apart:
            down = dz[: j - i]
            _upstream(up, part, other, extra, shape, scale, center, shift, down)
            if kind == DOTS:
                _dots(down, part, shape, center, _row(sums[0])[k:m], _row(sums[1])[k:m])
                if adds:
                    put(down, to_residual, i)
            else:  # dz once more: it was nowhere kept, or rounded
                b, c = _row(sums[2])[r:q], _row(sums[3])[r:q]
                _combine(down, part, shape, flag, False, center, scale, b, c, out)
        else:
            if active:
                if kind == DOTS:
                    _upstream(up, part, other, extra, shape, scale, center, shift, to_residual[i:j])
                up = to_residual[i:j]
            if kind == DOTS:
                _dots(up, part, shape, center, _row(sums[0])[k:m], _row(sums[1])[k:m])
            else:
                b, c = _row(sums[2])[r:q], _row(sums[3])[r:q]
                _combine(up, part, shape, flag, False, center, scale, b, c, out)
        unit_done(control)
        u = next_of_shares(shares, own, units, backwards)


@compiled
def _part(job: Any, u: int) -> Any:
    """Where a unit of a pass begins and ends: in the elements, in the grids' rows, and in the rows of its sums."""
    channels, stretch, chunks, extent = job[CHANNELS], job[STRETCH], job[CHUNKS], job[EXTENT]
    n, p = u // chunks * job[GROUP], u % chunks * extent
    if job[LAST] != 0:
        q = min(p + extent, job[SIZE])
        at = n * channels * job[SIZE]
        return at + p * channels, at + q * channels, n * channels, (n + 1) * channels, u * channels, (u + 1) * channels
    q = min(p + extent, channels)
    first, stop = n * channels + p, (min(n + job[GROUP], job[SAMPLES] * job[FOLDED]) - 1) * channels + q
    if job[FOLDED] > 1:
        return first * stretch, stop * stretch, p, q, first, stop
    return first * stretch, stop * stretch, first, stop, first, stop


def _work_float32(job: int) -> None:
    _work(carray(pointer(job), (TABLE,), np.int64), np.empty(0, np.float32))


def _work_float64(job: int) -> None:
    _work(carray(pointer(job), (TABLE,), np.int64), np.empty(0, np.float64))


def _work_bfloat16(job: int) -> None:
    _work(carray(pointer(job), (TABLE,), np.int64), np.empty(0, BFLOAT16))


def _work_float16(job: int) -> None:
    _work(carray(pointer(job), (TABLE,), np.int64), np.empty(0, FLOAT16))


_WORK = {
    "float32": _work_float32,
    "float64": _work_float64,
    "bfloat16": _work_bfloat16,
    "float16": _work_float16,
}


@cache
def work(dtype: Any) -> int:
    """Address of the work for elements of this dtype, of NumPy or torch, compiled when first asked for."""
    function: Any = cfunc(types.void(types.intp), cache=True)(_WORK[str(dtype).removeprefix("torch.")])
    _kept.append(function)
    return int(function.address)


_kept: list[Any] = []  # compiled code lives as long as its object


@compiled
def _forward_block(
    x: Any, residual: Any, extra: Any, y: Any, z: Any, shape: Any, first: int, stop: int, code: Any, registers: Any,
    outputs: Any, measures: bool, grids: Any,
) -> None:  # fmt: skip
    channels, last = shape[0], shape[2]
    width = x.size // (stop - first)
    mean, var = _row(registers[0]), _row(registers[1])
    scale, center, shift = (
        _row(registers[outputs[0, 0]]),
        _row(registers[outputs[1, 0]]),
        _row(registers[outputs[2, 0]]),
    )
    step = 1 if last else stop - first  # channels-first, planes of many samples are no more than many planes
    if measures:
        for n in range(first, stop, step):
            p, q = (n - first) * channels, (n - first + step) * channels
            _moments(x[(n - first) * width : (n - first + step) * width], shape, mean[p:q], var[p:q])
    perform(code, registers)
    for n in range(first, stop, step):
        p, q = (n - first) * channels, (n - first + step) * channels
        i, j = (n - first) * width, (n - first + step) * width
        _activated(x[i:j], residual[i:j], extra, shape, scale[p:q], center[p:q], shift[p:q], z, y[i:j])
    i, j, q = first * channels, stop * channels, (stop - first) * channels
    copy(mean[:q], _row(grids[0])[i:j])
    copy(var[:q], _row(grids[1])[i:j])
    copy(scale[:q], _row(grids[2])[i:j])
    copy(center[:q], _row(grids[3])[i:j])
    copy(shift[:q], _row(grids[4])[i:j])


@compiled
def _backward_block(
    g: Any, x: Any, residual: Any, extra: Any, down: Any, in_place: bool, dx: Any, shape: Any, first: int, stop: int,
    code: Any, registers: Any, outputs: Any, linear: bool, grids: Any, sums: Any,
) -> None:  # fmt: skip
    channels, last = shape[0], shape[2]
    width = x.size // (stop - first)
    step = 1 if last else stop - first
    active = extra[1] != 0
    scale, center, shift = _row(grids[2]), _row(grids[3]), _row(grids[4])
    sum_g, sum_gx = _row(registers[2]), _row(registers[3])
    for n in range(first, stop, step):
        i, j, r, q = (n - first) * width, (n - first + step) * width, n * channels, (n + step) * channels
        p = (n - first) * channels
        first_sum, second_sum = sum_g[p : p + q - r], sum_gx[p : p + q - r]
        if active:
            _upstream(g[i:j], x[i:j], residual[i:j], extra, shape, scale[r:q], center[r:q], shift[r:q], down[i:j])
            _dots(down[i:j], x[i:j], shape, center[r:q], first_sum, second_sum)
        else:
            _dots(g[i:j], x[i:j], shape, center[r:q], first_sum, second_sum)
    i, j, q = first * channels, stop * channels, (stop - first) * channels
    copy(_row(grids[0])[i:j], _row(registers[0])[:q])
    copy(_row(grids[1])[i:j], _row(registers[1])[:q])
    copy(scale[i:j], _row(registers[4])[:q])
    copy(center[i:j], _row(registers[5])[:q])
    perform(code, registers)
    b, c = _row(registers[outputs[0, 0]]), _row(registers[outputs[1, 0]])
    for n in range(first, stop, step):
        i, j, r, q = (n - first) * width, (n - first + step) * width, n * channels, (n + step) * channels
        p = (n - first) * channels
        part, m, a, b_part, c_part = x[i:j], center[r:q], scale[r:q], b[p : p + q - r], c[p : p + q - r]
        if active:
            _combine(down[i:j], part, shape, linear, in_place, m, a, b_part, c_part, dx[i:j])
        else:
            _combine(g[i:j], part, shape, linear, False, m, a, b_part, c_part, dx[i:j])
    i, j, q = first * channels, stop * channels, (stop - first) * channels
    for k in range(2, len(outputs)):
        copy(_row(registers[outputs[k, 0]])[:q], _row(sums[2 + k])[i:j])


@compiled
def copy(row: Any, to: Any) -> None:
    """Copy the numbers of a row; rows apart, since a loop over many arrays does not vectorize."""
    for c in range(row.size):
        to[c] = row[c]


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
    grid = numbers_for(x, 3, max(lanes, center.size))
    a, m, t = grid[0], grid[1], grid[2]
    copy(scale, a)
    copy(center, m)
    for c in range(center.size):
        t[c] = shift[c] + scale[c] * (m[c] - center[c])
    if last:
        _repeat(grid, channels)
        affine_last(x, residual, add, act, slope, lanes, a, m, t, y)
    else:
        span = center.size * size
        for i in range(0, x.size, span):  # samples that share a row
            j = i + span
            affine_first(x[i:j], residual[i:j], add, act, slope, size, a, m, t, y[i:j])


@compiled
def _activated(
    x: Any, residual: Any, extra: Any, shape: Any, scale: Any, center: Any, shift: Any, spare: Any, y: Any
) -> None:
    """`_affine`, by way of spare memory where the activation needs numbers and y has halves."""
    if is_narrow(x) and extra[1] > RELU:
        z = spare[: x.size]
        _affine(x, residual, extra, shape, scale, center, shift, z)
        put(z, y, 0)
    else:
        _affine(x, residual, extra, shape, scale, center, shift, y)


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
    grid = numbers_for(x, 1, max(lanes, center.size))
    copy(center, grid[0])
    if last:
        _repeat(grid, channels)
        dots_last(g, x, channels, lanes, grid[0], sum_g, sum_gx)
    else:
        span = center.size * size
        for i in range(0, x.size, span):
            p = i // size
            dots_first(g[i : i + span], x[i : i + span], size, grid[0], sum_g[p:], sum_gx[p:])
    near = grid[0]
    for p in range(0, sum_g.size, center.size):
        total, product = sum_g[p:], sum_gx[p:]
        for c in range(center.size):
            product[c] += (near[c] - center[c]) * total[c]


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
    grid = numbers_for(x, 4, max(lanes, center.size))
    copy(center, grid[0])
    copy(a, grid[1])
    copy(b, grid[2])
    near, rest = grid[0], grid[3]
    for k in range(center.size):
        rest[k] = c[k] + b[k] * (near[k] - center[k])
    if last:
        _repeat(grid, channels)
        if in_place:
            recombine_last(x, lanes, grid[0], grid[1], grid[2], grid[3], dx)
        else:
            combine_last(g, x, lanes, grid[0], grid[1], grid[2], grid[3], dx)
    else:
        span = center.size * size
        for i in range(0, x.size, span):
            j = i + span
            if in_place:
                recombine_first(x[i:j], size, grid[0], grid[1], grid[2], grid[3], dx[i:j])
            else:
                combine_first(g[i:j], x[i:j], size, grid[0], grid[1], grid[2], grid[3], dx[i:j])


@compiled
def _repeat(grid: Any, channels: int) -> None:
    """Repeat the first `channels` numbers of every row to its end."""
    for i in range(grid.shape[0]):
        row = grid[i]
        for at in range(channels, row.size, channels):
            for c in range(channels):
                row[at + c] = row[c]
