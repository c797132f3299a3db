"""Triton kernels for CUDA tensors of float32, float64, bfloat16 and float16, in both memory orders.

A norm that stays within samples is one launch in either direction; one that pools over the batch, or that has too few
samples and groups to occupy the device, is two: the first measures, the second performs the norm's program for the
planes that it is about to write. Programs that couple samples and channels at once are performed by torch between the
launches. Running statistics are updated on the way. The host only enqueues: it never waits for the device.

Gradients of parameters come per sample from norms that stay within samples, and take one more launch to be summed up.

The code: `_triton_kernels` the two directions, `_triton_programs` the grid program in them, here how the work is cut.
With TRITON_INTERPRET=1 in the environment all of it runs on CPU tensors, slowly, to be tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from normlab.activations import Activation
from normlab.application import Recipe
from normlab.grid import update_running
from normlab.layout import Layout
from normlab.planes import _triton_kernels as kernels
from normlab.planes._job import bits
from normlab.planes._triton_programs import ACROSS, compiled, perform, source, unit
from normlab.program import Program, Programs, trace

_TILE = 4096  # elements that an instance holds at a time
_ROW = 1024  # elements side by side in a channels-first tile
_SHORT = 128  # positions of a plane of which many fill a tile
_COLUMNS = 32  # channels of a channels-last tile: a whole line of memory in float32
_REGISTERS = 2048  # numbers that a program's registers hold each, at most
_PARTS = 64  # of a plane that are measured apart, at most: every instance of the second launch merges them
_WAVES = 4  # instances for each multiprocessor, where there is work enough
_KEPT = 256  # plans of one recipe


@dataclass(frozen=True, slots=True)
class Launch:
    """One launch: its grid, the positions and samples of an instance, and what its kernel is compiled for."""

    grid: tuple[int, int, int]
    chunk: int
    samples: int
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Direction:
    """The launches of one direction, the parts in which planes are measured, and the program if torch performs it."""

    launches: tuple[Launch, ...]
    part: int
    part_count: int
    between: Program | None


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same in every call with one recipe, shape, layout, dtype and device."""

    programs: Programs
    sizes: tuple[int, int, int]
    where: tuple[int, int, int, int, int]  # N, C, S and the strides of channels and positions
    forward: Direction
    backward: Direction


@dataclass(slots=True)
class Saved:
    """What the backward pass needs beside x: (mean, var, scale, center, shift) of the planes, and how it was done."""

    plan: Plan
    grids: Tensor
    pooled: Tensor
    running: tuple[Tensor, Tensor] | tuple[()]
    eps: float
    act: Activation | None

    @property
    def batch(self) -> tuple[Tensor, Tensor, int] | None:
        n, _, size = self.plan.sizes
        return (self.pooled[0], self.pooled[1], n * size) if self.plan.programs.pools_batch else None

    @property
    def moments(self) -> tuple[Tensor, Tensor, int] | None:
        n, channels, size = self.plan.sizes
        grids = self.grids.view(5, n, channels)
        return (grids[0], grids[1], size) if self.plan.programs.measures else None


def forward(
    recipe: Recipe,
    layout: Layout,
    x: Tensor,
    params: Mapping[str, Tensor],
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    out: Tensor,
    act: Activation | None = None,
    residual: Tensor | None = None,
    update: tuple[Tensor, Tensor, float] | None = None,
) -> Saved:
    key = ("triton", x.shape, layout, x.dtype, x.device)
    plan = recipe.plans.get(key)
    if plan is None:
        if len(recipe.plans) >= _KEPT:
            recipe.plans.clear()
        plan = recipe.plans[key] = _plan(recipe, layout, x)
    n, channels, _ = plan.sizes
    direction = plan.forward
    memory = torch.empty(5 * n * channels + 2 * channels, dtype=torch.float64, device=x.device)
    grids, pooled = memory[: 5 * n * channels].view(5, -1), memory[5 * n * channels :].view(2, -1)
    # what is measured in one part is the planes' moments
    parts = grids if direction.part_count == 1 else _parts(direction, grids)
    saved = Saved(plan, grids, pooled, running or (), eps, act)
    if not plan.programs.pools_batch:
        update = None
    values = tuple(params.values())
    stands_in = update[:2] if update is not None else running or ()
    with torch.cuda.device_of(x):
        for i, launch in enumerate(direction.launches):
            if i and direction.between is not None:
                _solve_forward(saved, direction, direction.between, parts, list(values))
            kernels.forward[launch.grid](
                x, out, x if residual is None else residual, parts, grids, pooled, values, stands_in,
                0 if update is None else bits(update[2]),
                *plan.where, launch.chunk, launch.samples, direction.part, direction.part_count,
                ADD=residual is not None, UPDATE=update is not None and launch.options["SOLVE"] is not None,
                ACT=None if act is None else act.name, SLOPE=0.0 if act is None else act.slope, EPS=eps,
                MEASURED=plan.programs.measures, POOLS=plan.programs.pools_batch, **launch.options,
            )  # fmt: skip
    if update is not None and direction.between is not None:
        update_running(update[:2], (pooled[0], pooled[1], n * plan.sizes[2]), update[2])
    return saved


