"""Layouts and shapes: strides, channels-last, single values, empty batches, odd groups."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.checks.numerics import ALLOWED, UNIT, plain, units
from normlab.check.diagnose import error, relative_error
from normlab.check.dialect import Setup
from normlab.check.oracle import forward, input_gradient
from normlab.check.probe import bug, check, fresh, load, note, passed, sample, shapes, skip, torch_layer
from normlab.check.report import Finding
from normlab.check.subjects import Subject, TargetFailure, Unsupported


@check("layouts.ranks")
def ranks(setup: Setup) -> Finding:
    return passed("takes inputs of rank " + ", ".join(str(r) for r in sorted(setup.shapes)))


def strided(x: NDArray[Any]) -> Iterator[tuple[str, NDArray[Any]]]:
    """The same values under other strides."""
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]))
    wide[..., ::2] = x
    yield "every second column of a wider array", wide[..., ::2]
    yield "a transposed array", np.ascontiguousarray(x.T).T
    moved = np.moveaxis(x, 1, -1) if x.ndim > 2 else x
    yield "a permuted array", np.moveaxis(np.ascontiguousarray(moved), -1, 1) if x.ndim > 2 else np.asfortranarray(x)


@check("layouts.strides")
def strides(setup: Setup) -> Finding:
    """Non-contiguous inputs and gradients give what contiguous ones do."""
    for shape in shapes(setup):
        x, dy = sample(shape), sample(shape, 1.0, seed=50)
        reference = fresh(setup, shape)
        load(setup, reference, x, True)
        expected = reference.forward(x, True)
        expected_dx = reference.backward(dy)["x"] if setup.subject.has_backward else None
        for what, view in strided(x):
            layer = fresh(setup, shape)
            load(setup, layer, x, True)
            try:
                y, dx = _run_view(layer, view, dy, expected_dx is not None)
            except TargetFailure as e:
                return bug(
                    f"a non-contiguous input ({what}) fails: it {e}",
                    "view-of-noncontiguous",
                    "reshape in place of view, or take the strides as they are",
                    f"shape {shape}, strides {view.strides} bytes",
                )
            if error(y, expected) > setup.tolerance:
                return bug(
                    f"a non-contiguous input ({what}) gives other values than its contiguous copy",
                    "ignores-strides",
                    "index by strides, or call contiguous() first",
                    f"shape {shape}, strides {view.strides} bytes: error {error(y, expected):.3g}",
                )
            if dx is not None and expected_dx is not None and relative_error(dx, expected_dx) > setup.tolerance:
                return bug(
                    f"a non-contiguous input ({what}) gives another dx than its contiguous copy",
                    "ignores-strides",
                    "index by strides, or call contiguous() first",
                )
    return passed("non-contiguous inputs answer what contiguous ones do")


def _run_view(
    layer: Subject, view: NDArray[Any], dy: NDArray[Any], backward: bool
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Forward and backward on a strided array, without a copy on the way."""
    from normlab.check.subjects.functions import FunctionSubject

    if layer.form == "torch Module":
        import torch

        from normlab.check.subjects.torch_module import TorchSubject

        assert isinstance(layer, TorchSubject)

        x = torch.from_numpy(view).to(next((p.dtype for p in layer.module.parameters()), torch.float64))
        x.requires_grad_(True)
        y = layer.run(x, True)
        dx = layer.dx(y, x, torch.from_numpy(dy)) if y.requires_grad else None
        return y.detach().numpy(), None if dx is None else dx.numpy()
    if isinstance(layer, FunctionSubject):
        y_array = layer.forward(view, True)
        return y_array, layer.backward(dy)["x"] if backward else None
    raise Unsupported("the adapter copies its input")


