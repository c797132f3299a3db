"""Compiled kernels for NumPy arrays and views of CPU tensors, float32 and float64, in both memory orders.

A norm that stays within samples is run a block of samples at a time: moments, grid program and affine map while the
block is in cache, so that x is read from memory once (and g and x once in the backward pass). A norm that pools over the
batch takes two passes, with its grid program between them. The work is cut into units that do not depend on the
number of threads, so neither do the results.

Elements are centred before they are scaled: the centre is rounded to the elements' dtype, where the subtraction
of an element near it is exact, and what the rounding lost goes into the shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.application import Recipe
from normlab.planes._machine import load, perform
from normlab.planes._rows import (
    affine_first,
    affine_last,
    combine_first,
    combine_last,
    compiled,
    dots_first,
    dots_last,
    moments_first,
    moments_last,
)
from normlab.planes._threads import num_threads, split
from normlab.program import Programs, trace

_CHUNK_BYTES = 1 << 17  # a unit of work: stays in the second-level cache between the two readings of `moments`
_LANES = 256  # shortest row that channels-last rows are joined into


@dataclass
class Saved:
    """What the backward pass needs beside x: (mean, var, scale, center) of the planes, and how it was done."""

    grids: np.ndarray
    rows: np.ndarray
    programs: Programs
    eps: float
    batch: tuple[np.ndarray, np.ndarray, int] | None


def forward(
    recipe: Recipe, x: np.ndarray, params: dict[str, Any], running: Any, eps: float, out: np.ndarray
) -> Saved:
    n, channels, size = x.shape
    programs = trace(recipe, n, channels)
    program = programs.forward
    rows = np.empty((2 + len(params), channels))
    if running is not None:
        rows[0], rows[1] = running
    for row, v in zip(rows[2:], params.values(), strict=True):
        row[:] = v
    grids = np.empty((4, n, channels))
    flat, y, last = *_flat(x, out), _is_last(x)
    shape = (n, channels, size, last, _lanes(channels) if last else 0)
    plan = (program.code, program.constants, program.registers)
    batch = None
    if not program.across_samples and n >= num_threads():
        block = _block(shape, x.itemsize)
        plan = (program.by_sample, *plan[1:])
        args = (flat, y, shape, block, *plan, program.outputs, programs.measures, rows, eps, grids)
        split(_forward_blocks, -(-n // block), x.size, *args)
    else:
        cut = _cut(shape, x.itemsize)
        if programs.measures:
            _moments(flat, x.size, shape, cut, grids)
        shift = np.empty((n, channels))
        pooled = np.empty((2, channels))
        _forward_grid(*plan, program.outputs, rows, size, eps, grids, shift, pooled)
        split(_affine_units, n * cut[1], x.size, flat, y, shape, cut, grids[2], grids[3], shift)
        if programs.pools_batch:
            batch = (pooled[0], pooled[1], n * size)
    return Saved(grids, rows, programs, eps, batch)


def backward(saved: Saved, x: np.ndarray, g: np.ndarray, out: np.ndarray) -> list[np.ndarray]:
    n, channels, size = x.shape
    programs, program = saved.programs, saved.programs.backward
    flat, up, dx = _flat(x, g, out)
    last = _is_last(x)
    shape = (n, channels, size, last, _lanes(channels) if last else 0)
    plan = (program.code, program.constants, program.registers, program.outputs)
    sums = np.empty((2 + len(program.outputs), n, channels))  # sum_g, sum_gx, b, c, parameters' gradients
    if not program.across_samples and n >= num_threads():
        block = _block(shape, x.itemsize)
        plan = (program.by_sample, *plan[1:])
        args = (up, flat, dx, shape, block, *plan, programs.linear, saved.rows, saved.eps, saved.grids, sums)
        split(_backward_blocks, -(-n // block), x.size, *args)
    else:
        cut = _cut(shape, x.itemsize)
        _dots(up, flat, x.size, shape, cut, saved.grids[3], sums)
        _backward_grid(*plan, saved.rows, size, saved.eps, saved.grids, sums)
        args = (up, flat, dx, shape, cut, programs.linear, saved.grids, sums)
        split(_combine_units, n * cut[1], x.size, *args)
    return list(sums[4:].sum(1) if n > 1 else sums[4:, 0])


# --- how the (N, C, S) view lies in memory, and how the work is cut ------------------------------------------------------


def _is_last(x: np.ndarray) -> bool:
    return not x.flags.c_contiguous


def _flat(*views: np.ndarray) -> tuple[np.ndarray, ...]:
    """The views' memory as contiguous rows of elements."""
    if views[0].flags.c_contiguous:
        return tuple(v.reshape(-1) for v in views)
    return tuple(v.transpose(0, 2, 1).reshape(-1) for v in views)


