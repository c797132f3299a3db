"""Half precision in compiled code: elements are widened to float32 as they are loaded, and rounded as they are stored.

NumPy has no bfloat16 and Numba no float16, so elements are seen as integers of 16 bits, and the kind of integer says
which they are: unsigned for bfloat16, signed for float16. What is stored is rounded once, to the nearest, ties to even.
The conversions are arithmetic on bits, which vectorizes and needs no instructions of a certain processor.

Numbers are what the kernels compute with: float32 for halves, else the elements themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, overload

from normlab.kernels.runtime.ahead import write_ahead
from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.parts import Joint

BFLOAT16, FLOAT16 = np.uint16, np.int16
# how compiled code sees elements of a dtype, and the numbers that it computes with
KINDS: dict[str, Any] = {"float32": np.float32, "float64": np.float64, "bfloat16": BFLOAT16, "float16": FLOAT16}
REALS: dict[str, Any] = {name: np.float64 if name == "float64" else np.float32 for name in KINDS}
_JIT: Any = {"nogil": True, "pipeline_class": Joint}
_BLOCK = 1024  # elements between one asking for memory and the next


def number(element: Any) -> Any:
    """An element as a number."""
    raise NotImplementedError("for compiled code")


def element(number: Any, elements: Any) -> Any:
    """A number as one of these elements."""
    raise NotImplementedError("for compiled code")


def real(elements: Any, value: Any) -> Any:
    """A value as a number of the type that these elements are computed with."""
    raise NotImplementedError("for compiled code")


def numbers_for(elements: Any, rows: int, columns: int) -> Any:
    """Fresh memory (rows, columns) for numbers of the type that these elements are computed with."""
    raise NotImplementedError("for compiled code")


# Numba calls these with types, and compiles the function that they return.


@overload(number, jit_options=_JIT)
def _number(element: Any) -> Any:
    def same(element: Any) -> Any:
        return element

    def widened(element: Any) -> Any:
        return widen(element)

    return widened if element in (types.uint16, types.int16) else same


@overload(element, jit_options=_JIT)
def _element(number: Any, elements: Any) -> Any:
    def same(number: Any, elements: Any) -> Any:
        return number

    def to_bfloat16(number: Any, elements: Any) -> Any:
        return bfloat16(np.float32(number))

    def to_float16(number: Any, elements: Any) -> Any:
        return float16(np.float32(number))

    return {types.uint16: to_bfloat16, types.int16: to_float16}.get(elements.dtype, same)


@overload(real, jit_options=_JIT)
def _real(elements: Any, value: Any) -> Any:
    def single(elements: Any, value: Any) -> Any:
        return np.float32(value)

    def double(elements: Any, value: Any) -> Any:
        return np.float64(value)

    return double if elements.dtype == types.float64 else single


@overload(numbers_for, jit_options=_JIT)
def _numbers_for(elements: Any, rows: Any, columns: Any) -> Any:
    def single(elements: Any, rows: Any, columns: Any) -> Any:
        return np.empty((rows, columns), np.float32)

    def double(elements: Any, rows: Any, columns: Any) -> Any:
        return np.empty((rows, columns), np.float64)

    return double if elements.dtype == types.float64 else single


@compiled
def put(numbers: Any, elements: Any) -> None:
    """Store numbers as elements."""
    for at in range(0, numbers.size, _BLOCK):
        block = numbers[at : at + _BLOCK]
        out = elements[at : at + block.size]
        write_ahead(elements, at, block.size)
        for k in range(block.size):
            out[k] = element(block[k], out)


# The conversions are written as instructions: Numba computes with integers of 64 bits, which halves what a vector
# register holds.

_WORD, _FLOAT = ir.IntType(32), ir.FloatType()
_REBIAS = 0x38000000  # what a float32's exponent has more than a float16's
_INFINITE = 0x7F800000


@intrinsic
def _widen(typingctx: Any, half: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        h = builder.zext(args[0], _WORD)
        if signature.args[0] == types.uint16:
            return builder.bitcast(builder.shl(h, _WORD(16)), _FLOAT)
        rest, sign = builder.and_(h, _WORD(0x7FFF)), builder.shl(builder.and_(h, _WORD(0x8000)), _WORD(16))
        normal = builder.add(builder.shl(rest, _WORD(13)), _WORD(_REBIAS))
        # below the normal ones a half counts the 2**-24
        small = builder.bitcast(builder.fmul(builder.sitofp(rest, _FLOAT), _FLOAT(2.0**-24)), _WORD)
        special = builder.add(normal, _WORD(_REBIAS))
        found = builder.select(builder.icmp_unsigned(">=", rest, _WORD(0x7C00)), special, normal)
        found = builder.select(builder.icmp_unsigned("<", rest, _WORD(0x400)), small, found)
        return builder.bitcast(builder.or_(found, sign), _FLOAT)

    return types.float32(half), generate


@intrinsic
def _bfloat16(typingctx: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        u = builder.bitcast(args[0], _WORD)
        high = builder.lshr(u, _WORD(16))
        rounding = builder.add(builder.and_(high, _WORD(1)), _WORD(0x7FFF))
        nearest = builder.lshr(builder.add(u, rounding), _WORD(16))
        found = builder.select(builder.fcmp_unordered("uno", args[0], args[0]), _WORD(0x7FC0), nearest)
        return builder.trunc(found, ir.IntType(16))

    return types.uint16(number), generate


@intrinsic
def _float16(typingctx: Any, number: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        u = builder.bitcast(args[0], _WORD)
        rest, sign = builder.and_(u, _WORD(0x7FFFFFFF)), builder.lshr(builder.and_(u, _WORD(1 << 31)), _WORD(16))
        odd = builder.and_(builder.lshr(rest, _WORD(13)), _WORD(1))
        normal = builder.add(builder.sub(rest, _WORD(_REBIAS)), builder.add(odd, _WORD(0xFFF)))
        normal = builder.lshr(normal, _WORD(13))
        # the last bit of a number between 1/2 and 1 is worth 2**-24
        half = _FLOAT(0.5)
        small = builder.bitcast(builder.fadd(builder.bitcast(rest, _FLOAT), half), _WORD)
        small = builder.sub(small, _WORD(0x3F000000))
        large = builder.select(builder.icmp_unsigned(">", rest, _WORD(_INFINITE)), _WORD(0x7E00), _WORD(0x7C00))
        found = builder.select(builder.icmp_unsigned(">=", rest, _WORD(0x477FF000)), large, normal)  # 65520
        found = builder.select(builder.icmp_unsigned("<", rest, _WORD(0x38800000)), small, found)  # 2**-14
        return builder.trunc(builder.or_(found, sign), ir.IntType(16))

    return types.int16(number), generate


# an intrinsic is called without the typing context that it is defined with: no type checker sees that
widen: Any = _widen
bfloat16: Any = _bfloat16
float16: Any = _float16
