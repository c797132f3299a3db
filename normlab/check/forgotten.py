"""The axes that a layer really pools, measured on each of its inputs: a wrong formula that no list needs to hold."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normlab.check.dialect import Setup
from normlab.check.oracle import Array, Case, Recipe, Stages, bare, scaled
from normlab.check.pools import Reach, reach
from normlab.check.slips import ForwardSlip
from normlab.check.subjects import TargetFailure, Unsupported


def pools_as_measured(setup: Setup, shapes: list[tuple[int, ...]]) -> tuple[ForwardSlip, ...]:
    """The slip of pooling over the axes that the layer was seen to pool; none where they are the right ones."""
    recipe = setup.recipe
    try:
        found = {s: reach(setup.subject, s, -1 if recipe.over == "trailing" else recipe.channel_axis) for s in shapes}
    except (TargetFailure, Unsupported):
        return ()
    if not all(r.alike and r.axes for r in found.values()):
        return ()
    main = found[setup.shape] if setup.shape in found else next(iter(found.values()))
    cause, sentence = _describe_axes(recipe, main)
    formula = "mean and variance over all the axes that belong to one pool, and no others"
    made = []
    if recipe.over == "sample":
        axes = {len(recipe.spatial(s)): _on_grid(recipe, r) for s, r in found.items()}
        made.append(Stages(axes=axes.__getitem__))
    made.append(_on_input({s: tuple(sorted(r.axes)) for s, r in found.items()}))
    return tuple(ForwardSlip(cause, sentence, formula, (recipe.kind,), stages) for stages in made)


def _describe_axes(recipe: Recipe, found: Reach) -> tuple[str, str]:
    """The cause and the sentence: an axis forgotten, one too many, or others altogether."""
    positions = found.positions
    right = {
        "batch": {0} | positions,
        "batch-instance": {0} | positions,
        "instance": set(positions),
        "group": {found.channel_axis} | positions,
    }.get(recipe.kind, set(range(1, len(found.shape))))
    if recipe.over == "trailing":
        right = set(range(len(found.shape) - recipe.trailing, len(found.shape)))
    missing, extra = sorted(right - found.axes), sorted(found.axes - right)
    seen = f"statistics are pooled over {_axes(sorted(found.axes))} of an input of shape {found.shape}"
    if missing and not extra:
        return "axis-forgotten", f"{_axes(missing)} {'is' if len(missing) == 1 else 'are'} forgotten: {seen}"
    if extra and not missing:
        return "axis-too-many", f"{_axes(extra)} {'does' if len(extra) == 1 else 'do'} not belong to the pool: {seen}"
    return "pools-other-axes", f"{seen}; they belong over {_axes(sorted(right))}"


def _axes(axes: list[int]) -> str:
    return ("axis " if len(axes) == 1 else "axes ") + " and ".join(map(str, axes))


def _on_grid(recipe: Recipe, found: Reach) -> tuple[int, ...]:
    """The pooled axes of (N, G, K, *positions)."""
    size = recipe.channels // recipe.group_count
    axes = [0] if found.batch else []
    if found.all_channels:
        axes += [1, 2]
    elif len(found.channels) == size > 1:
        axes += [2]
    positions = sorted(found.positions)
    return (*axes, *(3 + i for i, a in enumerate(positions) if a in found.axes))


def _on_input(pooled: dict[tuple[int, ...], tuple[int, ...]]) -> Stages:
    """The same for any layout: the pooled axes of the input are brought to its end, and are one axis there."""

    def inner(case: Case) -> Case:
        axes = pooled[case.x.shape]
        moved = np.moveaxis(np.asarray(case.x, dtype=np.float64), axes, range(-len(axes), 0))
        rows = moved.reshape(-1, int(np.prod([case.x.shape[a] for a in axes])))
        kind = "layer" if case.recipe.centers else "rms"
        recipe = replace(case.recipe, kind=kind, over="trailing", trailing=1, channels=rows.shape[1])
        return replace(bare(case), x=rows, running=None, recipe=recipe)

    def outer(case: Case, xhat: Array) -> Array:
        axes = pooled[case.x.shape]
        rest = [s for i, s in enumerate(case.x.shape) if i not in axes]
        back = np.moveaxis(xhat.reshape(*rest, *(case.x.shape[a] for a in axes)), range(-len(axes), 0), axes)
        return scaled(case, case.recipe.to_grid(back))

    return Stages(inner=inner, outer=outer)