@check("layouts.expanded-gradient")
def expanded_gradient(setup: Setup) -> Finding:
    """Losses hand broadcast gradients, whose strides are zero."""
    layer = torch_layer(setup)
    import torch

    results = []
    row = torch.from_numpy(sample(setup.shape[-1:], 1.0, seed=50))
    broadcast = row.expand(setup.shape)
    for dy in (broadcast, broadcast.contiguous()):
        load(setup, layer, sample(setup.shape), True)
        x = torch.from_numpy(sample(setup.shape)).requires_grad_(True)
        y = layer.run(x, True)
        if not y.requires_grad:
            raise TargetFailure("has an output without gradient")
        try:
            results.append(layer.dx(y, x, dy).numpy())
        except TargetFailure as e:
            if dy is not broadcast:
                raise
            return bug(
                f"a broadcast gradient, whose strides are zero, fails: backward {e}",
                "view-of-noncontiguous",
                "reshape in place of view, or take the strides as they are",
            )
    if error(*results) > setup.tolerance:
        return bug(
            "a broadcast gradient, whose strides are zero, gives another dx than its contiguous copy",
            "ignores-strides",
            "index dy by its strides, or call contiguous() first",
        )
    return passed("a broadcast gradient answers what a full one does")


@check("layouts.channels-last")
def channels_last(setup: Setup) -> Finding:
    layer = torch_layer(setup)
    import torch

    lost = []
    for rank, memory_format in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if rank not in setup.shapes or setup.recipe.over == "trailing":
            continue
        shape = setup.shapes[rank]
        answers = []
        for fmt in (torch.contiguous_format, memory_format):
            load(setup, layer, sample(shape), True)
            x = torch.from_numpy(sample(shape)).contiguous(memory_format=fmt).requires_grad_(True)
            y = layer.run(x, True)
            dy = torch.from_numpy(sample(shape, 1.0, seed=50)).contiguous(memory_format=fmt).to(y.dtype)
            dx = layer.dx(y, x, dy)
            answers.append((y.detach().numpy(), dx.numpy()))
            if fmt is memory_format and not y.is_contiguous(memory_format=fmt):
                lost.append(rank)
        off = max(error(answers[1][0], answers[0][0]), relative_error(answers[1][1], answers[0][1]))
        if off > setup.tolerance * 10:
            return bug(
                f"channels-last input of rank {rank} gives other values than channels-first: error {off:.3g}",
                "channels-last-values",
                "index by strides; memory order is no axis order",
                f"x of shape {shape} in torch.channels_last",
            )
    if not lost and not set(setup.shapes) & {4, 5}:
        return skip("no inputs of rank 4 or 5")
    if setup.recipe.over == "trailing":
        return skip("the channels are the last axis")
    if lost:
        return note(
            f"channels-last input of rank {', '.join(map(str, lost))} gives channels-first output: the next "
            "convolution pays for a copy",
            "loses-channels-last",
        )
    return passed("channels-last input gives the same values and stays channels-last")


@check("layouts.channels-last-mean")
def channels_last_mean(setup: Setup) -> Finding:
    """Large mean in channels-last: other code paths, other rounding."""
    torch_layer(setup, dtype="float32")
    if 4 not in setup.shapes or setup.recipe.over == "trailing":
        return skip("no inputs of rank 4")
    import torch

    from normlab.check.subjects.torch_module import TorchSubject

    layer, recipe = plain(setup, "float32")
    assert isinstance(layer, TorchSubject)
    n, c = 4, setup.shapes[4][1]
    for mean in (0.0, 100.0, 1000.0):
        x = np.random.default_rng(53).normal(mean, 1.0, (n, c, 16, 16)).astype(np.float32)
        first, worst_first = units(layer.forward(x, True), x, recipe, UNIT["float32"])
        last_x = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
        with layer.silently():
            y = layer.run(last_x, True).detach().numpy()
        last, worst = units(y, x, recipe, UNIT["float32"])
        if last > ALLOWED and first <= ALLOWED:
            return bug(
                f"channels-last input of mean {mean:g}, std 1 is wrong by {worst:.3g} in float32; channels-first, "
                f"{worst_first:.3g}",
                "channels-last-cancellation",
                "var = mean((x - mean)^2) in every memory layout",
                f"x ~ N({mean:g}, 1), shape {x.shape}, float32, torch.channels_last",
            )
    return passed("channels-last is as exact as channels-first at a mean of 1000")


