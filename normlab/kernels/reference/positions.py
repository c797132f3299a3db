"""The specification of statistics per position, written to be read: NumPy arrays and torch tensors of any float dtype.

x is (R, D), normalized over D, or (N, C, S), over C: over axis 1 in either case. All arithmetic is done in float64
(float32 on a device that has nothing wider) and rounded once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from normlab.kernels.reference.planes import wide
from normlab.norms.grid import Array, library

KEPT_NUMBERS = 2  # of every position: mean, and 1 / sqrt(var + eps)


@dataclass(slots=True)
class Saved:
    """What the backward pass needs beside x and weight: mean and 1 / sqrt(var + eps) of every position."""

    kept: Array  # both, along a first axis
    centred: bool


def forward(x: Array, weight: Array | None, bias: Array | None, eps: float, centred: bool, y: Array) -> Saved:
    """y = weight * h + bias, h = (x - mean) / sqrt(var + eps); without centring h = x / sqrt(average of x^2 + eps)."""
    x64 = wide(x)
    mean = x64.mean(1, keepdims=True) if centred else library(x).zeros_like(x64[:, :1])
    rstd = (((x64 - mean) ** 2).mean(1, keepdims=True) + eps) ** -0.5
    scaled = (x64 - mean) * rstd * _along(weight, x, 1.0)
    y[...] = scaled + _along(bias, x, 0.0)
    return Saved(library(x).stack((mean, rstd)), centred)


def backward(
    saved: Saved, x: Array, weight: Array | None, g: Array, dx: Array, d_weight: Array | None, d_bias: Array | None
) -> None:
    """dx = (w * g - average(w * g) - h * average(w * g * h)) / sqrt(var + eps).

    Without centring there is no first average. The gradients of weight and bias are the sums of g * h and of g
    over all positions.
    """
    g64 = wide(g)
    mean, rstd = saved.kept
    h = (wide(x) - mean) * rstd
    up = g64 * _along(weight, x, 1.0)
    mean_up = up.mean(1, keepdims=True) if saved.centred else 0.0
    dx[...] = rstd * (up - mean_up - h * (up * h).mean(1, keepdims=True))
    positions = (0, 2)[: len(x.shape) - 1]
    for gradient, product in ((d_weight, g64 * h), (d_bias, g64)):
        if gradient is not None:
            gradient[...] = product.sum(positions)


def restored(x: Array, kept: Array, centred: bool) -> Saved:
    """What `forward` returned, from the numbers of its `kept`."""
    return Saved(kept.reshape((2, x.shape[0], 1, *x.shape[2:])), centred)


def kept_dtype(x: Array, dtype: Any) -> Any:
    """The widest there is."""
    return wide(x[:0]).dtype


def parameter_dtype(x: Any) -> Any:
    """The dtype of the elements."""
    return x.dtype


def _along(parameter: Array | None, x: Array, otherwise: float) -> Array | float:
    """(D,) so that it broadcasts over axis 1 of x."""
    return otherwise if parameter is None else wide(parameter).reshape((1, -1, 1)[: len(x.shape)])
