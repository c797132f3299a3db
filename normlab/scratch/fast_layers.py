"""Convolution and max pooling, compiled: the signatures and results of the loops in `layers`, at full speed.

This is the one module of the engine that uses more than NumPy: the compiled code lives in
`normlab.kernels.convolution`, needs Numba, and is imported by the first call. Without Numba every function here raises
UsageError; `normlab.scratch.im2col_layers` has the same functions in NumPy alone, and `image_layers` chooses.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check
from normlab.scratch import im2col_layers
from normlab.scratch._images import conv_arguments, pool_arguments

Cache = Any
Pair = tuple[Callable[..., Any], Callable[..., Any]]  # forward, backward


@cache
def available() -> bool:
    """Whether the functions of this module can be used: whether Numba can be imported."""
    try:
        _kernels()
    except UsageError:
        return False
    return True


def image_layers() -> tuple[Pair, Pair]:
    """Returns the (forward, backward) pairs of convolution and max pooling: compiled, or NumPy's after a warning."""
    if available():
        return (conv_forward_fast, conv_backward_fast), (max_pool_forward_fast, max_pool_backward_fast)
    warnings.warn(
        "Numba cannot be imported: convolutions run as matrix products in NumPy, several times slower "
        "(pip install numba)",
        stacklevel=3,
    )
    return (
        (im2col_layers.conv_forward_im2col, im2col_layers.conv_backward_im2col),
        (im2col_layers.max_pool_forward_im2col, im2col_layers.max_pool_backward_im2col),
    )


def conv_forward_fast(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, conv_param: Mapping[str, Any]
) -> tuple[np.ndarray, Cache]:
    """`conv_forward_naive`, compiled: the same arguments and results, up to rounding."""
    x, w, b, win = conv_arguments(x, w, b, conv_param)
    kernels = _kernels()
    out, kept = kernels.conv_forward(x, w, b, kernels.Window(*win))
    return out, (x, w, win, kept)


def conv_backward_fast(
    dout: np.ndarray, cache: Cache, *, need_dx: bool = True
) -> tuple[np.ndarray | None, np.ndarray, np.ndarray]:
    """`conv_backward_naive`, compiled, for the cache of `conv_forward_fast`.

    A first layer, whose input nobody trains, can save dx: with `need_dx=False` it is None.
    """
    x, w, win, kept = cache
    dout = check.like("dout", dout, x, (len(x), len(w), win.out_height, win.out_width))
    grads: tuple[np.ndarray | None, np.ndarray, np.ndarray] = _kernels().conv_backward(dout, kept, need_dx=need_dx)
    return grads


def max_pool_forward_fast(x: np.ndarray, pool_param: Mapping[str, Any]) -> tuple[np.ndarray, Cache]:
    """`max_pool_forward_naive`, compiled: the same arguments and results."""
    x, win = pool_arguments(x, pool_param)
    kernels = _kernels()
    out, where = kernels.pool_forward(x, kernels.Window(*win))
    return out, (x.shape, where)


def max_pool_backward_fast(dout: np.ndarray, cache: Cache) -> np.ndarray:
    """`max_pool_backward_naive`, compiled, for the cache of `max_pool_forward_fast`."""
    shape, where = cache
    dx: np.ndarray = _kernels().pool_backward(check.floats("dout", dout, where.shape), where, shape)
    return dx


def _kernels() -> Any:
    try:
        from normlab.kernels import convolution
    except ImportError as error:
        if (error.name or "").startswith("normlab"):
            raise
        raise UsageError(
            f"normlab.scratch.fast_layers needs Numba, which cannot be imported ({error}): pip install numba, or use "
            "normlab.scratch.im2col_layers, which needs NumPy only"
        ) from None
    return convolution
