"""The kit's own result, in float64 NumPy: what a normalization layer ought to return.

Every member of the family is computed on one grid. An input is viewed as (N, G, K, S): N samples, G groups of
K channels, S positions. Batch norm pools a group's values over N, K and S; the others over K and S:

    mean = pool(x)      var = pool((x - mean)^2)      xhat = (x - mean) / sqrt(var + eps)
    y    = weight * xhat + bias
    dx   = (g - pool(g) - xhat * pool(g * xhat)) / sqrt(var + eps),      g = weight * dy

Each stage is a function of `Stages`, so that a *wrong* formula is a right one with a stage exchanged, and two slips
at once are two stages exchanged (see slips/). Nothing here is shared with the layers under test, ours included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
KINDS = ("batch", "layer", "instance", "group", "batch-instance", "rms")


@dataclass(frozen=True)
class Stages:
    """The formulas of the forward pass that are not the right ones; None is the right one.

    `axes` are the pooled axes of (N, G, K, *positions), for that many axes of positions; `center` gives x - mean,
    `spread` the variance, `deviation` what is divided by, `standardize` all three together. `weigh` applies the weight,
    `shift` the bias, `scale` both. `inner` is the call that is made in place of this one, and `outer` makes the output
    of that call's.
    """

    axes: Callable[[int], tuple[int, ...]] | None = None
    mean: Callable[[Pass], Array] | None = None
    center: Callable[[Pass], Array] | None = None
    spread: Callable[[Pass], Array] | None = None
    deviation: Callable[[Pass], Array] | None = None
    standardize: Callable[[Pass], Array] | None = None
    mix: Callable[[Array, Array, Array, Case], Array] | None = None
    weigh: Callable[[Array, Array], Array] | None = None
    shift: Callable[[Array, Array], Array] | None = None
    scale: Callable[[Array, Array, Array], Array] | None = None
    inner: Callable[[Case], Case] | None = None
    outer: Callable[[Case, Array], Array] | None = None

    @property
    def elsewhere(self) -> bool:
        """Whether another call is made than the one that was asked for."""
        return self.inner is not None or self.outer is not None

    def over(self, right: Stages) -> Stages:
        """These stages, and those of `right` where they say nothing."""
        mine = {f.name: getattr(self, f.name) for f in fields(Stages)}
        return replace(right, **{name: stage for name, stage in mine.items() if stage is not None})

    def together(self, other: Stages) -> Stages | None:
        """Both slips at once; None where they are about the same stage."""
        mine, others = ({f.name: getattr(s, f.name) for f in fields(Stages)} for s in (self, other))
        twice = any(mine[k] is not None and others[k] is not None for k in mine)
        scales = (mine["scale"] and (other.weigh or other.shift)) or (others["scale"] and (self.weigh or self.shift))
        if twice or scales or (self.elsewhere and other.elsewhere):
            return None
        return Stages(**{k: others[k] if v is None else v for k, v in mine.items()})


RIGHT = Stages()
InputGradient = Callable[["Pass", Array, Array], Array]


@dataclass(frozen=True)
class Recipe:
    """What a correct layer computes: the kind of normalization and the dialect's free choices.

    `momentum` is always the weight of the *new* batch, of the first one where the statistics are `cumulative`, the
    average over all batches. In relatives of a kind, `own` and `own_dx` are right formulas that are not the kind's,
    `own_gate` makes a gate that is no parameter, from the number of channels, `formula` has their words, and `centred`
    is false where no mean is taken off. `over` matters for layer and RMS norm alone: "sample"
    pools over all but the batch axis, "channels" over the channel axis at each position, "trailing" over the
    last `trailing` axes.
    """

    kind: str
    channels: int
    groups: int = 1
    eps: float = 1e-5
    momentum: float = 0.1
    unbiased_running_var: bool = True
    tracks: bool = False
    channel_axis: int = 1
    over: str = "sample"
    trailing: int = 1
    cumulative: bool = False
    centred: bool = True
    own: Stages = RIGHT
    own_dx: InputGradient | None = None
    own_gate: Callable[[int], Array] | None = None
    formula: str = ""

    @property
    def centers(self) -> bool:
        return self.kind != "rms" and self.centred

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the (N, G, K, S) grid that the statistics are taken over."""
        return (0, 2, 3) if self.kind in ("batch", "batch-instance") else (2, 3)

    def at_step(self, step: int) -> Recipe:
        """The recipe for the batch after `step` others: in a cumulative average its weight is 1 / (step + 1)."""
        return replace(self, momentum=1 / (step + 1)) if self.cumulative else self

    @property
    def group_count(self) -> int:
        return {"group": self.groups, "layer": 1, "rms": 1}.get(self.kind, self.channels)

    def spatial(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of the positions' axes of an input of this shape."""
        if self.over != "sample":
            return (1,)
        return tuple(s for i, s in enumerate(shape) if i not in (0, self.channel_axis % len(shape))) or (1,)

    def to_grid(self, a: NDArray[Any]) -> Array:
        """View `a` as (N, G, K, S) in float64."""
        a = np.asarray(a, dtype=np.float64)
        if self.over == "trailing":
            leading = a.ndim - self.trailing
            return a.reshape(int(np.prod(a.shape[:leading])), 1, int(np.prod(a.shape[leading:])), 1)
        a = np.moveaxis(a, self.channel_axis, 1)
        if self.over == "channels":
            a = np.moveaxis(a, 1, -1)
            return a.reshape(-1, 1, a.shape[-1], 1)
        groups = self.group_count
        return a.reshape(a.shape[0], groups, a.shape[1] // groups, int(np.prod(a.shape[2:])))

    def from_grid(self, grid: Array, shape: tuple[int, ...]) -> Array:
        """Undo `to_grid` for an array of this shape."""
        if self.over == "trailing":
            return grid.reshape(shape)
        channel = self.channel_axis % len(shape)
        moved = (shape[0], shape[channel], *(s for i, s in enumerate(shape) if i not in (0, channel)))
        if self.over == "channels":
            return np.moveaxis(np.moveaxis(grid.reshape(moved[0], *moved[2:], moved[1]), -1, 1), 1, channel)
        return np.moveaxis(grid.reshape(moved), 1, channel)

    def per_channel(self, a: Array) -> Array:
        """A parameter on the grid: (1, G, K, 1)."""
        return np.asarray(a, dtype=np.float64).reshape(1, self.group_count, -1, 1)


@dataclass(frozen=True)
class Case:
    """One call of a layer: input, parameters (None where the layer has none), running statistics, mode."""

    recipe: Recipe
    x: NDArray[Any]
    weight: Array | None = None
    bias: Array | None = None
    gate: Array | None = None
    running: tuple[Array, Array] | None = None
    training: bool = True
    stages: Stages = RIGHT

    @property
    def formulas(self) -> Stages:
        """The stages, and the recipe's own where they are right."""
        return self.stages.over(self.recipe.own)

    @property
    def uses_running(self) -> bool:
        return self.running is not None and not self.training

    def parameter(self, name: str, absent: float) -> Array:
        value: Array | None = getattr(self, name)
        if name == "gate" and value is None and self.recipe.own_gate is not None:
            value = self.recipe.own_gate(self.recipe.channels)
        return np.full((1, 1, 1, 1), absent) if value is None else self.recipe.per_channel(value)

    def passes(self) -> list[Pass]:
        """The standardizations that the output mixes: one, or batch and instance."""
        grid = self.recipe.to_grid(self.x)
        spatial = self.recipe.spatial(self.x.shape)

        def made(axes: tuple[int, ...], running: tuple[Array, Array] | None) -> Pass:
            pooled = self.stages.axes(len(spatial)) if self.stages.axes else axes
            return Pass(grid, self.recipe, pooled, running, self.formulas, spatial)

        first = made(self.recipe.axes, self.grid_running())
        return [first] if self.recipe.kind != "batch-instance" else [first, made((2, 3), None)]

    def grid_running(self) -> tuple[Array, Array] | None:
        if not self.uses_running:
            return None
        assert self.running is not None
        mean, var = (self.recipe.per_channel(r) for r in self.running)
        return mean, var

    def with_x(self, x: NDArray[Any]) -> Case:
        return replace(self, x=x)


class Pass:
    """One standardization and its intermediate values, each (N, G, K, S) or pooled to ones."""

    def __init__(
        self,
        x: Array,
        recipe: Recipe,
        axes: tuple[int, ...],
        running: tuple[Array, Array] | None,
        stages: Stages = RIGHT,
        spatial: tuple[int, ...] = (1,),
    ) -> None:
        self.x, self.recipe, self.axes, self.running = x, recipe, axes, running
        self.stages, self.spatial = stages, spatial
        self.eps = recipe.eps
        self.whole = self.stages.axes is None  # axes of the grid, all positions in one
        shape = x.shape if self.whole else (*x.shape[:3], *spatial)
        self.count = int(np.prod([shape[a] for a in axes]))

    def as_written(self) -> Pass:
        """The same values by the right formulas, pooled over the same axes."""
        return Pass(
            self.x, self.recipe, self.axes, self.running, replace(self.recipe.own, axes=self.stages.axes), self.spatial
        )

    def without_running(self) -> Pass:
        """The same without running statistics."""
        return Pass(self.x, self.recipe, self.axes, None, self.stages, self.spatial)

    def pool(self, a: Array) -> Array:
        """The mean over the pooled axes, kept as axes of length one where all positions are pooled or none."""
        if self.whole:
            return a.mean(axis=self.axes, keepdims=True)
        split = np.broadcast_to(a, self.x.shape).reshape(*self.x.shape[:3], *self.spatial)
        pooled = split.mean(axis=self.axes, keepdims=True)
        full = np.broadcast_to(pooled, (*pooled.shape[:3], *self.spatial))
        return full.reshape(*pooled.shape[:3], self.x.shape[3])

    @cached_property
    def mean(self) -> Array:
        if self.running is not None:
            return self.running[0] if self.recipe.centers else np.zeros((1, 1, 1, 1))
        if self.stages.mean is not None:
            return self.stages.mean(self)
        return self.right_mean

    @cached_property
    def right_mean(self) -> Array:
        """The mean of the pool, zero in RMS norm."""
        if not self.recipe.centers:
            return np.zeros((1, 1, 1, 1))
        first = self.pool(self.x)
        return first + self.pool(self.x - first)  # the second pass removes the first one's rounding

    @cached_property
    def centred(self) -> Array:
        return self.x - self.mean if self.stages.center is None else self.stages.center(self)

    @cached_property
    def biased(self) -> Array:
        """The mean of the squared deviations from the mean, whatever `spread` says."""
        return self.running[1] if self.running is not None else self.pool((self.x - self.mean) ** 2)

    @cached_property
    def var(self) -> Array:
        return self.biased if self.stages.spread is None else self.stages.spread(self)

    @cached_property
    def std(self) -> Array:
        return np.sqrt(self.var + self.eps) if self.stages.deviation is None else self.stages.deviation(self)

    @cached_property
    def xhat(self) -> Array:
        return self.centred / self.std if self.stages.standardize is None else self.stages.standardize(self)


def right_dx(p: Pass, dy: Array, weight: Array) -> Array:
    g = dy * weight
    if p.running is not None:
        return g / p.std
    mean_share = p.pool(g) if p.recipe.centers else 0.0
    return (g - mean_share - p.xhat * p.pool(g * p.xhat)) / p.std


def forward(case: Case) -> Array:
    """The layer's output, or what it would be with the case's stages in place of the right ones."""
    stages = case.stages
    if stages.elsewhere:
        plain = replace(case, stages=replace(stages, inner=None, outer=None))
        y = forward(stages.inner(plain) if stages.inner else plain)
        return stages.outer(plain, y) if stages.outer else y
    return scaled(case, mixed(case))


def scaled(case: Case, xhat: Array) -> Array:
    """The output: xhat on the grid times weight plus bias."""
    weight, bias = case.parameter("weight", 1.0), case.parameter("bias", 0.0)
    stages = case.stages
    if stages.scale is not None:
        y = stages.scale(xhat, weight, bias)
    else:
        weighed = weight * xhat if stages.weigh is None else stages.weigh(xhat, weight)
        y = weighed + bias if stages.shift is None else stages.shift(weighed, bias)
    return case.recipe.from_grid(np.broadcast_to(y, xhat.shape), case.x.shape)


def bare(case: Case) -> Case:
    """The same case before weight and bias."""
    return replace(case, weight=None, bias=None, stages=replace(case.stages, scale=None, weigh=None, shift=None))


def mixed(case: Case) -> Array:
    """xhat on the grid, before weight and bias."""
    passes = case.passes()
    standardized = [np.broadcast_to(p.xhat, p.x.shape) for p in passes]
    if len(passes) == 1:
        return standardized[0]
    gate, (batch, instance) = case.parameter("gate", 1.0), standardized
    mix = case.formulas.mix
    return gate * batch + (1 - gate) * instance if mix is None else mix(gate, batch, instance, case)


def input_gradient(case: Case, dy: NDArray[Any], dx: InputGradient = right_dx) -> Array:
    """dL/dx for dL/dy = dy."""
    if dx is right_dx and case.recipe.own_dx is not None:
        dx = case.recipe.own_dx
    grid = case.recipe.to_grid(dy)
    weight = case.parameter("weight", 1.0)
    passes = case.passes()
    if len(passes) == 1:
        total = dx(passes[0], grid, weight)
    else:
        gate = case.parameter("gate", 1.0)
        total = dx(passes[0], grid * gate, weight) + dx(passes[1], grid * (1 - gate), weight)
    return case.recipe.from_grid(np.broadcast_to(total, grid.shape), case.x.shape)


def per_channel_sum(a: Array) -> Array:
    return a.sum(axis=(0, 3)).reshape(-1)


def _shared(sums: Array, parameter: Array) -> Array:
    """Sums per channel as those of a parameter that neighbouring channels share."""
    return sums.reshape(parameter.size, -1).sum(axis=1)


def parameter_gradients(case: Case, dy: NDArray[Any]) -> dict[str, Array]:
    """Gradients of the parameters that the case has, each flattened: (C,), or fewer where channels share them."""
    grid = case.recipe.to_grid(dy)
    out = {}
    if case.weight is not None:
        out["weight"] = _shared(per_channel_sum(grid * mixed(case)), case.weight)
    if case.bias is not None:
        out["bias"] = _shared(per_channel_sum(grid), case.bias)
    if case.gate is not None:
        batch, instance = (p.xhat for p in case.passes())
        out["gate"] = per_channel_sum(grid * case.parameter("weight", 1.0) * (batch - instance))
    return out


def updated_running(case: Case) -> tuple[Array, Array]:
    """Running mean and variance, each (C,), after one training step on the case."""
    assert case.running is not None
    mean, var, count = batch_moments(case)
    correction = count / max(count - 1, 1) if case.recipe.unbiased_running_var else 1.0
    m = case.recipe.momentum
    return (1 - m) * case.running[0] + m * mean, (1 - m) * case.running[1] + m * var * correction


def batch_moments(case: Case) -> tuple[Array, Array, int]:
    """Mean and biased variance per channel that a training step sees, (C,) each, and their count."""
    case = replace(case, training=True)
    if case.stages.inner is not None:
        return batch_moments(case.stages.inner(replace(case, stages=replace(case.stages, inner=None, outer=None))))
    p = case.passes()[0]
    shape = (1, *p.x.shape[1:3], 1)  # torch averages the statistics of instances over the batch
    mean, var = (np.broadcast_to(m.mean(axis=(0, 3), keepdims=True), shape).reshape(-1) for m in (p.mean, p.var))
    return mean, var, p.count


def exact_forward(case: Case, digits: int = 60) -> Array:
    """`forward` in `digits` decimal digits (mpmath): for inputs where float64 itself may cancel or underflow."""
    mpmath = import_module("mpmath")

    def standardize(p: Pass) -> Array:
        out = np.empty(p.x.shape)
        with mpmath.workdps(digits):
            for index, members in _pools(p.x.shape, p.axes):
                values = [mpmath.mpf(float(v)) for v in p.x[members].ravel()]
                n = len(values)
                mean = mpmath.fsum(values) / n if p.recipe.centers else mpmath.mpf(0)
                var = mpmath.fsum((v - mean) ** 2 for v in values) / n
                if p.running is not None:
                    mean, var = (mpmath.mpf(float(r[0, index[1], 0, 0])) for r in p.running)
                std = mpmath.sqrt(var + mpmath.mpf(p.eps))
                out[members] = np.array([float((v - mean) / std) for v in values]).reshape(out[members].shape)
        return out

    return forward(replace(case, stages=replace(case.stages, standardize=standardize)))


def _pools(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[slice | int, ...]]]:
    """Every pool of the grid: its index (0 on pooled axes) and the indexing that picks its members."""
    kept = [range(1) if i in axes else range(s) for i, s in enumerate(shape)]
    mesh = np.stack(np.meshgrid(*kept, indexing="ij"), -1).reshape(-1, len(shape))
    return [
        (tuple(map(int, m)), tuple(slice(None) if i in axes else slice(int(m[i]), int(m[i]) + 1) for i in range(4)))
        for m in mesh
    ]
