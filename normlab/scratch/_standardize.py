"""Standardization, the heart of every norm: subtract the mean, divide by the standard deviation.

Some m elements are standardized together. Which ones, the axes say; that is the only difference between the norms.

    mean = (1/m) sum x        var = (1/m) sum (x - mean)^2        xhat = (x - mean) / std,  std = sqrt(var + eps)

The backward pass. Mean and variance are functions of all m elements, so one x_j reaches every xhat_i along three
paths: directly (where i = j), through the mean, and through the variance. Their derivatives are

    d mean / d x_j     = 1 / m
    d var / d x_j      = 2 (x_j - mean) / m          (the mean inside var adds nothing: sum (x - mean) is 0)
    d (1/std) / d x_j  = -1/2 * std^-3 * d var / d x_j = -xhat_j / (m std^2)

and the product rule on xhat_i = (x_i - mean) * (1/std) puts them together:

    d xhat_i / d x_j   = ([i = j] - 1/m - xhat_i xhat_j / m) / std

With g_i the gradient that arrives at xhat_i, dx_j is the sum over i of g_i times that:

    dx = (g - mean(g) - xhat * mean(g * xhat)) / std

In words: the gradient of a plain division by std, less its mean, less its component along xhat. What would only
shift or stretch all m elements is taken out, because standardization undoes shifts and stretches.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np


class Standardized(NamedTuple):
    """What `standardize` returns; all but `xhat` have size 1 along the axes that were averaged over."""

    xhat: np.ndarray
    inverse: np.ndarray  # 1 / std
    mean: np.ndarray
    var: np.ndarray  # biased: the sum of squares over m, not over m - 1


def standardize(x: np.ndarray, axes: tuple[int, ...], eps: float) -> Standardized:
    """Standardizes the elements of x along `axes` together. `xhat` and `inverse` have the dtype of x.

    Sums are taken in float64, and the variance of what is centred already: E[x^2] - E[x]^2 would subtract two large
    numbers, and lose every digit where the mean is large beside the standard deviation.
    """
    mean = average(x, axes)
    centered = shifted(x, mean)
    var = average(np.square(centered), axes)
    inverse = (1 / np.sqrt(var + eps)).astype(x.dtype)
    return Standardized(np.multiply(centered, inverse, out=centered), inverse, mean, var)


def standardize_backward(dxhat: np.ndarray, xhat: np.ndarray, inverse: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Returns dx = (g - mean(g) - xhat * mean(g * xhat)) / std for g = `dxhat`; the means run along `axes`."""
    along_mean = average(dxhat, axes).astype(xhat.dtype)
    along_xhat = average(dxhat * xhat, axes).astype(xhat.dtype)
    dx: np.ndarray = inverse * (dxhat - along_mean - xhat * along_xhat)
    return dx


def average(x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Returns the mean along `axes` in float64, with size 1 there; the mean of no elements is 0."""
    count = math.prod(x.shape[axis] for axis in axes)
    total: np.ndarray = x.sum(axes, np.float64, keepdims=True)
    return total / max(1, count)


def shifted(x: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """Returns x - mean: subtracted in the precision of `mean`, rounded once to the dtype of x."""
    return np.subtract(x, mean, out=np.empty_like(x), casting="same_kind")
