"""Windows of images as the columns of a matrix, and back, in the assignments' order of columns.

The rows of the matrix are (c, k, l), the elements of a window; its columns are (i, j, n), the windows, the sample
running fastest.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check
from normlab.scratch._images import Window, window
from normlab.scratch.im2col_layers import add_windows, windows

__all__ = ["col2im_indices", "get_im2col_indices", "im2col_indices"]


def get_im2col_indices(
    x_shape: Sequence[int], field_height: int, field_width: int, padding: int = 1, stride: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns (k, i, j) such that padded_x[:, k, i, j] is (N, C * HH * WW, H' * W'): channel, row and column."""
    win = _window(x_shape, field_height, field_width, padding, stride)
    channel, down, across = (
        index.reshape(-1, 1) for index in np.indices((x_shape[1], field_height, field_width), np.intp)
    )
    top, left = (stride * index.reshape(1, -1) for index in np.indices((win.out_height, win.out_width), np.intp))
    return channel, down + top, across + left


def im2col_indices(x: np.ndarray, field_height: int, field_width: int, padding: int = 1, stride: int = 1) -> np.ndarray:
    """Returns the windows of x (N, C, H, W) as columns: (C * HH * WW, H' * W' * N)."""
    x = check.floats("x", x, ("N", "C", "H", "W"))
    win = _window(x.shape, field_height, field_width, padding, stride)
    rows = x.shape[1] * field_height * field_width
    return windows(x, win).transpose(1, 4, 5, 2, 3, 0).reshape(rows, win.out_height * win.out_width * len(x))


def col2im_indices(
    cols: np.ndarray,
    x_shape: Sequence[int],
    field_height: int = 3,
    field_width: int = 3,
    padding: int = 1,
    stride: int = 1,
) -> np.ndarray:
    """Returns an array of `x_shape` to which every column of `cols` has been added where its window lies."""
    win = _window(x_shape, field_height, field_width, padding, stride)
    samples, channels = x_shape[:2]
    shape = (channels, field_height, field_width, win.out_height, win.out_width, samples)
    rows, columns = channels * field_height * field_width, win.out_height * win.out_width * samples
    cols = check.floats("cols", cols, (rows, columns)).reshape(shape)
    return add_windows(cols.transpose(5, 0, 3, 4, 1, 2), tuple(x_shape), win)


def _window(x_shape: Sequence[int], height: int, width: int, padding: int, stride: int) -> Window:
    if len(x_shape) != 4:
        raise UsageError(f"x_shape is {tuple(x_shape)}; expected (N, C, H, W)")
    return window(
        tuple(x_shape),
        check.integer("field_height", height, 1),
        check.integer("field_width", width, 1),
        check.integer("stride", stride, 1),
        check.integer("padding", padding, 0),
    )
