"""A whole direction in one call: one job over blocks of samples, or passes over the batch with a grid program between.

`CHUNKS` is 0 for blocks of `EXTENT` samples; else the number of parts that a sample is cut into. Directions are C
functions of the address of a job (`normlab.kernels.runtime.job`): calling them takes no lock and no conversion of
arguments.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from normlab.kernels.cpu._machine import READY, REGISTERS_AT, SAMPLES_HERE
from normlab.kernels.cpu._work import FIRST_PASS, SECOND_PASS, copy
from normlab.kernels.runtime.compiling import address_of, joining
from normlab.kernels.runtime.counters import call_on
from normlab.kernels.runtime.job import (
    CHANNELS,
    CHUNKS,
    EXTENT,
    FOLDED,
    GROUP,
    KIND,
    LAST,
    MEASURE,
    MEMORY,
    MOMENTUM,
    OUTPUT_COUNT,
    OUTPUTS,
    PERFORM,
    REGISTERS,
    ROWS,
    RUNNING_BYTES,
    RUNNING_MEAN,
    RUNNING_VAR,
    SAMPLES,
    SIZE,
    STRETCH,
    SUMS,
    SUMS_1,
    SUMS_2,
    TABLE,
    UNITS,
)
from normlab.kernels.runtime.protocol import do_part
from normlab.kernels.runtime.unaliased import elements_at


def direction(backward: bool, across: bool) -> int:
    """Address of `void direction(job)`: from x to y, or from x and g to dx and the parameters' gradients.

    It works in blocks of samples, or `across` the batch. The forward one fills the job's memory, and updates the
    running statistics that the job names.
    """
    functions = {
        (False, False): _forward_blocks,
        (True, False): _backward_blocks,
        (False, True): _forward_passes,
        (True, True): _backward_passes,
    }
    return address_of(functions[backward, across], types.void(types.intp))


def _forward_blocks(address: int) -> None:
    job = elements_at(address, np.int64)
    _read_rows(address)
    job[UNITS] = -(-job[SAMPLES] // job[EXTENT])
    do_part(address)


def _forward_passes(address: int) -> None:
    job = elements_at(address, np.int64)
    _read_rows(address)
    samples, channels = job[SAMPLES], job[CHANNELS]
    if job[MEASURE] != 0:
        pieces, length = _pieces(job)
        parts = np.empty(2 * samples * pieces * channels if pieces > 1 else 0)
        job[KIND] = FIRST_PASS
        to: Any = np.int64(parts.ctypes.data) if pieces > 1 else job[MEMORY]
        _share(address, to, samples * pieces)
        if pieces > 1:
            _merge_moments(parts, length, pieces, samples, channels, job[SIZE], elements_at(job[MEMORY], np.float64))
    grids, plane = job[MEMORY], 8 * samples * channels
    registers, call = np.empty(job[REGISTERS] * samples * channels), np.zeros(3, np.int64)
    copy(grids, registers.ctypes.data, 2 * samples * channels)
    call[SAMPLES_HERE], call[REGISTERS_AT] = samples, registers.ctypes.data
    call_on(job[PERFORM], address, call.ctypes.data)
    call[READY] = 0  # (an array lives until it is last used)
    outputs = elements_at(job[OUTPUTS], np.int64)
    for i in range(job[OUTPUT_COUNT]):
        source = registers.ctypes.data + plane * outputs[2 * i]
        if i < 3:
            _fill(source, outputs[2 * i + 1] != 0, samples, channels, grids + (2 + i) * plane)
        else:  # the batch's mean and variance
            copy(source, grids + 5 * plane + 8 * (job[ROWS] + i - 3) * channels, channels)
    job[KIND] = SECOND_PASS
    _share(address, grids, samples)
    if job[RUNNING_MEAN] != 0:
        _update(address)


def _backward_blocks(address: int) -> None:
    job = elements_at(address, np.int64)
    plane = job[SAMPLES] * job[CHANNELS]
    sums = np.empty((2 + job[OUTPUT_COUNT]) * plane)  # sum_g, sum_gx, b, c, parameters' gradients
    job[SUMS], job[UNITS] = sums.ctypes.data, -(-job[SAMPLES] // job[EXTENT])
    do_part(address)
    _write_gradients(address, sums)


def _backward_passes(address: int) -> None:
    job = elements_at(address, np.int64)
    samples, channels = job[SAMPLES], job[CHANNELS]
    count, plane = samples * channels, 8 * samples * channels
    sums = np.empty((2 + job[OUTPUT_COUNT]) * count)
    start: Any = np.int64(sums.ctypes.data)
    pieces, _ = _pieces(job)
    parts = np.empty(2 * pieces * count if pieces > 1 else 0)
    job[KIND] = FIRST_PASS
    to: Any = np.int64(parts.ctypes.data) if pieces > 1 else start
    _share(address, to, samples * pieces)
    if pieces > 1:
        _add_parts(parts, pieces, samples, channels, sums)
    grids = job[MEMORY]
    registers, call = np.empty(job[REGISTERS] * count), np.zeros(3, np.int64)
    copy(grids, registers.ctypes.data, 2 * count)
    copy(start, registers.ctypes.data + 2 * plane, 2 * count)
    copy(grids + 2 * plane, registers.ctypes.data + 4 * plane, 2 * count)
    call[SAMPLES_HERE], call[REGISTERS_AT] = samples, registers.ctypes.data
    call_on(job[PERFORM], address, call.ctypes.data)
    call[READY] = 0  # (an array lives until it is last used)
    outputs = elements_at(job[OUTPUTS], np.int64)
    for i in range(job[OUTPUT_COUNT]):
        source = registers.ctypes.data + plane * outputs[2 * i]
        _fill(source, outputs[2 * i + 1] != 0, samples, channels, start + (2 + i) * plane)
    job[KIND] = SECOND_PASS
    _share(address, start, samples)
    _write_gradients(address, sums)


@joining
def _share(address: int, sums: int, rows: int) -> None:
    """Do the pass that the job names with other threads; its sums are rows of a number per channel, and outlive it."""
    job = elements_at(address, np.int64)
    in_memory = job[SAMPLES] * job[FOLDED] if job[LAST] == 0 else job[SAMPLES]
    job[UNITS] = -(-in_memory // job[GROUP]) * job[CHUNKS]
    job[SUMS], job[SUMS_1], job[SUMS_2] = sums, rows, job[CHANNELS]
    do_part(address)


@joining
def _pieces(job: Any) -> Any:
    """In how many pieces the sums of a sample come, and the positions of each (of the last one the rest)."""
    return (job[CHUNKS], job[EXTENT]) if job[LAST] != 0 else (job[FOLDED], job[STRETCH])


@joining
def _fill(source: int, varies: bool, samples: int, channels: int, to: int) -> None:
    """Copy an output to a grid (N, C); one row for all samples is repeated."""
    for n in range(samples):
        copy(source + (8 * n * channels if varies else 0), to + 8 * n * channels, channels)


@joining
def _read_rows(address: int) -> None:
    """Running statistics and parameters in float64, one number repeated for all channels."""
    job = elements_at(address, np.int64)
    channels = job[CHANNELS]
    rows = elements_at(job[MEMORY] + 8 * 5 * job[SAMPLES] * channels, np.float64)
    for i in range(job[ROWS]):
        start, itemsize, count = job[TABLE + 3 * i], job[TABLE + 3 * i + 1], job[TABLE + 3 * i + 2]
        if start != 0:
            narrow, wide = elements_at(start, np.float32), elements_at(start, np.float64)
            for c in range(channels):
                k = c if count > 1 else 0
                rows[i * channels + c] = narrow[k] if itemsize == 4 else wide[k]


@joining
def _write_gradients(address: int, sums: Any) -> None:
    """Gradients summed over the samples, in the parameters' dtypes; that of one number is there in all channels."""
    job = elements_at(address, np.int64)
    samples, channels = job[SAMPLES], job[CHANNELS]
    for i in range(job[ROWS] - 2):
        start, itemsize, count = job[TABLE + 3 * i], job[TABLE + 3 * i + 1], job[TABLE + 3 * i + 2]
        narrow, wide = elements_at(start, np.float32), elements_at(start, np.float64)
        total = (4 + i) * samples * channels
        for n in range(1, samples):
            for c in range(count):
                sums[total + c] += sums[total + n * channels + c]
        for c in range(count):
            if itemsize == 4:
                narrow[c] = sums[total + c]
            else:
                wide[c] = sums[total + c]


