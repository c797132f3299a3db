"""Convolution and max pooling, compiled: the signatures and results of the loops in `layers`, at full speed.

Samples (convolution) and planes (pooling) are shared out among threads: as many as torch is set to where torch is
loaded, else OMP_NUM_THREADS, else one a core. How many there are never changes a result.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.kernels.runtime.threads import share
from normlab.scratch import _checks as check
from normlab.scratch._images import conv_arguments, pool_arguments
from normlab.scratch._pooling import pool, unpool
from normlab.scratch._shifts import Geometry, convolve, convolve_backward, shares, taps_backward, taps_forward

Cache = Any

_GROUPS, _GROUP_BYTES = 64, 1 << 24  # groups of samples with a dw of their own; memory they may take together


def conv_forward_fast(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """`conv_forward_naive`, compiled: the same arguments and results, up to rounding."""
    x, w, b, win = conv_arguments(x, w, b, conv_param)
    x, geo = np.ascontiguousarray(x), Geometry.of(win)
    taps = taps_forward(w, geo)
    out = np.empty((len(x), len(w), win.out_height, win.out_width), x.dtype)
    if x.size:
        work = out.size * w[0].size if len(w) else 0
        share(convolve, len(x), work, x, taps, np.ascontiguousarray(b), geo, out)
    return out, (x, w, taps, geo)


def conv_backward_fast(
    dout: np.ndarray, cache: Cache, *, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """`conv_backward_naive`, compiled, for the cache of `conv_forward_fast`.

    A first layer, whose input nobody trains, can save dx: `need_dx=False` answers None for it.
    """
    x, w, taps, geo = cache
    dout = check.like("dout", dout, x, (len(x), len(w), geo.out_height, geo.out_width))
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


def max_pool_forward_fast(x: np.ndarray, pool_param: Mapping[str, Any]) -> tuple[np.ndarray, Cache]:
    """`max_pool_forward_naive`, compiled: the same arguments and results."""
    x, win = pool_arguments(x, pool_param)
    out = np.empty((*x.shape[:2], win.out_height, win.out_width), x.dtype)
    where = np.empty(out.shape, np.int32)
    share(pool, len(x), x.size, np.ascontiguousarray(x), win, out, where)
    return out, (x.shape, where)


def max_pool_backward_fast(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """`max_pool_backward_naive`, compiled, for the cache of `max_pool_forward_fast`."""
    shape, where = cache
    dout = check.floats("dout", dout, where.shape)
    dx = np.empty((*shape[:2], shape[2] * shape[3]), dout.dtype)
    share(unpool, len(dx), dx.size, np.ascontiguousarray(dout), where, dx)
    return dx.reshape(shape)