@check("layouts.one-sample")
def one_sample(setup: Setup) -> Finding:
    """A batch of one sample, where that is defined: several values per pool."""
    worst = 0.0
    for shape in shapes(setup):
        one = (1, *shape[1:])
        grid = setup.recipe.to_grid(np.zeros(one)).shape
        if np.prod([grid[a] for a in setup.recipe.axes]) < 2:
            continue
        layer = fresh(setup, shape)
        case = load(setup, layer, sample(one), True)
        off = error(layer.forward(case.x, True), forward(case))
        if off > max(worst, setup.tolerance * (1 if setup.precise else 10)):
            worst = off
            reference = load(setup, layer, sample(shape), True)
            if error(layer.forward(reference.x, True), forward(reference)) <= setup.tolerance:
                return bug(
                    f"a batch of one sample is wrong by {off:.3g}, larger batches are right: an axis of size one is "
                    "squeezed, or one sample is a special case",
                    "one-sample",
                    "keepdim=True; no special case for N = 1",
                    f"x of shape {one}",
                )
    return passed("a batch of one sample is normalized like any other")


@check("layouts.one-position")
def one_position(setup: Setup) -> Finding:
    """Spatial axes of size one."""
    tested = []
    if setup.recipe.kind == "batch-instance":
        return skip("one position leaves one value to the instance half")
    for shape in shapes(setup):
        if len(shape) < 3 or setup.recipe.over == "trailing":
            continue
        channel = setup.recipe.channel_axis % len(shape)
        one = tuple(s if a in (0, channel) else 1 for a, s in enumerate(shape))
        grid = setup.recipe.to_grid(np.zeros(one)).shape
        if np.prod([grid[a] for a in setup.recipe.axes]) < 2:
            continue
        layer = fresh(setup, shape)
        case = load(setup, layer, sample(one), True)
        got = layer.forward(case.x, True)
        tested.append(one)
        if error(got, forward(case)) > setup.tolerance:
            reference = load(setup, layer, sample(shape), True)
            if error(layer.forward(reference.x, True), forward(reference)) <= setup.tolerance:
                return bug(
                    "an input with one position is wrong, larger ones are right: an axis of size one is squeezed",
                    "one-position",
                    "keepdim=True; no special case for H = W = 1",
                    f"x of shape {one}",
                )
    return passed("inputs with one position are right") if tested else skip("one position leaves one value per pool")


@check("layouts.one-value")
def one_value(setup: Setup) -> Finding:
    """One value per pool has no variance: an error, or the bias; never NaN, and no poisoned running statistics."""
    shape = _one_value_shape(setup)
    if shape is None:
        return skip("no input of this layer has one value per pool")
    layer = setup.subject.fresh()
    x = sample(shape)
    load(setup, layer, x, True)
    try:
        y = layer.forward(x, True)
    except TargetFailure as e:
        return passed(f"one value per pool raises a clear error: {e}")
    state = layer.running
    if not np.all(np.isfinite(y)):
        return bug(
            "one value per pool gives NaN: 0 / 0 in the variance",
            "nan-on-one-value",
            "var = 0 for one value; the unbiased variance divides by n - 1 = 0",
            f"x of shape {shape}",
        )
    if state is not None and not (np.all(np.isfinite(state[0])) and np.all(np.isfinite(state[1]))):
        return bug(
            "one value per channel turns running_var into NaN or infinity for good: n / (n - 1) divides by zero",
            "running-var-one-value",
            "raise an error in training when n = 1",
            f"x of shape {shape}",
        )
    return note(
        f"one value per pool (shape {shape}) is accepted: the output is the bias, whatever the input",
        "silent-one-value",
    )


def _one_value_shape(setup: Setup) -> tuple[int, ...] | None:
    if setup.recipe.over == "trailing" or setup.recipe.kind in ("layer", "rms", "group"):
        return None
    for shape in shapes(setup):
        channel = setup.recipe.channel_axis % len(shape)
        one = tuple(s if a == channel else 1 for a, s in enumerate(shape))
        if setup.recipe.kind == "instance" and len(shape) < 3:
            continue
        return one
    return None