def backward(
    saved: Saved,
    layout: Layout,
    x: Tensor,
    g: Tensor,
    out: Tensor,
    params: Iterable[Tensor],
    residual: Tensor | None = None,
    to_residual: Tensor | None = None,
) -> list[Tensor]:
    plan, act = saved.plan, saved.act
    n, channels, _ = plan.sizes
    direction, linear = plan.backward, plan.programs.linear
    values = tuple(params)
    parts = _parts(direction, saved.grids)
    slopes = torch.empty_like(saved.grids[:2])
    across = any(launch.options["ACROSS"] for launch in direction.launches)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    grads = torch.empty((len(values), channels if across else n * channels), dtype=real, device=x.device)
    with torch.cuda.device_of(x):
        for i, launch in enumerate(direction.launches):
            if i and direction.between is not None:
                _solve_backward(saved, direction.between, parts, slopes, grads, list(values))
            kernels.backward[launch.grid](
                x, g, out, x if residual is None else residual, x if to_residual is None else to_residual, parts,
                saved.grids, slopes, grads, values, saved.running, *plan.where, launch.chunk, launch.samples,
                direction.part_count, GRADS=len(values), LINEAR=linear, ADD=residual is not None,
                KEEP=to_residual is not None, ACT=None if act is None else act.name,
                SLOPE=0.0 if act is None else act.slope, EPS=saved.eps, **launch.options,
            )  # fmt: skip
    return list(grads if across else grads.view(-1, n, channels).sum(1) if n > 1 else grads)


# --- the program between the launches, where they cannot perform it --------------------------------------------------


def _solve_forward(saved: Saved, direction: Direction, program: Program, parts: Tensor, params: list[Tensor]) -> None:
    n, channels, size = saved.plan.sizes
    if direction.part_count > 1:
        means, variances = parts.view(2, direction.part_count, -1)
        shares = [direction.part / size] * (direction.part_count - 1)
        shares.append(1 - sum(shares))
        mean = sum(share * m for share, m in zip(shares, means, strict=True))
        var = sum(share * (v + (m - mean) ** 2) for share, m, v in zip(shares, means, variances, strict=True))
        saved.grids[0], saved.grids[1] = mean, var
    grids = saved.grids.view(5, n, channels)
    inputs = {"mean": grids[0], "var": grids[1], **_running(saved)}
    answer = perform(program, inputs, params, saved.eps, size)
    for grid, v in zip(grids[2:], answer[:3], strict=True):
        grid.copy_(v)
    for row, v in zip(saved.pooled, answer[3:], strict=False):
        row.copy_(v[0])


def _solve_backward(
    saved: Saved, program: Program, parts: Tensor, slopes: Tensor, grads: Tensor, params: list[Tensor]
) -> None:
    n, channels, size = saved.plan.sizes
    sums = parts.view(2, -1, n, channels).sum(1)
    mean, var, scale, center, _ = saved.grids.view(5, n, channels)
    inputs = {"mean": mean, "var": var, "sum_g": sums[0], "sum_gx": sums[1], "scale": scale, "center": center}
    answer = perform(program, {**inputs, **_running(saved)}, params, saved.eps, size)
    for to, v in zip([*slopes, *grads], answer, strict=True):
        to.view(n, channels).copy_(v)


def _running(saved: Saved) -> dict[str, Tensor]:
    names = ("running_mean", "running_var") if saved.running else ()
    return {name: v.to(torch.float64).view(1, -1) for name, v in zip(names, saved.running, strict=True)}


def _parts(direction: Direction, grids: Tensor) -> Tensor:
    return grids.new_empty((2, direction.part_count, grids.shape[1]))


