"""Asks for memory before it is needed: the processor follows a stream by itself, but not beyond the page that it is in.

Loops over more than the caches hold wait where a page ends, and where a row does and its sums are put together.
`read_ahead` and `write_ahead` stand before a loop over some elements and ask for those that lie a page further on,
`read_soon` and `write_soon` for the very ones that are named. It does not matter whether there is anything: nothing is
read, and no address is wrong.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from normlab.kernels.runtime.compiling import compiled
from normlab.kernels.runtime.unaliased import place

_AHEAD = 64  # cache lines: a page
_LINE = 64  # bytes


@intrinsic
def _per_line(typingctx: Any, elements: Any) -> Any:
    """How many elements, of an array or at a pointer, a cache line has."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, _LINE // (signature.args[0].dtype.bitwidth // 8))

    return types.intp(elements), generate


def _prefetching(writes: bool) -> Any:
    """Compiled `prefetch(elements, index)`, of an element's cache line into the first-level cache."""

    def prefetch(typingctx: Any, elements: Any, index: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            byte_pointer, number = ir.IntType(8).as_pointer(), ir.IntType(32)
            kind = ir.FunctionType(ir.VoidType(), [byte_pointer, number, number, number])
            function = builder.module.declare_intrinsic("llvm.prefetch", [byte_pointer], kind)
            at = builder.bitcast(place(context, builder, signature, args, inbounds=False), byte_pointer)
            builder.call(function, [at, number(int(writes)), number(3), number(1)])
            return context.get_dummy_value()

        return types.void(elements, types.intp), generate

    return intrinsic(prefetch)


# an intrinsic is called without the typing context that it is defined with: no type checker sees that
per_line: Any = _per_line
_prefetch_read: Any = _prefetching(False)
_prefetch_write: Any = _prefetching(True)


@compiled
def read_ahead(elements: Any, start: int, count: int) -> None:
    """`count` elements from `start` on are about to be read: ask for those that follow."""
    read_soon(elements, start + _AHEAD * per_line(elements), count)


@compiled
def write_ahead(elements: Any, start: int, count: int) -> None:
    """`count` elements from `start` on are about to be written: ask for those that follow."""
    write_soon(elements, start + _AHEAD * per_line(elements), count)


@compiled
def read_soon(elements: Any, start: int, count: int) -> None:
    """Ask for `count` elements from `start` on, to read them."""
    for k in range(start, start + count, per_line(elements)):
        _prefetch_read(elements, k)


@compiled
def write_soon(elements: Any, start: int, count: int) -> None:
    """Ask for `count` elements from `start` on, to write them."""
    for k in range(start, start + count, per_line(elements)):
        _prefetch_write(elements, k)
