"""Convolution and max pooling of NumPy arrays, compiled: the code behind `normlab.scratch.fast_layers`.

Arrays are (N, C, H, W), checked and of one dtype, float32 or float64. Samples (convolution) and planes (pooling) are
shared out among threads: as many as torch is set to where torch is loaded, else OMP_NUM_THREADS, else one a core. How
many there are never changes a result.

`_shifts`   a convolution as a weighted sum of shifted images
`_tiles`    the two sums of products in which it spends its time, in LLVM's own terms
`_pooling`  max pooling
"""

from __future__ import annotations

from typing import Any

import numpy as np

from normlab.kernels.convolution._pooling import pool, unpool
from normlab.kernels.convolution._shifts import (
    Geometry,
    Window,
    convolve,
    convolve_backward,
    shares,
    taps_backward,
    taps_forward,
)
from normlab.kernels.runtime.sharing import share

__all__ = ["Window", "conv_backward", "conv_forward", "pool_backward", "pool_forward"]

Cache = Any

_GROUPS, _GROUP_BYTES = 64, 1 << 24  # groups of samples with a dw of their own; memory they may take together


def conv_forward(x: np.ndarray, w: np.ndarray, b: np.ndarray, win: Window) -> tuple[np.ndarray, Cache]:
    """Returns (out, cache) of the convolution of x (N, C, H, W) with w (F, C, HH, WW) and b (F,)."""
    x, geo = np.ascontiguousarray(x), Geometry.of(win)
    taps = taps_forward(w, geo)
    out = np.empty((len(x), len(w), win.out_height, win.out_width), x.dtype)
    if x.size:
        work = out.size * w[0].size if len(w) else 0
        share(convolve, len(x), work, x, taps, np.ascontiguousarray(b), geo, out)
    return out, (x, w, taps, geo)


def conv_backward(
    dout: np.ndarray, cache: Cache, *, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """Returns (dx, dw, db) for the cache of `conv_forward`; dx is None where it is not needed."""
    x, w, taps, geo = cache
    dout = np.ascontiguousarray(dout)
    # as many groups as there may be, whatever the number of threads: sums come out the same with any of them
    groups = max(1, min(len(x), _GROUPS, _GROUP_BYTES // max(1, taps.weights.nbytes)))
    per_group = -(-len(x) // groups)
    dw = shares(w, groups) if len(w) else np.zeros((groups, 0, 0), x.dtype)
    db = np.zeros((groups, len(w)), x.dtype)
    dx = np.empty(x.shape if need_dx else (0, 0, 0, 0), x.dtype)
    if x.size and len(w):
        work = 2 * dout.size * w[0].size
        share(convolve_backward, groups, work, x, dout, taps, taps_backward(w, geo), geo, per_group, dw, db, dx)
    else:
        dx[:] = 0
    dw = dw.sum(0)[: len(w), : w[0].size].reshape(w.shape) if len(w) else np.zeros_like(w)
    return dx if need_dx else None, dw, db.sum(0)


def pool_forward(x: np.ndarray, win: Window) -> tuple[np.ndarray, np.ndarray]:
    """Returns the maxima of the windows of x (N, C, H, W), and the place of each in its plane."""
    out = np.empty((*x.shape[:2], win.out_height, win.out_width), x.dtype)
    where = np.empty(out.shape, np.int32)
    share(pool, len(x), x.size, np.ascontiguousarray(x), win, out, where)
    return out, where


def pool_backward(dout: np.ndarray, where: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Returns the gradient of an x of `shape`: every element of dout at the place of its maximum."""
    dx = np.empty((*shape[:2], shape[2] * shape[3]), dout.dtype)
    share(unpool, len(dx), dx.size, np.ascontiguousarray(dout), where, dx)
    return dx.reshape(shape)
