"""The grid stage: what a normalization pools, and the derivative of that; one code for NumPy and torch.

A *grid* is an array of one number per plane, of a shape that broadcasts to (N, C). A norm's grid function
turns the moments of the planes into an `Affine`, the map `y = scale * (x - center) + shift` of each plane.
Grids are tiny beside the planes, so their derivative is taken by a small reverse-mode tape (`Grid`): code that
writes a grid function in plain arithmetic gets its gradient, on either array library, in the precision of the
grid (float64 on the CPU).

`Moments.pool` merges moments by Chan's formula. With planes of equal size,

    mean = average(mean_i),    var = average(var_i) + average((mean_i - mean)^2),

which never subtracts two large numbers, unlike E[x^2] - E[x]^2.
Chan, Golub & LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np

Array = Any  # a NumPy array or a torch tensor; the two share the arithmetic used here
Value = Any  # an Array, a Grid or a number
_SYMBOLS = "normlab.norms.program"


class NoProgram(TypeError):
    """A grid function does what no instruction does: only the reference backend and torch's operations perform it."""


class Grid:
    """A grid that remembers how it was computed, for reverse-mode differentiation.

    Supports `+ - * /`, `**` by a number, and the functions of this module (`sqrt`, `rsqrt`, `exp`, `maximum`,
    `average`, `stop_gradient`). `value` is the array itself.
    """

    __slots__ = ("tape", "value")
    __array_ufunc__ = None  # so that `ndarray * Grid` comes to Grid.__rmul__

    def __init__(self, value: Array, tape: list[Any]) -> None:
        self.value = value
        self.tape = tape

    def __repr__(self) -> str:
        return f"Grid({self.value!r})"

    def __add__(self, other: Value) -> Grid:
        return _step(self.value + raw(other), (self, lambda g: g), (other, lambda g: g))

    __radd__ = __add__

    def __neg__(self) -> Grid:
        return _step(-self.value, (self, lambda g: -g))

    def __sub__(self, other: Value) -> Grid:
        return _step(self.value - raw(other), (self, lambda g: g), (other, lambda g: -g))

    def __rsub__(self, other: Value) -> Grid:
        return _step(raw(other) - self.value, (self, lambda g: -g))

    def __mul__(self, other: Value) -> Grid:
        if isinstance(other, Affine):
            return NotImplemented  # Affine.__rmul__ takes over
        a, b = self.value, raw(other)
        return _step(a * b, (self, lambda g: g * b), (other, lambda g: g * a))

    __rmul__ = __mul__

    def __truediv__(self, other: Value) -> Grid:
        a, b = self.value, raw(other)
        ratio = a / b
        return _step(ratio, (self, lambda g: g / b), (other, lambda g: -(g / b) * ratio))

    def __rtruediv__(self, other: Value) -> Grid:
        a, b = raw(other), self.value
        ratio = a / b
        return _step(ratio, (self, lambda g: -(g / b) * ratio))

    def __pow__(self, power: float) -> Grid:
        a = self.value
        return _step(a**power, (self, lambda g: g * (power * a ** (power - 1))))


def raw(v: Value) -> Any:
    """The array (or number) behind a value."""
    return v.value if isinstance(v, Grid) else v


def sqrt(v: Value) -> Any:
    """Square root of a grid."""
    root = library(raw(v)).sqrt(raw(v))
    return _record(root, (v, lambda g: g / (2 * root)))


def rsqrt(v: Value) -> Any:
    """One over the square root of a grid."""
    a = raw(v)
    root = library(a).rsqrt(a) if hasattr(library(a), "rsqrt") else 1 / np.sqrt(a)
    return _record(root, (v, lambda g: g * (root * root) * (-0.5 * root)))


def exp(v: Value) -> Any:
    """Exponential of a grid."""
    power = library(raw(v)).exp(raw(v))
    return _record(power, (v, lambda g: g * power))


def maximum(v: Value, bound: Value) -> Any:
    """The larger of a grid and a number or another grid; the derivative is that of the one that wins."""
    a, b = raw(v), raw(bound)
    keep = a > b
    return _record(_larger(a, b), (v, lambda g: g * keep), (bound, lambda g: g - g * keep))


