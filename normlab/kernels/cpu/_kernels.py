"""The kernels that touch elements, as C functions of (job, part): one for each dtype, memory order and form.

Each is compiled when a plan first needs it, and none into another: what surrounds them (`_work`, `_passes`, `_machine`)
is compiled once for all dtypes, and calls them by the addresses in the job. A part is some of the elements and where
its numbers lie: grids are float64, one number for each of its planes.

Elements may be halves: numbers, as which they are computed with, are then float32 (`normlab.kernels.runtime.narrow`).
A plane whose sums or coefficients leave float32 is gone over in float64 (`_exact`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types

from normlab.kernels.cpu import _exact
from normlab.kernels.cpu._activations import activate, pull_activation
from normlab.kernels.cpu._forms import OTHER_ACT, RELU, is_half
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
from normlab.kernels.runtime.compiling import address_of, compiled
from normlab.kernels.runtime.counters import pointer
from normlab.kernels.runtime.job import ACT, CHANNELS, LANES, SLOPE, STRETCH, TINY
from normlab.kernels.runtime.narrow import KINDS, REALS, numbers_for, put
from normlab.kernels.runtime.unaliased import elements_at

(
    IN, UP, OUT, OTHER,  # addresses of elements: x, gradient, what is written, residual
    COUNT, PLANES,  # elements, and planes that have numbers of their own: the same row for all of them, or one each
    ROW_0, ROW_1, ROW_2, ROW_3,  # addresses of numbers read
    SUM_0, SUM_1,  # and written
    OWN,  # address of the thread's own memory
    PART,
) = range(14)  # fmt: skip


@compiled
def _place(job: Any, last: bool, size: int, p: int) -> Any:
    """Where plane p of a part of `size` elements begins, how far apart its elements are, and how many."""
    if last:
        return p, job[CHANNELS], size // job[CHANNELS]
    return p * job[STRETCH], 1, job[STRETCH]


def measure(dtype: str, last: bool) -> int:
    """Mean (SUM_0) and variance (SUM_1) of each plane."""
    kind = KINDS[dtype]

    def kernel(address: int, part_address: int) -> None:
        job, part = elements_at(address, np.int64), elements_at(part_address, np.int64)
        size = part[COUNT]
        x = carray(pointer(part[IN]), (size,), kind)
        planes = job[CHANNELS] if last else size // job[STRETCH]
        mean = carray(pointer(part[SUM_0]), (planes,), np.float64)
        var = carray(pointer(part[SUM_1]), (planes,), np.float64)
        if last:
            moments_last(x, job[CHANNELS], job[LANES], mean, var)
        else:
            moments_first(x, job[STRETCH], mean, var)
        tiny = elements_at(address, np.float64)[TINY]
        if _exact.far(var, tiny):
            for p in range(planes):
                if _exact.is_far(var[p], tiny):
                    at, step, count = _place(job, last, size, p)
                    mean[p], var[p] = _exact.moments(x, at, step, count)

    return _address(kernel)


@compiled
def _row(part: Any, i: int) -> Any:
    return carray(pointer(part[i]), (part[PLANES],), np.float64)


@compiled
def _affine_apart(
    job: Any, x: Any, residual: Any, add: bool, relu: bool, last: bool, scale: Any, center: Any, shift: Any, y: Any
) -> bool:
    """Where a coefficient leaves float32, do all of this part in float64 and return True."""
    if not (_exact.beyond(scale, center) or _exact.beyond(scale, shift)):
        return False
    width = scale.size
    for p in range(job[CHANNELS] if last else x.size // job[STRETCH]):
        at, step, count = _place(job, last, x.size, p)
        c = p % width
        _exact.affine(x, residual, add, relu, at, step, count, scale[c], center[c], shift[c], y)
    return True


@compiled
def _map(x: Any, columns: int, scale: Any, center: Any, shift: Any) -> Any:
    """Scale, center and shift as numbers; what rounding the center lost is in the shift."""
    grid = numbers_for(x, 3, max(columns, scale.size))
    a, m, t = grid[0], grid[1], grid[2]
    for c in range(scale.size):
        a[c] = scale[c]
    for c in range(scale.size):
        m[c] = center[c]
    for c in range(scale.size):
        t[c] = shift[c] + scale[c] * (m[c] - center[c])
    return grid


@compiled
def _affine_first(
    job: Any, x: Any, residual: Any, add: bool, relu: bool, scale: Any, center: Any, shift: Any, y: Any
) -> None:
    """y = scale * (x - center) + shift, with the residual added if `add`, and at least zero if `relu`."""
    if _affine_apart(job, x, residual, add, relu, False, scale, center, shift, y):
        return
    grid, size = _map(x, 0, scale, center, shift), job[STRETCH]
    span = scale.size * size
    for i in range(0, x.size, span):  # samples that share a row
        j = i + span
        affine_first(x[i:j], residual[i:j], add, relu, size, grid[0], grid[1], grid[2], y[i:j])


@compiled
def _affine_last(
    job: Any, x: Any, residual: Any, add: bool, relu: bool, scale: Any, center: Any, shift: Any, y: Any
) -> None:
    if _affine_apart(job, x, residual, add, relu, True, scale, center, shift, y):
        return
    grid, lanes = _map(x, job[LANES], scale, center, shift), job[LANES]
    _repeat(grid, job[CHANNELS])
    affine_last(x, residual, add, relu, lanes, grid[0], grid[1], grid[2], y)


def apply(dtype: str, last: bool, add: bool, act: int) -> int:
    """OUT = act(scale * (x - center) + shift), with the residual (OTHER) added if `add`."""
    kind, real, half, relu = KINDS[dtype], REALS[dtype], is_half(dtype), act == RELU

    def kernel(address: int, part_address: int) -> None:
        job, part = elements_at(address, np.int64), elements_at(part_address, np.int64)
        size = part[COUNT]
        x = carray(pointer(part[IN]), (size,), kind)
        other = carray(pointer(part[OTHER] if add else part[IN]), (size,), kind)
        y = carray(pointer(part[OUT]), (size,), kind)
        scale, center, shift = _row(part, ROW_0), _row(part, ROW_1), _row(part, ROW_2)
        if last:
            _affine_last(job, x, other, add, relu, scale, center, shift, y)
        else:
            _affine_first(job, x, other, add, relu, scale, center, shift, y)

    def acting(address: int, part_address: int) -> None:
        job, part = elements_at(address, np.int64), elements_at(part_address, np.int64)
        size = part[COUNT]
        x = carray(pointer(part[IN]), (size,), kind)
        other = carray(pointer(part[OTHER] if add else part[IN]), (size,), kind)
        z = carray(pointer(part[OWN] if half else part[OUT]), (size,), real)
        scale, center, shift = _row(part, ROW_0), _row(part, ROW_1), _row(part, ROW_2)
        if last:
            _affine_last(job, x, other, add, False, scale, center, shift, z)
        else:
            _affine_first(job, x, other, add, False, scale, center, shift, z)
        activate(job[ACT], elements_at(address, np.float64)[SLOPE], z)
        if half:
            put(z, carray(pointer(part[OUT]), (size,), kind))

    return _address(acting if act == OTHER_ACT else kernel)


def pull(dtype: str, last: bool, add: bool) -> int:
    """OUT = UP * act'(z), numbers, with z computed as in the forward pass."""
    kind, real = KINDS[dtype], REALS[dtype]

    def kernel(address: int, part_address: int) -> None:
        job, part = elements_at(address, np.int64), elements_at(part_address, np.int64)
        size = part[COUNT]
        x, g = carray(pointer(part[IN]), (size,), kind), carray(pointer(part[UP]), (size,), kind)
        other = carray(pointer(part[OTHER] if add else part[IN]), (size,), kind)
        dz = carray(pointer(part[OUT]), (size,), real)
        scale, center, shift = _row(part, ROW_0), _row(part, ROW_1), _row(part, ROW_2)
        if last:
            _affine_last(job, x, other, add, False, scale, center, shift, dz)
        else:
            _affine_first(job, x, other, add, False, scale, center, shift, dz)
        pull_activation(job[ACT], elements_at(address, np.float64)[SLOPE], g, dz)

    return _address(kernel)


