"""The specification of the four kernels, written to be read; NumPy arrays and torch tensors of any float dtype.

All arithmetic is done in float64 (float32 on a device that has nothing wider) and rounded once, at the end.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def moments(x: Any) -> tuple[Any, Any]:
    x = wide(x)
    mean = x.mean(2)
    return mean, ((x - mean[:, :, None]) ** 2).mean(2)


def affine(x: Any, scale: Any, center: Any, shift: Any, out: Any) -> None:
    out[...] = scale[:, :, None] * (wide(x) - center[:, :, None]) + shift[:, :, None]


def dots(g: Any, x: Any, center: Any) -> tuple[Any, Any]:
    g = wide(g)
    return g.sum(2), (g * (wide(x) - center[:, :, None])).sum(2)


def combine(g: Any, x: Any, center: Any, a: Any, b: Any, c: Any, out: Any) -> None:
    dx = a[:, :, None] * wide(g)
    if b is not None:
        dx = dx + b[:, :, None] * (wide(x) - center[:, :, None]) + c[:, :, None]
    out[...] = dx


def wide(a: Any) -> Any:
    """The same numbers in the precision of the grid."""
    return a.astype(np.float64) if isinstance(a, np.ndarray) else a.to(wide_dtype(a))


def wide_dtype(a: Any) -> Any:
    """The precision of the grid for a tensor: float64, or float32 where the device has nothing wider."""
    torch = sys.modules["torch"]
    return torch.float32 if a.device.type == "mps" else torch.float64
