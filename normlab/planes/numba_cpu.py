"""Compiled kernels for NumPy arrays and views of CPU tensors, float32 and float64, in both memory orders.

A norm that stays within samples is run a block of samples at a time: moments, grid program and affine map while the
block is in cache, so that x is read from memory once (and g and x once in the backward pass). A norm that pools over
the batch takes two passes, with its grid program between them. The work is cut into units that do not depend on the
number of threads, so neither do the results.

Elements are centred before they are scaled: the centre is rounded to the elements' dtype, where the subtraction
of an element near it is exact, and what the rounding lost goes into the shift.

The code: `_rows` the four kernels on rows of elements, `_machine` the grid program, `_work` both on a unit of work,
`_counters` and `_team` the threads that share the units, `_passes` a whole direction.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.application import Recipe
from normlab.planes._passes import backward_passes, forward_passes
from normlab.planes._team import shared
from normlab.planes._work import entry
from normlab.program import Programs, trace

_UNIT_BYTES = 1 << 17  # of x in a unit of work: stays in the second-level cache from one kernel to the next
_LANES = 256  # shortest row that channels-last rows are joined into
_MANY = 8  # samples from which on whole samples are units; fewer are cut into parts, to keep all threads busy


@dataclass
class Saved:
    """What the backward pass needs beside x: (mean, var, scale, center, shift) of the planes, and how it was done."""

    grids: np.ndarray
    rows: np.ndarray
    programs: Programs
    eps: float
    size: int
    batch: tuple[np.ndarray, np.ndarray, int] | None = None

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray, int] | None:
        return (self.grids[0], self.grids[1], self.size) if self.programs.measures else None


def forward(recipe: Recipe, x: np.ndarray, params: dict[str, Any], running: Any, eps: float, out: np.ndarray) -> Saved:
    n, channels, size = x.shape
    programs = trace(recipe, n, channels)
    program, flag = programs.forward, programs.measures
    rows = np.empty((2 + len(params), channels))
    if running is not None:
        rows[0], rows[1] = running
    for i, v in enumerate(params.values(), 2):
        rows[i] = v
    grids = np.empty((5, n, channels))
    flat, y = _flat(x, out)
    across = program.across_samples or n < _MANY
    extent, chunks = _cut(x) if across else (_block(x), 0)
    pooled = np.empty((2, channels))
    shared(
        forward_passes, x.size, entry(x.itemsize), flat, y, _shape(x), extent, chunks,
        program.code if across else program.by_sample, program.constants, program.registers, program.outputs,
        flag, rows, eps, grids, pooled,
    )  # fmt: skip
    batch = (pooled[0], pooled[1], n * size) if programs.pools_batch else None
    return Saved(grids, rows, programs, eps, size, batch)


def backward(saved: Saved, x: np.ndarray, g: np.ndarray, out: np.ndarray) -> list[np.ndarray]:
    n, channels, _ = x.shape
    programs, program = saved.programs, saved.programs.backward
    flat, up, dx = _flat(x, g, out)
    sums = np.empty((2 + len(program.outputs), n, channels))  # sum_g, sum_gx, b, c, parameters' gradients
    across = program.across_samples or n < _MANY
    extent, chunks = _cut(x) if across else (_block(x), 0)
    shared(
        backward_passes, x.size, entry(x.itemsize), flat, up, dx, _shape(x), extent, chunks,
        program.code if across else program.by_sample, program.constants, program.registers, program.outputs,
        programs.linear, saved.rows, saved.eps, saved.grids, sums,
    )  # fmt: skip
    return list(sums[4:].sum(1) if n > 1 else sums[4:, 0])


def _flat(*views: np.ndarray) -> tuple[np.ndarray, ...]:
    """The memory of (N, C, S) views as rows of elements."""
    if views[0].flags.c_contiguous:
        return tuple(v.reshape(-1) for v in views)
    return tuple(v.transpose(0, 2, 1).reshape(-1) for v in views)


def _shape(x: np.ndarray) -> tuple[int, int, int, bool, int]:
    """N, C, S, whether channels-last, and how many elements the joined rows of a channels-last plane have."""
    n, channels, size = x.shape
    last = not x.flags.c_contiguous
    return n, channels, size, last, max(1, _LANES // channels) * channels if last else 0


def _block(x: np.ndarray) -> int:
    """How many samples to work on at a time: as many as stay in cache, at least 16 units."""
    n, channels, size = x.shape
    return max(1, min(_UNIT_BYTES // (channels * size * x.itemsize), n // 16))


def _cut(x: np.ndarray) -> tuple[int, int]:
    """(extent, chunks): so many planes, or channels-last so many rows, at a time, and how often for a sample."""
    _, channels, size, last, lanes = _shape(x)
    if last:
        extent = max(1, _UNIT_BYTES // (lanes * x.itemsize)) * (lanes // channels)
        return extent, -(-size // extent)
    extent = max(1, _UNIT_BYTES // (size * x.itemsize))
    return min(extent, channels), -(-channels // extent)
