"""How the work on a tensor is cut into launches of Triton kernels, and the launches made ready to be repeated."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from normlab.kernels.gpu._programs import ACROSS, compiled, source, unit
from normlab.norms.program import Program

_TILE = 4096  # elements that an instance holds at a time
_ROW = 1024  # elements side by side in a channels-first tile
_SHORT = 128  # positions of a plane of which many fill a tile
_COLUMNS = 32  # channels of a channels-last tile: a whole line of memory in float32
_REGISTERS = 2048  # numbers that a program's registers hold each, at most
_PARTS = 64  # of a plane that are measured apart, at most: every instance of the second launch merges them
_WAVES = 4  # instances for each multiprocessor, where there is work enough
_TILES = 8  # of a block, within which every thread adds up for itself, where sums over threads are dear
_KEPT = 256  # variants of a direction's launches

# what the cut decides of that for which a kernel is compiled, in the order of the kernels' arguments
OPTIONS = (
    "SOLVE",
    "MEASURE",
    "APPLY",
    "ACROSS",
    "W",
    "R",
    "J",
    "BLOCK_P",
    "BLOCK_S",
    "BLOCK_K",
    "TILES",
    "EVEN",
    "REAL",
)


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: its grid, the positions and samples of an instance, and what its kernel is compiled for."""

    grid: tuple[int, int, int]
    chunk: int
    samples: int
    options: dict[str, Any]


class Ready:
    """A launch with all its numbers but the tensors.

    Triton's dispatch looks at every argument of every call, to find the variant of the kernel that it compiled for
    their dtypes and alignments. Where all tensors are aligned there is one variant, and it is called directly.
    """

    __slots__ = ("direct", "grid", "kernel", "numbers", "warps")

    def __init__(self, kernel: Any, launch: Launch, numbers: tuple[Any, ...]) -> None:
        self.kernel, self.grid, self.numbers = kernel, launch.grid, numbers
        self.warps = launch.options["num_warps"]
        self.direct: Any = None

    def __call__(self, aligned: bool, *tensors: Any) -> None:
        if aligned and self.direct is not None:
            self.direct(*tensors, *self.numbers)
            return
        compiled = self.kernel[self.grid](*tensors, *self.numbers, num_warps=self.warps)
        if aligned and compiled is not None:  # the interpreter returns None
            self.direct = compiled[self.grid]


@dataclass(frozen=True, slots=True)
class Direction:
    """The launches of one direction, the parts in which planes are measured, and the program if torch performs it.

    `ready` holds the launches as they were made before, by all that they depend on besides.
    """

    launches: tuple[Launch, ...]
    part: int
    part_count: int
    between: Program | None
    ready: dict[Any, list[Ready]] = field(default_factory=dict, compare=False, repr=False)

    def prepare(self, kernel: Any, variant: Any, numbers: Callable[[Launch], tuple[Any, ...]]) -> list[Ready]:
        """The launches of a kernel; its arguments after the tensors are what `numbers` returns, then the options."""
        if len(self.ready) >= _KEPT:  # a momentum that is another in every call
            self.ready.clear()
        self.ready[variant] = [
            Ready(kernel, launch, (*numbers(launch), *(launch.options[name] for name in OPTIONS)))
            for launch in self.launches
        ]
        return self.ready[variant]

    @property
    def across(self) -> bool:
        """Whether gradients of parameters are summed over the samples by the launches."""
        return any(launch.options["ACROSS"] for launch in self.launches)