def dot(dtype: str, last: bool, numbers: bool) -> int:
    """The sums over each plane of the gradient (SUM_0) and of its products with x - center (SUM_1).

    The gradient is elements as x is, or numbers.
    """
    kind, kind_g = KINDS[dtype], REALS[dtype] if numbers else KINDS[dtype]

    def kernel(address: int, part_address: int) -> None:
        job, part = elements_at(address, np.int64), elements_at(part_address, np.int64)
        size, width = part[COUNT], part[PLANES]
        channels, stretch, lanes = job[CHANNELS], job[STRETCH], job[LANES]
        planes = channels if last else size // stretch
        x, g = carray(pointer(part[IN]), (size,), kind), carray(pointer(part[UP]), (size,), kind_g)
        center = _row(part, ROW_1)
        total = carray(pointer(part[SUM_0]), (planes,), np.float64)
        product = carray(pointer(part[SUM_1]), (planes,), np.float64)
        grid = numbers_for(x, 1, max(lanes, width))
        near = grid[0]
        for c in range(width):
            near[c] = center[c]
        if last:
            _repeat(grid, channels)
            dots_last(g, x, channels, lanes, near, total, product)
        else:
            span = width * stretch
            for i in range(0, size, span):
                p = i // stretch
                dots_first(g[i : i + span], x[i : i + span], stretch, near, total[p:], product[p:])
        for p in range(0, planes, width):
            for c in range(width):
                product[p + c] += (near[c] - center[c]) * total[p + c]
        tiny = elements_at(address, np.float64)[TINY]
        if _exact.far(product, tiny) or _exact.far(total, 0.0):
            for p in range(planes):
                if _exact.is_far(product[p], tiny) or _exact.is_far(total[p], 0.0):
                    at, step, count = _place(job, last, size, p)
                    total[p], product[p] = _exact.dots(g, x, at, step, count, center[p % width])

    return _address(kernel)