def minimum(v: Value, bound: Value) -> Any:
    """The smaller of a grid and a number or another grid; the derivative is that of the one that wins."""
    return -maximum(-v, -bound)


def stop_gradient(v: Value) -> Any:
    """The same numbers, taken as constants by the derivative: this tape's, and torch's."""
    a = raw(v)
    return a.detach() if hasattr(a, "detach") else a


def average(v: Value, over: str, groups: int = 1, *, parts: int = 1) -> Any:
    """Mean of a grid over the samples ("n", shape (1, C)) or over the channels of each group ("c").

    Over the channels of one group the shape is (N, 1); of several, (N, C) with the group's mean repeated; of several
    `parts` of the samples, (N, C) with the part's mean repeated. The parts are those of `torch.chunk`: samples that
    follow each other, as many in each as in the first, fewer in the last where they do not divide. Raises ValueError
    for other words, for groups of samples or parts of channels, and for groups that do not divide the channels.
    """
    a = raw(v)
    _check_pooling("average", over, groups, a.shape[1], parts)
    if a.shape[0 if over == "n" else 1] == 1:
        return v
    if parts > 1:  # as with groups
        return _record(_part_mean(a, parts), (v, lambda g: _part_mean(g, parts)))
    if over == "n":
        return _record(a.mean(0, keepdims=True), (v, lambda g: _broadcast(g / a.shape[0], a.shape)))
    if groups == 1:
        return _record(a.mean(1, keepdims=True), (v, lambda g: _broadcast(g / a.shape[1], a.shape)))
    # averaging and repeating is a symmetric projection: it is its own transpose
    return _record(_group_mean(a, groups), (v, lambda g: _group_mean(g, groups)))


@dataclass(frozen=True)
class Affine:
    """The map `y = scale * (x - center) + shift` of every plane; fields broadcast to (N, C).

    Maps can be added, and multiplied by a number per plane: a norm may mix other norms.
    """

    scale: Value
    center: Value = 0.0
    shift: Value = 0.0

    __array_ufunc__: ClassVar[None] = None  # so that `ndarray * Affine` comes to __rmul__

    def __add__(self, other: Affine) -> Affine:
        # Keep the finer centre: moving an instance-normalized plane to the batch's centre would add and
        # subtract a number that can be much larger than the plane's own spread.
        fine, coarse = (self, other) if _size(self.center) >= _size(other.center) else (other, self)
        moved = coarse.shift + coarse.scale * (fine.center - coarse.center)
        return Affine(fine.scale + coarse.scale, fine.center, fine.shift + moved)

    def __mul__(self, weight: Value) -> Affine:
        return Affine(weight * self.scale, self.center, weight * self.shift)

    __rmul__ = __mul__


