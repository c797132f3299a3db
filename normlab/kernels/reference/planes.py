"""The specification, written to be read: four kernels in array arithmetic, and the stages in a row.

Serves NumPy arrays and torch tensors of any floating dtype and device. All arithmetic is done in float64 (float32
on a device that has nothing wider) and rounded once, at the end.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.kernels import activations
from normlab.kernels.activations import Activation
from normlab.kernels.layout import Layout, allocated, as_stored
from normlab.norms.application import Application, Recipe
from normlab.norms.grid import Array, library, raw, update_running


def moments(x: Array) -> tuple[Array, Array]:
    """Mean and biased variance of each plane."""
    x = wide(x)
    mean = x.mean(2)
    return mean, ((x - mean[:, :, None]) ** 2).mean(2)


def affine(x: Array, scale: Array, center: Array, shift: Array) -> Array:
    """scale * (x - center) + shift."""
    return scale[:, :, None] * (wide(x) - center[:, :, None]) + shift[:, :, None]


def dots(g: Array, x: Array, center: Array) -> tuple[Array, Array]:
    """The sums over each plane of g and of g * (x - center)."""
    g = wide(g)
    return g.sum(2), (g * (wide(x) - center[:, :, None])).sum(2)


def combine(g: Array, x: Array, center: Array, a: Array, b: Array, c: Array) -> Array:
    """a * g + b * (x - center) + c."""
    return a[:, :, None] * wide(g) + b[:, :, None] * (wide(x) - center[:, :, None]) + c[:, :, None]


@dataclass
class Saved:
    """What the backward pass needs beside x."""

    application: Application
    scale: Array
    center: Array
    shift: Array
    batch: tuple[Array, Array, int] | None
    act: Activation | None

    @property
    def moments(self) -> tuple[Array, Array, int] | None:
        mean_var = self.application.measured
        return (mean_var[0].value, mean_var[1].value, self.application.size) if mean_var else None

    @property
    def memory(self) -> Array:
        one, found = library(self.scale), self.moments
        if found is None:
            count = 2 * math.prod(self.application.moments.shape)
            return one.zeros_like(self.scale.reshape(-1)[:1].repeat(count))
        return one.concatenate([v.reshape(-1) for v in found[:2]])


def numbers(recipe: Recipe, sizes: tuple[int, int, int]) -> int:
    return 2 * sizes[0] * sizes[1]


def forward(
    recipe: Recipe,
    layout: Layout,
    x: Array,
    params: Mapping[str, Array],
    running: Any,
    eps: float,
    out: Array,
    act: Activation | None = None,
    residual: Array | None = None,
    update: tuple[Array, Array, float] | None = None,
) -> Saved:
    x = layout.planes(x)
    saved = _normalize(recipe, x, lambda: moments(x), params, running, eps, act)
    z = _affine_plus_residual(saved, x, None if residual is None else layout.planes(residual))
    layout.planes(out)[...] = z if act is None else activations.apply(act, z)
    if update is not None and saved.batch is not None:
        _update(update, saved.batch)
    return saved


def restored(
    recipe: Recipe,
    layout: Layout,
    x: Array,
    params: Mapping[str, Array],
    running: Any,
    eps: float,
    act: Activation | None,
    memory: Array,
) -> Saved:
    x = layout.planes(x)
    mean, var = (memory.numpy() if isinstance(x, np.ndarray) else memory).reshape(2, *x.shape[:2])
    return _normalize(recipe, x, lambda: (mean, var), params, running, eps, act)


def _normalize(
    recipe: Recipe,
    x: Array,
    measure: Callable[[], tuple[Array, Array]],
    params: Mapping[str, Array],
    running: Any,
    eps: float,
    act: Activation | None,
) -> Saved:
    rows = {name: _row(v, x) for name, v in params.items()}
    fixed = None if running is None else (_row(running[0], x), _row(running[1], x))
    applied = Application(recipe, measure, (x.shape[0], x.shape[1]), x.shape[2], rows, fixed, eps)
    scale, center, shift = (as_grid(v, x) for v in (applied.map.scale, applied.map.center, applied.map.shift))
    return Saved(applied, scale, center, shift, applied.moments.batch, act)


def backward(
    saved: Saved,
    layout: Layout,
    x: Array,
    g: Array,
    out: Array,
    params: Iterable[Array],
    residual: Array | None = None,
    to_residual: Array | None = None,
) -> list[Array]:
    x, g = layout.planes(x), wide(layout.planes(g))
    if saved.act is not None:
        z = _affine_plus_residual(saved, x, None if residual is None else layout.planes(residual))
        g = g * activations.derivative(saved.act, z)
        if to_residual is not None:
            layout.planes(to_residual)[...] = g
    sum_g, sum_gx = dots(g, x, saved.center)
    b, c, grads = saved.application.pull(saved.scale, saved.center, sum_g, sum_gx)
    nothing = as_grid(0.0, x)
    b, c = (nothing, nothing) if b is None else (b, c)
    layout.planes(out)[...] = combine(g, x, saved.center, saved.scale, b, c)
    nothing = {k: library(x).zeros_like(leaf.value) for k, leaf in saved.application.learned.items()}
    # added to zeros: a cotangent may be a broadcast view, or the same array for two parameters
    return [(nothing[k] if v is None else nothing[k] + v).reshape(-1) for k, v in grads.items()]


def _affine_plus_residual(saved: Saved, x: Array, residual: Array | None) -> Array:
    """What the activation is applied to: affine(x) + residual."""
    z = affine(x, saved.scale, saved.center, saved.shift)
    return z if residual is None else z + wide(residual)


def _update(update: tuple[Array, Array, float], batch: tuple[Array, Array, int]) -> None:
    mean, var, momentum = update
    found = [v.reshape(-1) for v in batch[:2]]
    if not isinstance(mean, np.ndarray):
        torch = library(mean)
        found = [torch.as_tensor(v, device=mean.device) for v in found]
    elif not isinstance(found[0], np.ndarray):
        found = [v.cpu().numpy() for v in found]
    update_running((mean, var), (found[0], found[1], batch[2]), momentum)


def wide(a: Array) -> Array:
    """The same numbers in the precision of the grid."""
    return a.astype(np.float64) if isinstance(a, np.ndarray) else a.to(_wide_dtype(a))


def _wide_dtype(a: Array) -> Any:
    torch = sys.modules["torch"]
    return torch.float32 if a.device.type == "mps" else torch.float64


def _row(v: Array, x: Array) -> Array:
    """Numbers per channel as a grid (1, C)."""
    if isinstance(x, np.ndarray):
        if hasattr(v, "detach"):
            v = as_stored(allocated(v)).detach().cpu().double().numpy()  # NumPy has no bfloat16
        return np.asarray(v, dtype=np.float64).reshape(1, -1)
    return v.detach().to(x.device, _wide_dtype(x)).reshape(1, -1)


def as_grid(v: Any, x: Array) -> Array:
    """The array behind a value; a bare number becomes a (1, 1) grid, in x's library and on its device."""
    a = raw(v)
    return _row(library(x).full((1,), float(a)), x) if isinstance(a, int | float) else a
