"""Atomic counters in an array, for threads in compiled code, and how a job's units are dealt out by them."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from normlab.kernels.runtime.compiling import joining
from normlab.kernels.runtime.control import DONE, LINE, NEXT

# an intrinsic is called without the typing context that it is defined with: no type checker sees that


@intrinsic
def _fetch_add(typingctx: Any, counters: Any, index: Any, amount: Any) -> Any:
    """Atomically add to a counter and return what it was."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        array_type = signature.args[0]
        array = context.make_array(array_type)(context, builder, args[0])
        pointer = cgutils.get_item_pointer(context, builder, array_type, array, [args[1]])
        return builder.atomic_rmw("add", pointer, args[2], "seq_cst")

    return types.int64(counters, types.intp, types.int64), generate


@intrinsic
def _pointer(typingctx: Any, address: Any) -> Any:
    """An address as a pointer."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], cgutils.voidptr_t)

    return types.voidptr(types.intp), generate


def call(builder: Any, address: Any, arguments: Any) -> None:
    """Build a call of the C function `void f(arguments)` at an address."""
    function = ir.FunctionType(ir.VoidType(), [v.type for v in arguments])
    builder.call(builder.inttoptr(address, function.as_pointer()), arguments)


@intrinsic
def _call_at(typingctx: Any, address: Any, argument: Any) -> Any:
    """Call the C function `void f(intptr_t)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call(builder, args[0], args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), generate


@intrinsic
def _call_on(typingctx: Any, address: Any, first: Any, second: Any) -> Any:
    """Call the C function `void f(intptr_t, intptr_t)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        call(builder, args[0], args[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def _parallel_at(typingctx: Any, address: Any, function: Any, argument: Any, threads: Any) -> Any:
    """Call OpenMP's `void GOMP_parallel(void (*)(void *), void *, unsigned, unsigned)`, which lies at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        number = ir.IntType(32)
        call(builder, args[0], [*args[1:3], builder.trunc(args[3], number), number(0)])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp, types.intp), generate


@intrinsic
def _number_at(typingctx: Any, address: Any) -> Any:
    """Call the C function `int f(void)` at an address."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        number = builder.call(builder.inttoptr(args[0], function), [])
        return builder.sext(number, context.get_value_type(types.intp))

    return types.intp(types.intp), generate


fetch_add: Any = _fetch_add
pointer: Any = _pointer
call_at: Any = _call_at
call_on: Any = _call_on
parallel_at: Any = _parallel_at
number_at: Any = _number_at


@joining
def next_unit(control: Any) -> int:
    """The next unit of a job that nobody has taken; not below the number of units when all are taken."""
    return fetch_add(control, NEXT, 1)


@joining
def next_of_shares(shares: Any, own: int, units: int, backwards: bool) -> int:
    """A unit of a thread's own share that nobody has taken, or of another's if there is none; else `units`.

    The units are cut into as many shares as there are counters, a share into what lies side by side. So in one part of
    a job after the other a thread comes back to what it has in its cache, and `backwards` to the latest of it first.
    """
    count = shares.size // LINE
    for i in range(count):
        s = own + i if own + i < count else own + i - count
        first, stop = units * s // count, units * (s + 1) // count
        k = first + fetch_add(shares, s * LINE, 1)
        if k < stop:
            return first + stop - 1 - k if backwards else k
    return units


@joining
def unit_done(control: Any) -> None:
    """Say that a unit is finished."""
    fetch_add(control, DONE, 1)