@joining
def _update(address: int) -> None:
    """running = (1 - momentum) * running + momentum * batch, with the unbiased variance."""
    job = elements_at(address, np.int64)
    momentum, channels = elements_at(address, np.float64)[MOMENTUM], job[CHANNELS]
    count = job[SAMPLES] * job[SIZE]
    pooled = elements_at(job[MEMORY] + 8 * (5 * job[SAMPLES] + job[ROWS]) * channels, np.float64)
    for i in range(2):
        start = job[RUNNING_VAR] if i else job[RUNNING_MEAN]
        narrow, wide = elements_at(start, np.float32), elements_at(start, np.float64)
        factor = count / max(count - 1, 1) if i else 1.0
        for c in range(channels):
            new = momentum * (factor * pooled[i * channels + c])
            if job[RUNNING_BYTES] == 4:
                narrow[c] = (1 - momentum) * narrow[c] + new
            else:
                wide[c] = (1 - momentum) * wide[c] + new


@joining
def _add_parts(parts: Any, chunks: int, samples: int, channels: int, sums: Any) -> None:
    """Add up the partial dots of each sample."""
    for row in range(2 * samples):
        to = row * channels
        for c in range(channels):
            sums[to + c] = 0
        for k in range(row * chunks, (row + 1) * chunks):
            for c in range(channels):
                sums[to + c] += parts[k * channels + c]


@joining
def _merge_moments(
    parts: Any, extent: int, chunks: int, samples: int, channels: int, size: int, grids: Any
) -> None:  # fmt: skip
    """Chan's formula over the chunks of each sample."""
    second, var = samples * chunks * channels, samples * channels
    for n in range(samples):
        mean = n * channels
        for c in range(channels):
            grids[mean + c] = 0
            grids[var + mean + c] = 0
        for k in range(chunks):
            weight, part = (min((k + 1) * extent, size) - k * extent) / size, (n * chunks + k) * channels
            for c in range(channels):
                grids[mean + c] += weight * parts[part + c]
        for k in range(chunks):
            weight, part = (min((k + 1) * extent, size) - k * extent) / size, (n * chunks + k) * channels
            for c in range(channels):
                d = parts[part + c] - grids[mean + c]
                grids[var + mean + c] += weight * (parts[second + part + c] + d * d)