def _lanes(channels: int) -> int:
    return max(1, _LANES // channels) * channels


def _block(shape: tuple, itemsize: int) -> int:
    """How many samples are worked on at a time: few enough to stay in cache, and to keep the threads evenly busy."""
    samples, channels, size, _, _ = shape
    return max(1, min(_CHUNK_BYTES // (channels * size * itemsize), samples // (4 * num_threads())))


def _cut(shape: tuple, itemsize: int) -> tuple[int, int]:
    """(extent, count) of the units of a sample: so many planes, or channels-last so many rows, at a time."""
    _, channels, size, last, lanes = shape
    if last:
        joined = lanes // channels
        extent = max(1, _CHUNK_BYTES // (lanes * itemsize)) * joined
        return extent, -(-size // extent)
    extent = max(1, _CHUNK_BYTES // max(1, size * itemsize))
    return extent, -(-channels // extent)


# --- a block of samples at a time ------------------------------------------------------------------------------------


@compiled
def _forward_blocks(
    begin: int, end: int, x: Any, y: Any, shape: Any, block: int, code: Any, constants: Any, count: int, outputs: Any,
    measures: bool, rows: Any, eps: float, grids: Any,
) -> None:  # fmt: skip
    samples, channels, size, last, lanes = shape
    registers = np.empty((count, block, channels))
    load(registers, rows, size, eps, constants)
    whole = size if last else channels
    for u in range(begin, end):
        first, stop = u * block, min((u + 1) * block, samples)
        if measures:
            for n in range(first, stop):
                _moments_part(x, shape, n, 0, whole, grids[0, n], grids[1, n])
            registers[0, : stop - first] = grids[0, first:stop]
            registers[1, : stop - first] = grids[1, first:stop]
        perform(code, registers)
        grids[2, first:stop] = registers[outputs[0, 0], : stop - first]
        grids[3, first:stop] = registers[outputs[1, 0], : stop - first]
        for n in range(first, stop):
            _affine_part(x, y, shape, n, 0, whole, grids[2, n], grids[3, n], registers[outputs[2, 0], n - first])


@compiled
def _backward_blocks(
    begin: int, end: int, g: Any, x: Any, dx: Any, shape: Any, block: int, code: Any, constants: Any, count: int,
    outputs: Any, linear: bool, rows: Any, eps: float, grids: Any, sums: Any,
) -> None:  # fmt: skip
    samples, channels, size, last, lanes = shape
    registers = np.empty((count, block, channels))
    load(registers, rows, size, eps, constants)
    whole = size if last else channels
    for u in range(begin, end):
        first, stop = u * block, min((u + 1) * block, samples)
        for n in range(first, stop):
            _dots_part(g, x, shape, n, 0, whole, grids[3, n], sums[0, n], sums[1, n])
        for i in range(2):
            registers[i, : stop - first] = grids[i, first:stop]
            registers[2 + i, : stop - first] = sums[i, first:stop]
            registers[4 + i, : stop - first] = grids[2 + i, first:stop]
        perform(code, registers)
        for i in range(len(outputs)):
            sums[2 + i, first:stop] = registers[outputs[i, 0], : stop - first]
        for n in range(first, stop):
            _combine_part(g, x, dx, shape, n, 0, whole, linear, grids[3, n], grids[2, n], sums[2, n], sums[3, n])


# --- in passes over the batch --------------------------------------------------------------------------------------------


def _moments(x: np.ndarray, elements: int, shape: tuple, cut: tuple[int, int], grids: np.ndarray) -> None:
    n, channels, size, last, _ = shape
    if not last or cut[1] == 1:
        split(_moments_units, n * cut[1], elements, x, shape, cut, grids[0], grids[1])
        return
    parts = np.empty((2, n * cut[1], channels))
    split(_moments_units, n * cut[1], elements, x, shape, cut, parts[0], parts[1])
    _merge_moments(parts, cut, size, grids)


def _dots(
    g: np.ndarray, x: np.ndarray, elements: int, shape: tuple, cut: tuple[int, int], center: Any, sums: np.ndarray
) -> None:
    n, channels, _, last, _ = shape
    if not last or cut[1] == 1:
        split(_dots_units, n * cut[1], elements, g, x, shape, cut, center, sums)
        return
    parts = np.empty((2, n * cut[1], channels))
    split(_dots_units, n * cut[1], elements, g, x, shape, cut, center, parts)
    parts.reshape(2, n, cut[1], channels).sum(2, out=sums[:2])


@compiled
def _moments_units(begin: int, end: int, x: Any, shape: Any, cut: Any, mean: Any, var: Any) -> None:
    extent, chunks = cut
    whole = shape[2] if shape[3] else shape[1]
    for u in range(begin, end):
        n, p = u // chunks, u % chunks * extent
        q = min(p + extent, whole)
        if shape[3]:
            _moments_part(x, shape, n, p, q, mean[u], var[u])
        else:
            _moments_part(x, shape, n, p, q, mean[n, p:q], var[n, p:q])


@compiled
def _merge_moments(parts: Any, cut: Any, size: int, grids: Any) -> None:
    """Chan's formula over the chunks of each sample."""
    extent, chunks = cut
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
def _forward_grid(
    code: Any, constants: Any, count: int, outputs: Any, rows: Any, size: int, eps: float,
    grids: Any, shift: Any, pooled: Any,
) -> None:  # fmt: skip
    samples, channels = shift.shape
    registers = np.empty((count, samples, channels))
    load(registers, rows, size, eps, constants)
    registers[0] = grids[0]
    registers[1] = grids[1]
    perform(code, registers)
    _store(registers, outputs[0], grids[2])
    _store(registers, outputs[1], grids[3])
    _store(registers, outputs[2], shift)
    for i in range(3, len(outputs)):
        pooled[i - 3] = registers[outputs[i, 0], 0]


@compiled
def _backward_grid(
    code: Any, constants: Any, count: int, outputs: Any, rows: Any, size: int, eps: float, grids: Any, sums: Any
) -> None:
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


@compiled
def _affine_units(begin: int, end: int, x: Any, y: Any, shape: Any, cut: Any, scale: Any, center: Any, shift: Any) -> None:
    extent, chunks = cut
    whole = shape[2] if shape[3] else shape[1]
    for u in range(begin, end):
        n, p = u // chunks, u % chunks * extent
        _affine_part(x, y, shape, n, p, min(p + extent, whole), scale[n], center[n], shift[n])


@compiled
def _dots_units(begin: int, end: int, g: Any, x: Any, shape: Any, cut: Any, center: Any, sums: Any) -> None:
    extent, chunks = cut
    whole = shape[2] if shape[3] else shape[1]
    for u in range(begin, end):
        n, p = u // chunks, u % chunks * extent
        q = min(p + extent, whole)
        if shape[3]:
            _dots_part(g, x, shape, n, p, q, center[n], sums[0, u], sums[1, u])
        else:
            _dots_part(g, x, shape, n, p, q, center[n], sums[0, n, p:q], sums[1, n, p:q])


@compiled
def _combine_units(
    begin: int, end: int, g: Any, x: Any, dx: Any, shape: Any, cut: Any, linear: bool, grids: Any, sums: Any
) -> None:
    extent, chunks = cut
    whole = shape[2] if shape[3] else shape[1]
    for u in range(begin, end):
        n, p = u // chunks, u % chunks * extent
        q = min(p + extent, whole)
        _combine_part(g, x, dx, shape, n, p, q, linear, grids[3, n], grids[2, n], sums[2, n], sums[3, n])


# --- the four kernels on part of a sample: planes p to q, or channels-last rows p to q -------------------------------------


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
    for row in grid:
        for at in range(channels, row.size, channels):
            row[at : at + channels] = row[:channels]
