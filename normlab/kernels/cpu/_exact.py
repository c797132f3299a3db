"""The four kernels of one plane in float64, for planes whose numbers leave the range of float32 on the way.

Squares of float32 overflow from 1.8e19 on and lose digits below 1e-19, and so do the products and coefficients of the
backward pass; what they lead to may well be a float32. `_kernels` looks at each sum and coefficient, which are few, and
comes here where it has to. A plane is `count` elements, `step` apart, from `at` on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import register_jitable

from normlab.kernels.cpu import _forms
from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.narrow import element, number, real

_LARGEST = 2.0**120  # of sums of products: beyond, one of them may have overflowed
_LARGE, _SMALL = 2.0**90, 2.0**-100  # of coefficients
least_variance = register_jitable(_forms.least_variance)


@compiled
def far(sums: Any, tiny: float) -> bool:
    """Whether any of these numbers is not finite, or is so large or small that products have left float32."""
    found = 0
    for k in range(sums.size):
        found += is_far(sums[k], tiny)
    return found > 0


@compiled
def is_far(v: float, tiny: float) -> bool:
    return not (abs(v) <= _LARGEST and abs(v) >= tiny)


@compiled
def beyond(scales: Any, shifts: Any) -> bool:
    """Whether a scale, or what is added, is a coefficient that float32 does not hold or that may overflow in it."""
    found = 0
    for k in range(scales.size):
        found += is_beyond(scales[k], shifts[k])
    return found > 0


@compiled
def is_beyond(scale: float, shift: float) -> bool:
    a = abs(scale)
    return not (a <= _LARGE and (a >= _SMALL or a == 0) and abs(shift) <= _LARGE)


@compiled
def moments(x: Any, at: int, step: int, count: int) -> Any:
    """Mean and biased variance."""
    total = 0.0
    for k in range(count):
        total += np.float64(number(x[at + k * step]))
    mean = total / count
    left = 0.0
    square = 0.0
    for k in range(count):
        d = np.float64(number(x[at + k * step])) - mean
        left += d
        square += d * d
    left /= count
    var = square / count - left * left
    return mean + left, var if var > 0 or var != var else 0.0


@compiled
def affine(
    x: Any, residual: Any, add: bool, relu: bool, at: int, step: int, count: int, a: float, m: float, t: float, y: Any
) -> None:  # fmt: skip
    for k in range(at, at + step * count, step):
        z: Any = a * (np.float64(number(x[k])) - m) + t
        if add:
            z += np.float64(number(residual[k]))
        if relu:
            z = 0.0 if z <= 0 else z
        y[k] = element(real(x, z), y)


@compiled
def dots(g: Any, x: Any, at: int, step: int, count: int, m: float) -> Any:
    """The sums of g and of g * (x - m)."""
    total = 0.0
    product = 0.0
    for k in range(at, at + step * count, step):
        up = np.float64(number(g[k]))
        total += up
        product += up * (np.float64(number(x[k])) - m)
    return total, product


@compiled
def combine(
    g: Any, x: Any, at: int, step: int, count: int, m: float, a: float, b: float, c: float, dx: Any
) -> None:  # fmt: skip
    """dx = a * g + b * (x - m) + c; g may lie in dx."""
    for k in range(at, at + step * count, step):
        d = a * np.float64(number(g[k])) + (b * (np.float64(number(x[k])) - m) + c)
        dx[k] = element(real(x, d), dx)