@dataclass(frozen=True)
class Cut:
    """Cuts the work on a tensor for a device with this many multiprocessors."""

    sizes: tuple[int, int, int]
    channels_last: bool
    processors: int
    real: Any

    def direction(self, program: Program, name: str, per_channel: tuple[bool, ...], measures: bool) -> Direction:
        """The launches of one direction; `measures` says whether the planes must be read before they are written."""
        n, channels, size = self.sizes
        coupled = unit(program, channels)
        if coupled is not None and max(coupled, n if coupled == ACROSS else 0) > _REGISTERS:
            coupled = None
        if name == "backward" and not measures:  # dx = scale * g, and no parameter needs its gradient
            return Direction((self._planes(MEASURE=False, SOLVE=None, APPLY=True),), size, 1, None)
        solve = None if coupled is None else compiled(source(program, name, per_channel))
        if coupled is not None and coupled != ACROSS:
            whole = self._units(coupled, split=not measures, MEASURE=measures, SOLVE=solve, APPLY=True)
            small = whole.options["R"] * coupled * size <= _TILE
            if not measures or small or whole.grid[0] >= self.processors:
                return Direction((whole,), size, 1, None)
        first = self._planes(MEASURE=True, SOLVE=None, APPLY=False)
        count = first.grid[1]
        if coupled is None:
            second = self._planes(MEASURE=False, SOLVE=None, APPLY=True)
        elif coupled == ACROSS:
            second = self._channels(MEASURE=False, SOLVE=solve, APPLY=True)
        else:
            second = self._units(coupled, split=True, MEASURE=False, SOLVE=solve, APPLY=True)
        between = program if coupled is None else None
        return Direction((first, _merging(second, count)), first.chunk, count, between)

    def _planes(self, **steps: Any) -> Launch:
        """Any planes, any positions: for launches that do without the program."""
        return self._units(1, split=True, **steps)

    def _units(self, width: int, *, split: bool, **steps: Any) -> Launch:
        """Whole units of `width` planes, as many at a time as fill a tile, and lines of memory."""
        n, channels, size = self.sizes
        units = n * channels // width
        columns = power_of_2(width)
        rows = max(1, _TILE // (columns * power_of_2(size)), _COLUMNS // columns if self.channels_last else 1)
        rows = min(rows, _REGISTERS // columns, power_of_2(units))
        # in channels-last order few instances measure, as their parts are to be merged: more of each is under way
        wide = self.channels_last and steps["MEASURE"] and steps["SOLVE"] is None
        block_p, block_s = self._tile(rows * width, 2 * _TILE if wide else _TILE)
        blocks = -(-units // rows)
        chunk, chunks = self._positions(block_s, blocks, _PARTS if steps["MEASURE"] else None) if split else (size, 1)
        shape = {"ACROSS": False, "W": width, "R": rows, "J": columns, "BLOCK_P": block_p, "BLOCK_S": block_s}
        # in channels-last order threads side by side hold other channels
        tiles = _TILES if self.channels_last and chunk > block_s else 1
        options = {**steps, **shape, "TILES": tiles, "EVEN": self.even, "REAL": self.real}
        # all steps on many short planes: what an instance holds of them is spread over more threads' registers
        wide |= steps["MEASURE"] and steps["SOLVE"] is not None and size <= _SHORT and not self.channels_last
        return _merging(Launch((blocks, chunks, 1), chunk, n, options), 1, wide)

    def _channels(self, **steps: Any) -> Launch:
        """Some channels of some samples, knowing the moments of all samples."""
        n, channels, _ = self.sizes
        rows = power_of_2(n)
        columns, block_s = self._tile(min(channels, _REGISTERS // rows))
        blocks = -(-channels // columns)
        samples = -(-n // min(n, self._wanted(blocks)))
        some = -(-n // samples)
        chunk, chunks = self._positions(block_s, blocks * some)
        shape = {"ACROSS": True, "W": 1, "R": rows, "J": columns, "BLOCK_P": columns, "BLOCK_S": block_s}
        options = {**steps, **shape, "TILES": 1, "EVEN": self.even, "REAL": self.real}
        return Launch((blocks, chunks, some), chunk, samples, options)

    @property
    def even(self) -> int:
        """What the compiler does not see by itself: planes of 14 x 14 begin at every fourth number."""
        return 1 if self.channels_last else math.gcd(self.sizes[2], 8)

    def _tile(self, planes: int, tile: int | None = None) -> tuple[int, int]:
        """BLOCK_P and BLOCK_S: long along what is contiguous."""
        tile = tile or _TILE
        size, planes = power_of_2(self.sizes[2]), power_of_2(planes)
        if self.channels_last:
            block_p = min(planes, power_of_2(self.sizes[1]), _COLUMNS)
            return block_p, min(size, tile // block_p)
        if size <= _SHORT:  # many planes in a tile, few of their numbers side by side: half the tile
            return min(planes, tile // 2 // size), size
        # as much of a plane as there is room for; four rows of float64 are more than the registers hold
        row = _ROW if self.real.primitive_bitwidth == 64 else max(_ROW, tile // planes)
        block_s = min(size, row)
        return min(planes, tile // block_s), block_s

    def _positions(self, block_s: int, blocks: int, most: int | None = None) -> tuple[int, int]:
        """Positions of an instance, and instances for each plane, given the number of blocks of planes."""
        size = self.sizes[2]
        tiles = -(-size // block_s)
        chunks = min(tiles, self._wanted(blocks), most or tiles)
        chunk = -(-tiles // chunks) * block_s
        return chunk, -(-size // chunk)

    def _wanted(self, blocks: int) -> int:
        """Into how many parts each of this many blocks is cut to occupy the device."""
        return -(-_WAVES * self.processors // blocks)


def _merging(launch: Launch, count: int, wide: bool = False) -> Launch:
    """The launch, with a program that merges `count` parts of each plane, some at a time."""
    numbers = launch.options["R"] * launch.options["J"]
    block_k = min(power_of_2(count), max(1, _REGISTERS // numbers))
    warps = 8 if wide or (launch.options["SOLVE"] is not None and numbers * block_k > 1024) else 4
    return Launch(launch.grid, launch.chunk, launch.samples, {**launch.options, "BLOCK_K": block_k, "num_warps": warps})


def power_of_2(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()
