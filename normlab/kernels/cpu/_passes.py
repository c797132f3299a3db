"""A whole direction in one call: one job over blocks of samples, or passes over the batch with a grid program between.

`CHUNKS` is 0 for blocks of `EXTENT` samples; else a sample is cut into so many parts. Both directions are C functions
of the address of a job (`normlab.kernels.runtime.job`): calling them takes no lock and no conversion of arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CFUNCTYPE, c_ssize_t
from functools import cache
from typing import Any

import numpy as np
from numba import carray, cfunc, types

from normlab.kernels.cpu._machine import load, perform
from normlab.kernels.cpu._work import (
    AFFINE,
    BACKWARD_BLOCKS,
    COMBINE,
    DOTS,
    FORWARD_BLOCKS,
    MOMENTS,
    grids_of,
    program,
    real_at,
    rows_of,
)
from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.counters import pointer
from normlab.kernels.runtime.job import (
    CHANNELS,
    CHUNKS,
    EPS,
    EXTENT,
    FLAG,
    FOLDED,
    GROUP,
    KIND,
    LAST,
    MEMORY,
    MOMENTUM,
    REGISTERS,
    ROWS,
    RUNNING_BYTES,
    RUNNING_MEAN,
    RUNNING_VAR,
    SAMPLES,
    SIZE,
    STRETCH,
    SUMS,
    SUMS_0,
    SUMS_1,
    SUMS_2,
    TABLE,
    UNITS,
)
from normlab.kernels.runtime.sharing import do_part


@cache
def forward() -> Callable[[int], None]:
    """From x to y; fills the job's memory, and updates the running statistics if asked to."""
    return _entry(_forward)


@cache
def backward() -> Callable[[int], None]:
    """From x and g to dx and the parameters' gradients."""
    return _entry(_backward)


def _entry(function: Callable[[int], None]) -> Callable[[int], None]:
    made: Any = cfunc(types.void(types.intp), cache=True)(function)
    _kept.append(made)
    return CFUNCTYPE(None, c_ssize_t)(made.address)


_kept: list[Any] = []  # compiled code lives as long as its object


def _forward(address: int) -> None:
    job = carray(pointer(address), (TABLE,), np.int64)
    table = carray(pointer(address + 8 * TABLE), (job[ROWS], 3), np.int64)
    _read_rows(table, rows_of(job))
    _forward_passes(job)
    if job[RUNNING_MEAN] != 0:
        _update(job)


