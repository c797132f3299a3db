"""The three stages in a row, forward and backward, for any norm of the family on any backend.

    forward:   x -> moments -> grid function -> affine -> y
    backward:  dy -> dots -> vector-Jacobian product of the grid function -> combine -> dx

Here an (N, C, *) array gets its layout (`normlab.kernels.layout`); `normlab.kernels` does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from normlab.kernels import positions
from normlab.kernels.activations import Activation, activation
from normlab.kernels.contract import Planes
from normlab.kernels.layout import Layout, empty_like, ones
from normlab.kernels.registry import planes_for
from normlab.norms.application import Recipe
from normlab.norms.family import describe, resolve_options
from normlab.norms.grid import Array, library


@dataclass(slots=True)
class Cache:
    """What the backward pass needs, and what the forward pass learned about the batch.

    `x` is the input, and `residual` what was added, dense in `layout`; whoever keeps them elsewhere may take them out,
    and put them back for `backward`. That leaves the residual's gradient in `to_residual`.
    """

    x: Array
    layout: Layout
    backend: Planes
    params: Mapping[str, Array]
    act: Activation | None = None
    residual: Array | None = None
    saved: Any = None
    to_residual: Array | None = None

    @property
    def batch(self) -> tuple[Array, Array, int] | None:
        """(mean (C,), biased variance (C,), count) of the batch, where the norm pooled over it in training."""
        found = None if self.saved is None else self.saved.batch
        return None if found is None else (found[0].reshape(-1), found[1].reshape(-1), found[2])

    @property
    def planes(self) -> tuple[Array, Array, int] | None:
        """(mean (N, C), biased variance (N, C), count) of the planes, where the norm looked at them."""
        return None if self.saved is None else self.saved.moments


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
    act: str | Activation | None = None,
    residual: Array | None = None,
    update: tuple[Array, Array, float] | None = None,
    lengths_fit: bool = False,
    backend: Planes | None = None,
) -> tuple[Array, Cache]:
    """Normalize x (N, C, *), of 2 to 5 dimensions; returns (y, cache), y of x's shape, dtype and memory order.

        y = act(norm(x) + residual)

    `params` maps the norm's parameter names to arrays (C,); a weight or bias left out is not applied. `running`
    = (mean (C,), var (C,)) stands in for batch statistics when not training. x is a NumPy array or a torch tensor
    without an autograd history (for others see `normlab.layers`); one that is dense in neither memory order is
    copied. `act` names an activation (`normlab.kernels.activations`); `residual`, of x's shape and dtype, is added
    before it. `update` = (mean (C,), var (C,), momentum) are running statistics, updated in place with the batch's:
    (1 - momentum) * running + momentum * batch, the variance unbiased.

    Raises ValueError if the residual's shape or dtype is not x's, or a parameter or running statistic is not (C,);
    with `lengths_fit` the caller has made sure of the latter. `backend` is the one that serves x, if the caller has
    looked for it.
    """
    if isinstance(norm, str):
        chosen = resolve_options(describe(norm), x.shape[1], options or {})
        norm = recipe(norm, tuple(chosen.items()), tuple(params), training, running is not None)
    if not lengths_fit:
        _check_lengths(norm, x.shape[1], params, running, update)
    if isinstance(act, str):
        act = activation(act)
    layout, x = Layout.dense_of(x, norm.entry.per_channel)
    if residual is not None:
        if residual.shape != x.shape or residual.dtype != x.dtype:
            raise ValueError(
                f"residual: expected the input's shape {tuple(x.shape)} and {x.dtype}, "
                f"got shape {tuple(residual.shape)} and {residual.dtype}"
            )
        residual = layout.dense(residual)
    y = empty_like(x)
    backend = planes_for(x, norm.entry) if backend is None else backend
    cache = Cache(x, layout, backend, params, act, residual)
    if 0 not in x.shape:
        cache.saved = backend.forward(norm, layout, x, params, running, eps, y, act, residual, update)
    return y, cache


def restored(
    norm: Recipe,
    x: Array,
    params: Mapping[str, Array],
    running: tuple[Array, Array] | None,
    *,
    eps: float,
    act: Activation | None,
    residual: Array | None,
    memory: Array,
) -> Cache:
    """The cache that `forward` returned for the same arguments, from its `saved.memory`."""
    _check_lengths(norm, x.shape[1], params, running, None)
    layout, x = Layout.dense_of(x, norm.entry.per_channel)
    cache = Cache(
        x, layout, planes_for(x, norm.entry), params, act, None if residual is None else layout.dense(residual)
    )
    if 0 not in x.shape:
        expected = cache.backend.numbers(norm, layout.sizes(x))
        if len(memory) != expected:
            raise RuntimeError(
                f"the backward pass keeps {expected} numbers and got {len(memory)}: "
                "it runs on another backend than the forward pass; let normlab.use_backend enclose both"
            )
        cache.saved = cache.backend.restored(norm, layout, x, params, running, eps, act, memory)
    return cache


def backward(dy: Array, cache: Cache) -> tuple[Array, dict[str, Array]]:
    """Gradients of sum(dy * y): (dx, {parameter name: gradient, of the parameter's shape and dtype}).

    That of the residual, if there was one, is left in `cache.to_residual`. Statistics that were constants of the
    forward pass (running ones) have no gradient through them. Raises ValueError if dy's shape or dtype is not y's.
    """
    names, params = tuple(cache.params), tuple(cache.params.values())
    dx, cache.to_residual, grads = gradients(
        dy, cache.x, params, cache.residual, names, cache.layout, cache.backend, cache.act, cache.saved
    )
    return dx, dict(zip(names, grads, strict=True))


def gradients(
    dy: Array,
    x: Array,
    params: Sequence[Array],
    residual: Array | None,
    names: Sequence[str],
    layout: Layout,
    backend: Planes,
    act: Activation | None,
    saved: Any,
) -> tuple[Array, Array | None, list[Array]]:
    """`backward` without a cache: gradients of x, of the residual, and of the parameters in their order."""
    shape = x.shape
    if dy.shape != shape or dy.dtype != x.dtype:
        raise ValueError(
            f"dy: expected the output's shape {tuple(shape)} and {x.dtype}, got shape {tuple(dy.shape)} and {dy.dtype}"
        )
    channels = (shape[1],)
    for i, v in enumerate(params):
        if v.shape != channels and v.shape != _ONE:
            raise _wrong_length(names[i], v, channels)
    dy = layout.dense(dy)
    dx = empty_like(x)
    to_residual = None if residual is None else dy if act is None else empty_like(x)
    if saved is None:  # an empty batch
        return dx, to_residual, [0 * v for v in params]
    added = (None, None) if act is None else (residual, to_residual)
    grads = backend.backward(saved, layout, x, dy, dx, params, *added)
    for i, (grad, v) in enumerate(zip(grads, params, strict=True)):
        if grad.dtype != v.dtype or grad.shape != v.shape:  # or of another library: their dtypes differ
            grads[i] = _like_parameter(grad, v)
    return dx, to_residual, grads


def _check_lengths(
    norm: Recipe, channels: int, params: Mapping[str, Array], running: Any, update: Any
) -> None:  # fmt: skip
    """Raise ValueError for numbers per channel of another length: kernels read as many as there are channels."""
    learned, shape = norm.entry.parameters, (channels,)
    for name, v in params.items():
        expected = shape if name not in learned or learned[name].per_channel else _ONE
        if v.shape != expected:
            raise _wrong_length(name, v, expected)
    for pair in (running, update):
        if pair is not None:
            if pair[0].shape != shape:
                raise _wrong_length("running_mean", pair[0], shape)
            if pair[1].shape != shape:
                raise _wrong_length("running_var", pair[1], shape)


def _wrong_length(name: str, v: Array, expected: tuple[int]) -> ValueError:
    what = "one for each channel of the input" if expected != _ONE else "one for all channels"
    return ValueError(f"{name}: expected shape {expected}, {what}, got {tuple(v.shape)}")


_ONE = (1,)


def precompile(dtypes: tuple[str, ...] = ("float32", "float64")) -> None:
    """Compile the CPU kernels now, once, as they are kept on disk: alone and with ReLU, in both memory orders.

    Other activations, and additions, are compiled when they are first called, in some seconds. There are also the
    dtypes "float16" and "bfloat16".
    """
    from normlab.kernels.cpu.planes import MANY

    for dtype in dtypes:
        x, row = ones(MANY, 3, dtype), ones(MANY, 1, dtype)
        for planes in (x, x.swapaxes(1, 2)):
            for samples in (planes, planes[:1]):  # worked on in blocks of samples, and in passes
                for act in (None, "relu"):
                    _, cache = forward("in", samples, {"weight": row, "bias": row}, act=act)
                    backward(samples, cache)
    positions.precompile(dtypes)


def _like_parameter(grad: Array, param: Array) -> Array:
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