class Moments:
    """Mean and biased variance of the planes, and what they pool to.

    `mean` and `var` broadcast to (N, C) and are measured when first asked for (batch norm in evaluation never
    asks); `count` is how many elements each number stands for (of parts of the samples, those of the first), or a
    grid of that where planes have different numbers of them: they are then pooled by their weight.
    """

    def __init__(
        self,
        measure: Callable[[], tuple[Value, Value]],
        shape: tuple[int, int],
        count: int,
        *,
        training: bool = True,
        running: tuple[Array, Array] | None = None,
        root: Moments | None = None,
    ) -> None:
        self._measure = measure
        self._measured: tuple[Value, Value] | None = None
        self.over_batch: list[Moments] = []
        self._pools: dict[tuple[str, int, int], Moments] = {}
        self.parts = 1  # of the samples, that this is pooled over
        self._root = root or self
        self.shape = shape
        self.count = count
        self.training = training
        self.running = running

    @property
    def mean(self) -> Any:
        return self._numbers()[0]

    @property
    def var(self) -> Any:
        return self._numbers()[1]

    @property
    def batch(self) -> tuple[Array, Array, int] | None:
        """(mean, biased variance, count) that a pooling over the batch found, or None if there was none."""
        if not self.over_batch:
            return None
        pooled = self.over_batch[0]
        mean, var = raw(pooled.mean), raw(pooled.var)
        if pooled.parts > 1:  # what the parts have on average
            mean, var = mean.mean(0, keepdims=True), var.mean(0, keepdims=True)
        return mean, var, pooled.count

    def pool(self, over: str, groups: int = 1, *, parts: int = 1) -> Moments:
        """Moments pooled over the samples ("n"), those of each of `parts`, or the channels of each of `groups` ("c").

        A pooling over the samples is what running statistics stand in for in evaluation: given `running`,
        it returns those. There is one set of them, so a norm that keeps them may pool over the samples in one way
        only (`normlab.norms.application` sees to it).
        """
        _check_pooling("pool", over, groups, self.shape[1], parts)
        if over == "n" and not self.training and self.running is not None:
            mean, var = self.running
            return Moments(lambda: (mean, var), self.shape, self.count)
        key = over, groups, parts
        if key not in self._pools:
            merged = part_size(self.shape[0], parts) if over == "n" else self.shape[1] // groups
            pooled = self if merged == 1 else self._pool(over, groups, parts, merged)
            self._pools[key] = pooled
            if over == "n":
                self._root.over_batch.append(pooled)
                pooled.parts = parts
        return self._pools[key]

    def _pool(self, over: str, groups: int, parts: int, merged: int) -> Moments:
        counts = _counts(self.count)
        share: Any = 1.0 if counts is None else counts / maximum(average(counts, over, groups, parts=parts), _LEAST)

        def merge() -> tuple[Value, Value]:
            mean = average(self.mean if counts is None else share * self.mean, over, groups, parts=parts)
            between = self.mean - mean
            spread = self.var + between * between
            return mean, average(spread if counts is None else share * spread, over, groups, parts=parts)

        count = (self.count if counts is None else average(counts, over, groups, parts=parts)) * merged
        return Moments(merge, self.shape, count, training=self.training, running=self.running, root=self._root)

    def _numbers(self) -> tuple[Value, Value]:
        if self._measured is None:
            self._measured = self._measure()
        return self._measured


_LEAST = 1e-12  # elements: where there are none, moments are zero


def _counts(count: Any) -> Any:
    """The numbers of elements of the planes if they differ, a grid; None where all have the same."""
    return count if len(getattr(count, "shape", ())) == 2 and not hasattr(count, "register") else None


