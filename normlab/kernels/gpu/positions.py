"""Triton kernels for statistics per position of CUDA tensors: float32, float64, bfloat16 and float16, rows and columns.

One launch forward. Backward one that writes dx, and, where weight or bias learn, leaves sums of the positions that an
instance has seen; a small second launch adds them up. A position with more elements than an instance holds sums for
takes a launch of its own for these, which reads x and g again. No atomics: results are the same from run to run.

The code: `_position_kernels` what is computed, here how the work is cut and what the kernels are handed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from normlab.kernels.gpu import _position_kernels as kernels
from normlab.kernels.gpu import planes
from normlab.kernels.gpu._cut import Launch, Ready, power_of_2

KEPT_NUMBERS = 3  # of every position: m, r and t (`normlab.kernels.gpu._position_kernels`)

_TILE = 4096  # elements that an instance holds at a time
_LARGEST = 8192  # the same, where all elements of a position are more
_EACH, _FEWER = 32, 16  # of these for each thread: of rows forward, and where it adds up or holds two tensors
_SECTOR = 16  # positions side by side in a tile of columns, at least: a sector of memory in half precision
_WAVES = 4  # instances for each multiprocessor, where there are enough positions
_COLUMNS = 128  # the same, at most: each thread has some of its own
_RESIDENT = 32  # warps for each multiprocessor, of instances that leave sums
_SUMMED = (256, 8)  # sums of instances, and elements, that are added up at a time


@dataclass(slots=True)
class Saved:
    """What the backward pass needs beside x and weight: m, r and t of every position, each end to end."""

    kept: Tensor
    centred: bool


@dataclass(frozen=True)
class Cut:
    """Tiles for positions (N, E, S), or rows (1, E, S), of so many bytes an element, on a device."""

    sizes: tuple[int, int, int]
    rows: bool
    device: torch.device

    def tile(self, share: int = 1) -> tuple[int, int]:
        """BLOCK_P and BLOCK_E: of rows all elements, where an instance holds as many; `share` divides the tile."""
        _, elements, size = self.sizes
        elements, size, tile = power_of_2(elements), power_of_2(size), _TILE // share
        if not self.rows:
            wanted = -(-size * self.sizes[0] // (_WAVES * planes.processors(self.device)))  # enough instances for all
            block_p = min(size, max(_SECTOR, min(_COLUMNS, power_of_2(wanted))))
            return block_p, min(elements, max(1, tile // block_p))
        if elements <= _LARGEST:
            return min(size, max(1, tile // elements)), elements
        return 1, tile

    @property
    def tall_tile(self) -> tuple[int, int]:
        """BLOCK_P and BLOCK_E of the launch that sums over positions alone: long along what is contiguous."""
        _, elements, size = (power_of_2(v) for v in self.sizes)
        if self.rows:
            block_e = min(elements, 256)
            return min(size, max(1, _TILE // 2 // block_e)), block_e
        block_p = min(size, 4 * _COLUMNS)
        return block_p, min(elements, max(1, _TILE // 2 // block_p))

    def whole(self, tile: tuple[int, int]) -> bool:
        """Whether an instance holds all elements of its positions."""
        return tile[1] >= self.sizes[1]

    def tiles(self, block_p: int) -> int:
        """Tiles that the positions of a sample, or the rows, are cut into."""
        return -(-self.sizes[2] // block_p)

    def instances(self, tile: tuple[int, int], blocks: int = 1) -> int:
        """Instances that leave sums, where so many blocks of elements do: enough to occupy the device."""
        wanted = -(-_RESIDENT // warps(tile, _FEWER)) * planes.processors(self.device)
        return min(self.sizes[0] * self.tiles(tile[0]), -(-wanted // blocks))


def warps(tile: tuple[int, int], each: int) -> int:
    """As many as give each thread so many elements."""
    return min(16, max(1, tile[0] * tile[1] // (32 * each)))


@dataclass(frozen=True, slots=True)
class Backward:
    """The launches of a backward pass: dx; the sums, where they take one of their own; and their total."""

    dx: Ready
    learn: Ready | None
    total: Ready | None
    instances: int


def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool, y: Tensor) -> Saved:
    """Write y = h * weight + bias for x (R, D), h standardized over D, or x (N, C, S), over C; y is contiguous."""
    kept = torch.empty(KEPT_NUMBERS * x.numel() // x.shape[1], dtype=parameter_dtype(x), device=x.device)
    aligned, _ = planes.seen((x, y, weight, bias, kept), ())
    launch = _forward(
        _sizes(x), x.dim() == 2, x.dtype, x.device, _strides(x), _strides(y), float(eps), centred, weight is not None,
        bias is not None,
    )  # fmt: skip
    with torch.cuda.device_of(x):
        launch(aligned, x, y, x if weight is None else weight, x if bias is None else bias, kept)
    return Saved(kept, centred)


def backward(
    saved: Saved, x: Tensor, weight: Tensor | None, g: Tensor, dx: Tensor, d_weight: Tensor | None,
    d_bias: Tensor | None,
) -> None:  # fmt: skip
    """Write dx, contiguous, and the gradients of weight and bias where they are not None; tensors as in `forward`."""
    kept, learns = saved.kept, (d_weight is not None, d_bias is not None)
    launches = _backward(
        _sizes(x), x.dim() == 2, x.dtype, x.device, _strides(x), _strides(g), _strides(dx), saved.centred,
        weight is not None, learns,
    )  # fmt: skip
    parts = kept.new_empty(2 * launches.instances * x.shape[1] if any(learns) else 0)
    aligned, _ = planes.seen((x, g, dx, weight, kept), ())
    with torch.cuda.device_of(x):
        launches.dx(aligned, x, g, dx, x if weight is None else weight, kept, parts)
        if launches.learn is not None:
            launches.learn(aligned, x, g, kept, parts)
        if launches.total is not None:
            launches.total(True, parts, *(parts if d is None else d for d in (d_weight, d_bias)))


def restored(x: Tensor, kept: Tensor, centred: bool) -> Saved:
    """What `forward` returned, from its `kept`."""
    return Saved(kept, centred)


def kept_dtype(x: Any, dtype: Any) -> Any:
    """The dtype of the elements, for halves float32."""
    return dtype


def parameter_dtype(x: Any) -> Any:
    """The dtype of the elements, for halves float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=1024)
