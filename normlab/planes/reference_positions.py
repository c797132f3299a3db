"""The specification of statistics per position, written to be read: NumPy arrays and torch tensors of any float dtype.

x is (R, D), normalized over D, or (N, C, S), over C: over axis 1 in either case. All arithmetic is done in float64
(float32 on a device that has nothing wider) and rounded once, at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from normlab.grid import Array
from normlab.planes.reference import wide


@dataclass(slots=True)
class Saved:
    """What the backward pass needs beside x and weight: mean and 1 / sqrt(var + eps) of every position."""

    mean: Array | float
    rstd: Array
    centred: bool


def forward(x: Array, weight: Array | None, bias: Array | None, eps: float, centred: bool, y: Array) -> Saved:
    """y = weight * h + bias, h = (x - mean) / sqrt(var + eps); without centring h = x / sqrt(average of x^2 + eps)."""
    x64 = wide(x)
    mean = x64.mean(1, keepdims=True) if centred else 0.0
    rstd = (((x64 - mean) ** 2).mean(1, keepdims=True) + eps) ** -0.5
    scaled = (x64 - mean) * rstd * _along(weight, x, 1.0)
    y[...] = scaled + _along(bias, x, 0.0)
    return Saved(mean, rstd, centred)


def backward(
    saved: Saved, x: Array, weight: Array | None, g: Array, dx: Array, d_weight: Array | None, d_bias: Array | None
) -> None:
    """dx = (w * g - average(w * g) - h * average(w * g * h)) / sqrt(var + eps).

    Without centring there is no first average. The gradients of weight and bias are the sums of g * h and of g
    over all positions.
    """
    g64 = wide(g)
    h = (wide(x) - saved.mean) * saved.rstd
    up = g64 * _along(weight, x, 1.0)
    mean_up = up.mean(1, keepdims=True) if saved.centred else 0.0
    dx[...] = saved.rstd * (up - mean_up - h * (up * h).mean(1, keepdims=True))
    positions = (0, 2)[: len(x.shape) - 1]
    for gradient, product in ((d_weight, g64 * h), (d_bias, g64)):
        if gradient is not None:
            gradient[...] = product.sum(positions)


def _along(parameter: Array | None, x: Array, otherwise: float) -> Array | float:
    """(D,) so that it broadcasts over axis 1 of x."""
    return otherwise if parameter is None else wide(parameter).reshape((1, -1, 1)[: len(x.shape)])
