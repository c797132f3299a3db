"""Convolution and max pooling as nested loops: the definition, kept to be read and to hold the fast ones against."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check

Cache = Any


class Window(NamedTuple):
    """How a window of `height` x `width` moves over an image, and the size of what it leaves."""

    height: int
    width: int
    stride: int
    pad: int
    out_height: int
    out_width: int


def conv_forward_naive(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """Convolution (cross-correlation, as networks have it): every filter times every window, plus a bias.

        out[n, f, i, j] = b[f] + sum over c, k, l of w[f, c, k, l] * xpad[n, c, stride * i + k, stride * j + l]

    x (N, C, H, W), w (F, C, HH, WW), b (F,). `conv_param`: stride (default 1), pad, the zeros on every side
    (default 0). out (N, F, H', W') with H' = 1 + (H + 2 pad - HH) // stride, W' likewise.
    """
    x, w, b, win = conv_arguments(x, w, b, conv_param)
    padded = np.pad(x, ((0, 0), (0, 0), (win.pad, win.pad), (win.pad, win.pad)))
    out = np.empty((len(x), len(w), win.out_height, win.out_width), x.dtype)
    for n in range(len(x)):
        for f in range(len(w)):
            for i in range(win.out_height):
                for j in range(win.out_width):
                    top, left = i * win.stride, j * win.stride
                    window = padded[n, :, top : top + win.height, left : left + win.width]
                    out[n, f, i, j] = np.sum(window * w[f]) + b[f]
    return out, (x, w, b, win)


def conv_backward_naive(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Gradients (dx, dw, db) of a convolution: each output passes its gradient to all that made it.

    out = sum(window * filter) + bias is a sum of products, so the window gets dout * filter, the filter gets
    dout * window and the bias gets dout; windows overlap, so all of it is added up.
    """
    x, w, _, win = cache
    dout = check.like("dout", dout, x, (len(x), len(w), win.out_height, win.out_width))
    padded = np.pad(x, ((0, 0), (0, 0), (win.pad, win.pad), (win.pad, win.pad)))
    dpadded, dw, db = np.zeros_like(padded), np.zeros_like(w), np.zeros_like(w[:, 0, 0, 0])
    for n in range(len(x)):
        for f in range(len(w)):
            for i in range(win.out_height):
                for j in range(win.out_width):
                    top, left = i * win.stride, j * win.stride
                    here = (n, slice(None), slice(top, top + win.height), slice(left, left + win.width))
                    dpadded[here] += dout[n, f, i, j] * w[f]
                    dw[f] += dout[n, f, i, j] * padded[here]
                    db[f] += dout[n, f, i, j]
    height, width = x.shape[2:]
    return dpadded[:, :, win.pad : win.pad + height, win.pad : win.pad + width], dw, db


def max_pool_forward_naive(x: np.ndarray, pool_param: Mapping[str, Any]) -> tuple[np.ndarray, Cache]:
    """Max pooling: the largest element of every window, channel by channel.

    x (N, C, H, W); `pool_param`: pool_height, pool_width, stride. out (N, C, H', W') with
    H' = 1 + (H - pool_height) // stride, W' likewise. Windows may overlap, or leave gaps.
    """
    x, win = pool_arguments(x, pool_param)
    out = np.empty((*x.shape[:2], win.out_height, win.out_width), x.dtype)
    for i in range(win.out_height):
        for j in range(win.out_width):
            top, left = i * win.stride, j * win.stride
            out[:, :, i, j] = x[:, :, top : top + win.height, left : left + win.width].max((2, 3))
    return out, (x, win)


def max_pool_backward_naive(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """Gradient of max pooling: each output passes its gradient to its maximum, the first one where it is shared."""
    x, win = cache
    dout = check.like("dout", dout, x, (*x.shape[:2], win.out_height, win.out_width))
    dx = np.zeros_like(x)
    for n, c, i, j in np.ndindex(dout.shape):
        top, left = i * win.stride, j * win.stride
        window = x[n, c, top : top + win.height, left : left + win.width]
        row, column = np.unravel_index(window.argmax(), window.shape)
        dx[n, c, top + row, left + column] += dout[n, c, i, j]
    return dx


def conv_arguments(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Window]:
    """The checked arguments of a convolution, in the dtype of x."""
    x = check.floats("x", x, ("N", "C", "H", "W"))
    w = check.like("w", w, x, ("F", x.shape[1], "HH", "WW"))
    b = check.like("b", b, x, (len(w),))
    stride = check.integer("conv_param['stride']", conv_param.get("stride", 1), 1)
    pad = check.integer("conv_param['pad']", conv_param.get("pad", 0), 0)
    return x, w, b, window(x.shape, w.shape[2], w.shape[3], stride, pad)


def pool_arguments(x: np.ndarray, pool_param: Mapping[str, Any]) -> tuple[np.ndarray, Window]:
    """The checked arguments of a max pooling."""
    x = check.floats("x", x, ("N", "C", "H", "W"))
    height, width, stride = (
        check.integer(f"pool_param[{key!r}]", check.required("pool_param", pool_param, key), 1)
        for key in ("pool_height", "pool_width", "stride")
    )
    return x, window(x.shape, height, width, stride, 0)


def window(shape: tuple[int, ...], height: int, width: int, stride: int, pad: int) -> Window:
    """Returns how a window of `height` x `width` moves over images of `shape`. Raises UsageError if it does not fit."""
    rows, columns = (size + 2 * pad for size in shape[2:])
    if not (0 < height <= rows and 0 < width <= columns):
        raise UsageError(
            f"a window of {height} x {width} does not fit into x of shape {shape} with pad {pad}; "
            f"expected at least 1 x 1 and at most {rows} x {columns}"
        )
    return Window(height, width, stride, pad, 1 + (rows - height) // stride, 1 + (columns - width) // stride)