@compiled
def _combine_apart(
    job: Any, g: Any, x: Any, last: bool, center: Any, a: Any, b: Any, c: Any, dx: Any
) -> bool:  # fmt: skip
    """As `_affine_apart`."""
    if not (_exact.beyond(a, center) or _exact.beyond(b, c)):
        return False
    width = a.size
    for p in range(job[CHANNELS] if last else x.size // job[STRETCH]):
        at, step, count = _place(job, last, x.size, p)
        k = p % width
        _exact.combine(g, x, at, step, count, center[k], a[k], b[k], c[k], dx)
    return True


@compiled
def _coefficients(x: Any, columns: int, center: Any, a: Any, b: Any, c: Any) -> Any:
    """Center, a, b and c as numbers; what rounding the center lost is in c."""
    grid = numbers_for(x, 4, max(columns, a.size))
    near, rest = grid[0], grid[3]
    for k in range(a.size):
        near[k] = center[k]
    for k in range(a.size):
        grid[1, k] = a[k]
    for k in range(a.size):
        grid[2, k] = b[k]
    for k in range(a.size):
        rest[k] = c[k] + b[k] * (near[k] - center[k])
    return grid


def combine(dtype: str, last: bool, numbers: bool, in_place: bool, linear: bool) -> int:
    """OUT = a * g + b * (x - center) + c; the gradient is elements as x is, or numbers, and may lie in OUT.

    Where dx is `linear`, a * g, nothing depends on the moments.
    """
    kind, kind_g = KINDS[dtype], REALS[dtype] if numbers else KINDS[dtype]

    def kernel(address: int, part_address: int) -> None:
        job, part = elements_at(address, np.int64), elements_at(part_address, np.int64)
        size = part[COUNT]
        x, g = carray(pointer(part[IN]), (size,), kind), carray(pointer(part[UP]), (size,), kind_g)
        dx = carray(pointer(part[OUT]), (size,), kind)
        a, center, b, c = _row(part, ROW_0), _row(part, ROW_1), _row(part, ROW_2), _row(part, ROW_3)
        if _combine_apart(job, g, x, last, center, a, b, c, dx):
            return
        lanes, stretch = job[LANES], job[STRETCH]
        grid = _coefficients(x, lanes, center, a, b, c)
        if last:
            _repeat(grid, job[CHANNELS])
            if in_place:
                recombine_last(x, lanes, grid[0], grid[1], grid[2], grid[3], dx)
            else:
                combine_last(g, x, lanes, grid[0], grid[1], grid[2], grid[3], dx)
            return
        span = a.size * stretch
        for i in range(0, size, span):
            j = i + span
            if in_place:
                recombine_first(x[i:j], stretch, grid[0], grid[1], grid[2], grid[3], dx[i:j])
            else:
                combine_first(g[i:j], x[i:j], stretch, grid[0], grid[1], grid[2], grid[3], dx[i:j])

    def scaled(address: int, part_address: int) -> None:
        job, part = elements_at(address, np.int64), elements_at(part_address, np.int64)
        size = part[COUNT]
        g, dx = carray(pointer(part[UP]), (size,), kind_g), carray(pointer(part[OUT]), (size,), kind)
        nothing = np.zeros(part[PLANES])
        scale = _row(part, ROW_0)
        if last:
            _affine_last(job, g, g, False, False, scale, nothing, nothing, dx)
        else:
            _affine_first(job, g, g, False, False, scale, nothing, nothing, dx)

    return _address(scaled if linear else kernel)


def rounded(dtype: str) -> int:
    """OUT = UP, numbers, as elements."""
    kind, real = KINDS[dtype], REALS[dtype]

    def kernel(address: int, part_address: int) -> None:
        part = elements_at(part_address, np.int64)
        put(carray(pointer(part[UP]), (part[COUNT],), real), carray(pointer(part[OUT]), (part[COUNT],), kind))

    return _address(kernel)


def _address(kernel: Any) -> int:
    return address_of(kernel, types.void(types.intp, types.intp))


@compiled
def _repeat(grid: Any, channels: int) -> None:
    """Repeat the first `channels` numbers of every row to its end."""
    for i in range(grid.shape[0]):
        row = grid[i]
        for at in range(channels, row.size, channels):
            for c in range(channels):
                row[at + c] = row[c]
