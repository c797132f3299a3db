"""How an (N, C, *) array lies in memory, and how it is seen as planes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from normlab.grid import Array, library


@dataclass(frozen=True)
class Layout:
    """Channels-first or channels-last memory order.

    `folded` lays the samples of channels-last data end to end, as one sample: what is per channel only does not
    tell them apart, and the grid shrinks to one row.
    """

    channels_last: bool
    folded: bool

    @classmethod
    def of(cls, x: Array, foldable: bool) -> Layout:
        """The layout in which x is dense, or channels-first if there is none."""
        if not foldable and _is_dense(x):
            return _FIRST
        if not _is_dense_last(x):
            return _FIRST
        return _FOLDED if foldable else _LAST

    def dense(self, x: Array) -> Array:
        """x itself if it is dense in this layout, else a copy that is."""
        if not self.channels_last:
            return x if _is_dense(x) else _copy(x)
        return x if _is_dense_last(x) else library(x).moveaxis(_copy(_channels_last(x)), -1, 1)

    def sizes(self, x: Array) -> tuple[int, int, int]:
        """N, C and S of the planes of x."""
        shape = x.shape
        n, size = shape[0], math.prod(shape[2:])
        return (1, shape[1], n * size) if self.folded else (n, shape[1], size)

    def planes(self, x: Array) -> Array:
        """View of a dense x as (N, C, S); of a CPU tensor whose dtype NumPy has, as a NumPy array."""
        n, channels, size = self.sizes(x)
        if not isinstance(x, np.ndarray) and numpy_serves(x.dtype, x.device):
            x = x.numpy()
        if not self.channels_last:
            return x.reshape(n, channels, size)
        return _channels_last(x).reshape(n, size, channels).swapaxes(1, 2)


_FIRST, _LAST, _FOLDED = Layout(False, False), Layout(True, False), Layout(True, True)
_LAST_AXES = {rank: (0, *range(2, rank), 1) for rank in range(2, 6)}


@cache
def numpy_serves(dtype: Any, device: Any) -> bool:
    """Whether a tensor of this dtype on this device is handed on as a NumPy view of its memory."""
    return device.type == "cpu" and str(dtype) in ("torch.float32", "torch.float64")


def empty_like(x: Array) -> Array:
    """Fresh memory of the shape, dtype and memory order of x."""
    return np.empty_like(x) if isinstance(x, np.ndarray) else library(x).empty_like(x)


def _channels_last(x: Array) -> Array:
    axes = _LAST_AXES[x.ndim]
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)


def _is_dense(x: Array) -> bool:
    return bool(x.flags.c_contiguous if isinstance(x, np.ndarray) else x.is_contiguous())


def _is_dense_last(x: Array) -> bool:
    if not isinstance(x, np.ndarray) and x.ndim == 4:  # the same answer, sooner
        return bool(x.is_contiguous(memory_format=library(x).channels_last))
    return _is_dense(_channels_last(x))


def _copy(x: Array) -> Array:
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else x.contiguous()
