"""Activations on a row of elements, compiled: `z` is replaced by act(z), or by g * act'(z).

The exponential and, in float32, the error function are written out in arithmetic, so that their loops vectorize. What
every layer would have to compile stands here; the others are called at an address (`normlab.kernels.cpu._called`),
which takes the place of their number.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from normlab.kernels.runtime.ahead import read_ahead
from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.counters import call
from normlab.kernels.runtime.job import GELU, LEAKY_RELU, RELU, SILU
from normlab.kernels.runtime.narrow import number

_BLOCK = 1024  # elements between one asking for memory and the next
_JIT: Any = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy"}


@compiled
def activate(act: int, slope: float, z: Any) -> None:
    """act(z), in place; halves are activated before they are stored."""
    one = z.dtype.type(1)
    half = z.dtype.type(0.5)
    low = z.dtype.type(slope)
    nothing = z.dtype.type(0)
    if act == RELU:
        for k in range(z.size):
            z[k] = nothing if z[k] <= nothing else z[k]
    elif act == LEAKY_RELU:
        for k in range(z.size):
            z[k] = z[k] if z[k] > nothing else low * z[k]
    elif act == SILU:
        for k in range(z.size):
            z[k] = z[k] / (one + exp(-z[k]))
    elif act == GELU:
        root = z.dtype.type(math.sqrt(0.5))
        for k in range(z.size):
            z[k] = half * z[k] * (one + _erf(root * z[k]))
    elif act > GELU:
        call_row(act, z.ctypes.data, z.size, low)


@compiled
def pull_activation(act: int, slope: float, g: Any, z: Any) -> None:
    """g * act'(z), in the place of z."""
    for at in range(0, z.size, _BLOCK):
        up, block = g[at : at + _BLOCK], z[at : at + _BLOCK]
        read_ahead(g, at, block.size)
        _pull(act, slope, up, block)


@compiled
def _pull(act: int, slope: float, g: Any, z: Any) -> None:
    one = z.dtype.type(1)
    half = z.dtype.type(0.5)
    low = z.dtype.type(slope)
    nothing = z.dtype.type(0)
    if act == RELU:
        for k in range(z.size):
            z[k] = number(g[k]) if z[k] > nothing else nothing
    elif act == LEAKY_RELU:
        for k in range(z.size):
            z[k] = number(g[k]) if z[k] > nothing else low * number(g[k])
    elif act == SILU:
        for k in range(z.size):
            s = one / (one + exp(-z[k]))
            z[k] = number(g[k]) * (s * (one + z[k] * (one - s)))
    elif act == GELU:
        root, density = z.dtype.type(math.sqrt(0.5)), z.dtype.type(1 / math.sqrt(2 * math.pi))
        for k in range(z.size):
            bell = density * exp(-half * z[k] * z[k])
            z[k] = number(g[k]) * (half * (one + _erf(root * z[k])) + z[k] * bell)
    elif act > GELU:
        call_row(act, z.ctypes.data, z.size, low)
        for k in range(z.size):
            z[k] *= number(g[k])


@intrinsic
def _call_row(typingctx: Any, address: Any, numbers: Any, size: Any, constant: Any) -> Any:
    """Call `void f(numbers, size, constant)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call(builder, args[0], args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.intp, types.intp, constant), generate


@intrinsic
def _nearest(typingctx: Any, number: Any) -> Any:
    """The nearest whole number, as a float."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = builder.module.declare_intrinsic("llvm.rint", [args[0].type])
        return builder.call(function, args)

    return number(number), generate


@intrinsic
def _power_of_two(typingctx: Any, exponent: Any) -> Any:
    """2 to a whole number within the exponents of the type, made of its bits."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, bias, mantissa = (32, 127, 23) if signature.args[0] == types.float32 else (64, 1023, 52)
        whole = ir.IntType(width)
        shifted = builder.shl(builder.add(builder.fptosi(args[0], whole), whole(bias)), whole(mantissa))
        return builder.bitcast(shifted, args[0].type)

    return exponent(exponent), generate


@intrinsic
def _fused_multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fma(*args)

    return a(a, b, c), generate


# an intrinsic is called without the typing context that it is defined with: no type checker sees that
nearest: Any = _nearest
power_of_two: Any = _power_of_two
fused: Any = _fused_multiply_add
call_row: Any = _call_row

_LOG2_E = 1 / math.log(2)
# log 2 in two parts: with the product rounded once, what is left of v after n * log 2 keeps its precision
_LOW = {np.float32: math.log(2) - float(np.float32(math.log(2))), np.float64: 2.3190468138462996e-17}
_BOUND = {np.float32: 87.0, np.float64: 708.0}


def exp(v: Any) -> Any:
    """exp(v) by 2**n times the Taylor sum of what is left of v, at most log(2) / 2 in size (Cody & Waite 1980).

    Where the result would leave the type's normal numbers it is the last one inside.
    """
    raise NotImplementedError("for compiled code")


@overload(exp, jit_options=_JIT)
def _exp_of_type(v: Any) -> Any:
    kind = np.float32 if v == types.float32 else np.float64
    log2_e, high, low, bound = kind(_LOG2_E), kind(math.log(2)), kind(_LOW[kind]), kind(_BOUND[kind])
    one = kind(1)
    c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13 = (kind(1 / math.factorial(i)) for i in range(2, 14))

    def single(v: Any) -> Any:
        v = bound if v > bound else -bound if v < -bound else v
        n = nearest(v * log2_e)
        f = fused(n, -low, fused(n, -high, v))
        tail = c5 + f * (c6 + f * c7)
        return (one + f * (one + f * (c2 + f * (c3 + f * (c4 + f * tail))))) * power_of_two(n)

    def double(v: Any) -> Any:
        v = bound if v > bound else -bound if v < -bound else v
        n = nearest(v * log2_e)
        f = fused(n, -low, fused(n, -high, v))
        tail = c8 + f * (c9 + f * (c10 + f * (c11 + f * (c12 + f * c13))))
        tail = c4 + f * (c5 + f * (c6 + f * (c7 + f * tail)))
        return (one + f * (one + f * (c2 + f * (c3 + f * tail)))) * power_of_two(n)

    return single if kind is np.float32 else double


def _erf(v: Any) -> Any:
    """The error function; in float32 the rational approximation of Eigen's `generic_fast_erf_float`."""
    raise NotImplementedError("for compiled code")


# of v * P(v^2) / Q(v^2), the highest power first
_P = (-2.72614225801306e-10, 2.77068142495902e-08, -2.10102402082508e-06, -5.69250639462346e-05,
      -7.34990630326855e-04, -2.95459980854025e-03, -1.60960333262415e-02)  # fmt: skip
_Q = (-1.45660718464996e-05, -2.13374055278905e-04, -1.68282697438203e-03, -7.37332916720468e-03,
      -1.42647390514189e-02)  # fmt: skip


@overload(_erf, jit_options=_JIT)
def _erf_of_type(v: Any) -> Any:
    four = np.float32(4)
    p0, p1, p2, p3, p4, p5, p6 = map(np.float32, _P)
    q0, q1, q2, q3, q4 = map(np.float32, _Q)

    def single(v: Any) -> Any:
        v = four if v > four else -four if v < -four else v
        w = v * v
        p = v * (p6 + w * (p5 + w * (p4 + w * (p3 + w * (p2 + w * (p1 + w * p0))))))
        return p / (q4 + w * (q3 + w * (q2 + w * (q1 + w * q0))))

    def double(v: Any) -> Any:
        return math.erf(v)

    return single if v == types.float32 else double
