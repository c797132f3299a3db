"""What one thread does of a job: it takes units until none is left, and has the kernels performed on each.

A unit is a block of samples, worked on from moments to affine map (or from dots to combine) while it is in cache, or,
for norms that pool over the batch, a part of one sample in one of the passes. Every job is described by the same
plain numbers, for all threads (`normlab.kernels.runtime.job`), with the addresses of its kernels among them
(`_kernels`, `_machine`): nothing here depends on what the elements are.

With an activation, the gradient that the kernels see is dz = g * act'(z), z being computed again. It is written to
where the residual's gradient goes, if there is a residual; else in a block to where dx goes, in a pass to memory of the
thread's own. Of halves it is kept in numbers there, so that it is not rounded on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from normlab.kernels.cpu._kernels import (
    COUNT,
    IN,
    OTHER,
    OUT,
    OWN,
    PART,
    PLANES,
    ROW_0,
    ROW_1,
    ROW_2,
    ROW_3,
    SUM_0,
    SUM_1,
    UP,
)
from normlab.kernels.cpu._machine import REGISTERS_AT, SAMPLES_HERE
from normlab.kernels.runtime.compiling import address_of, joining
from normlab.kernels.runtime.counters import call_on, next_of_shares, unit_done
from normlab.kernels.runtime.job import (
    APPLY,
    CHANNELS,
    CHUNKS,
    COMBINE,
    DOT,
    EXTENT,
    FOLDED,
    GROUP,
    ITEMSIZE,
    KIND,
    LAST,
    MEASURE,
    MEMORY,
    OUTPUT_COUNT,
    OUTPUTS,
    PERFORM,
    PULL,
    REAL,
    REGISTERS,
    RESIDUAL,
    ROUND,
    SAMPLES,
    SIZE,
    SPARE,
    STRETCH,
    SUMS,
    SUMS_1,
    SUMS_2,
    TO_RESIDUAL,
    UNITS,
    G,
    X,
    Y,
)
from normlab.kernels.runtime.protocol import joined
from normlab.kernels.runtime.unaliased import elements_at

FIRST_PASS, SECOND_PASS = range(2)


def work(backward: bool, across: bool) -> int:
    """Address of `void work(job)`, for blocks of samples or for passes `across` the batch."""
    functions = {
        (False, False): _forward_blocks,
        (True, False): _backward_blocks,
        (False, True): _forward_pass,
        (True, True): _backward_pass,
    }
    return address_of(functions[backward, across], types.void(types.intp))


@joining
def _allocate_own(job: Any, elements: int) -> Any:
    """Memory of a thread's own for this many numbers, if the job needs it."""
    return np.empty((elements * job[REAL] + 7) // 8 if job[SPARE] != 0 else 0)


@joining
def _say_map(part: Any, grids: int, bytes_each: int) -> None:
    """Where scale, center and shift lie, behind the mean and the variance."""
    part[ROW_0], part[ROW_1], part[ROW_2] = grids + 2 * bytes_each, grids + 3 * bytes_each, grids + 4 * bytes_each


@joining
def copy(source: int, to: int, count: int) -> None:
    """Copy this many float64 from one address to another."""
    a, b = elements_at(source, np.float64), elements_at(to, np.float64)
    for k in range(count):
        b[k] = a[k]


# --- blocks of samples ------------------------------------------------------------------------------------------------


def _forward_blocks(address: int) -> None:
    job = elements_at(address, np.int64)
    control, shares, own_share = joined(job)
    units, extent, samples, channels = job[UNITS], job[EXTENT], job[SAMPLES], job[CHANNELS]
    u = next_of_shares(shares, own_share, units, False)
    if u >= units:
        return
    width, bytes_each, plane = channels * job[SIZE], job[ITEMSIZE], 8 * extent * channels
    registers, own = np.empty(job[REGISTERS] * extent * channels), _allocate_own(job, extent * width)
    part, call, outputs = np.zeros(PART, np.int64), np.zeros(3, np.int64), elements_at(job[OUTPUTS], np.int64)
    call[SAMPLES_HERE], call[REGISTERS_AT] = extent, registers.ctypes.data
    while u < units:
        first, stop = u * extent, min((u + 1) * extent, samples)
        step = 1 if job[LAST] != 0 else stop - first  # channels-first, planes of many samples are only many planes
        part[COUNT], part[PLANES] = step * width, step * channels
        start, grids = registers.ctypes.data, job[MEMORY] + 8 * first * channels
        if job[MEASURE] != 0:
            for n in range(first, stop, step):
                p = 8 * (n - first) * channels
                part[IN] = job[X] + bytes_each * n * width
                part[SUM_0], part[SUM_1] = start + p, start + plane + p
                call_on(job[MEASURE], address, part.ctypes.data)
        call_on(job[PERFORM], address, call.ctypes.data)
        for n in range(first, stop, step):
            p, i = start + 8 * (n - first) * channels, bytes_each * n * width
            part[IN], part[OUT], part[OTHER], part[OWN] = job[X] + i, job[Y] + i, job[RESIDUAL] + i, own.ctypes.data
            part[ROW_0], part[ROW_1] = p + plane * outputs[0], p + plane * outputs[2]
            part[ROW_2] = p + plane * outputs[4]
            call_on(job[APPLY], address, part.ctypes.data)
        for i in range(5):
            register = i if i < 2 else outputs[2 * (i - 2)]
            copy(start + plane * register, grids + 8 * i * samples * channels, (stop - first) * channels)
        unit_done(control)
        u = next_of_shares(shares, own_share, units, False)


def _backward_blocks(address: int) -> None:
    job = elements_at(address, np.int64)
    control, shares, own_share = joined(job)
    units, extent, samples, channels = job[UNITS], job[EXTENT], job[SAMPLES], job[CHANNELS]
    u = next_of_shares(shares, own_share, units, False)
    if u >= units:
        return
    width, bytes_each, plane = channels * job[SIZE], job[ITEMSIZE], 8 * extent * channels
    registers, own = np.empty(job[REGISTERS] * extent * channels), _allocate_own(job, extent * width)
    part, call, outputs = np.zeros(PART, np.int64), np.zeros(3, np.int64), elements_at(job[OUTPUTS], np.int64)
    call[SAMPLES_HERE], call[REGISTERS_AT] = extent, registers.ctypes.data
    all_planes = 8 * samples * channels
    while u < units:
        first, stop = u * extent, min((u + 1) * extent, samples)
        step = 1 if job[LAST] != 0 else stop - first
        part[COUNT], part[PLANES] = step * width, step * channels
        start = registers.ctypes.data
        for n in range(first, stop, step):
            i, p = bytes_each * n * width, start + 8 * (n - first) * channels
            grids = job[MEMORY] + 8 * n * channels
            part[IN], part[UP] = job[X] + i, job[G] + i
            _say_map(part, grids, all_planes)
            part[SUM_0], part[SUM_1] = p + 2 * plane, p + 3 * plane
            if job[PULL] != 0:
                part[OTHER], part[OUT] = job[RESIDUAL] + i, _address_of_dz(job, own.ctypes.data, n - first, n, width)
                call_on(job[PULL], address, part.ctypes.data)
                part[UP] = part[OUT]
            call_on(job[DOT], address, part.ctypes.data)
        grids, count = job[MEMORY] + 8 * first * channels, (stop - first) * channels
        for i in range(4):
            copy(grids + i * all_planes, start + plane * (i if i < 2 else i + 2), count)
        call_on(job[PERFORM], address, call.ctypes.data)
        for n in range(first, stop, step):
            i, p = bytes_each * n * width, start + 8 * (n - first) * channels
            grids = job[MEMORY] + 8 * n * channels
            part[IN], part[UP], part[OUT] = job[X] + i, job[G] + i, job[Y] + i
            if job[PULL] != 0:
                part[UP] = _address_of_dz(job, own.ctypes.data, n - first, n, width)
            part[ROW_0], part[ROW_1] = grids + 2 * all_planes, grids + 3 * all_planes
            part[ROW_2], part[ROW_3] = p + plane * outputs[0], p + plane * outputs[2]
            call_on(job[COMBINE], address, part.ctypes.data)
        for k in range(2, job[OUTPUT_COUNT]):
            to = job[SUMS] + (2 + k) * all_planes + 8 * first * channels
            copy(start + plane * outputs[2 * k], to, count)
        if job[ROUND] != 0:
            part[UP], part[COUNT] = own.ctypes.data, (stop - first) * width
            part[OUT] = job[TO_RESIDUAL] + bytes_each * first * width
            call_on(job[ROUND], address, part.ctypes.data)
        unit_done(control)
        u = next_of_shares(shares, own_share, units, False)


@joining
def _address_of_dz(job: Any, own: int, n: int, sample: int, width: int) -> int:
    """Where the gradient of z is kept, for sample n of a block."""
    if job[SPARE] != 0:
        return own + job[REAL] * n * width
    return (job[TO_RESIDUAL] if job[TO_RESIDUAL] != 0 else job[Y]) + job[ITEMSIZE] * sample * width


# --- passes over the batch --------------------------------------------------------------------------------------------


def _forward_pass(address: int) -> None:
    job = elements_at(address, np.int64)
    control, shares, own_share = joined(job)
    units, second, bytes_each = job[UNITS], job[KIND] == SECOND_PASS, job[ITEMSIZE]
    # the second pass over the batch begins with what the first one has left in the cache
    u = next_of_shares(shares, own_share, units, second)
    if u >= units:
        return
    part, own = np.zeros(PART, np.int64), np.empty(0)
    sums, all_planes = 8 * job[SUMS_1] * job[SUMS_2], 8 * job[SAMPLES] * job[CHANNELS]
    while u < units:
        i, j, r, q, k = _part(job, u)
        part[COUNT], part[PLANES], part[IN] = j - i, q - r, job[X] + bytes_each * i
        if second:
            if job[SPARE] != 0 and own.size * 8 < (j - i) * job[REAL]:
                own = _allocate_own(job, j - i)
            at = bytes_each * i
            part[OUT], part[OTHER], part[OWN] = job[Y] + at, job[RESIDUAL] + at, own.ctypes.data
            grids = job[MEMORY] + 8 * r
            _say_map(part, grids, all_planes)
            call_on(job[APPLY], address, part.ctypes.data)
        else:
            part[SUM_0], part[SUM_1] = job[SUMS] + 8 * k, job[SUMS] + sums + 8 * k
            call_on(job[MEASURE], address, part.ctypes.data)
        unit_done(control)
        u = next_of_shares(shares, own_share, units, second)


def _backward_pass(address: int) -> None:
    job = elements_at(address, np.int64)
    control, shares, own_share = joined(job)
    units, second, bytes_each = job[UNITS], job[KIND] == SECOND_PASS, job[ITEMSIZE]
    u = next_of_shares(shares, own_share, units, second)
    if u >= units:
        return
    part, own = np.zeros(PART, np.int64), np.empty(0)
    sums, all_planes = 8 * job[SUMS_1] * job[SUMS_2], 8 * job[SAMPLES] * job[CHANNELS]
    while u < units:
        i, j, r, q, k = _part(job, u)
        at, grids = bytes_each * i, job[MEMORY] + 8 * r
        part[COUNT], part[PLANES], part[IN], part[UP] = j - i, q - r, job[X] + at, job[G] + at
        _say_map(part, grids, all_planes)
        if job[PULL] != 0:
            if job[SPARE] != 0 and own.size * 8 < (j - i) * job[REAL]:
                own = _allocate_own(job, j - i)
            down = own.ctypes.data if job[SPARE] != 0 else job[TO_RESIDUAL] + at
            if not second or job[SPARE] != 0:  # (once more where it was nowhere kept, or rounded)
                part[OTHER], part[OUT] = job[RESIDUAL] + at, down
                call_on(job[PULL], address, part.ctypes.data)
            part[UP] = down
        if second:
            part[OUT] = job[Y] + at
            part[ROW_2], part[ROW_3] = job[SUMS] + 2 * sums + 8 * r, job[SUMS] + 3 * sums + 8 * r
            call_on(job[COMBINE], address, part.ctypes.data)
        else:
            part[SUM_0], part[SUM_1] = job[SUMS] + 8 * k, job[SUMS] + sums + 8 * k
            call_on(job[DOT], address, part.ctypes.data)
            if job[ROUND] != 0:
                part[OUT] = job[TO_RESIDUAL] + at
                call_on(job[ROUND], address, part.ctypes.data)
        unit_done(control)
        u = next_of_shares(shares, own_share, units, second)


@joining
def _part(job: Any, u: int) -> Any:
    """Where a unit of a pass begins and ends in the elements and in the grids' rows, and begins in its sums."""
    channels, stretch, chunks, extent = job[CHANNELS], job[STRETCH], job[CHUNKS], job[EXTENT]
    n, p = u // chunks * job[GROUP], u % chunks * extent
    if job[LAST] != 0:
        q = min(p + extent, job[SIZE])
        at = n * channels * job[SIZE]
        return at + p * channels, at + q * channels, n * channels, (n + 1) * channels, u * channels
    q = min(p + extent, channels)
    first, stop = n * channels + p, (min(n + job[GROUP], job[SAMPLES] * job[FOLDED]) - 1) * channels + q
    if job[FOLDED] > 1:
        return first * stretch, stop * stretch, p, q, first
    return first * stretch, stop * stretch, first, stop, first
