"""Between the passes over a whole batch: merging partial results, and the grid program on all planes at once."""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.planes._machine import load, perform
from normlab.planes._rows import compiled


@compiled
def merge_moments(parts: Any, extent: int, chunks: int, size: int, grids: Any) -> None:
    """Chan's formula over the chunks of each sample."""
    for n in range(grids.shape[1]):
        mean, var = grids[0, n], grids[1, n]
        mean[:] = 0
        var[:] = 0
        for k in range(chunks):
            share = (min((k + 1) * extent, size) - k * extent) / size
            for c in range(mean.size):
                mean[c] += share * parts[0, n * chunks + k, c]
        for k in range(chunks):
            share = (min((k + 1) * extent, size) - k * extent) / size
            for c in range(mean.size):
                d = parts[0, n * chunks + k, c] - mean[c]
                var[c] += share * (parts[1, n * chunks + k, c] + d * d)


@compiled
def forward_grid(
    code: Any, constants: Any, count: int, outputs: Any, rows: Any, size: int, eps: float,
    grids: Any, pooled: Any,
) -> None:  # fmt: skip
    """Run a forward program on the moments of all planes; `pooled` receives the batch's mean and variance."""
    _, samples, channels = grids.shape
    registers = np.empty((count, samples, channels))
    load(registers, rows, size, eps, constants)
    registers[0] = grids[0]
    registers[1] = grids[1]
    perform(code, registers)
    for i in range(3):
        _store(registers, outputs[i], grids[2 + i])
    for i in range(3, len(outputs)):
        pooled[i - 3] = registers[outputs[i, 0], 0]


@compiled
def backward_grid(
    code: Any, constants: Any, count: int, outputs: Any, rows: Any, size: int, eps: float, grids: Any, sums: Any
) -> None:
    """Run a backward program on the dots of all planes."""
    _, samples, channels = sums.shape
    registers = np.empty((count, samples, channels))
    load(registers, rows, size, eps, constants)
    for i in range(2):
        registers[i] = grids[i]
        registers[2 + i] = sums[i]
        registers[4 + i] = grids[2 + i]
    perform(code, registers)
    for i in range(len(outputs)):
        _store(registers, outputs[i], sums[2 + i])


@compiled
def _store(registers: Any, output: Any, to: Any) -> None:
    """Copy an output to a grid (N, C); one row for all samples is repeated."""
    for n in range(to.shape[0]):
        to[n] = registers[output[0], n if output[1] else 0]
