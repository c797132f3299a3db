"""A whole direction in one call: one job over blocks of samples, or passes over the batch with a grid program between.

`chunks` is 0 for blocks of `extent` samples; else a sample is cut into so many parts (`normlab.planes._work`).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.planes._compile import compiled
from normlab.planes._machine import load, perform
from normlab.planes._team import share
from normlab.planes._work import AFFINE, BACKWARD_BLOCKS, COMBINE, DOTS, FORWARD_BLOCKS, MOMENTS, assign, describe


@compiled
def forward_passes(
    control: Any, job: Any, semaphore: Any, helpers: int, entry: int, x: Any, y: Any, shape: Any, extent: int,
    chunks: int, code: Any, constants: Any, count: int, outputs: Any, measures: bool, rows: Any, eps: float, grids: Any,
    pooled: Any,
) -> None:  # fmt: skip
    """From x to y; fills `grids`, and `pooled` with the batch's mean and variance if the norm pools over it."""
    samples, channels, size, last, _ = shape
    describe(job, entry, x, x, y, shape, extent, chunks, code, constants, count, outputs, measures, rows, eps, grids)
    if chunks == 0:
        units = -(-samples // extent)
        assign(job, FORWARD_BLOCKS, units, grids)
        share(control, job, semaphore, helpers, units)
        return
    units = samples * chunks
    if measures and last and chunks > 1:
        parts = np.empty((2, units, channels))
        assign(job, MOMENTS, units, parts)
        share(control, job, semaphore, helpers, units)
        _merge_moments(parts, extent, chunks, size, grids)
    elif measures:
        assign(job, MOMENTS, units, grids)
        share(control, job, semaphore, helpers, units)
    _forward_grid(code, constants, count, outputs, rows, size, eps, grids, pooled)
    assign(job, AFFINE, units, grids)
    share(control, job, semaphore, helpers, units)


@compiled
def backward_passes(
    control: Any, job: Any, semaphore: Any, helpers: int, entry: int, x: Any, g: Any, dx: Any, shape: Any, extent: int,
    chunks: int, code: Any, constants: Any, count: int, outputs: Any, linear: bool, rows: Any, eps: float, grids: Any,
    sums: Any,
) -> None:  # fmt: skip
    """From x and g to dx; fills `sums` from row 4 on with the parameters' gradients by sample."""
    samples, channels, size, last, _ = shape
    describe(job, entry, x, g, dx, shape, extent, chunks, code, constants, count, outputs, linear, rows, eps, grids)
    if chunks == 0:
        units = -(-samples // extent)
        assign(job, BACKWARD_BLOCKS, units, sums)
        share(control, job, semaphore, helpers, units)
        return
    units = samples * chunks
    if last and chunks > 1:
        parts = np.empty((2, units, channels))
        assign(job, DOTS, units, parts)
        share(control, job, semaphore, helpers, units)
        _add_parts(parts, chunks, sums)
    else:
        assign(job, DOTS, units, sums)
        share(control, job, semaphore, helpers, units)
    _backward_grid(code, constants, count, outputs, rows, size, eps, grids, sums)
    assign(job, COMBINE, units, sums)
    share(control, job, semaphore, helpers, units)


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
def _forward_grid(
    code: Any, constants: Any, count: int, outputs: Any, rows: Any, size: int, eps: float, grids: Any, pooled: Any,
) -> None:  # fmt: skip
    """Run a forward program on the moments of all planes; `pooled` receives the batch's mean and variance."""
    _, samples, channels = grids.shape
    registers = np.empty((count, samples, channels))
    load(registers, 1, rows, size, eps, constants)
    _copy(grids[0], registers[0])
    _copy(grids[1], registers[1])
    perform(code, registers)
    for i in range(3):
        _store(registers, outputs[i], grids[2 + i])
    for i in range(3, len(outputs)):
        for c in range(channels):
            pooled[i - 3, c] = registers[outputs[i, 0], 0, c]


@compiled
def _backward_grid(
    code: Any, constants: Any, count: int, outputs: Any, rows: Any, size: int, eps: float, grids: Any, sums: Any
) -> None:
    """Run a backward program on the dots of all planes."""
    _, samples, channels = sums.shape
    registers = np.empty((count, samples, channels))
    load(registers, 1, rows, size, eps, constants)
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
