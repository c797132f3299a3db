"""Float32 in place of half precision, in memory that is kept from call to call.

To convert numbers takes a tenth of the time that the system takes to hand out fresh memory for them. So up to five
pieces of memory, of at most 64 MB each, stay here; what is larger, or needed by several threads at once, is fresh.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from normlab.grid import Array

BYTES = 2  # of a number in half precision
_MOST, _LARGEST = 5, 64 << 20
_spare: list[np.ndarray] = []


@contextmanager
def float32(like: Array, count: int) -> Iterator[list[Array]]:
    """So many float32 arrays of the shape and memory order of a dense one, for the length of a block."""
    pieces = [_take(like.size if isinstance(like, np.ndarray) else like.numel()) for _ in range(count)]
    try:
        yield [_shaped(piece, like) for piece in pieces]
    finally:
        _spare.extend(piece for piece in pieces if piece.nbytes <= _LARGEST)
        del _spare[:-_MOST]


def _take(size: int) -> np.ndarray:
    try:
        piece = _spare.pop()
    except IndexError:
        return np.empty(size, np.float32)
    return piece if piece.size >= size else np.empty(size, np.float32)


def _shaped(piece: np.ndarray, like: Array) -> Any:
    if isinstance(like, np.ndarray):
        strides = [2 * stride for stride in like.strides]
        return np.lib.stride_tricks.as_strided(piece, like.shape, strides)
    import torch

    return torch.from_numpy(piece).as_strided(like.shape, like.stride())
