"""Compiled kernels for NumPy arrays and views of CPU tensors, in both memory orders.

They compute in float32 and float64. Half precision is widened to float32 as it is loaded, and rounded once as it is
stored (`normlab.kernels.runtime.narrow`).

A norm that stays within samples is run a block of samples at a time: moments, grid program and affine map while the
block is in cache, so that x is read from memory once (and g and x once in the backward pass). A norm that pools over
the batch takes two passes, with its grid program between them. The work is cut into units that do not depend on the
number of threads, so neither do the results.

Elements are centred before they are scaled: the centre is rounded to the elements' dtype, where the subtraction
of an element near it is exact, and what the rounding lost goes into the shift.

A call fills in the addresses in a list of numbers that is prepared once for a recipe, shape and layout (`Plan`), and
hands it to a C function: on small tensors the way there counts more than the work.

The code: `_rows` the four kernels on rows of elements, `_exact` on planes that leave float32, `_activations` what is
applied to their result, `_kernels` all of these as C functions, `_machine` the grid program, `_work` all of it on a
unit of work, `_passes` a whole direction; in `normlab.kernels.runtime`, `sharing` the threads that share the units and
`job` the numbers that they share. Each C function is compiled when a plan first needs it.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from ctypes import addressof, c_char
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.kernels.activations import Activation
from normlab.kernels.cpu._forms import NO_ACT, OTHER_ACT, is_half, least_variance
from normlab.kernels.cpu._forms import RELU as RELU_ACT
from normlab.kernels.layout import Layout, address_of, allocated, empty_like, is_real
from normlab.kernels.runtime.beside import compiling
from normlab.kernels.runtime.job import (
    ACT,
    APPLY,
    CHANNELS,
    CHUNKS,
    CODE,
    COMBINE,
    CONSTANT_COUNT,
    CONSTANTS,
    DOT,
    EPS,
    EXTENT,
    FOLDED,
    GELU,
    GROUP,
    ITEMSIZE,
    LANES,
    LAST,
    LEAKY_RELU,
    LENGTH,
    MEASURE,
    MEMORY,
    MOMENTUM,
    OUTPUT_COUNT,
    OUTPUTS,
    PERFORM,
    PULL,
    REAL,
    REGISTERS,
    RELU,
    RESIDUAL,
    ROUND,
    ROWS,
    RUNNING_BYTES,
    RUNNING_MEAN,
    RUNNING_VAR,
    SAMPLES,
    SILU,
    SIZE,
    SLOPE,
    SPARE,
    STRETCH,
    TABLE,
    TINY,
    TO_RESIDUAL,
    WORK,
    G,
    X,
    Y,
    bits,
)
from normlab.kernels.runtime.needed import Need, address, function
from normlab.kernels.runtime.sharing import run
from normlab.norms.application import Recipe
from normlab.norms.program import Program, Programs, trace

_UNIT_BYTES = 1 << 17  # of x in a unit of work: stays in the second-level cache from one kernel to the next
_FUSED_BYTES = 1 << 15  # where dz is computed on the way, so that it stays in the first-level cache
_LANES = 256  # shortest row that channels-last rows are joined into
_KEPT = 256  # plans of one recipe
_INSIDE = {"relu": RELU, "leaky_relu": LEAKY_RELU, "silu": SILU, "gelu": GELU}  # what the kernels themselves have
MANY = 8  # samples from which on whole samples are units; fewer are cut into parts, to keep all threads busy


@dataclass(frozen=True, slots=True)
class Plan:
    """What is the same in every call with one recipe, shape, layout and activation."""

    programs: Programs
    has_running: bool
    sizes: tuple[int, int, int]
    elements: int
    numbers: int  # of float64 that a call needs for grids and rows
    rows: int  # running mean and variance, and the parameters
    folded: int  # samples in memory that are one
    last: bool
    dtype: str
    act: Activation | None
    prepared: dict[tuple[bool, bool], tuple[Callable[[int], None], array[int]]]


@dataclass(slots=True)
class Saved:
    """What the backward pass needs beside x: the grids and parameters of the forward pass, and how it was done."""

    plan: Plan
    memory: np.ndarray  # all numbers, zeros in place of those that this norm did not need
    eps: float

    @property
    def batch(self) -> tuple[np.ndarray, np.ndarray, int] | None:
        n, channels, size = self.plan.sizes
        if not self.plan.programs.pools_batch:
            return None
        return self.memory[-2 * channels : -channels], self.memory[-channels:], n * size

    @property
    def moments(self) -> tuple[np.ndarray, np.ndarray, int] | None:
        n, channels, size = self.plan.sizes
        if not self.plan.programs.measures:
            return None
        mean_var = self.memory[: 2 * n * channels].reshape(2, n, channels)
        return mean_var[0], mean_var[1], size


def forward(
    recipe: Recipe,
    layout: Layout,
    x: Any,
    params: dict[str, Any],
    running: Any,
    eps: float,
    out: Any,
    act: Activation | None = None,
    residual: Any = None,
    update: tuple[Any, Any, float] | None = None,
) -> Saved:
    plan = find_plan(recipe, layout, x, act)
    memory = np.zeros(plan.numbers)
    run_forward, job = prepare_call(plan, False, residual is not None)
    job[X], job[Y] = address_of(x), address_of(out)
    job[MEMORY], job[EPS], job[TINY] = _start(memory), bits(eps), bits(least_variance(eps))
    if residual is not None:
        job[RESIDUAL] = address_of(residual)
    channels = plan.sizes[1]
    alive: list[Any] = []
    if running is None:
        job.extend(_NO_RUNNING)
    else:
        _list(job, running, channels, alive)
    _list(job, params.values(), channels, alive)
    buffers = None if update is None else _pass_running(job, update, channels, alive)
    run(run_forward, job, plan.elements, with_torch=not isinstance(x, np.ndarray))
    if buffers is not None:
        for old, new in zip(update, buffers, strict=False):  # type: ignore[arg-type]
            old[...] = new
    return Saved(plan, memory, eps)


def backward(
    saved: Saved,
    layout: Layout,
    x: Any,
    g: Any,
    out: Any,
    params: Iterable[Any],
    residual: Any = None,
    to_residual: Any = None,
) -> list[Any]:
    plan = saved.plan
    run_backward, job = prepare_call(plan, True, residual is not None)
    job[X], job[G], job[Y] = address_of(x), address_of(g), address_of(out)
    job[MEMORY], job[EPS], job[TINY] = _start(saved.memory), bits(saved.eps), bits(least_variance(saved.eps))
    if residual is not None:
        job[RESIDUAL], job[TO_RESIDUAL] = address_of(residual), address_of(to_residual)
    grads = []
    for v in params:
        grads.append(empty_like(v) if _is_readable(v) else np.empty(tuple(v.shape)))
        job.extend(_place(grads[-1]))
    run(run_backward, job, plan.elements, with_torch=not isinstance(x, np.ndarray))
    return grads


def numbers(recipe: Recipe, sizes: tuple[int, int, int]) -> int:
    n, channels, _ = sizes
    if recipe.entry.per_channel:  # see `_plan`
        n = 1
    return (5 * n + 2 + len(recipe.names) + 2) * channels


def restored(
    recipe: Recipe,
    layout: Layout,
    x: Any,
    params: Any,
    running: Any,
    eps: float,
    act: Activation | None,
    memory: Any,
) -> Saved:
    return Saved(find_plan(recipe, layout, x, act), memory if isinstance(memory, np.ndarray) else memory.numpy(), eps)


def find_plan(recipe: Recipe, layout: Layout, x: Any, act: Activation | None) -> Plan:
    """What is fixed for inputs of this kind, made when one comes for the first time."""
    key = (x.shape, layout, x.dtype, act)
    plan = recipe.plans.get(key)
    if plan is None:
        if len(recipe.plans) >= _KEPT:
            recipe.plans.clear()
        plan = recipe.plans[key] = _plan(recipe, layout, x, act)
    return plan


def _plan(recipe: Recipe, layout: Layout, x: Any, act: Activation | None) -> Plan:
    n, channels, stretch = layout.sizes(x)
    last = layout.channels_last
    # what is per channel only treats all samples alike: together they are one, of planes in pieces
    folded = n if recipe.entry.per_channel and not last else 1
    sizes = n, channels, size = n // folded, channels, stretch * folded
    return Plan(
        trace(recipe, n, channels),
        recipe.has_running,
        sizes,
        n * channels * size,
        numbers(recipe, sizes),
        2 + len(recipe.names),
        folded,
        last,
        str(x.dtype).removeprefix("torch."),
        act,
        {},
    )


def prepare_call(plan: Plan, backward: bool, adds: bool) -> tuple[Callable[[int], None], array[int]]:
    """The C function of a direction, compiled when it is first needed, and a job for it that lacks the tensors."""
    found = plan.prepared.get((backward, adds))
    if found is None:
        found = plan.prepared[backward, adds] = _prepare(plan, backward, adds)
    return found[0], found[1][:]


def _prepare(plan: Plan, backward: bool, adds: bool) -> tuple[Callable[[int], None], array[int]]:
    program = plan.programs.backward if backward else plan.programs.forward
    (n, channels, size), folded, last, dtype, act = plan.sizes, plan.folded, plan.last, plan.dtype, plan.act
    half = is_half(dtype)
    itemsize, real = (2 if half else int(dtype[-2:]) // 8), (8 if dtype == "float64" else 4)
    across = _is_across(plan, backward)
    job = array("q", bytes(8 * TABLE))
    if act is not None:
        job[ACT], job[SLOPE] = _INSIDE.get(act.name, 0), bits(act.constant)
    needs = _needs(plan, backward, adds)
    later = [] if backward else list(_needs(plan, True, adds).values())
    direction = _need("_passes", "direction", backward, across)
    with compiling.expecting([direction, *reversed(list(needs.values())), *reversed(later)]):
        for place, need in needs.items():
            job[place] = address(need)
        run_direction = function(direction, 1)
    job[ITEMSIZE], job[REAL] = itemsize, real
    job[SAMPLES], job[CHANNELS], job[SIZE], job[LAST] = n, channels, size, last
    job[LANES] = lanes = max(1, _LANES // channels) * channels if last else 0
    job[FOLDED], job[STRETCH] = folded, size // folded
    job[ROWS] = plan.rows
    if across:
        unit = (_FUSED_BYTES if backward and act is not None else _UNIT_BYTES) // real
        stretch = size // folded
        cut = _cut_rows(size, lanes, channels, unit) if last else _cut_planes(n * folded, channels, stretch, unit)
    else:
        cut = _block(plan.sizes, real), 0, 1
    job[EXTENT], job[CHUNKS], job[GROUP] = cut
    _describe(program, program.code if across else program.by_sample, job)
    if backward:  # where the gradient of z is kept on the way
        job[SPARE] = act is not None and (half or (across and not adds))
    else:
        job[SPARE] = half and act is not None and act.name != "relu"
    return run_direction, job


def _is_across(plan: Plan, backward: bool) -> bool:
    """Whether a direction goes over the batch in passes."""
    return (plan.programs.backward if backward else plan.programs.forward).across_samples or plan.sizes[0] < MANY


def _needs(plan: Plan, backward: bool, adds: bool) -> dict[int, Need]:
    """The compiled code of a direction, by the place of its address in the job; what takes longest first."""
    dtype, last, act, across = plan.dtype, plan.last, plan.act, _is_across(plan, backward)
    half = is_half(dtype)
    needs: dict[int, Need] = {}
    if backward:
        numbers = act is not None and half  # else they are elements as x is: the same code
        if act is not None:
            needs[PULL] = _need("_kernels", "pull", dtype, last, adds)
        in_place = act is not None and not (half or adds or across)
        linear = plan.programs.linear and not in_place  # else it is the same kernel
        needs[COMBINE] = _need("_kernels", "combine", dtype, last, numbers, in_place, linear)
        needs[DOT] = _need("_kernels", "dot", dtype, last, numbers)
        if act is not None and half and adds:
            needs[ROUND] = _need("_kernels", "rounded", dtype)
    else:
        form = NO_ACT if act is None else RELU_ACT if act.name == "relu" else OTHER_ACT
        needs[APPLY] = _need("_kernels", "apply", dtype, last, adds, form)
    needs[PERFORM] = _need("_machine", "perform")
    if not backward and plan.programs.measures:
        needs[MEASURE] = _need("_kernels", "measure", dtype, last)
    needs[WORK] = _need("_work", "work", backward, across)
    if act is not None and act.name not in _INSIDE:
        needs[ACT] = _need("_called", "address", act.name, dtype, backward)
    return needs


def _need(module: str, name: str, *arguments: Any) -> Need:
    return Need(f"normlab.kernels.cpu.{module}", name, arguments)


def _describe(program: Program, code: np.ndarray, job: array[int]) -> None:
    """Where a program lies; programs live as long as the recipe that has the plan."""
    job[CODE], job[LENGTH] = code.ctypes.data, len(code)
    job[CONSTANTS], job[CONSTANT_COUNT] = program.constants.ctypes.data, program.constants.size
    job[REGISTERS] = program.registers
    job[OUTPUTS], job[OUTPUT_COUNT] = program.outputs.ctypes.data, len(program.outputs)


def _block(sizes: tuple[int, int, int], itemsize: int) -> int:
    """How many samples to work on at a time: as many as stay in cache, at least 16 units."""
    n, channels, size = sizes
    return max(1, min(_UNIT_BYTES // (channels * size * itemsize), n // 16))


def _cut_rows(size: int, lanes: int, channels: int, unit: int) -> tuple[int, int, int]:
    """(extent, chunks, 1): the channels-last rows at a time for about a unit's elements, and how often in a sample."""
    extent = max(1, unit // lanes) * (lanes // channels)
    return extent, -(-size // extent), 1


def _cut_planes(samples: int, channels: int, stretch: int, unit: int) -> tuple[int, int, int]:
    """(extent, chunks, group): the planes at a time and how often in a sample; or all of a group of samples."""
    extent = max(1, unit // stretch)
    if extent < channels:
        return extent, -(-channels // extent), 1
    return channels, 1, max(1, min(extent // channels, samples // 16))


def _list(job: array[int], values: Iterable[Any], channels: int, alive: list[Any]) -> None:
    """Append where each of these numbers per channel lies; what has to be converted first is kept in `alive`."""
    for v in values:
        if not _is_readable(v):
            v = _converted(v)
            alive.append(v)
        place = _place(v)
        if place[2] != channels and place[2] != 1:
            raise ValueError(f"a parameter of shape {tuple(v.shape)} for {channels} channels; expected ({channels},)")
        job.extend(place)


_NO_RUNNING = (0, 0, 0) * 2


def _pass_running(
    job: array[int], update: tuple[Any, Any, float], channels: int, alive: list[Any]
) -> tuple[Any, Any] | None:
    """Enter running statistics to update into the job; returns the copies that are updated where they are converted."""
    mean, var, momentum = update
    plain = _is_readable(mean) and _is_readable(var) and mean.dtype == var.dtype
    pair = (mean, var) if plain else (_converted(mean), _converted(var))
    for v in pair:
        if len(v.shape) != 1 or v.shape[0] != channels:
            raise ValueError(f"running statistics of shape {tuple(v.shape)} for {channels} channels")
    job[RUNNING_MEAN], job[RUNNING_VAR], job[RUNNING_BYTES] = address_of(pair[0]), address_of(pair[1]), pair[0].itemsize
    job[MOMENTUM] = bits(momentum)
    alive += pair
    return None if plain else pair


def _is_readable(v: Any) -> bool:
    """Whether compiled code can read these numbers where they lie."""
    if isinstance(v, np.ndarray):
        return bool(v.flags.c_contiguous) and is_real(v.dtype)
    return is_real(v.dtype) and v.is_contiguous() and v.is_cpu and not v.is_neg()


def _place(v: Any) -> tuple[int, int, int]:
    """(address, bytes of a number, how many)."""
    return address_of(v), v.itemsize, v.size if isinstance(v, np.ndarray) else v.numel()


def _converted(v: Any) -> Any:
    """The same numbers as a contiguous array of float64."""
    if isinstance(v, np.ndarray):
        return np.array(v, np.float64)
    return allocated(v).detach().cpu().double().contiguous().clone()


def _start(memory: np.ndarray) -> int:
    """The address of memory of our own, found sooner."""
    return addressof(c_char.from_buffer(memory.data))
