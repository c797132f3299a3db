"""What every check does first: a fresh layer loaded with known parameters, beside the oracle's case of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from normlab.check.diagnose import error
from normlab.check.dialect import Setup
from normlab.check.oracle import Array, Case, Recipe, forward
from normlab.check.report import Finding
from normlab.check.subjects import Subject, TargetFailure, Unsupported

Check = Callable[[Setup], Finding]
CHECKS: dict[str, tuple[Check, bool]] = {}


def check(name: str, slow: bool = False) -> Callable[[Check], Check]:
    """Enrol a function as the check "group.name"; a slow one is left out of --quick."""

    def enrol(fn: Check) -> Check:
        CHECKS[name] = (fn, slow)
        return fn

    return enrol


def passed(message: str, **measured: Any) -> Finding:
    return Finding("", "pass", message, measured=measured)


def bug(
    message: str, cause: str | None = None, formula: str | None = None, example: str | None = None, **measured: Any
) -> Finding:
    return Finding("", "bug", message, cause, formula, example, measured)


def note(message: str, cause: str | None = None, **measured: Any) -> Finding:
    return Finding("", "note", message, cause, measured=measured)


def skip(message: str) -> Finding:
    return Finding("", "skip", message)


def sample(shape: tuple[int, ...], scale: float = 2.0, shift: float = 1.5, seed: int = 0) -> Array:
    """An input whose statistics differ between samples, channels and positions."""
    rng = np.random.default_rng(1000 + seed)
    x = rng.normal(0, 1, shape)
    for axis, size in enumerate(shape):
        x += rng.normal(0, 0.7, size).reshape([-1 if a == axis else 1 for a in range(len(shape))])
    return scale * x + shift * scale


def parameter_values(layer: Subject, seed: int = 0) -> dict[str, Array]:
    """Values that no slip can hide behind: different, of both signs; gates inside (0, 1)."""
    rng = np.random.default_rng(2000 + seed)
    values = {}
    for role, current in layer.parameters.items():
        n = current.size
        if role == "weight":
            values[role] = rng.uniform(0.5, 2.0, n) * np.where(np.arange(n) % 3 == 1, -1, 1)
        elif role == "bias":
            values[role] = rng.uniform(-1.0, 1.0, n) + 0.1
        else:
            values[role] = rng.uniform(0.15, 0.85, n)
    return values


def running_values(channels: int, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(3000 + seed)
    return rng.normal(0.5, 1.0, channels), rng.uniform(0.3, 3.0, channels)


def load(
    setup: Setup, layer: Subject, x: NDArray[Any], training: bool, seed: int = 0, recipe: Recipe | None = None
) -> Case:
    """Set the layer's parameters and running statistics to known values and return the case that they make."""
    recipe = recipe or setup.recipe
    values = parameter_values(layer, seed)
    layer.set_parameters(values)
    running = None
    if recipe.tracks:
        running = running_values(recipe.channels, seed)
        layer.set_running(*running)
    # what the layer holds is what counts: it may store float32
    values = {r: _read_back(v, values[r]) for r, v in layer.parameters.items()}
    if running is not None and layer.running is not None:
        running = _read_back(layer.running[0], running[0]), _read_back(layer.running[1], running[1])
    return Case(recipe, x, values.get("weight"), values.get("bias"), values.get("gate"), running, training)


def _read_back(held: NDArray[Any], asked: Array) -> Array:
    held = np.asarray(held, dtype=np.float64).reshape(-1)
    return held if np.allclose(held, asked, rtol=1e-2) else asked


def small(recipe: Recipe) -> float:
    """A scale at which the variance is near eps, so that eps and its place show."""
    return 0.3 * float(np.sqrt(max(recipe.eps, 1e-16)))


def fresh(setup: Setup, shape: tuple[int, ...], **changes: Any) -> Subject:
    """A new layer for inputs of this shape: some are built for one rank."""
    if "rank" in setup.subject.settable:
        changes["rank"] = len(shape)
    return setup.subject.fresh(**changes)