# --- how the work is cut ---------------------------------------------------------------------------------------------


def _plan(recipe: Recipe, layout: Layout, x: Tensor) -> Plan:
    n, channels, size = sizes = layout.sizes(x)
    programs = trace(recipe, n, channels)
    per_channel = tuple(recipe.entry.parameters[name].per_channel for name in recipe.names)
    strides = (1, channels) if layout.channels_last else (size, 1)
    cut = _Cut(
        sizes, layout.channels_last, _processors(x.device), tl.float64 if x.dtype == torch.float64 else tl.float32
    )
    needs_sums = bool(recipe.names) or not programs.linear
    return Plan(
        programs,
        sizes,
        (*sizes, *strides),
        cut.direction(programs.forward, "forward", per_channel, programs.measures),
        cut.direction(programs.backward, "backward", per_channel, needs_sums),
    )


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


@dataclass(frozen=True)
class _Cut:
    """Cuts the work on a tensor for a device of so many multiprocessors."""

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
        if name == "backward" and not measures:  # dx = scale * g, and no parameter asks for its gradient
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
        columns = _power_of_2(width)
        rows = max(1, _TILE // (columns * _power_of_2(size)), _COLUMNS // columns if self.channels_last else 1)
        rows = min(rows, _REGISTERS // columns, _power_of_2(units))
        block_p, block_s = self._tile(rows * width)
        blocks = -(-units // rows)
        chunk, chunks = self._positions(block_s, blocks, _PARTS if steps["MEASURE"] else None) if split else (size, 1)
        shape = {"ACROSS": False, "W": width, "R": rows, "J": columns, "BLOCK_P": block_p, "BLOCK_S": block_s}
        return _merging(Launch((blocks, chunks, 1), chunk, n, {**steps, **shape, "REAL": self.real}), 1)

    def _channels(self, **steps: Any) -> Launch:
        """Some channels of some samples, knowing the moments of all samples."""
        n, channels, _ = self.sizes
        rows = _power_of_2(n)
        columns, block_s = self._tile(min(channels, _REGISTERS // rows))
        blocks = -(-channels // columns)
        samples = -(-n // min(n, self._wanted(blocks)))
        some = -(-n // samples)
        chunk, chunks = self._positions(block_s, blocks * some)
        shape = {"ACROSS": True, "W": 1, "R": rows, "J": columns, "BLOCK_P": columns, "BLOCK_S": block_s}
        return Launch((blocks, chunks, some), chunk, samples, {**steps, **shape, "REAL": self.real})

    def _tile(self, planes: int) -> tuple[int, int]:
        """BLOCK_P and BLOCK_S: long along what is contiguous."""
        size, planes = _power_of_2(self.sizes[2]), _power_of_2(planes)
        if self.channels_last:
            block_p = min(planes, _power_of_2(self.sizes[1]), _COLUMNS)
            return block_p, min(size, _TILE // block_p)
        if size <= _SHORT:  # many planes in a tile, few of their numbers side by side: half the tile
            return min(planes, _TILE // 2 // size), size
        block_s = min(size, _ROW)
        return min(planes, _TILE // block_s), block_s

    def _positions(self, block_s: int, blocks: int, most: int | None = None) -> tuple[int, int]:
        """Positions of an instance, and how often that is a plane, where there are so many blocks of planes."""
        size = self.sizes[2]
        tiles = -(-size // block_s)
        chunks = min(tiles, self._wanted(blocks), most or tiles)
        chunk = -(-tiles // chunks) * block_s
        return chunk, -(-size // chunk)

    def _wanted(self, blocks: int) -> int:
        """Into how many parts so many blocks should be cut to occupy the device."""
        return -(-_WAVES * self.processors // blocks)


def _merging(launch: Launch, count: int) -> Launch:
    """A launch whose program merges so many parts of each plane, some at a time."""
    numbers = launch.options["R"] * launch.options["J"]
    block_k = min(_power_of_2(count), max(1, _REGISTERS // numbers))
    warps = 8 if launch.options["SOLVE"] is not None and numbers * block_k > 1024 else 4
    return Launch(launch.grid, launch.chunk, launch.samples, {**launch.options, "BLOCK_K": block_k, "num_warps": warps})


def _power_of_2(number: int) -> int:
    """The smallest power of two that is no less."""
    return 1 << (number - 1).bit_length()