@check("layouts.empty")
def empty(setup: Setup) -> Finding:
    """A batch of no samples: an empty output or a clear error, and untouched running statistics."""
    layer = setup.subject.fresh()
    shape = (0, *setup.shape[1:])
    load(setup, layer, sample(setup.shape), True)
    try:
        layer.forward(np.zeros(shape), True)
    except TargetFailure as e:
        return passed(f"an empty batch raises: {e}")
    state = layer.running
    if state is not None and not (np.all(np.isfinite(state[0])) and np.all(np.isfinite(state[1]))):
        return (
            bug(
                "an empty batch turns the running statistics into NaN for good",
                "empty-batch-poisons",
                "skip the update when n = 0, or raise",
                f"x of shape {shape}",
            )
            if setup.subject.form == "torch Module"
            else note("an empty batch makes the running statistics NaN")
        )
    return passed("an empty batch gives an empty output")


@check("layouts.other-sizes")
def other_sizes(setup: Setup) -> Finding:
    """Odd and prime sizes, one channel, as many groups as channels."""
    tested = []
    for channels, groups in ((7, 7), (1, 1), (7, 1), (10, 5), (16, 2)):
        changes = {"channels": channels}
        if setup.recipe.kind == "group":
            changes["groups"] = groups
        try:
            layer = setup.subject.fresh(**changes)
        except Unsupported as e:
            return skip(str(e))
        recipe = replace(setup.recipe, channels=channels, groups=groups)
        shape = _resized_shape(setup, channels)
        grid = recipe.to_grid(np.zeros(shape)).shape
        if np.prod([grid[a] for a in recipe.axes]) < 2:
            continue
        case = load(setup, layer, sample(shape), True, recipe=recipe)
        off = error(layer.forward(case.x, True), forward(case))
        tested.append(channels)
        if off > setup.tolerance:
            layer = setup.subject.fresh()
            reference = load(setup, layer, sample(setup.shape), True)
            if error(layer.forward(reference.x, True), forward(reference)) > setup.tolerance:
                continue  # wrong at every size: the values say why
            said = f"{channels} channels" + (f" in {groups} groups" if setup.recipe.kind == "group" else "")
            return bug(
                f"wrong by {off:.3g} for {said} (shape {shape})", "some-sizes", "any sizes", f"x of shape {shape}"
            )
    return passed(f"right for {', '.join(map(str, tested))} channels")


def _resized_shape(setup: Setup, channels: int) -> tuple[int, ...]:
    if setup.recipe.over == "trailing":
        return (*setup.shape[:-1], channels)
    channel = setup.recipe.channel_axis % len(setup.shape)
    odd = (3, *(7, 5, 3)[: len(setup.shape) - 2])
    spatial = iter(odd[1:])
    return tuple(odd[0] if a == 0 else (channels if a == channel else next(spatial)) for a in range(len(setup.shape)))


# counts that kernels keep in 16 bits, or launch one block for
LONG = 2**16 + 11
SHORT = 67  # the same shapes at a size where no count is large
LINES = 200_000  # of Python that one long input may cost


@check("layouts.long")
def long(setup: Setup) -> Finding:
    """More than 2^16 rows, and rows of more than 2^16 values: outputs, and in a full check dx."""
    tried = []
    for what, shape, channels in _long_shapes(setup):
        try:
            layer = _build_sized(setup, channels)
        except Unsupported:
            continue
        allowed = setup.tolerance * (1 if setup.precise else 10)
        try:
            if _loops(layer, shape):
                return skip("the layer loops over rows or positions in Python: 2^16 of them take too long")
        except TargetFailure:
            continue  # of so few rows or positions it wants none
        try:
            off = _measure_error(setup, layer, shape, channels, allowed)
        except TargetFailure as e:
            return bug(f"{what} (shape {shape}) fail: the layer {e}", "long-input", "sizes of any length")
        if off > allowed:
            small = None if channels is None else SHORT
            shorter = tuple(min(s, SHORT) for s in shape)
            if _measure_error(setup, _build_sized(setup, small), shorter, small, allowed) > allowed:
                continue  # wrong at every size: the values and gradients say why
            return bug(
                f"{what} (shape {shape}) are wrong by {off:.3g}: smaller inputs are right",
                "long-input",
                "no count, index or row length is bounded by 2^16",
                f"x of shape {shape}",
            )
        tried.append(what)
    return (
        passed(f"right for {' and '.join(tried)}") if tried else skip("the layer takes no such input, or no size of it")
    )