def shapes(setup: Setup) -> list[tuple[int, ...]]:
    """The main shape first, then the other ranks."""
    return [setup.shape, *(s for s in setup.shapes.values() if s != setup.shape)]


def small_shapes(setup: Setup, channels: int) -> Iterator[tuple[int, ...]]:
    """Shapes from tiny upwards, of the ranks that the layer takes."""
    recipe = setup.recipe
    if recipe.over == "trailing":
        tail = (channels,) if recipe.trailing == 1 else setup.shape[-recipe.trailing :]
        yield from ((n, *[1] * (rank - 1 - len(tail)), *tail) for n in (1, 2) for rank in sorted(setup.shapes))
        return
    for n, s in ((2, 1), (1, 2), (3, 1), (2, 2), (3, 2)):
        for rank in sorted(setup.shapes):
            if rank == 2 and s > 1:
                continue
            spatial = () if rank == 2 else (*[1] * (rank - 3), s)
            yield (n, channels, *spatial) if recipe.channel_axis == 1 else (n, *spatial, channels)


def smallest(setup: Setup, training: bool) -> str | None:
    """The smallest input for which the layer's output is wrong, with both outputs, as text."""
    for channels, groups in ((1, 1), (2, 1), (2, 2), (4, 2), (setup.recipe.channels, setup.recipe.groups)):
        try:
            changes = {} if channels == setup.recipe.channels else {"channels": channels}
            if setup.recipe.kind == "group" and groups != setup.recipe.groups:
                changes["groups"] = groups
            recipe = _resize_recipe(setup.recipe, channels, groups)
            for shape in small_shapes(setup, channels):
                layer = fresh(setup, shape, **changes)
                for plain in (True, False):
                    for scale in (1.0, 0.01):
                        text = _shows(setup, layer, recipe, shape, scale, plain, training)
                        if text:
                            return text
        except (Unsupported, TargetFailure, ValueError):
            continue
    return None


def _resize_recipe(recipe: Recipe, channels: int, groups: int) -> Recipe:
    from dataclasses import replace

    return replace(recipe, channels=channels, groups=groups)


def _shows(
    setup: Setup,
    layer: Subject,
    recipe: Recipe,
    shape: tuple[int, ...],
    scale: float,
    plain: bool,
    training: bool,
) -> str | None:
    x = scale * np.arange(np.prod(shape), dtype=np.float64).reshape(shape) ** 2
    case = load(setup, layer, x, training, recipe=recipe)
    told = ""
    if plain:
        ones = {r: np.ones(v.size) * (r != "bias") for r, v in layer.parameters.items()}
        layer.set_parameters(ones)
        case = Case(recipe, x, ones.get("weight"), ones.get("bias"), ones.get("gate"), case.running, training)
    else:
        told = "".join(
            f", {r} {compact(v)}" for r, v in (("weight", case.weight), ("bias", case.bias)) if v is not None
        )
        told += f", gate {compact(case.gate)}" if case.gate is not None else ""
    if case.uses_running and case.running is not None:
        told += f", running mean {compact(case.running[0])}, running var {compact(case.running[1])}"
    if (
        training
        and recipe.kind in ("batch", "batch-instance")
        and recipe.to_grid(x).shape[0] * recipe.to_grid(x).shape[3] < 2
    ):
        return None
    expected = forward(case)
    got = layer.forward(x, training)
    if error(got, expected) < max(1e3 * setup.tolerance, 1e-5):
        return None
    mode = "" if training else " (evaluation)"
    return f"x = {compact(x)}, shape {shape}{told}{mode}\nexpected {compact(expected)}\ngot      {compact(got)}"


def compact(a: Any) -> str:
    """An array in few characters."""
    text = np.array2string(np.asarray(a), precision=5, separator=", ", threshold=24, max_line_width=10_000)
    return " ".join(text.split())


def torch_layer(setup: Setup, **changes: Any) -> Any:
    """A fresh torch subject; raises Unsupported for targets that are no torch Modules."""
    layer = setup.subject.fresh(**changes)
    if layer.form != "torch Module":
        raise Unsupported("for torch Modules alone")
    return layer
