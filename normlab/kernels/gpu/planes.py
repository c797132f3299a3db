"""Triton kernels for CUDA tensors of float32, float64, bfloat16 and float16, in both memory orders.

A norm that stays within samples is one launch in either direction; one that pools over the batch, or that has too few
samples and groups to occupy the device, is two: the first measures, the second performs the norm's program for the
planes that it is about to write. Programs that couple samples and channels at once are performed by torch between the
launches. Running statistics are updated on the way. The host only enqueues: it never waits for the device.

Gradients of parameters come per sample from norms that stay within samples, and take one more launch to be summed up.

The code: `_kernels` the two directions, `_programs` the grid program in them, `_cut` how the work
is cut into launches, here what is handed to them.

With TRITON_INTERPRET=1 in the environment all of it runs on CPU tensors, slowly, to be tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from normlab.kernels.activations import Activation
from normlab.kernels.gpu import _kernels as kernels
from normlab.kernels.gpu._cut import Cut, Direction
from normlab.kernels.gpu._programs import perform
from normlab.kernels.layout import Layout
from normlab.kernels.runtime.job import bits
from normlab.norms.application import Recipe
from normlab.norms.grid import update_running
from normlab.norms.program import Program, Programs, trace

INTERPRETED = not isinstance(kernels.forward, triton.JITFunction)  # TRITON_INTERPRET=1 was there in time

_KEPT = 256  # plans of one recipe


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
    """What the backward pass needs beside x, and how it was done.

    `grids` is (mean, var, scale, center, shift) of the planes, then mean and var of the batch, then what else the
    launches left behind, end to end.
    """

    plan: Plan
    grids: Tensor
    running: tuple[Tensor, ...]
    eps: float
    act: Activation | None

    @property
    def batch(self) -> tuple[Tensor, Tensor, int] | None:
        n, channels, size = self.plan.sizes
        if not self.plan.programs.pools_batch:
            return None
        mean, var = self.grids[5 * n * channels :][: 2 * channels].view(2, -1)
        return mean, var, n * size

    @property
    def moments(self) -> tuple[Tensor, Tensor, int] | None:
        n, channels, size = self.plan.sizes
        if not self.plan.programs.measures:
            return None
        mean, var = self.grids[: 2 * n * channels].view(2, n, channels)
        return mean, var, size

    @property
    def memory(self) -> Tensor:
        n, channels, _ = self.plan.sizes
        return self.grids[: (5 * n + 2) * channels]


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
    update: tuple[Tensor, Tensor, float | Tensor] | None = None,
) -> Saved:
    plan = _plan(recipe, layout, x)
    direction, (n, channels, _) = plan.forward, plan.sizes
    # what is measured in one part is the planes' moments
    parts_at = 0 if direction.part_count == 1 else (5 * n + 2) * channels
    count = (5 * n + 2) * channels + (2 * n * channels * direction.part_count if parts_at else 0)
    grids = torch.empty(count, dtype=torch.float64, device=x.device)
    saved = Saved(plan, grids, running or (), eps, act)
    if not plan.programs.pools_batch:
        update = None
    # the kernel updates unless torch computes the batch's moments first, or the momentum is on the device
    inside = None if update is None or direction.between is not None or isinstance(update[2], Tensor) else update[2]
    values = tuple(params.values())
    rows = update[:2] if update is not None and inside is not None else saved.running
    aligned, dtypes = seen((x, out, residual), (*values, *rows))
    variant = (dtypes, residual is None, inside, act, eps)
    ready = direction.ready.get(variant) or direction.prepare(
        kernels.forward,
        variant,
        lambda launch: (
            0 if inside is None else bits(inside), *plan.where, launch.chunk, launch.samples, direction.part,
            direction.part_count, parts_at, inside is not None and launch.options["SOLVE"] is not None,
            *_form(launch.options["APPLY"], residual, act), eps, plan.programs.measures, plan.programs.pools_batch,
        ),
    )  # fmt: skip
    with torch.cuda.device_of(x):
        for i, launch in enumerate(ready):
            if i and direction.between is not None:
                _solve_forward(saved, direction, direction.between, list(values))
            launch(aligned, x, out, x if residual is None else residual, grids, values, rows)
    if update is not None and inside is None:
        assert saved.batch is not None
        update_running(update[:2], saved.batch, update[2])  # type: ignore[arg-type]
    return saved


def numbers(recipe: Recipe, sizes: tuple[int, int, int]) -> int:
    n, channels, _ = sizes
    return (5 * n + 2) * channels


def restored(
    recipe: Recipe,
    layout: Layout,
    x: Tensor,
    params: Mapping[str, Tensor],
    running: tuple[Tensor, Tensor] | None,
    eps: float,
    act: Activation | None,
    memory: Tensor,
) -> Saved:
    return Saved(_plan(recipe, layout, x), memory, running or (), eps, act)


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
    plan, act, grids = saved.plan, saved.act, saved.grids
    n, channels, _ = plan.sizes
    direction, values = plan.backward, tuple(params)
    across = direction.across
    slopes = grids.new_empty((2 + 2 * direction.part_count) * n * channels)
    real = torch.float64 if x.dtype == torch.float64 else torch.float32
    grads = torch.empty((len(values), channels if across else n * channels), dtype=real, device=x.device)
    aligned, dtypes = seen((x, g, out, residual, to_residual), (*values, *saved.running))
    variant = (dtypes, residual is None, to_residual is None, act, saved.eps)
    ready = direction.ready.get(variant) or direction.prepare(
        kernels.backward,
        variant,
        lambda launch: (
            *plan.where, launch.chunk, launch.samples, direction.part_count, len(values), plan.programs.linear,
            *_form(launch.options["MEASURE"] or to_residual is None, residual, act, to_residual), saved.eps,
        ),
    )  # fmt: skip
    with torch.cuda.device_of(x):
        for i, launch in enumerate(ready):
            if i and direction.between is not None:
                _solve_backward(saved, direction, slopes, grads, list(values))
            launch(
                aligned, x, g, out, x if residual is None else residual, x if to_residual is None else to_residual,
                grids, slopes, grads, values, saved.running,
            )  # fmt: skip
    return list((grads if across or n == 1 else grads.view(-1, n, channels).sum(1)).unbind())


def seen(elements: Iterable[Tensor | None], rows: tuple[Tensor, ...]) -> tuple[bool, tuple[torch.dtype, ...]]:
    """Whether all tensors begin at multiples of 16 bytes, and the dtypes of those that have a number per channel."""
    address = 0
    for v in elements:
        if v is not None:
            address |= v.data_ptr()
    for v in rows:
        address |= v.data_ptr()
    return address & 15 == 0, tuple([v.dtype for v in rows])


def _form(
    acts: bool, residual: Tensor | None, act: Activation | None, *to_residual: Tensor | None
) -> tuple[bool | str | float | None, ...]:
    """ADD, KEEP where it is asked for, ACT and SLOPE; a launch that does not act is compiled once for all forms."""
    keep = [v is not None for v in to_residual]
    name, constant = (act.name, act.constant) if act is not None and acts else (None, 0.0)
    return residual is not None and acts, *keep, name, constant


def _plan(recipe: Recipe, layout: Layout, x: Tensor) -> Plan:
    key = ("triton", x.shape, layout, x.dtype, x.device)
    plan: Plan | None = recipe.plans.get(key)
    if plan is None:
        if len(recipe.plans) >= _KEPT:
            recipe.plans.clear()
        plan = recipe.plans[key] = _make_plan(recipe, layout, x)
    return plan


def _make_plan(recipe: Recipe, layout: Layout, x: Tensor) -> Plan:
    n, channels, size = sizes = layout.sizes(x)
    programs = trace(recipe, n, channels)
    per_channel = tuple(recipe.entry.parameters[name].per_channel for name in recipe.names)
    strides = (1, channels) if layout.channels_last else (size, 1)
    cut = Cut(sizes, layout.channels_last, processors(x.device), tl.float64 if x.dtype == torch.float64 else tl.float32)
    needs_sums = bool(recipe.names) or not programs.linear
    return Plan(
        programs,
        sizes,
        (*sizes, *strides),
        cut.direction(programs.forward, "forward", per_channel, programs.measures),
        cut.direction(programs.backward, "backward", per_channel, needs_sums),
    )


@cache
def processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


# --- the program between the launches, where they cannot perform it --------------------------------------------------


def _solve_forward(saved: Saved, direction: Direction, program: Program, params: list[Tensor]) -> None:
    n, channels, size = saved.plan.sizes
    grids = saved.grids[: 5 * n * channels].view(5, n, channels)
    count = direction.part_count
    if count > 1:
        parts = saved.grids[(5 * n + 2) * channels :].view(2, count, n, channels)
        shares = [direction.part / size] * (count - 1)
        shares.append(1 - sum(shares))
        mean = sum(share * m for share, m in zip(shares, parts[0], strict=True))
        var = sum(share * (v + (m - mean) ** 2) for share, m, v in zip(shares, *parts, strict=True))
        grids[0], grids[1] = mean, var
    inputs = {"mean": grids[0], "var": grids[1], **_running(saved)}
    solved = perform(program, inputs, params, saved.eps, size)
    for grid, v in zip(grids[2:], solved[:3], strict=True):
        grid.copy_(v)
    batch = saved.batch
    for row, v in zip(() if batch is None else batch[:2], solved[3:], strict=True):
        row.copy_(v[0])


def _solve_backward(saved: Saved, direction: Direction, slopes: Tensor, grads: Tensor, params: list[Tensor]) -> None:
    n, channels, size = saved.plan.sizes
    grids = slopes.view(2 + 2 * direction.part_count, n, channels)
    sums = grids[2:].view(2, -1, n, channels).sum(1)
    mean, var, scale, center, _ = saved.grids[: 5 * n * channels].view(5, n, channels)
    inputs = {"mean": mean, "var": var, "sum_g": sums[0], "sum_gx": sums[1], "scale": scale, "center": center}
    assert direction.between is not None
    solved = perform(direction.between, {**inputs, **_running(saved)}, params, saved.eps, size)
    for to, v in zip([*grids[:2], *grads], solved, strict=True):
        to.view(n, channels).copy_(v)


def _running(saved: Saved) -> dict[str, Tensor]:
    names = ("running_mean", "running_var") if saved.running else ()
    return {name: v.to(torch.float64).view(1, -1) for name, v in zip(names, saved.running, strict=True)}