def _build_sized(setup: Setup, channels: int | None) -> Subject:
    return setup.subject.fresh() if channels is None else setup.subject.fresh(channels=channels)


def _measure_error(setup: Setup, layer: Subject, shape: tuple[int, ...], channels: int | None, allowed: float) -> float:
    """How wrong the output is, or where that is right, dx (of which ten times as much is allowed)."""
    sized = setup.recipe if channels is None else replace(setup.recipe, channels=channels)
    case = load(setup, layer, sample(shape), True, recipe=sized)
    off = error(layer.forward(case.x, True), forward(case))
    if setup.subject.has_backward and off <= allowed and not setup.quick:
        dy = sample(shape, 1.0, seed=50)
        with contextlib.suppress(Unsupported):
            off = relative_error(layer.backward(dy)["x"], input_gradient(case, dy)) / 10
    return off


def _long_shapes(setup: Setup) -> Iterator[tuple[str, tuple[int, ...], int | None]]:
    """What is long, the shape, and the number of channels where it is another one."""
    recipe, shape = setup.recipe, setup.shape
    channel = recipe.channel_axis % len(shape)
    ones = tuple(s if a == channel else 1 for a, s in enumerate(shape))
    if recipe.over == "trailing":
        tail = shape[-recipe.trailing :]
        yield "2^16 rows and more", (*(1,) * (len(shape) - len(tail) - 1), LONG, *tail), None
        if recipe.trailing == 1:
            yield "rows of 2^16 values and more", (*(1,) * (len(shape) - 2), 2, LONG), LONG
        return
    if recipe.kind in ("batch", "batch-instance") or len(shape) > 2:
        rows = (LONG, *ones[1:])
        if recipe.kind != "batch":  # a plane needs more than one position
            spread = max(a for a in range(len(shape)) if a != channel)
            rows = tuple(2 if a == spread else s for a, s in enumerate(rows))
        yield "2^16 samples and more", rows, None
    if len(shape) > 2:
        last = max(a for a in range(len(shape)) if a != channel)
        yield (
            "2^16 positions and more",
            tuple(LONG if a == last else (2 if a == 0 else s) for a, s in enumerate(ones)),
            None,
        )


def _loops(layer: Subject, shape: tuple[int, ...]) -> bool:
    """Whether a layer runs lines of Python for every row or position: counted on inputs that are far shorter."""
    long = int(np.argmax(shape))
    if layer.options.channels == shape[long]:
        return False
    few, more = (layer.lines(sample(tuple(n if a == long else s for a, s in enumerate(shape)))) for n in (16, 32))
    return (more - few) / 16 * LONG > LINES


@check("layouts.groups")
def groups(setup: Setup) -> Finding:
    """Channels that the groups do not divide are an error."""
    if setup.recipe.kind != "group":
        return skip("for group norm alone")
    try:
        layer = setup.subject.fresh(channels=6, groups=4)
        layer.forward(sample((5, 6, *setup.shape[2:])), True)
    except TargetFailure as e:
        return passed(f"6 channels in 4 groups raise: {e}")
    except Unsupported as e:
        return skip(str(e))
    return bug(
        "6 channels in 4 groups are accepted: some group gets the wrong channels",
        "indivisible-groups",
        "raise an error unless num_channels % num_groups == 0",
        "channels 6, groups 4",
    )


@check("layouts.wrong-channels")
def wrong_channels(setup: Setup) -> Finding:
    """An input with another number of channels is an error, not something to broadcast."""
    if not setup.subject.parameters and not setup.recipe.tracks:
        return skip("the layer has nothing per channel")
    c = setup.recipe.channels
    for channels in (1, c + 1):
        shape = _resized_shape(setup, channels)
        try:
            setup.subject.fresh().forward(sample(shape), True)
        except TargetFailure as e:
            if "returned shape" not in str(e):
                continue
        blame = bug if setup.subject.form == "torch Module" else note
        return blame(
            f"a layer for {c} channels accepts an input with {channels}: its parameters are broadcast",
            "wrong-channels-accepted",
        )
    return passed("an input with the wrong number of channels raises")
