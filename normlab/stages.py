"""The three stages in a row, forward and backward, for any norm of the family on any backend.

    forward:   x -> moments -> grid function -> affine -> y
    backward:  dy -> dots -> vector-Jacobian product of the grid function -> combine -> dx

With y = scale * (x - center) + shift per plane, S elements per plane, and D0, D1 the plane's sums of dy and of
dy * (x - center), the grid receives dshift = D0, dscale = D1, dcenter = -scale * D0 and answers dmean and dvar;
then

    dx = scale * dy + (2 dvar / S) * (x - mean) + dmean / S.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from normlab.grid import Affine, Array, Grid, Moments, library, pull_back, raw
from normlab.norms import NormEntry, describe, resolve_options
from normlab.planes import Kernels, kernels_for
from normlab.planes.reference import wide_dtype

# a weight or bias that is left out leaves the normalized value alone
_NEUTRAL = {"weight": 1.0, "bias": 0.0}


@dataclass
class Cache:
    """What the backward pass needs, and what the forward pass learned about the batch."""

    x: Array
    layout: Layout
    kernels: Kernels
    params: Mapping[str, Array]
    map: Affine = field(default_factory=lambda: Affine(1.0))
    moments: Moments | None = None
    measured: list[Grid] = field(default_factory=list)
    learned: dict[str, Grid] = field(default_factory=dict)
    tape: list = field(default_factory=list)

    @property
    def batch(self) -> tuple[Array, Array, int] | None:
        """(mean (C,), biased variance (C,), count) of the batch, where the norm pooled over it in training."""
        found = None if self.moments is None else self.moments.batch
        return None if found is None else (found[0].reshape(-1), found[1].reshape(-1), found[2])


@dataclass(frozen=True)
class Layout:
    """How an (N, C, *) array lies in memory and is seen as planes.

    `folded` lays the samples of channels-last data end to end, as one sample: what is per channel only does not
    tell them apart, and the grid shrinks to one row.
    """

    channels_last: bool
    folded: bool

    @classmethod
    def of(cls, x: Array, foldable: bool) -> Layout:
        """The layout in which x is dense, or channels-first if there is none."""
        first, last = _is_dense(x), _is_dense(_channels_last(x))
        return cls(channels_last=last and (foldable or not first), folded=last and foldable)

    def dense(self, x: Array) -> Array:
        """x itself if it is dense in this layout, else a copy that is."""
        if not self.channels_last:
            return x if _is_dense(x) else _copy(x)
        last = _channels_last(x)
        return x if _is_dense(last) else library(x).moveaxis(_copy(last), -1, 1)

    def planes(self, x: Array) -> Array:
        """View of a dense x as (N, C, S)."""
        n, channels, size = x.shape[0], x.shape[1], math.prod(x.shape[2:])
        if not self.channels_last:
            return x.reshape(n, channels, size)
        if self.folded:
            n, size = 1, n * size
        return _channels_last(x).reshape(n, size, channels).swapaxes(1, 2)


def forward(
    norm: str | NormEntry,
    x: Array,
    params: Mapping[str, Array],
    *,
    training: bool = True,
    running: tuple[Array, Array] | None = None,
    eps: float = 1e-5,
    options: Mapping[str, Any] | None = None,
    out: Array | None = None,
) -> tuple[Array, Cache]:
    """Normalize x (N, C, *), of 2 to 5 dimensions; answers (y, cache), y of x's shape, dtype and memory order.

    `params` maps the norm's parameter names to arrays (C,); a weight or bias left out is not applied. `running`
    = (mean (C,), var (C,)) stands in for batch statistics when not training. x is a NumPy array or a torch tensor
    (for tensors with an autograd history see `normlab.layers`); one that is dense in neither memory order is
    copied. `out`, where y is written, must lie in memory as x does.
    """
    entry = describe(norm) if isinstance(norm, str) else norm
    if entry.grid is None:
        raise ValueError(f"norm {entry.name!r} is a module of its own: it has no grid function")
    layout = Layout.of(x, entry.per_channel)
    x = layout.dense(x)
    y = library(x).empty_like(x) if out is None else out
    planes = layout.planes(x)
    cache = Cache(planes, layout, kernels_for(x), params)
    if 0 in planes.shape:
        return y, cache
    n, channels, size = planes.shape

    def measure() -> tuple[Grid, Grid]:
        cache.measured = [Grid(v, cache.tape) for v in cache.kernels.moments(planes)]
        return cache.measured[0], cache.measured[1]

    fixed = None if running is None else (_row(running[0], planes), _row(running[1], planes))
    cache.moments = Moments(measure, (n, channels), size, training=training, running=fixed)
    cache.learned = {name: Grid(_row(v, planes), cache.tape) for name, v in params.items()}
    absent = {k: _NEUTRAL.get(k, v.initial) for k, v in entry.parameters.items() if k not in params}
    p = SimpleNamespace(eps=eps, **cache.learned, **absent)
    cache.map = entry.grid(cache.moments, p, **resolve_options(entry, channels, options or {}))
    scale, center, shift = (_array(v, planes) for v in (cache.map.scale, cache.map.center, cache.map.shift))
    cache.kernels.affine(planes, scale, center, shift, layout.planes(y))
    return y, cache


def backward(dy: Array, cache: Cache, out: Array | None = None) -> tuple[Array, dict[str, Array]]:
    """Gradients of sum(dy * y): (dx, {parameter name: gradient (C,), of the parameter's dtype}).

    Statistics that were constants of the forward pass (running ones) have no gradient through them.
    """
    dy = cache.layout.dense(dy)
    dx = library(dy).empty_like(dy) if out is None else out
    if 0 in cache.x.shape:
        return dx, {name: 0 * v for name, v in cache.params.items()}
    g, x = cache.layout.planes(dy), cache.x
    scale, center = _array(cache.map.scale, x), _array(cache.map.center, x)
    sum_g, sum_gx = cache.kernels.dots(g, x, center)
    seeds = [(cache.map.shift, sum_g), (cache.map.scale, sum_gx), (cache.map.center, -scale * sum_g)]
    cotangent = pull_back(cache.tape, seeds)
    dmean, dvar = (cotangent(v) for v in cache.measured) if cache.measured else (None, None)
    b = c = None
    if dmean is not None or dvar is not None:
        mean, size = raw(cache.measured[0]), x.shape[2]
        nothing = library(mean).zeros_like(mean)
        b = nothing if dvar is None else dvar * (2 / size)
        c = (nothing if dmean is None else dmean / size) + b * (center - mean)
    cache.kernels.combine(g, x, center, scale, b, c, cache.layout.planes(dx))
    grads = {}
    for name, leaf in cache.learned.items():
        grad = cotangent(leaf)
        grads[name] = _cast(0 * leaf.value if grad is None else grad, cache.params[name])
    return dx, grads


def _channels_last(x: Array) -> Array:
    return library(x).moveaxis(x, 1, -1)


def _is_dense(x: Array) -> bool:
    return bool(x.flags.c_contiguous if isinstance(x, np.ndarray) else x.is_contiguous())


def _copy(x: Array) -> Array:
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()


def _row(v: Array, planes: Array) -> Array:
    """Numbers per channel as a grid (1, C), in the precision of the grid."""
    if isinstance(planes, np.ndarray):
        return np.asarray(v, dtype=np.float64).reshape(1, -1)
    return v.detach().to(planes.device, wide_dtype(planes)).reshape(1, -1)


def _array(v: Any, planes: Array) -> Array:
    """The array behind a value; a bare number becomes a (1, 1) grid."""
    a = raw(v)
    if isinstance(a, int | float):
        return _row(library(planes).full((1,), float(a)), planes)
    return a


def _cast(grad: Array, param: Array) -> Array:
    """A (1, C) or (1, 1) cotangent as a gradient of the parameter's shape and dtype."""
    grad = grad.reshape(param.shape)
    return grad.astype(param.dtype) if isinstance(grad, np.ndarray) else grad.to(param.dtype)
