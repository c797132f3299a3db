"""Convolution and max pooling in the assignments' variants: compiled, as matrix products, by strides, by reshaping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.scratch._images import pool_arguments
from normlab.scratch.fast_layers import image_layers
from normlab.scratch.im2col_layers import (
    conv_backward_im2col,
    conv_forward_im2col,
    max_pool_backward_im2col,
    max_pool_forward_im2col,
)

__all__ = [
    "conv_backward_fast",
    "conv_backward_im2col",
    "conv_backward_strides",
    "conv_forward_fast",
    "conv_forward_im2col",
    "conv_forward_strides",
    "max_pool_backward_fast",
    "max_pool_backward_im2col",
    "max_pool_backward_reshape",
    "max_pool_forward_fast",
    "max_pool_forward_im2col",
    "max_pool_forward_reshape",
]

Cache = Any

# the windows of `conv_forward_im2col` are strided views already
conv_forward_strides = conv_forward_im2col
conv_backward_strides = conv_backward_im2col
max_pool_backward_reshape = max_pool_backward_im2col


def conv_forward_fast(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """`conv_forward_naive`, compiled; where Numba is missing, as a matrix product, after a warning."""
    (forward, backward), _ = image_layers()
    out, cache = forward(x, w, b, conv_param)
    return out, (backward, cache)


def conv_backward_fast(dout: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`conv_backward_naive` for the cache of `conv_forward_fast`."""
    backward, kept = cache
    grads: tuple[np.ndarray, np.ndarray, np.ndarray] = backward(dout, kept)
    return grads


def max_pool_forward_fast(x: np.ndarray, pool_param: Mapping[str, Any]) -> tuple[np.ndarray, Cache]:
    """`max_pool_forward_naive`, compiled; where Numba is missing, in NumPy, after a warning."""
    _, (forward, backward) = image_layers()
    out, cache = forward(x, pool_param)
    return out, (backward, cache)


def max_pool_backward_fast(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """`max_pool_backward_naive` for the cache of `max_pool_forward_fast`."""
    backward, kept = cache
    dx: np.ndarray = backward(dout, kept)
    return dx


def max_pool_forward_reshape(x: np.ndarray, pool_param: Mapping[str, Any]) -> tuple[np.ndarray, Cache]:
    """`max_pool_forward_naive` for square windows that tile the image. Raises UsageError where they do not."""
    x, win = pool_arguments(x, pool_param)
    height, width = x.shape[2:]
    if not win.height == win.width == win.stride or height % win.height or width % win.width:
        raise UsageError(
            f"pool_param: windows of {win.height} x {win.width} with stride {win.stride} do not tile x of shape "
            f"{x.shape}; use max_pool_forward_im2col"
        )
    return max_pool_forward_im2col(x, pool_param)
