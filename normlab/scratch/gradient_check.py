"""Numerical gradients by centred differences, to hold hand-written ones against. Use float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from normlab.errors import UsageError
from normlab.scratch import _checks as check


def eval_numerical_gradient(
    f: Callable[[np.ndarray], float], x: np.ndarray, verbose: bool = False, h: float = 1e-5
) -> np.ndarray:
    """Gradient of a scalar function of x: (f(x + h) - f(x - h)) / 2h, one element of x at a time.

    x, a float array of any shape, is changed in place for each call and restored, so that f may also read it
    through a closure. `verbose` prints every element.
    """
    return _differences(lambda a: np.asarray(f(a)), x, np.ones(()), h, verbose)


def eval_numerical_gradient_array(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, df: np.ndarray | float, h: float = 1e-5
) -> np.ndarray:
    """Gradient of sum(df * f(x)) with respect to x, for a function with array values.

    df is the gradient of the loss with respect to f(x) and has its shape. x is changed in place for each call
    and restored.
    """
    return _differences(f, x, np.asarray(df), h, False)


def rel_error(x: Any, y: Any) -> float:
    """Largest relative difference: max |x - y| / max(1e-8, |x| + |y|), element by element."""
    x, y = np.asarray(x), np.asarray(y)
    if x.shape != y.shape:
        raise UsageError(f"rel_error compares arrays of one shape; got {x.shape} and {y.shape}")
    return float(np.max(np.abs(x - y) / np.maximum(1e-8, np.abs(x) + np.abs(y)), initial=0.0))


def _differences(
    f: Callable[[np.ndarray], np.ndarray], x: np.ndarray, df: np.ndarray, h: float, verbose: bool
) -> np.ndarray:
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        kind = x.dtype if isinstance(x, np.ndarray) else type(x).__name__
        raise UsageError(f"x must be a float array, which is changed in place; got {kind}")
    check.number("h", h, 0, float("inf"), open_low=True)
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        kept = x[index]
        x[index] = high = x.dtype.type(kept + h)
        above = np.array(f(x))  # a copy: f may return x itself
        x[index] = low = x.dtype.type(kept - h)
        below = np.array(f(x))
        x[index] = kept
        if df.ndim and df.shape != above.shape:
            raise UsageError(f"df has shape {df.shape}; expected {above.shape}, the shape of f(x)")
        # divided by the difference that was taken, which rounding makes other than 2h
        grad[index] = np.sum((above - below) * df) / (high - low)
        if verbose:
            print(index, grad[index])
    return grad
