"""How an (N, C, *) array lies in memory, and how it is seen as planes."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from normlab.norms.grid import Array


@dataclass(frozen=True, eq=False)
class Layout:
    """Channels-first or channels-last memory order.

    `folded` lays the samples of channels-last data end to end, as one sample: what is per channel only is the
    same for all of them, and the grid shrinks to one row. There is one object of each kind, and they hash by identity:
    every call looks for what was prepared for its layout.
    """

    channels_last: bool
    folded: bool

    @classmethod
    def of(cls, x: Array, foldable: bool) -> Layout:
        """The layout in which x is dense, or channels-first if there is none."""
        return cls.dense_of(x, foldable)[0]

    @classmethod
    def dense_of(cls, x: Array, foldable: bool) -> tuple[Layout, Array]:
        """The layout of x, and x dense in it."""
        x = as_stored(x)
        if foldable and _is_dense_last(x):
            return _FOLDED, x
        if _is_dense(x):
            return _FIRST, x
        return (_LAST, x) if not foldable and _is_dense_last(x) else (_FIRST, _copy(x))

    def dense(self, x: Array) -> Array:
        """x itself if it is dense in this layout, else a copy that is."""
        x = as_stored(x)
        if not self.channels_last:
            return x if _is_dense(x) else _copy(x)
        if _is_dense_last(x):
            return x
        copy = _copy(_channels_last(x))
        return np.moveaxis(copy, -1, 1) if isinstance(copy, np.ndarray) else copy.movedim(-1, 1)

    def sizes(self, x: Array) -> tuple[int, int, int]:
        """N, C and S of the planes of x."""
        shape = x.shape
        n, size = shape[0], math.prod(shape[2:])
        return (1, shape[1], n * size) if self.folded else (n, shape[1], size)

    def planes(self, x: Array) -> Array:
        """View of a dense x as (N, C, S); of a CPU tensor whose dtype NumPy has, as a NumPy array."""
        n, channels, size = self.sizes(x)
        if not isinstance(x, np.ndarray) and x.is_cpu and is_real(x.dtype):
            x = allocated(x).numpy()
        if not self.channels_last:
            return x.reshape(n, channels, size)
        return _channels_last(x).reshape(n, size, channels).swapaxes(1, 2)


_FIRST, _LAST, _FOLDED = Layout(False, False), Layout(True, False), Layout(True, True)
_LAST_AXES = {rank: (0, *range(2, rank), 1) for rank in range(2, 6)}


@cache
def is_real(dtype: Any) -> bool:
    """Whether this dtype, of NumPy or of torch, is float32 or float64."""
    return str(dtype).removeprefix("torch.") in ("float32", "float64")


def ones(size: int, rank: int, dtype: str) -> Array:
    """Ones, `size` along each of `rank` dimensions: a NumPy array, or for bfloat16 a torch tensor."""
    if dtype != "bfloat16":
        return np.ones((size,) * rank, dtype)
    import torch

    return torch.ones((size,) * rank, dtype=torch.bfloat16)


def as_stored(x: Array) -> Array:
    """x itself, or of a tensor whose numbers are stored with the other sign, as `z.conj().imag`, a copy."""
    return x if isinstance(x, np.ndarray) or not x.is_neg() else allocated(x).resolve_neg()


def address_of(x: Array) -> int:
    """Where the elements of an array or CPU tensor lie. Raises RuntimeError if a tensor's memory was freed."""
    return x.__array_interface__["data"][0] if isinstance(x, np.ndarray) else x.data_ptr() or _address_of_none(x)


def allocated(x: Array) -> Array:
    """x itself, or zeros for one of torch's tensors that stand for them without memory.

    Raises RuntimeError if the memory of a CPU tensor was freed: to copy that would end the process.
    """
    torch = sys.modules["torch"]
    if type(x) not in (torch.Tensor, torch.nn.Parameter) or not x.is_cpu or x.data_ptr() or x.numel() == 0:
        return x
    are_zeros = getattr(x, "_is_zerotensor", None)  # a private name of torch's
    if are_zeros is None or not are_zeros():
        raise RuntimeError(
            f"The tensor has a non-zero number of elements, but its data is not allocated yet: shape {tuple(x.shape)}, "
            f"and {x.untyped_storage().nbytes()} bytes in its storage; give the storage its memory back before the call"
        )
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="cpu").zero_()


def _address_of_none(x: Any) -> int:
    """The address of a tensor whose address is null."""
    if x.numel() == 0:
        return 0
    if not x.is_cpu:
        raise RuntimeError(f"expected a tensor on the CPU, got one on {x.device}")
    x.zeros_of_normlab = allocated(x)  # which live as long as the tensor
    return int(x.zeros_of_normlab.data_ptr())


def empty_like(x: Array) -> Array:
    """Fresh memory of the shape, dtype and memory order of x."""
    return np.empty_like(x) if isinstance(x, np.ndarray) else sys.modules["torch"].empty_like(x)


def _channels_last(x: Array) -> Array:
    axes = _LAST_AXES[x.ndim]
    return x.transpose(axes) if isinstance(x, np.ndarray) else x.permute(axes)


def _is_dense(x: Array) -> bool:
    return bool(x.flags.c_contiguous if isinstance(x, np.ndarray) else x.is_contiguous())


def _is_dense_last(x: Array) -> bool:
    if not isinstance(x, np.ndarray) and x.ndim == 4:  # the same result, sooner
        return bool(x.is_contiguous(memory_format=sys.modules["torch"].channels_last))
    return _is_dense(_channels_last(x))


def _copy(x: Array) -> Array:
    return np.ascontiguousarray(x) if isinstance(x, np.ndarray) else allocated(x).contiguous()
