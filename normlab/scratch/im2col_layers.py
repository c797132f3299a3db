"""Convolution as one matrix product, and max pooling without loops over the image: in NumPy alone.

im2col ("image to columns"): every window of the image becomes a column, every filter a row. Then

    out[f, window] = sum over c, k, l of w[f, c, k, l] * column[(c, k, l), window] = w_row @ columns,

which is a matrix product, and so are the gradients: dw_row = dout @ columns^T, dcolumns = w_row^T @ dout. What is left
is col2im, the reverse of cutting windows out: an element that lay in several windows receives the sum of what comes
back from them. The price is memory: the columns hold each element as often as windows overlap.

Same arguments and results as the loops in `layers` and the compiled `fast_layers`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from normlab.scratch import _checks as check
from normlab.scratch._images import Window, conv_arguments, pool_arguments

Cache = Any


def conv_forward_im2col(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """`conv_forward_naive` as a matrix product: the same arguments and results, up to rounding."""
    x, w, b, win = conv_arguments(x, w, b, conv_param)
    taps, positions = math.prod(w.shape[1:]), len(x) * win.out_height * win.out_width
    columns = windows(x, win).transpose(1, 4, 5, 0, 2, 3).reshape(taps, positions)
    out = w.reshape(len(w), taps) @ columns + b[:, None]
    out = out.reshape(len(w), len(x), win.out_height, win.out_width).swapaxes(0, 1)
    return np.ascontiguousarray(out), (x.shape, w, win, columns)


def conv_backward_im2col(
    dout: np.ndarray, cache: Cache, *, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """`conv_backward_naive` as matrix products, for the cache of `conv_forward_im2col`.

    A first layer, whose input nobody trains, can save dx: with `need_dx=False` it is None.
    """
    shape, w, win, columns = cache
    dout = check.like("dout", dout, w, (shape[0], len(w), win.out_height, win.out_width))
    taps, positions = columns.shape
    rows = dout.swapaxes(0, 1).reshape(len(w), positions)
    dw = (rows @ columns.T).reshape(w.shape)
    dx = None
    if need_dx:
        dcolumns = (w.reshape(len(w), taps).T @ rows).reshape(*w.shape[1:], shape[0], win.out_height, win.out_width)
        dx = add_windows(dcolumns.transpose(3, 0, 4, 5, 1, 2), shape, win)
    return dx, dw, rows.sum(1)


def max_pool_forward_im2col(x: np.ndarray, pool_param: Mapping[str, Any]) -> tuple[np.ndarray, Cache]:
    """`max_pool_forward_naive` without loops: the same arguments and results."""
    x, win = pool_arguments(x, pool_param)
    flat = windows(x, win).reshape(*x.shape[:2], win.out_height, win.out_width, win.height * win.width)
    where = flat.argmax(-1)
    return np.take_along_axis(flat, where[..., None], -1)[..., 0], (x.shape, win, where)


def max_pool_backward_im2col(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """`max_pool_backward_naive` without loops, for the cache of `max_pool_forward_im2col`."""
    shape, win, where = cache
    dout = check.floats("dout", dout, where.shape)
    places = np.arange(win.height * win.width).reshape(win.height, win.width)
    return add_windows(dout[..., None, None] * (where[..., None, None] == places), shape, win)


def windows(x: np.ndarray, win: Window) -> np.ndarray:
    """Returns every window of the padded x as a view (N, C, H', W', HH, WW): nothing but the padding is copied."""
    margin = (win.pad, win.pad)
    padded = np.pad(x, ((0, 0), (0, 0), margin, margin)) if win.pad else x
    return sliding_window_view(padded, (win.height, win.width), (2, 3))[:, :, :: win.stride, :: win.stride]


def add_windows(values: np.ndarray, shape: tuple[int, ...], win: Window) -> np.ndarray:
    """Returns an array of `shape` with each of the values (N, C, H', W', HH, WW) added where `windows` read it."""
    samples, channels, height, width = shape
    padded = np.zeros((samples, channels, height + 2 * win.pad, width + 2 * win.pad), values.dtype)
    down, across = win.stride * win.out_height, win.stride * win.out_width
    for k in range(win.height):
        for j in range(win.width):
            padded[:, :, k : k + down : win.stride, j : j + across : win.stride] += values[..., k, j]
    return padded[:, :, win.pad : win.pad + height, win.pad : win.pad + width]
