"""Two sums of products that keep their partial sums in registers: what a compiled convolution spends its time in.

A tile is four filters by a few vectors, a register for each of its sums: 24 of the 32 that AVX-512 and ARM have, 12 of
16 elsewhere. No vectorizer finds such tiles in loops, so they are written in LLVM's own terms here, for the widest
vectors that the processor has (left to itself LLVM takes half of 512 bits, which suits loops that wait for memory).
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

from llvmlite import binding, ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_features = binding.get_host_cpu_features()
VECTOR_BYTES = 64 if _features.get("avx512f") else 32 if _features.get("avx") else 16
FILTERS = 4
ACROSS = 6 if VECTOR_BYTES == 64 or platform.machine().lower() in ("arm64", "aarch64") else 3


def rest(across: int) -> int:
    """Vectors across, for what tiles of `across` leave of a row, a multiple of 32 elements: these fill it exactly."""
    return 2 if across % 2 == 0 else 1


REST = rest(ACROSS)


class _Writer:
    """Writes code on the vectors of 1-D arrays, the arguments of an intrinsic; `offsets` count elements."""

    def __init__(self, context: Any, builder: Any, signature: Any, args: Any) -> None:
        self.builder = builder
        dtype = signature.args[0].dtype
        self.bytes = dtype.bitwidth // 8
        self.lanes = VECTOR_BYTES // self.bytes
        self.element = context.get_value_type(dtype)
        self.vector = ir.VectorType(self.element, self.lanes)
        self.whole = context.get_value_type(types.intp)
        self.args = [
            context.make_array(kind)(context, builder, value).data if isinstance(kind, types.Array) else value
            for kind, value in zip(signature.args, args, strict=True)
        ]

    def sum(self, *terms: Any) -> Any:
        """The sum of integers."""
        total = ir.Constant(self.whole, 0)
        for term in terms:
            total = self.builder.add(total, ir.Constant(self.whole, term) if isinstance(term, int) else term)
        return total

    def times(self, a: Any, b: Any) -> Any:
        """The product of two integers."""
        return self.builder.mul(a, ir.Constant(self.whole, b) if isinstance(b, int) else b)

    def place(self, data: Any, *offsets: Any) -> Any:
        """A pointer to an element."""
        return self.builder.gep(data, [self.sum(*offsets)])

    def load(self, data: Any, *offsets: Any) -> Any:
        """The vector that begins at an element."""
        return self.builder.load(self._vector_at(data, offsets), align=self.bytes)

    def store(self, value: Any, data: Any, *offsets: Any) -> None:
        """Write a vector from an element on."""
        self.builder.store(value, self._vector_at(data, offsets), align=self.bytes)

    def spread(self, data: Any, *offsets: Any) -> Any:
        """A vector of nothing but one element."""
        index = ir.IntType(32)
        value = self.builder.load(self.place(data, *offsets))
        one = self.builder.insert_element(ir.Constant(self.vector, ir.Undefined), value, ir.Constant(index, 0))
        return self.builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(index, self.lanes), None))

    def add_product(self, register: Any, a: Any, b: Any) -> None:
        """Add a * b to a register, in one instruction where there is one."""
        product = self.builder.fmul(a, b, flags=("contract",))
        self.builder.store(self.builder.fadd(self.builder.load(register), product, flags=("contract",)), register)

    def total(self, value: Any) -> Any:
        """The sum of a vector's elements, in any order."""
        kind = ir.FunctionType(self.element, [self.element, self.vector])
        name = f"llvm.vector.reduce.fadd.v{self.lanes}f{8 * self.bytes}"
        function = cgutils.get_or_insert_function(self.builder.module, kind, name)
        return self.builder.call(function, [ir.Constant(self.element, -0.0), value], fastmath=("reassoc",))

    def registers(self, count: int) -> list[Any]:
        """Variables for as many vectors, which LLVM keeps in registers."""
        return [cgutils.alloca_once(self.builder, self.vector) for _ in range(count)]

    @contextmanager
    def loop(self, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
        """What is written inside is done for every i of range(start, stop, step)."""
        with cgutils.for_range_slice(self.builder, start, stop, ir.Constant(self.whole, step), intp=self.whole) as (
            i,
            _,
        ):
            yield i

    def _vector_at(self, data: Any, offsets: Any) -> Any:
        return self.builder.bitcast(self.place(data, *offsets), self.vector.as_pointer())


def _sum_shifts(across: int) -> Any:
    tile = list(product(range(FILTERS), range(across)))

    # an intrinsic is called without the typing context that it is defined with: no type checker sees that
    @intrinsic
    def sum_shifts(
        typingctx: Any, image: Any, p: Any, shifts: Any, first: Any, last: Any, weights: Any, f: Any, filters: Any,
        out: Any, length: Any,
    ) -> Any:  # fmt: skip
        """out[(f + i) * length + p + j] += the sum over k in [first, last) of
        weights[k * filters + f + i] * image[shifts[k] + p + j], for i < FILTERS and j below `across` vectors.
        """

        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            write = _Writer(context, builder, signature, args)
            image, p, shifts, first, last, weights, f, filters, out, length = write.args
            rows = [write.sum(write.times(write.sum(f, i), length), p) for i in range(FILTERS)]
            sums = write.registers(len(tile))
            for (i, v), one in zip(tile, sums, strict=True):
                builder.store(write.load(out, rows[i], v * write.lanes), one)
            with write.loop(first, last) as k:
                begin = write.sum(builder.load(write.place(shifts, k)), p)
                row = write.sum(write.times(k, filters), f)
                x = [write.load(image, begin, v * write.lanes) for v in range(across)]
                w = [write.spread(weights, row, i) for i in range(FILTERS)]
                for (i, v), one in zip(tile, sums, strict=True):
                    write.add_product(one, w[i], x[v])
            for (i, v), one in zip(tile, sums, strict=True):
                write.store(builder.load(one), out, rows[i], v * write.lanes)
            return context.get_dummy_value()

        whole = types.intp
        return types.void(image, whole, shifts, whole, whole, weights, whole, whole, out, whole), generate

    return sum_shifts


@intrinsic
def _sum_products(
    typingctx: Any, rows: Any, f: Any, length: Any, image: Any, shifts: Any, k: Any, span: Any, out: Any, taps: Any
) -> Any:
    """out[(f + i) * taps + k + j] += the sum over p in [0, span) of
    rows[(f + i) * length + p] * image[shifts[k + j] + p], for i < FILTERS and j < ACROSS.
    """
    tile = list(product(range(FILTERS), range(ACROSS)))

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        write = _Writer(context, builder, signature, args)
        rows, f, length, image, shifts, k, span, out, taps = write.args
        lines = [write.times(write.sum(f, i), length) for i in range(FILTERS)]
        begins = [builder.load(write.place(shifts, k, j)) for j in range(ACROSS)]
        sums = write.registers(len(tile))
        for one in sums:
            builder.store(ir.Constant(write.vector, None), one)
        with write.loop(write.sum(), span, write.lanes) as p:
            a = [write.load(rows, line, p) for line in lines]
            x = [write.load(image, begin, p) for begin in begins]
            for (i, j), one in zip(tile, sums, strict=True):
                write.add_product(one, a[i], x[j])
        for (i, j), one in zip(tile, sums, strict=True):
            there = write.place(out, write.times(write.sum(f, i), taps), k, j)
            builder.store(builder.fadd(builder.load(there), write.total(builder.load(one))), there)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(rows, whole, whole, image, shifts, whole, whole, out, whole), generate


sum_shifts: Callable[..., None] = _sum_shifts(ACROSS)
sum_shifts_rest: Callable[..., None] = _sum_shifts(REST)
sum_products: Any = _sum_products
