"""Max pooling, compiled: a sample is a unit of work."""

# mypy: allow-untyped-defs, allow-untyped-calls
# (the types of what Numba compiles are those of its arguments)

from __future__ import annotations

import numpy as np
from numba import njit

from normlab.kernels.runtime.counters import next_unit, unit_done

_compile = njit(nogil=True, cache=True, error_model="numpy")


@_compile
def pool(counters, units, x, win, out, where):
    """The maximum of every window of x (N, C, H, W), and its place in its plane.

    The first of several equal ones counts; NaN is larger than anything, and stays. A row of windows is served
    together, one element of each at a time: gathered first, then compared without branches, which vectorizes.
    """
    columns = x.shape[3]
    values = np.empty(win.out_width, x.dtype)
    best = np.empty(win.out_width, x.dtype)
    offset = np.empty(win.out_width, np.int32)  # of the best, from the first element of its window
    n = next_unit(counters)
    while n < units:
        for c in range(x.shape[1]):
            for i in range(win.out_height):
                for k in range(win.height):
                    for m in range(win.width):
                        source = x[n, c, i * win.stride + k, m :: win.stride]
                        here = np.int32(k * columns + m)
                        for j in range(win.out_width):
                            values[j] = source[j]
                        if k == 0 and m == 0:
                            for j in range(win.out_width):
                                best[j], offset[j] = values[j], here
                        else:
                            for j in range(win.out_width):
                                new, old = values[j], best[j]
                                better = (new > old) | ((new != new) & (old == old))
                                best[j] = new if better else old
                                offset[j] = here if better else offset[j]
                start = i * win.stride * columns
                for j in range(win.out_width):
                    out[n, c, i, j] = best[j]
                    where[n, c, i, j] = start + j * win.stride + offset[j]
        unit_done(counters)
        n = next_unit(counters)


@_compile
def unpool(counters, units, dout, where, dx):
    """Adds every element of dout (N, C, H', W') to the place of dx (N, C, H * W) that its output came from."""
    zero = dx.dtype.type(0)
    n = next_unit(counters)
    while n < units:
        dx[n] = zero
        for c in range(dout.shape[1]):
            for i in range(dout.shape[2]):
                for j in range(dout.shape[3]):
                    dx[n, c, where[n, c, i, j]] += dout[n, c, i, j]
        unit_done(counters)
        n = next_unit(counters)
