"""Compiled kernels for statistics per position: NumPy arrays and CPU tensors, of float32, float64 and halves.

x is read from memory once: a row, or a tile of columns, stays in cache until y is written, and in the backward pass x
and g until dx is. The gradients of weight and bias are summed on the way. The work is cut into units that do not depend
on the number of threads, so neither do the results.

The code: `_position_rows` the kernels on one row or tile, `_position_work` a unit of work and a direction; what they
share with the other kernels is in `normlab.kernels.runtime`.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from ctypes import addressof, c_char
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

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
    NUMBERS,
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
from normlab.kernels.layout import address_of
from normlab.kernels.runtime.beside import compiling
from normlab.kernels.runtime.job import UNITS as TO_DO
from normlab.kernels.runtime.job import WORK, bits
from normlab.kernels.runtime.needed import Need, address, function
from normlab.kernels.runtime.sharing import run
from normlab.norms.grid import library

_WORK = "normlab.kernels.cpu._position_work"
KEPT_NUMBERS = 3  # of every position: m, r and t (`normlab.kernels.cpu._position_rows`)
_UNIT_BYTES = 1 << 17  # of x (and g) in a unit of work, at least
_TILE_BYTES = 3 << 18  # of x (and g) in a tile: stays in the second-level cache while it is gone over
_NARROWEST = 64  # columns of a tile: shorter runs of memory are read too slowly
_MOST_UNITS = 32  # each has sums for the gradients of its own
_REALS: dict[int, np.dtype[Any]] = {4: np.dtype(np.float32), 8: np.dtype(np.float64)}  # numbers of these many bytes
_ROWS = 64  # rows in a unit, where there are enough: with fewer its sums are as large as they are


@dataclass(slots=True)
class Saved:
    """What the backward pass needs beside x and weight: the numbers of every position, one after the other."""

    kept: np.ndarray
    centred: bool


def forward(x: Any, weight: Any, bias: Any, eps: float, centred: bool, y: Any) -> Saved:
    """Write y = h * weight + bias, for x (R, D), h standardized over D, or x (N, C, S), over C; y is contiguous.

    weight and bias are contiguous, of x's dtype or for halves float32, or None. The last stride of x is one element.
    """
    sizes, x_strides, itemsize = x.shape, _strides(x), max(x.itemsize, 4)
    run_forward, job = prepare_call(sizes, x.dtype, centred, False, False)
    kept = np.empty(KEPT_NUMBERS * sizes[0] * (sizes[2] if len(sizes) == 3 else 1), _REALS[itemsize])
    weight = _constant(1.0, sizes[1], itemsize) if weight is None else weight
    bias = _constant(0.0, sizes[1], itemsize) if bias is None else bias
    job[X], job[Y], job[KEPT], job[EPS] = address_of(x), address_of(y), start(kept), bits(eps)
    job[X_OUTER], job[X_STEP] = x_strides[0], x_strides[1]
    job[WEIGHT], job[BIAS] = address_of(weight), address_of(bias)
    _share(run_forward, job, x)
    return Saved(kept, centred)


def backward(saved: Saved, x: Any, weight: Any, g: Any, dx: Any, d_weight: Any, d_bias: Any) -> None:
    """Write dx, contiguous, and the gradients of weight and bias where they are not None; arrays as in `forward`."""
    sizes, x_strides, g_strides, itemsize = x.shape, _strides(x), _strides(g), max(x.itemsize, 4)
    learns = d_weight is not None or d_bias is not None
    run_backward, job = prepare_call(sizes, x.dtype, saved.centred, True, learns)
    weight = _constant(1.0, sizes[1], itemsize) if weight is None else weight
    job[X], job[G], job[Y], job[KEPT] = address_of(x), address_of(g), address_of(dx), start(saved.kept)
    job[X_OUTER], job[X_STEP], job[G_OUTER], job[G_STEP] = x_strides[0], x_strides[1], g_strides[0], g_strides[1]
    job[WEIGHT] = address_of(weight)
    if learns:
        sums = np.empty(2 * job[TO_DO] * sizes[1], _REALS[itemsize])
        job[SUMS] = start(sums)
    if d_weight is not None:
        job[D_WEIGHT] = address_of(d_weight)
    if d_bias is not None:
        job[D_BIAS] = address_of(d_bias)
    _share(run_backward, job, x)


def restored(x: Any, kept: Any, centred: bool) -> Saved:
    """What `forward` returned, from its `kept`."""
    return Saved(np.ascontiguousarray(kept), centred)


def kept_dtype(x: Any, dtype: Any) -> Any:
    """The dtype of the elements, for halves float32."""
    return dtype


def parameter_dtype(x: Any) -> Any:
    """The dtype of the elements, for halves float32."""
    if x.itemsize >= 4:
        return x.dtype
    return np.float32 if isinstance(x, np.ndarray) else library(x).float32


def prepare_call(
    sizes: tuple[int, ...], dtype: Any, centred: bool, backward: bool, learns: bool
) -> tuple[Callable[[int], None], array[int]]:
    """The C function of a direction, compiled when it is first needed, and a job for it that lacks the tensors."""
    direction, numbers = _prepare(sizes, dtype, centred, backward, learns)
    return direction, numbers[:]


@lru_cache(maxsize=1024)
def _prepare(
    sizes: tuple[int, ...], dtype: Any, centred: bool, backward: bool, learns: bool
) -> tuple[Callable[[int], None], array[int]]:
    outer, size, inner = sizes if len(sizes) == 3 else (*sizes, 0)
    job = array("q", bytes(8 * NUMBERS))
    name, rows, itemsize = str(dtype).removeprefix("torch."), inner == 0, max(dtype.itemsize, 4)
    later = [] if backward else [_work(name, rows, True), _direction(True, itemsize)]
    with compiling.expecting([_direction(backward, itemsize), *later]):
        job[WORK] = address(_work(name, rows, backward))
    job[CENTRED], job[LEARNS] = centred, learns
    job[ITEMSIZE] = itemsize
    job[OUTER], job[SIZE], job[INNER] = outer, size, inner
    position_bytes = size * itemsize * (2 if backward else 1)
    width, tiles = 1, 1
    if inner:
        width = max(_NARROWEST, _TILE_BYTES // position_bytes)
        tiles = -(-inner // width)
        width = -(-inner // tiles)
        width = min(inner, -(-width // 16) * 16)  # all about as wide, in whole vectors
        tiles = -(-inner // width)
    items = outer * tiles
    extent = max(_UNIT_BYTES // (width * position_bytes), -(-items // _MOST_UNITS))
    if learns and not inner:
        extent = max(extent, min(_ROWS, -(-items // 8)))
    job[WIDTH], job[TILES], job[EXTENT] = width, tiles, extent
    job[TO_DO] = -(-items // extent)
    return function(_direction(backward, itemsize), 1), job


def _work(dtype: str, rows: bool, backward: bool) -> Need:
    return Need(_WORK, "work", (dtype, rows, backward))


def _direction(backward: bool, itemsize: int) -> Need:
    return Need(_WORK, "direction", (backward, itemsize))


def _share(direction: Callable[[int], None], job: array[int], x: Any) -> None:
    if isinstance(x, np.ndarray):
        run(direction, job, x.size, with_torch=False)
    else:
        run(direction, job, x.numel())


@lru_cache(maxsize=8)
def _constant(value: float, size: int, itemsize: int) -> np.ndarray:
    """A weight of ones, or a bias of zeros."""
    return np.full(size, value, _REALS[itemsize])


def _strides(a: Any) -> tuple[int, ...]:
    """In elements."""
    return tuple(s // a.itemsize for s in a.strides) if isinstance(a, np.ndarray) else a.stride()


def start(memory: np.ndarray) -> int:
    """The address of memory of our own, found sooner."""
    return addressof(c_char.from_buffer(memory.data))
