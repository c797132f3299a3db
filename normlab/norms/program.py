"""A grid function as data: the list of its arithmetic, forward and backward, for a compiled backend to perform.

`trace` applies a recipe to symbols instead of numbers and writes down what it does. A program works on
registers, each one number per channel for one sample or for all; a number per sample or a bare one is a row of
equal numbers, so that every instruction is a loop over channels. Programs that never look across samples can be
run sample by sample, between the reading and the writing of that sample (`across_samples` is False).

Because a program is data, one compiled kernel serves the whole family, and every norm that a user invents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from normlab.norms.application import Application, Recipe
from normlab.norms.grid import Affine, Grid

OPS = (
    "add", "sub", "mul", "div", "pow", "max", "greater", "sqrt", "rsqrt", "exp", "mean_n", "sum_n", "mean_c", "sum_c",
)  # fmt: skip
_KEPT = 256  # shapes of one recipe
_CODE = {name: i for i, name in enumerate(OPS)}

# registers that a backend fills before it runs a program, in this order; then parameters, then constants
INPUTS = ("mean", "var", "sum_g", "sum_gx", "scale", "center", "running_mean", "running_var", "size", "eps")


@dataclass(frozen=True)
class Program:
    """Instructions (op, out, a, b, argument, varies) over registers; `varies` has a bit for out, a and b each:
    whether that register holds a row per sample or one row for all. `outputs` has (register, varies) of each."""

    code: np.ndarray
    registers: int
    constants: np.ndarray
    outputs: np.ndarray
    across_samples: bool

    @cached_property
    def by_sample(self) -> np.ndarray:
        """The code with every register holding a row per sample, for a program that stays within samples."""
        code = self.code.copy()
        code[:, 5] = 7
        return code


@dataclass(frozen=True)
class Programs:
    """Both directions of a recipe.

    forward returns (scale, center, shift, batch mean, batch variance); backward (b, c, a gradient per sample for
    each parameter). `measures` says whether the moments are needed, `linear` that dx = scale * g, and
    `pools_batch` that the batch mean and variance are there for running statistics.
    """

    forward: Program
    backward: Program
    measures: bool
    linear: bool
    pools_batch: bool


class Symbol:
    """Stands for an array (N or 1, C or 1) while a grid function is traced."""

    __array_ufunc__ = None

    def __init__(self, trace: _Trace, register: int, shape: tuple[int, int], varies: bool) -> None:
        self.trace, self.register, self.shape, self.varies = trace, register, shape, varies

    def __add__(self, other: Any) -> Symbol:
        return self.trace.record("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.trace.record("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.trace.record("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.trace.record("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.trace.record("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.trace.record("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.trace.record("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.trace.record("div", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return self.trace.record("pow", self, other)

    def __neg__(self) -> Symbol:
        return self.trace.record("mul", self, -1.0)

    def __gt__(self, other: Any) -> Symbol:
        return self.trace.record("greater", self, other)

    def __bool__(self) -> bool:
        raise TypeError("a grid function must not branch on the values of grids; use normlab.norms.grid.maximum")

    def mean(self, axis: int, keepdims: bool) -> Symbol:
        return self.trace.record("mean_n" if axis == 0 else "mean_c", self, None, axis=axis, argument=1)

    def sum(self, axis: int, keepdims: bool) -> Symbol:
        return self.trace.record("sum_n" if axis == 0 else "sum_c", self, None, axis=axis, argument=1)

    def clip(self, min: float) -> Symbol:
        return self.trace.record("max", self, min)

    def group_mean(self, groups: int) -> Symbol:
        return self.trace.record("mean_c", self, None, argument=groups)


# what normlab.norms.grid asks of an array library


def sqrt(a: Symbol) -> Symbol:
    return a.trace.record("sqrt", a, None)


def rsqrt(a: Symbol) -> Symbol:
    return a.trace.record("rsqrt", a, None)


def exp(a: Symbol) -> Symbol:
    return a.trace.record("exp", a, None)


def broadcast_to(a: Symbol, shape: tuple[int, int]) -> Symbol:
    return Symbol(a.trace, a.register, shape, a.varies)


def zeros_like(a: Symbol) -> Symbol:
    return a.trace.constant(0.0)


def trace(recipe: Recipe, samples: int, channels: int) -> Programs:
    """Both programs of a recipe on this many samples and channels; raises TypeError if it branches on values."""
    known = recipe.traced.get((samples, channels))
    if known is None:
        if len(recipe.traced) >= _KEPT:
            recipe.traced.clear()
        known = recipe.traced[samples, channels] = _trace(recipe, samples, channels)
    return known


def _trace(recipe: Recipe, samples: int, channels: int) -> Programs:
    forward, _ = _trace_recipe(recipe, samples, channels, _forward_outputs)
    pulled: dict[str, bool] = {}

    def backward_outputs(t: _Trace, a: Application) -> list[Symbol]:
        b, c, grads = a.pull(t.inputs["scale"], t.inputs["center"], t.inputs["sum_g"], t.inputs["sum_gx"])
        pulled["linear"] = b is None
        zero = t.constant(0.0)
        return [zero if b is None else b, zero if c is None else c, *(zero if g is None else g for g in grads.values())]

    backward, application = _trace_recipe(recipe, samples, channels, backward_outputs)
    return Programs(
        forward,
        backward,
        measures=bool(application.measured),
        linear=pulled["linear"],
        pools_batch=application.moments.batch is not None,
    )


def _forward_outputs(t: _Trace, a: Application) -> list[Symbol]:
    batch = a.moments.batch
    extra = batch[:2] if batch is not None else ()
    values = [v.value if hasattr(v, "value") else v for v in (a.map.scale, a.map.center, a.map.shift)]
    return [*(v if isinstance(v, Symbol) else t.constant(_number(v)) for v in values), *extra]


def _trace_recipe(
    recipe: Recipe, samples: int, channels: int, outputs: Callable[[_Trace, Application], list[Symbol]]
) -> tuple[Program, Application]:
    t = _Trace(recipe, samples, channels)
    i = t.inputs
    running = (i["running_mean"], i["running_var"]) if recipe.has_running else None
    params = {name: i[name] for name in recipe.names}
    application = Application(
        recipe, lambda: (i["mean"], i["var"]), (samples, channels), i["size"], params, running, i["eps"]
    )
    return t.program(outputs(t, application)), application


def _number(v: Any) -> float:
    """A constant of a grid function; raises TypeError for several numbers."""
    if isinstance(v, list | tuple) or math.prod(getattr(v, "shape", ())) != 1:
        came = f"{type(v).__name__} of {len(v)}" if isinstance(v, list | tuple) else f"array of shape {tuple(v.shape)}"
        raise TypeError(
            f"a grid function computes with grids and single numbers, got one {came}; make it "
            "a parameter of the norm, one number per channel: register_norm(..., parameters={'name': Learned(...)})"
        )
    return float(v.reshape(()) if hasattr(v, "reshape") else v)


class _Trace:
    def __init__(self, recipe: Recipe, samples: int, channels: int) -> None:
        full = (samples, channels)
        # parameters count as a row per sample: their gradient is summed over samples after the program
        shapes = {"running_mean": (1, channels), "running_var": (1, channels), "size": (1, 1), "eps": (1, 1)}
        scalars = {k for k, v in recipe.entry.parameters.items() if not v.per_channel}
        self.inputs = {}
        for register, name in enumerate((*INPUTS, *recipe.names)):
            shape = (samples, 1) if name in scalars else shapes.get(name, full)
            self.inputs[name] = Symbol(self, register, shape, name in INPUTS[:6])
        self.pinned = len(self.inputs)
        self.constants: dict[float, Symbol] = {}
        self.code: list[tuple[int, int, int, int, int, int]] = []
        self.known: dict[tuple[Any, ...], Symbol] = {}
        self.next = 1 << 16  # virtual registers; real ones are dealt out at the end

    def constant(self, number: float) -> Symbol:
        if number not in self.constants:
            self.constants[number] = Symbol(self, -1 - len(self.constants), (1, 1), False)
        return self.constants[number]

    def record(self, op: str, a: Any, b: Any, axis: int | None = None, argument: int = 0) -> Symbol:
        if isinstance(a, Grid | Affine) or isinstance(b, Grid | Affine):
            return NotImplemented  # type: ignore[no-any-return]  # their reflected operators take over
        a = a if isinstance(a, Symbol) else self.constant(_number(a))
        b = a if b is None else b if isinstance(b, Symbol) else self.constant(_number(b))
        key = (op, a.register, b.register, argument, a.shape, b.shape)
        if key not in self.known:
            n, c = (max(p, q) for p, q in zip(a.shape, b.shape, strict=True))
            shape = (1 if axis == 0 else n, 1 if axis == 1 else c)
            varies = (a.varies or b.varies) and axis != 0
            flags = varies + 2 * a.varies + 4 * b.varies
            if op == "sum_c" and a.shape[1] == 1:
                raise AssertionError("a sum over channels of a number per sample")
            self.known[key] = Symbol(self, self.next, shape, varies)
            self.code.append((_CODE[op], self.next, a.register, b.register, argument, flags))
            self.next += 1
        return self.known[key]

    def program(self, outputs: list[Symbol]) -> Program:
        """Drop what no output needs, and deal out registers, using one again when its number is not needed."""
        needed = {s.register for s in outputs}
        live = []
        for instruction in reversed(self.code):
            if instruction[1] in needed:
                needed |= {instruction[2], instruction[3]}
                live.append(instruction)
        live.reverse()
        last = {r: i for i, ins in enumerate(live) for r in ins[2:4]}
        last.update({s.register: len(live) for s in outputs})
        constants = list(self.constants)
        real = {s.register: s.register for s in self.inputs.values()}
        real.update({s.register: self.pinned + i for i, s in enumerate(self.constants.values())})
        count = fixed = self.pinned + len(constants)
        free: list[int] = []
        code = np.zeros((len(live), 6), np.int64)
        for i, (op, out, a, b, argument, flags) in enumerate(live):
            operands = (real[a], real[b])
            if free:
                real[out] = free.pop()
            else:
                real[out], count = count, count + 1
            free += [real[r] for r in {a, b} if last[r] == i and real[r] >= fixed]
            code[i] = op, real[out], *operands, argument, flags
        across = any(OPS[row[0]] in ("mean_n", "sum_n") for row in code)
        results = np.array([(real[s.register], s.varies) for s in outputs], np.int64)
        return Program(code, count, np.array(constants, np.float64), results, across)