def _forward(
    sizes: tuple[int, int, int], rows: bool, dtype: torch.dtype, device: torch.device, x_strides: tuple[int, int, int],
    y_strides: tuple[int, int, int], eps: float, centred: bool, weight: bool, bias: bool,
) -> Ready:  # fmt: skip
    cut = Cut(sizes, rows, device)
    each = _EACH if rows else _FEWER
    tile = cut.tile(_EACH // each)
    tiles = cut.tiles(tile[0])
    numbers = (
        *sizes, *x_strides, *y_strides, tiles, eps, centred, weight, bias, cut.whole(tile), rows,
        _even(sizes, rows, x_strides, y_strides), *tile, _real(dtype),
    )  # fmt: skip
    return _ready(kernels.forward, (sizes[0] * tiles, 1, 1), warps(tile, each), numbers)


@lru_cache(maxsize=1024)
def _backward(
    sizes: tuple[int, int, int], rows: bool, dtype: torch.dtype, device: torch.device, x_strides: tuple[int, int, int],
    g_strides: tuple[int, int, int], y_strides: tuple[int, int, int], centred: bool, weight: bool,
    learns: tuple[bool, bool],
) -> Backward:  # fmt: skip
    cut = Cut(sizes, rows, device)
    tile = cut.tile(_EACH // _FEWER)
    whole = cut.whole(tile)
    here = any(learns) and whole
    tiles, instances = cut.tiles(tile[0]), cut.instances(tile)
    even = _even(sizes, rows, x_strides, g_strides, y_strides)
    numbers = (
        *sizes, *x_strides, *g_strides, *y_strides, tiles, centred, weight, here, whole, rows, even, *tile,
        _real(dtype),
    )  # fmt: skip
    dx = _ready(kernels.backward, (instances if here else sizes[0] * tiles, 1, 1), warps(tile, _FEWER), numbers)
    learn = total = None
    if any(learns):
        if not here:
            tall = cut.tall_tile
            blocks = -(-sizes[1] // tall[1])
            instances = cut.instances(tall, blocks)
            fewer = (*sizes, *x_strides, *g_strides, cut.tiles(tall[0]), rows, even, *tall, _real(dtype))
            learn = _ready(kernels.learn, (instances, blocks, 1), warps(tall, _FEWER), fewer)
        total = _ready(kernels.total, (-(-sizes[1] // _SUMMED[1]), 1, 1), 4, (instances, sizes[1], *learns, *_SUMMED))
    return Backward(dx, learn, total, instances)


def _ready(kernel: Any, grid: tuple[int, int, int], count: int, numbers: tuple[Any, ...]) -> Ready:
    return Ready(kernel, Launch(grid, 0, 0, {"num_warps": count}), numbers)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """(N, E, S): rows are the positions of one sample."""
    return (1, x.shape[1], x.shape[0]) if x.dim() == 2 else (x.shape[0], x.shape[1], x.shape[2])


def _strides(v: Tensor) -> tuple[int, int, int]:
    """Of (N, E, S); the last dimension is contiguous, whatever the stride of a single element is."""
    return (0, 1, v.stride(0)) if v.dim() == 2 else (v.stride(0), v.stride(1), 1)


def _even(sizes: tuple[int, int, int], rows: bool, *strides: tuple[int, int, int]) -> int:
    """What divides all distances between runs of contiguous elements, and their length."""
    lengths = [sizes[1], *(s[2] for s in strides)] if rows else [sizes[2], *(d for s in strides for d in s[:2])]
    return math.gcd(8, *lengths)


def _real(dtype: torch.dtype) -> Any:
    return tl.float64 if dtype == torch.float64 else tl.float32
