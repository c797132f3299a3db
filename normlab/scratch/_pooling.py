"""Max pooling, compiled: a range of planes at a time."""

# mypy: allow-untyped-defs
# (the types of what Numba compiles are those of its arguments)

from __future__ import annotations

import numpy as np
from numba import njit

_compile = njit(nogil=True, cache=True, error_model="numpy")


@_compile
def pool(first, last, x, win, out, where):
    """The maximum of every window of the planes x[first:last] (H, W), and its place in the plane.

    The first of several equal ones counts; NaN is larger than anything, and stays.
    """
    columns = x.shape[2]
    for plane in range(first, last):
        image = x[plane]
        for i in range(win.out_height):
            top = i * win.stride
            for j in range(win.out_width):
                left = j * win.stride
                best, place = image[top, left], top * columns + left
                for k in range(win.height):
                    for m in range(win.width):
                        value = image[top + k, left + m]
                        if value > best or (value != value and best == best):
                            best, place = value, (top + k) * columns + left + m
                out[plane, i, j] = best
                where[plane, i, j] = place


@_compile
def unpool(first, last, dout, where, dx):
    """Adds every dout[plane] to the places of dx[plane] (H * W) that its outputs came from."""
    for plane in range(first, last):
        dx[plane] = np.zeros(1, dx.dtype)[0]
        for i in range(dout.shape[1]):
            for j in range(dout.shape[2]):
                dx[plane, where[plane, i, j]] += dout[plane, i, j]
