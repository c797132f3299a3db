"""The kit's own answer, in float64 NumPy: what a normalization layer ought to return.

Every member of the family is computed on one grid. An input is viewed as (N, G, K, S): N samples, G groups of
K channels, S positions. Batch norm pools a group's values over N, K and S; the others over K and S:

    mean = pool(x)      var = pool((x - mean)^2)      xhat = (x - mean) / sqrt(var + eps)
    y    = weight * xhat + bias
    dx   = (g - pool(g) - xhat * pool(g * xhat)) / sqrt(var + eps),      g = weight * dy

Each stage is a function that may be handed in, so that a *wrong* formula is a right one with a stage exchanged
(see slips/). Nothing here is shared with the layers under test, ours included.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
KINDS = ("batch", "layer", "instance", "group", "batch-instance", "rms")


@dataclass(frozen=True)
class Recipe:
    """What a correct layer computes: the kind of normalization and the dialect's free choices.

    `momentum` is always the weight of the *new* batch. `over` matters for layer and RMS norm alone: "sample"
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

    @property
    def centers(self) -> bool:
        return self.kind != "rms"

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes of the (N, G, K, S) grid that the statistics are taken over."""
        return (0, 2, 3) if self.kind in ("batch", "batch-instance") else (2, 3)

    @property
    def group_count(self) -> int:
        return {"group": self.groups, "layer": 1, "rms": 1}.get(self.kind, self.channels)

    def to_grid(self, a: NDArray) -> Array:
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
    x: NDArray
    weight: Array | None = None
    bias: Array | None = None
    gate: Array | None = None
    running: tuple[Array, Array] | None = None
    training: bool = True

    @property
    def uses_running(self) -> bool:
        return self.running is not None and not self.training

    def parameter(self, name: str, absent: float) -> Array:
        value: Array | None = getattr(self, name)
        return np.full((1, 1, 1, 1), absent) if value is None else self.recipe.per_channel(value)

    def passes(self) -> list[Pass]:
        """The standardizations that the output mixes: one, or batch and instance."""
        grid = self.recipe.to_grid(self.x)
        first = Pass(grid, self.recipe, self.recipe.axes, self.grid_running())
        if self.recipe.kind != "batch-instance":
            return [first]
        return [first, Pass(grid, self.recipe, (2, 3), None)]

    def grid_running(self) -> tuple[Array, Array] | None:
        if not self.uses_running:
            return None
        assert self.running is not None
        mean, var = (self.recipe.per_channel(r) for r in self.running)
        return mean, var

    def with_x(self, x: NDArray) -> Case:
        return replace(self, x=x)


class Pass:
    """One standardization and its intermediate values, each (N, G, K, S) or pooled to ones."""

    def __init__(self, x: Array, recipe: Recipe, axes: tuple[int, ...], running: tuple[Array, Array] | None) -> None:
        self.x, self.recipe, self.axes, self.running = x, recipe, axes, running
        self.eps = recipe.eps
        self.count = int(np.prod([x.shape[a] for a in axes]))

    def over(self, *axes: int) -> Pass:
        """The same values pooled over other axes (a wrong formula needs that)."""
        return Pass(self.x, self.recipe, axes, self.running)

    def pool(self, a: Array) -> Array:
        return a.mean(axis=self.axes, keepdims=True)

    @cached_property
    def mean(self) -> Array:
        if self.running is not None:
            return self.running[0]
        if not self.recipe.centers:
            return np.zeros((1, 1, 1, 1))
        first = self.pool(self.x)
        return first + self.pool(self.x - first)  # the second pass removes the first one's rounding

    @cached_property
    def centred(self) -> Array:
        return self.x - self.mean

    @cached_property
    def var(self) -> Array:
        return self.running[1] if self.running is not None else self.pool(self.centred**2)

    @cached_property
    def std(self) -> Array:
        return np.sqrt(self.var + self.eps)

    @cached_property
    def xhat(self) -> Array:
        return self.centred / self.std


Standardize = Callable[[Pass], Array]
Scale = Callable[[Array, Array, Array], Array]
Mix = Callable[[Array, Array, Array], Array]
InputGradient = Callable[[Pass, Array, Array], Array]
ParameterGradient = Callable[[Array, "Case", Array], Array]


def right_standardize(p: Pass) -> Array:
    return p.xhat


def right_scale(xhat: Array, weight: Array, bias: Array) -> Array:
    return weight * xhat + bias


def right_mix(gate: Array, batch: Array, instance: Array) -> Array:
    return gate * batch + (1 - gate) * instance


def right_dx(p: Pass, dy: Array, weight: Array) -> Array:
    g = dy * weight
    if p.running is not None:
        return g / p.std
    mean_share = p.pool(g) if p.recipe.centers else 0.0
    return (g - mean_share - p.xhat * p.pool(g * p.xhat)) / p.std


def forward(
    case: Case,
    standardize: Standardize = right_standardize,
    scale: Scale = right_scale,
    mix: Mix = right_mix,
) -> Array:
    """The layer's output, or what it would be with the given stage in place of the right one."""
    xhat = mixed(case, standardize, mix)
    y = scale(xhat, case.parameter("weight", 1.0), case.parameter("bias", 0.0))
    return case.recipe.from_grid(np.broadcast_to(y, xhat.shape), case.x.shape)


def mixed(case: Case, standardize: Standardize = right_standardize, mix: Mix = right_mix) -> Array:
    """xhat on the grid, before weight and bias."""
    passes = case.passes()
    standardized = [np.broadcast_to(standardize(p), p.x.shape) for p in passes]
    if len(passes) == 1:
        return standardized[0]
    return mix(case.parameter("gate", 1.0), *standardized)


def input_gradient(case: Case, dy: NDArray, dx: InputGradient = right_dx) -> Array:
    """dL/dx for dL/dy = dy."""
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


def parameter_gradients(case: Case, dy: NDArray) -> dict[str, Array]:
    """Gradients of the parameters that the case has, each flattened to (C,)."""
    grid = case.recipe.to_grid(dy)
    out = {}
    if case.weight is not None:
        out["weight"] = per_channel_sum(grid * mixed(case))
    if case.bias is not None:
        out["bias"] = per_channel_sum(grid)
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
    p = replace(case, training=True).passes()[0]
    if case.recipe.kind == "instance":  # torch averages the instances' statistics over the batch
        return p.mean.mean(axis=0).reshape(-1), p.var.mean(axis=0).reshape(-1), p.count
    return p.mean.reshape(-1), p.var.reshape(-1), p.count


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

    return forward(case, standardize=standardize)


def _pools(shape: tuple[int, ...], axes: tuple[int, ...]) -> list[tuple[tuple[int, ...], tuple[slice | int, ...]]]:
    """Every pool of the grid: its index (0 on pooled axes) and the indexing that picks its members."""
    kept = [range(1) if i in axes else range(s) for i, s in enumerate(shape)]
    mesh = np.stack(np.meshgrid(*kept, indexing="ij"), -1).reshape(-1, len(shape))
    return [
        (tuple(map(int, m)), tuple(slice(None) if i in axes else slice(int(m[i]), int(m[i]) + 1) for i in range(4)))
        for m in mesh
    ]
