"""What one thread does of a job on positions, and a whole direction in one call.

Items are rows (D elements, one after the other), or tiles: some columns of a sample (C, S). A unit is a run of items,
and has sums of its own for the gradients of weight and bias, so that neither who does it nor how many threads there are
changes the result. A job's numbers are in `_position_job`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types

from normlab.kernels.cpu._position_job import (
    BIAS,
    CENTRED,
    D_BIAS,
    D_WEIGHT,
    EPS,
    EXTENT,
    G_OUTER,
    G_STEP,
    INNER,
    ITEMSIZE,
    KEPT,
    LEARNS,
    OUTER,
    SIZE,
    SUMS,
    TILES,
    WEIGHT,
    WIDTH,
    X_OUTER,
    X_STEP,
    G,
    X,
    Y,
)
from normlab.kernels.cpu._position_rows import (
    FIRST,
    OUT,
    SECOND,
    normalize_columns,
    normalize_row,
    pull_columns,
    pull_row,
)
from normlab.kernels.runtime.compiling import address_of, joining
from normlab.kernels.runtime.counters import next_of_shares, unit_done
from normlab.kernels.runtime.job import UNITS
from normlab.kernels.runtime.narrow import KINDS, REALS
from normlab.kernels.runtime.protocol import do_part, joined
from normlab.kernels.runtime.unaliased import elements_at, load, store


def work(dtype: str, rows: bool, backward: bool) -> int:
    """Address of the work on rows or tiles of this dtype in one direction: it takes units of a job until none is left.

    It is compiled when it is first needed.
    """
    like, real = KINDS[dtype], REALS[dtype]

    def kernel(address: int) -> None:
        job, eps = elements_at(address, np.int64), elements_at(address, np.float64)[EPS]
        control, shares, own = joined(job)
        learns = job[LEARNS] != 0
        items, extent, size = job[OUTER] * job[TILES], job[EXTENT], job[SIZE]
        # a unit's sums grow in memory of the thread's own: beside another's, fetching ahead would keep taking it away
        sums = np.empty((2, size if learns else 0), real)
        d_weight, d_bias = elements_at(sums[0].ctypes.data, real), elements_at(sums[1].ctypes.data, real)
        units = job[UNITS]
        u = next_of_shares(shares, own, units, False)
        while u < units:
            first, stop = u * extent, min((u + 1) * extent, items)
            sums[:] = 0
            if rows:  # (decided when it is compiled, and a kernel of its own each)
                if backward:
                    _pull_rows(job, like, real, first, stop, d_weight, d_bias)
                else:
                    _normalize_rows(job, like, real, eps, first, stop)
            elif backward:
                _pull_tiles(job, like, real, first, stop, d_weight, d_bias)
            else:
                _normalize_tiles(job, like, real, eps, first, stop)
            if learns:
                _store_sums(sums, _sums(job, real), u)
            unit_done(control)
            u = next_of_shares(shares, own, units, False)

    return address_of(kernel, types.void(types.intp))


def direction(backward: bool, itemsize: int) -> int:
    """Address of `void direction(job)`, which does all of it; numbers have this many bytes (4: float32, 8: float64)."""
    real = np.float64 if itemsize == 8 else np.float32

    def pull(address: int) -> None:
        _pull(address, real)

    return address_of(pull if backward else _forward, types.void(types.intp))


def _forward(address: int) -> None:
    do_part(address)


@joining
def _pull(address: int, real: Any) -> None:
    do_part(address)
    job = elements_at(address, np.int64)
    if job[LEARNS] != 0:
        size, units = job[SIZE], job[UNITS]
        total = np.empty(size)
        sums = _sums(job, real)
        for i in range(2):
            gradient = job[D_BIAS] if i else job[D_WEIGHT]
            if gradient != 0:
                _add_units(sums[i], units, total, elements_at(gradient, real))


@joining
def _sums(job: Any, real: Any) -> Any:
    """Sums of the units for the gradients of weight and bias, D numbers for each unit."""
    return elements_at(job[SUMS], real), elements_at(job[SUMS] + job[UNITS] * job[SIZE] * job[ITEMSIZE], real)


@joining
def _add_units(sums: Any, units: int, total: Any, gradient: Any) -> None:
    size = total.size
    for k in range(size):
        total[k] = 0
    for u in range(units):
        for k in range(size):
            store(total, k, load(total, k, FIRST) + load(sums, u * size + k, SECOND), FIRST)
    for k in range(size):
        store(gradient, k, total[k], OUT)


@joining
def _store_sums(own: Any, sums: Any, u: int) -> None:
    size = own.shape[1]
    for k in range(size):
        store(sums[0], u * size + k, own[0, k], FIRST)
        store(sums[1], u * size + k, own[1, k], SECOND)


@joining
def _tensors(job: Any, like: Any, real: Any) -> Any:
    """x, g, y and dx, what is kept, weight and bias; in a forward job there is no g, nor a bias in a backward one."""
    bytes_each = job[OUTER] * max(job[INNER], 1) * job[ITEMSIZE]
    return (
        elements_at(job[X], like),
        elements_at(job[G], like),
        elements_at(job[Y], like),
        (
            elements_at(job[KEPT], real),
            elements_at(job[KEPT] + bytes_each, real),
            elements_at(job[KEPT] + 2 * bytes_each, real),
        ),
        elements_at(job[WEIGHT], real),
        elements_at(job[BIAS], real),
    )


@joining
def _normalize_rows(job: Any, like: Any, real: Any, eps: float, first: int, stop: int) -> None:
    x, _, y, kept, weight, bias = _tensors(job, like, real)
    size, centred, x_outer = job[SIZE], job[CENTRED] != 0, job[X_OUTER]
    for i in range(first, stop):
        normalize_row(real, x, i * x_outer, size, weight, bias, centred, eps, y, i * size, kept, i)


@joining
def _pull_rows(job: Any, like: Any, real: Any, first: int, stop: int, d_weight: Any, d_bias: Any) -> None:
    x, g, y, kept, weight, _ = _tensors(job, like, real)
    size, centred, learns = job[SIZE], job[CENTRED] != 0, job[LEARNS] != 0
    x_outer, g_outer = job[X_OUTER], job[G_OUTER]
    for i in range(first, stop):
        pull_row(
            real, g, i * g_outer, x, i * x_outer, size, weight, centred, kept, i, learns, d_weight, d_bias, y, i * size
        )


@joining
def _normalize_tiles(job: Any, like: Any, real: Any, eps: float, first: int, stop: int) -> None:
    x, _, y, kept, weight, bias = _tensors(job, like, real)
    size, inner, centred, x_step = job[SIZE], job[INNER], job[CENTRED] != 0, job[X_STEP]
    first_sums, second_sums, totals = _scratch(job, real)
    for item in range(first, stop):
        n, start, width = _tile(job, item)
        normalize_columns(
            real, x, n * job[X_OUTER] + start, x_step, size, width, weight, bias, centred, eps, y,
            n * size * inner + start, inner, kept, n * inner + start, first_sums, second_sums, totals,
        )  # fmt: skip


@joining
def _pull_tiles(job: Any, like: Any, real: Any, first: int, stop: int, d_weight: Any, d_bias: Any) -> None:
    x, g, y, kept, weight, _ = _tensors(job, like, real)
    size, inner, centred, learns = job[SIZE], job[INNER], job[CENTRED] != 0, job[LEARNS] != 0
    x_step, g_step = job[X_STEP], job[G_STEP]
    first_sums, second_sums, totals = _scratch(job, real)
    for item in range(first, stop):
        n, start, width = _tile(job, item)
        pull_columns(
            real, g, n * job[G_OUTER] + start, g_step, x, n * job[X_OUTER] + start, x_step, size, width, weight,
            centred, kept, n * inner + start, learns, d_weight, d_bias, y, n * size * inner + start, inner,
            first_sums, second_sums, totals,
        )  # fmt: skip


@joining
def _tile(job: Any, item: int) -> Any:
    """The sample of a tile, its first column and how many it has."""
    start = item % job[TILES] * job[WIDTH]
    return item // job[TILES], start, min(job[WIDTH], job[INNER] - start)


@joining
def _scratch(job: Any, real: Any) -> Any:
    """Two sums for each column of a tile, and their totals."""
    return np.empty(job[WIDTH], real), np.empty(job[WIDTH], real), np.empty((2, job[WIDTH]))
