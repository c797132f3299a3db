"""The specification, written to be read: four kernels in array arithmetic, and the stages in a row.

Serves NumPy arrays and torch tensors of any floating dtype and device. All arithmetic is done in float64 (float32
on a device that has nothing wider) and rounded once, at the end.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.application import Application, Recipe
from normlab.grid import Array, library, raw


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
    batch: tuple[Array, Array, int] | None

    @property
    def moments(self) -> tuple[Array, Array, int] | None:
        mean_var = self.application.measured
        return (mean_var[0].value, mean_var[1].value, self.application.size) if mean_var else None


def forward(recipe: Recipe, x: Array, params: Mapping[str, Array], running: Any, eps: float, out: Array) -> Saved:
    rows = {name: _row(v, x) for name, v in params.items()}
    fixed = None if running is None else (_row(running[0], x), _row(running[1], x))
    applied = Application(recipe, lambda: moments(x), (x.shape[0], x.shape[1]), x.shape[2], rows, fixed, eps)
    scale, center, shift = (_grid(v, x) for v in (applied.map.scale, applied.map.center, applied.map.shift))
    out[...] = affine(x, scale, center, shift)
    return Saved(applied, scale, center, applied.moments.batch)


def backward(saved: Saved, x: Array, g: Array, out: Array) -> list[Array]:
    sum_g, sum_gx = dots(g, x, saved.center)
    b, c, grads = saved.application.pull(saved.scale, saved.center, sum_g, sum_gx)
    nothing = _grid(0.0, x)
    b, c = (nothing, nothing) if b is None else (b, c)
    out[...] = combine(g, x, saved.center, saved.scale, b, c)
    nothing = {k: library(x).zeros_like(leaf.value) for k, leaf in saved.application.learned.items()}
    # added to zeros: a cotangent may be a broadcast view, or the same array for two parameters
    return [(nothing[k] if v is None else nothing[k] + v).reshape(-1) for k, v in grads.items()]


def wide(a: Array) -> Array:
    """The same numbers in the precision of the grid."""
    return a.astype(np.float64) if isinstance(a, np.ndarray) else a.to(_wide_dtype(a))


def _wide_dtype(a: Array) -> Any:
    torch = sys.modules["torch"]
    return torch.float32 if a.device.type == "mps" else torch.float64


def _row(v: Array, x: Array) -> Array:
    """Numbers per channel as a grid (1, C)."""
    if isinstance(x, np.ndarray):
        return np.asarray(v, dtype=np.float64).reshape(1, -1)
    return v.detach().to(x.device, _wide_dtype(x)).reshape(1, -1)


def _grid(v: Any, x: Array) -> Array:
    """The array behind a value; a bare number becomes a (1, 1) grid."""
    a = raw(v)
    return _row(library(x).full((1,), float(a)), x) if isinstance(a, int | float) else a