def part_size(samples: int, parts: int) -> int:
    """How many samples are in each of the parts, but for the last: as `torch.chunk` cuts them."""
    return -(-samples // parts)


def parts_of(samples: int, size: int, parts: int | None = None) -> int:
    """How many parts the samples are in: as many as are asked for, or else what makes them of `size` samples."""
    return parts or max(1, -(-samples // size))


def _check_pooling(name: str, over: str, groups: int, channels: int, parts: int = 1) -> None:
    """Raise ValueError for a pooling that there is not; a grid that is the same for all channels has any groups."""
    if over not in ("n", "c"):
        raise ValueError(f"{name}: over={over!r}; expected 'n' (samples) or 'c' (channels)")
    if over == "n" and groups != 1:
        raise ValueError(f"{name}: groups={groups} of samples; only channels have groups; samples have parts={groups}")
    if not (isinstance(parts, int) and parts >= 1):
        raise ValueError(f"{name}: parts={parts!r}; expected a number of parts of the samples, 1 or more")
    if over == "c" and parts != 1:
        raise ValueError(f"{name}: parts={parts} of channels; only samples have parts; channels have groups={parts}")
    if over == "c" and not (isinstance(groups, int) and groups >= 1):
        raise ValueError(f"{name}: groups={groups!r}; expected a number of groups, 1 or more")
    if over == "c" and channels > 1 and channels % groups:
        raise ValueError(
            f"{name}: {channels} channels do not divide into groups={groups}; "
            "choose a divisor of the number of channels"
        )


def standardize(m: Moments, p: SimpleNamespace) -> Affine:
    """The map to mean `bias` and standard deviation `weight`: weight * (x - mean) / sqrt(var + eps) + bias."""
    return Affine(p.weight * rsqrt(m.var + p.eps), m.mean, p.bias)


def pull_back(tape: list[Any], seeds: list[tuple[Value, Array]]) -> Callable[[Value], Any]:
    """Vector-Jacobian product: from cotangents of some values, the cotangent of any value on the tape.

    Returns a function `Grid -> array`, None where nothing depends on that grid.
    """
    cotangents: dict[int, Array] = {}

    def add(target: Value, g: Array) -> None:
        if isinstance(target, Grid):
            g = _unbroadcast(g, target.value.shape)
            known = cotangents.get(id(target))
            cotangents[id(target)] = g if known is None else known + g

    for target, g in seeds:
        add(target, g)
    for result, inputs in reversed(tape):
        g = cotangents.get(id(result))
        if g is not None:
            for target, pull in inputs:
                add(target, pull(g))
    return lambda v: cotangents.get(id(v))


def update_running(
    running: tuple[Array, Array],
    batch: tuple[Array, Array, Any],
    momentum: float,
    *,
    unbiased: bool = True,
) -> None:
    """In place, `running = (1 - momentum) * running + momentum * batch`: torch's convention, weight on the new.

    `batch` is (mean, biased variance, count); with `unbiased` the variance stored is the unbiased one, as torch
    does (Keras, Flax, ONNX and the teaching assignments store the biased one).
    """
    mean, var, count = batch
    if unbiased:
        if len(getattr(count, "shape", ())) == 2:  # the same for every channel
            count = float(count[0, 0])
        var = var * (count / max(count - 1, 1))
    for old, new in zip(running, (mean, var), strict=True):
        old *= 1 - momentum
        old += momentum * new.reshape(-1)  # one number for all channels is repeated


def _record(result: Array, *inputs: tuple[Value, Callable[[Array], Array]]) -> Any:
    """A Grid if any input is one, else the bare result."""
    return _step(result, *inputs) if any(isinstance(value, Grid) for value, _ in inputs) else result


def _step(result: Array, *inputs: tuple[Value, Callable[[Array], Array]]) -> Grid:
    """The result of an operation of Grids, which its tape remembers."""
    grids = tuple(pair for pair in inputs if isinstance(pair[0], Grid))
    out = Grid(result, grids[0][0].tape)
    out.tape.append((out, grids))
    return out


def library(a: Array) -> Any:
    """The array library that a belongs to: numpy, torch, or the symbols of `normlab.norms.program`."""
    home = type(a).__module__
    if home == _SYMBOLS:
        return sys.modules[home]
    is_tensor = home == "torch" or home.startswith("torch.") or hasattr(a, "requires_grad")  # or a subclass
    return sys.modules["torch"] if is_tensor else np


def _broadcast(a: Array, shape: tuple[int, ...]) -> Array:
    return library(a).broadcast_to(a, shape)


def _group_mean(a: Array, groups: int) -> Array:
    if hasattr(a, "group_mean"):
        return a.group_mean(groups)
    n, channels = a.shape
    mean = a.reshape(n, groups, channels // groups).mean(2, keepdims=True)
    return _broadcast(mean, (n, groups, channels // groups)).reshape(n, channels)


def _part_mean(a: Array, parts: int) -> Array:
    if type(a).__module__ == _SYMBOLS:
        raise NoProgram("no instruction of a program averages over parts of the samples")
    size = part_size(a.shape[0], parts)
    pieces = [a[start : start + size] for start in range(0, a.shape[0], size)]
    return library(a).concatenate([_broadcast(v.mean(0, keepdims=True), v.shape) for v in pieces])


def _larger(a: Array, b: Value) -> Array:
    """The larger of each pair of numbers; `a` is an array, and has the shape of the result unless `b` does."""
    shape = getattr(b, "shape", ())
    if len(shape) == 2 and tuple(shape) != tuple(a.shape):
        wide = tuple(max(p, q) for p, q in zip(a.shape, shape, strict=True))
        a, b = _broadcast(a, wide), _broadcast(b, wide)
    return a.clip(min=b)


def _size(v: Value) -> int:
    shape = getattr(raw(v), "shape", ())
    return int(np.prod(shape))


def _unbroadcast(g: Array, shape: tuple[int, ...]) -> Array:
    for axis in (0, 1):
        if shape[axis] == 1 and g.shape[axis] != 1:
            g = g.sum(axis, keepdims=True)
    return g
