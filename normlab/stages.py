"""The three stages in a row, forward and backward, for any norm of the family on any backend.

    forward:   x -> moments -> grid function -> affine -> y
    backward:  dy -> dots -> vector-Jacobian product of the grid function -> combine -> dx

Here an (N, C, *) array becomes planes, as it lies in memory; `normlab.planes` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from normlab.application import Recipe
from normlab.grid import Array, library
from normlab.norms import describe, resolve_options
from normlab.planes import Backend, serving


@dataclass
class Cache:
    """What the backward pass needs, and what the forward pass learned about the batch.

    `x` is the input, dense in `layout`; whoever keeps it elsewhere may take it out, and put it back for `backward`.
    """

    x: Array
    layout: Layout
    backend: Backend
    params: Mapping[str, Array]
    saved: Any = None

    @property
    def batch(self) -> tuple[Array, Array, int] | None:
        """(mean (C,), biased variance (C,), count) of the batch, where the norm pooled over it in training."""
        found = None if self.saved is None else self.saved.batch
        return None if found is None else (found[0].reshape(-1), found[1].reshape(-1), found[2])

    @property
    def planes(self) -> tuple[Array, Array, int] | None:
        """(mean (N, C), biased variance (N, C), count) of the planes, where the norm looked at them."""
        return None if self.saved is None else self.saved.moments


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
        first = _is_dense(x)
        if first and not foldable:
            return _FIRST
        if not _is_dense(_channels_last(x)):
            return _FIRST
        return _FOLDED if foldable else _LAST

    def dense(self, x: Array) -> Array:
        """x itself if it is dense in this layout, else a copy that is."""
        if not self.channels_last:
            return x if _is_dense(x) else _copy(x)
        last = _channels_last(x)
        return x if _is_dense(last) else library(x).moveaxis(_copy(last), -1, 1)

    def planes(self, x: Array) -> Array:
        """View of a dense x as (N, C, S); of a CPU tensor whose dtype NumPy has, as a NumPy array."""
        shape = x.shape
        n, channels, size = shape[0], shape[1], math.prod(shape[2:])
        if not isinstance(x, np.ndarray) and numpy_serves(x.dtype, x.device):
            x = x.numpy()
        if not self.channels_last:
            return x.reshape(n, channels, size)
        if self.folded:
            n, size = 1, n * size
        return _channels_last(x).reshape(n, size, channels).swapaxes(1, 2)


_FIRST, _LAST, _FOLDED = Layout(False, False), Layout(True, False), Layout(True, True)


@cache
def numpy_serves(dtype: Any, device: Any) -> bool:
    """Whether a tensor of this dtype on this device is handed on as a NumPy view of its memory."""
    return device.type == "cpu" and str(dtype) in ("torch.float32", "torch.float64")


@cache
def recipe(
    norm: str, options: tuple[tuple[str, Any], ...], names: tuple[str, ...], training: bool, has_running: bool
) -> Recipe:
    """What is to be computed, by the norm's name; the options are complete (`normlab.norms.resolve_options`)."""
    entry = describe(norm)
    if entry.grid is None:
        raise ValueError(f"norm {norm!r} is a module of its own: it has no grid function")
    return Recipe(entry, options, names, training, has_running)


def forward(
    norm: str | Recipe,
    x: Array,
    params: Mapping[str, Array],
    *,
    training: bool = True,
    running: tuple[Array, Array] | None = None,
    eps: float = 1e-5,
    options: Mapping[str, Any] | None = None,
) -> tuple[Array, Cache]:
    """Normalize x (N, C, *), of 2 to 5 dimensions; answers (y, cache), y of x's shape, dtype and memory order.

    `params` maps the norm's parameter names to arrays (C,); a weight or bias left out is not applied. `running`
    = (mean (C,), var (C,)) stands in for batch statistics when not training. x is a NumPy array or a torch tensor
    without an autograd history (for others see `normlab.layers`); one that is dense in neither memory order is
    copied.
    """
    if isinstance(norm, str):
        chosen = resolve_options(describe(norm), x.shape[1], options or {})
        norm = recipe(norm, tuple(chosen.items()), tuple(params), training, running is not None)
    layout = Layout.of(x, norm.entry.per_channel)
    x = layout.dense(x)
    y = _empty_like(x)
    cache = Cache(x, layout, serving(x), params)
    if 0 not in x.shape:
        cache.saved = cache.backend.forward(norm, layout.planes(x), params, running, eps, layout.planes(y))
    return y, cache


def backward(dy: Array, cache: Cache) -> tuple[Array, dict[str, Array]]:
    """Gradients of sum(dy * y): (dx, {parameter name: gradient, of the parameter's shape and dtype}).

    Statistics that were constants of the forward pass (running ones) have no gradient through them.
    """
    layout = cache.layout
    dy = layout.dense(dy)
    dx = _empty_like(cache.x)
    if cache.saved is None:  # an empty batch
        return dx, {name: 0 * v for name, v in cache.params.items()}
    grads = cache.backend.backward(cache.saved, layout.planes(cache.x), layout.planes(dy), layout.planes(dx))
    return dx, dict(zip(cache.params, map(_like, grads, cache.params.values()), strict=True))


def precompile(dtypes: tuple[str, ...] = ("float32", "float64")) -> None:
    """Compile the CPU kernels now (some 20 seconds a dtype, once: they are kept on disk), not at the first call."""
    for dtype in dtypes:
        x, row = np.ones((2, 2, 2), dtype), np.ones(2, dtype)
        _, cache = forward("in", x, {"weight": row, "bias": row})
        backward(x, cache)


_LAST_AXES = {rank: (0, *range(2, rank), 1) for rank in range(2, 6)}


def _channels_last(x: Array) -> Array:
    axes = _LAST_AXES[x.ndim]
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)


def _is_dense(x: Array) -> bool:
    return bool(x.flags.c_contiguous if isinstance(x, np.ndarray) else x.is_contiguous())


def _empty_like(x: Array) -> Array:
    return np.empty_like(x) if isinstance(x, np.ndarray) else library(x).empty_like(x)


def _copy(x: Array) -> Array:
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()


def _like(grad: Array, param: Array) -> Array:
    """A gradient in the parameter's shape, dtype and library; that of a single number comes repeated per channel."""
    shape = param.shape
    if grad.shape != shape:
        grad = grad.reshape(-1)[: math.prod(shape)].reshape(shape)
    if not isinstance(grad, np.ndarray):
        return grad.to(param.dtype)
    if isinstance(param, np.ndarray):
        return grad.astype(param.dtype, copy=False)
    torch = library(param)
    return torch.from_numpy(grad.astype(np.float32) if param.dtype == torch.float32 else grad).to(param.dtype)