@compiled
def _forward_passes(job: Any) -> None:
    grids, extent, chunks, size = grids_of(job), job[EXTENT], job[CHUNKS], job[SIZE]
    samples, channels = job[SAMPLES], job[CHANNELS]
    if chunks == 0:
        _assign(job, FORWARD_BLOCKS, -(-samples // extent), job[MEMORY], grids.shape)
        do_part(job)
        return
    units = _units(job)
    pieces, length = _pieces(job)
    if job[FLAG] != 0 and pieces > 1:
        parts = np.empty((2, samples * pieces, channels))
        _assign(job, MOMENTS, units, parts.ctypes.data, parts.shape)
        do_part(job)
        _merge_moments(parts, length, pieces, size, grids)
    elif job[FLAG] != 0:
        _assign(job, MOMENTS, units, job[MEMORY], grids.shape)
        do_part(job)
    _forward_grid(job, grids)
    _assign(job, AFFINE, units, job[MEMORY], grids.shape)
    do_part(job)


def _backward(address: int) -> None:
    job = carray(pointer(address), (TABLE,), np.int64)
    table = carray(pointer(address + 8 * TABLE), (job[ROWS] - 2, 3), np.int64)
    sums = np.empty((4 + table.shape[0], job[SAMPLES], job[CHANNELS]))  # sum_g, sum_gx, b, c, parameters' gradients
    _backward_passes(job, sums)
    _write_gradients(sums, table)


@compiled
def _backward_passes(job: Any, sums: Any) -> None:
    extent, chunks, samples, channels = job[EXTENT], job[CHUNKS], job[SAMPLES], job[CHANNELS]
    if chunks == 0:
        _assign(job, BACKWARD_BLOCKS, -(-samples // extent), sums.ctypes.data, sums.shape)
        do_part(job)
        return
    units = _units(job)
    pieces, _ = _pieces(job)
    if pieces > 1:
        parts = np.empty((2, samples * pieces, channels))
        _assign(job, DOTS, units, parts.ctypes.data, parts.shape)
        do_part(job)
        _add_parts(parts, pieces, sums)
    else:
        _assign(job, DOTS, units, sums.ctypes.data, sums.shape)
        do_part(job)
    _backward_grid(job, grids_of(job), sums)
    _assign(job, COMBINE, units, sums.ctypes.data, sums.shape)
    do_part(job)


@compiled
def _units(job: Any) -> int:
    """Into how many units a pass is cut."""
    in_memory = job[SAMPLES] * job[FOLDED] if job[LAST] == 0 else job[SAMPLES]
    return -(-in_memory // job[GROUP]) * job[CHUNKS]


@compiled
def _pieces(job: Any) -> Any:
    """In how many pieces the sums of a sample come, and the positions of each (of the last one the rest)."""
    return (job[CHUNKS], job[EXTENT]) if job[LAST] != 0 else (job[FOLDED], job[STRETCH])


@compiled
def _assign(job: Any, kind: int, units: int, sums: int, shape: Any) -> None:
    """Say which part of the job is next, and where its sums are; they must outlive it."""
    job[KIND], job[UNITS] = kind, units
    job[SUMS], job[SUMS_0], job[SUMS_1], job[SUMS_2] = sums, shape[0], shape[1], shape[2]


@compiled
def _read_rows(table: Any, rows: Any) -> None:
    """Running statistics and parameters in float64, one number repeated for all channels."""
    for i in range(table.shape[0]):
        address, itemsize, count = table[i]
        if address == 0:
            continue
        narrow, wide = carray(pointer(address), (count,), np.float32), carray(pointer(address), (count,), np.float64)
        for c in range(rows.shape[1]):
            k = c if count > 1 else 0
            rows[i, c] = narrow[k] if itemsize == 4 else wide[k]


@compiled
def _write_gradients(sums: Any, table: Any) -> None:
    """Gradients summed over the samples, in the parameters' dtypes; that of one number is there in all channels."""
    for i in range(table.shape[0]):
        address, itemsize, count = table[i]
        narrow, wide = carray(pointer(address), (count,), np.float32), carray(pointer(address), (count,), np.float64)
        total = sums[4 + i, 0]
        for n in range(1, sums.shape[1]):
            row = sums[4 + i, n]
            for c in range(count):
                total[c] += row[c]
        for c in range(count):
            if itemsize == 4:
                narrow[c] = total[c]
            else:
                wide[c] = total[c]


@compiled
def _update(job: Any) -> None:
    """running = (1 - momentum) * running + momentum * batch, with the unbiased variance."""
    momentum, channels, bytes_each = real_at(job, MOMENTUM), job[CHANNELS], job[RUNNING_BYTES]
    count = job[SAMPLES] * job[SIZE]
    pooled = rows_of(job)[job[ROWS] :]
    for i in range(2):
        address = job[RUNNING_VAR] if i else job[RUNNING_MEAN]
        narrow = carray(pointer(address), (channels,), np.float32)
        wide = carray(pointer(address), (channels,), np.float64)
        factor = count / max(count - 1, 1) if i else 1.0
        for c in range(channels):
            new = momentum * (factor * pooled[i, c])
            if bytes_each == 4:
                narrow[c] = (1 - momentum) * narrow[c] + new
            else:
                wide[c] = (1 - momentum) * wide[c] + new


@compiled
def _add_parts(parts: Any, chunks: int, sums: Any) -> None:
    """Add up the partial dots of each sample."""
    _, samples, channels = sums.shape
    for i in range(2):
        for n in range(samples):
            for c in range(channels):
                sums[i, n, c] = 0
            for k in range(n * chunks, (n + 1) * chunks):
                for c in range(channels):
                    sums[i, n, c] += parts[i, k, c]


@compiled
def _merge_moments(parts: Any, extent: int, chunks: int, size: int, grids: Any) -> None:
    """Chan's formula over the chunks of each sample."""
    for n in range(grids.shape[1]):
        mean, var = grids[0, n], grids[1, n]
        for c in range(mean.size):
            mean[c] = 0
            var[c] = 0
        for k in range(chunks):
            weight = (min((k + 1) * extent, size) - k * extent) / size
            for c in range(mean.size):
                mean[c] += weight * parts[0, n * chunks + k, c]
        for k in range(chunks):
            weight = (min((k + 1) * extent, size) - k * extent) / size
            for c in range(mean.size):
                d = parts[0, n * chunks + k, c] - mean[c]
                var[c] += weight * (parts[1, n * chunks + k, c] + d * d)


@compiled
def _forward_grid(job: Any, grids: Any) -> None:
    """Run a forward program on the moments of all planes, and keep the batch's mean and variance."""
    _, samples, channels = grids.shape
    rows, (code, constants, outputs) = rows_of(job), program(job)
    registers = np.empty((job[REGISTERS], samples, channels))
    load(registers, 1, rows[: job[ROWS]], job[SIZE], real_at(job, EPS), constants)
    _copy(grids[0], registers[0])
    _copy(grids[1], registers[1])
    perform(code, registers)
    for i in range(3):
        _store(registers, outputs[i], grids[2 + i])
    for i in range(3, len(outputs)):
        for c in range(channels):
            rows[job[ROWS] + i - 3, c] = registers[outputs[i, 0], 0, c]


@compiled
def _backward_grid(job: Any, grids: Any, sums: Any) -> None:
    """Run a backward program on the dots of all planes."""
    _, samples, channels = sums.shape
    code, constants, outputs = program(job)
    registers = np.empty((job[REGISTERS], samples, channels))
    load(registers, 1, rows_of(job)[: job[ROWS]], job[SIZE], real_at(job, EPS), constants)
    for i in range(2):
        _copy(grids[i], registers[i])
        _copy(sums[i], registers[2 + i])
        _copy(grids[2 + i], registers[4 + i])
    perform(code, registers)
    for i in range(len(outputs)):
        _store(registers, outputs[i], sums[2 + i])


@compiled
def _copy(a: Any, to: Any) -> None:
    for n in range(to.shape[0]):
        for c in range(to.shape[1]):
            to[n, c] = a[n, c]


@compiled
def _store(registers: Any, output: Any, to: Any) -> None:
    """Copy an output to a grid (N, C); one row for all samples is repeated."""
    for n in range(to.shape[0]):
        for c in range(to.shape[1]):
            to[n, c] = registers[output[0], n if output[1] else 0, c]
