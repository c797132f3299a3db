"""Activations that are compiled when a layer first asks for them, and called at their address.

What the kernels have inside, every layer pays for in time to compile (`normlab.kernels.cpu._activations`). These are
functions of a row each: act(z), or act'(z), in the place of z.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, types
from numba.extending import overload

from normlab.kernels.cpu._activations import exp, fused
from normlab.kernels.runtime.compiling import address_of
from normlab.kernels.runtime.counters import pointer


def _numbers_at(address: Any, size: Any, like: Any) -> Any:
    """The numbers at an address, of the type of `like`."""
    raise NotImplementedError("for compiled code")


@overload(_numbers_at)
def _numbers_of_type(address: Any, size: Any, like: Any) -> Any:
    kind = np.float32 if like == types.float32 else np.float64

    def numbers(address: Any, size: Any, like: Any) -> Any:
        return carray(pointer(address), (size,), kind)

    return numbers


def _relu6(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, six = z.dtype.type(0), z.dtype.type(6)
    for k in range(size):
        z[k] = zero if z[k] <= zero else six if z[k] >= six else z[k]


def _slope_of_relu6(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, one, six = z.dtype.type(0), z.dtype.type(1), z.dtype.type(6)
    for k in range(size):
        z[k] = zero if z[k] <= zero or z[k] >= six else one


def _hardsigmoid(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, one, three, sixth = z.dtype.type(0), z.dtype.type(1), z.dtype.type(3), z.dtype.type(1 / 6)
    for k in range(size):
        z[k] = zero if z[k] <= -three else one if z[k] >= three else (z[k] + three) * sixth


def _slope_of_hardsigmoid(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, three, sixth = z.dtype.type(0), z.dtype.type(3), z.dtype.type(1 / 6)
    for k in range(size):
        z[k] = sixth if z[k] > -three and z[k] < three else zero


def _hardswish(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, three, sixth = z.dtype.type(0), z.dtype.type(3), z.dtype.type(1 / 6)
    for k in range(size):
        z[k] = zero if z[k] <= -three else z[k] if z[k] >= three else z[k] * ((z[k] + three) * sixth)


def _slope_of_hardswish(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, one, three = z.dtype.type(0), z.dtype.type(1), z.dtype.type(3)
    third, half = z.dtype.type(1 / 3), z.dtype.type(0.5)
    for k in range(size):
        z[k] = zero if z[k] <= -three else one if z[k] >= three else z[k] * third + half


def _elu(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, one, near = z.dtype.type(0), z.dtype.type(1), z.dtype.type(-0.35)
    c2, c3, c4, c5 = z.dtype.type(1 / 2), z.dtype.type(1 / 6), z.dtype.type(1 / 24), z.dtype.type(1 / 120)
    c6, c7, c8 = z.dtype.type(1 / 720), z.dtype.type(1 / 5040), z.dtype.type(1 / 40320)
    c9, c10, c11 = z.dtype.type(1 / 362880), z.dtype.type(1 / 3628800), z.dtype.type(1 / 39916800)
    c12, c13 = z.dtype.type(1 / 479001600), z.dtype.type(1 / 6227020800)
    for k in range(size):
        v = z[k] if z[k] <= zero else zero
        # exp(v) - 1: where that would lose digits, by its series
        tail = fused(v, fused(v, fused(v, fused(v, fused(v, c13, c12), c11), c10), c9), c8)
        tail = fused(v, fused(v, fused(v, fused(v, fused(v, fused(v, tail, c7), c6), c5), c4), c3), c2)
        low = v * fused(v, tail, one) if v > near else exp(v) - one
        z[k] = c * low if z[k] <= zero else z[k]


def _slope_of_elu(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for k in range(size):
        z[k] = c * exp(z[k]) if z[k] <= zero else one


def _tlu(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    for k in range(size):
        z[k] = c if z[k] <= c else z[k]


def _slope_of_tlu(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    zero, one = z.dtype.type(0), z.dtype.type(1)
    for k in range(size):
        z[k] = zero if z[k] <= c else one


def _mish(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    two, flat = z.dtype.type(2), z.dtype.type(20)  # from here on the factor of z is 1
    for k in range(size):
        e = exp(flat if z[k] > flat else z[k])
        n = e * (e + two)
        z[k] = z[k] * (n / (n + two))


def _slope_of_mish(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    one, two, four, flat = z.dtype.type(1), z.dtype.type(2), z.dtype.type(4), z.dtype.type(20)
    for k in range(size):
        v = flat if z[k] > flat else z[k]
        e = exp(v)
        n = e * (e + two)
        z[k] = n / (n + two) + v * (e / (one + e)) * (four / (n + two)) * ((n + one) / (n + two))


def _quick_gelu(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    one, factor = z.dtype.type(1), z.dtype.type(1.702)
    for k in range(size):
        z[k] = z[k] / (one + exp(-factor * z[k]))


def _slope_of_quick_gelu(numbers: int, size: int, c: Any) -> None:
    z = _numbers_at(numbers, size, c)
    one, factor, flat = z.dtype.type(1), z.dtype.type(1.702), z.dtype.type(-80)  # before this the slope vanishes
    for k in range(size):
        v = factor * z[k]
        v = flat if v < flat else v
        small = exp(-v)
        s = one / (one + small)
        z[k] = s * (one + v * (small * s))


ROWS: dict[str, tuple[Any, Any]] = {
    "relu6": (_relu6, _slope_of_relu6),
    "hardsigmoid": (_hardsigmoid, _slope_of_hardsigmoid),
    "hardswish": (_hardswish, _slope_of_hardswish),
    "elu": (_elu, _slope_of_elu),
    "tlu": (_tlu, _slope_of_tlu),
    "mish": (_mish, _slope_of_mish),
    "quick_gelu": (_quick_gelu, _slope_of_quick_gelu),
}


def address(name: str, dtype: Any, slope: bool) -> int:
    """Address of `void f(numbers, how many, constant)`: act, or its slope, of what is computed from this dtype."""
    kind = types.float64 if str(dtype).endswith("float64") else types.float32
    return address_of(ROWS[name][slope], types.void(types.intp, types.intp, kind))
