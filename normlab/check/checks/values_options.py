"""Values under options that change what a layer computes: momentum=None and track_running_stats."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from normlab.check.diagnose import error
from normlab.check.dialect import Setup
from normlab.check.oracle import Array, Case, Recipe, forward, updated_running
from normlab.check.probe import bug, check, passed, sample, skip, torch_layer
from normlab.check.report import Finding
from normlab.check.subjects import Subject, TargetFailure

STEPS = 3


@check("values.cumulative")
def cumulative(setup: Setup) -> Finding:
    """momentum=None asks for the average over all batches so far."""
    if not setup.recipe.tracks:
        return skip("the layer keeps no running statistics")
    layer = torch_layer(setup, cumulative=True)
    batches = [sample(setup.shape, seed=step) for step in range(STEPS)]
    try:
        start = _read_running(layer)
        for x in batches:
            layer.forward(x, True)
    except TargetFailure as e:
        return skip(f"momentum=None is not taken: it {e}")
    recipe = setup.recipe
    averaged = [replace(recipe, cumulative=True).at_step(step) for step in range(STEPS)]
    got = _read_running(layer)
    off = _difference(got, _update_running(batches, averaged, start))
    tolerance = max(setup.tolerance_in(False), 1e-5)
    if off <= tolerance:
        return passed("momentum=None averages over all batches", error=off)
    if _difference(got, _update_running(batches, [recipe] * STEPS, start)) <= tolerance:
        return bug(
            f"momentum=None is taken for {recipe.momentum:g}: the last batches weigh more than the first",
            "momentum-none-ignored",
            "momentum=None: running = running + (batch statistic - running) / number of batches so far",
            f"{STEPS} batches of shape {setup.shape}: running_mean[0] is {got[0][0]:.6g}",
        )
    return bug(
        f"with momentum=None the running statistics are wrong by {off:.3g} (relative): they are not the average over "
        "all batches",
        "momentum-none",
        "momentum=None: running = running + (batch statistic - running) / number of batches so far",
    )


@check("values.tracking")
def tracking(setup: Setup) -> Finding:
    """track_running_stats is obeyed: without it evaluation uses the batch's statistics, with it the running ones."""
    recipe, track = setup.recipe, not setup.recipe.tracks
    layer = torch_layer(setup, track=track)
    batch, x = sample(setup.shape, seed=1), sample(setup.shape)
    try:
        layer.forward(batch, True)
        got = layer.forward(x, False)
    except TargetFailure as e:
        if layer.inherits_options:
            return skip(f"with track_running_stats={track}, which it takes from torch's class, it {e}")
        raise
    plain = Case(replace(recipe, tracks=False), x)
    if not track:
        right = forward(plain)
        if error(got, right) <= setup.tolerance:
            return passed("track_running_stats=False: evaluation uses the batch's statistics")
        return _report_ignored("track_running_stats=False is ignored: evaluation does not use the batch's statistics")
    if layer.running is None:
        return _report_ignored("track_running_stats=True is ignored: the layer keeps no running statistics")
    if error(got, forward(plain)) <= setup.tolerance:
        return _report_ignored("track_running_stats=True is ignored: evaluation uses the batch's statistics")
    return passed("track_running_stats=True: evaluation uses the running statistics")


def _report_ignored(message: str) -> Finding:
    return bug(
        message,
        "track-running-stats-ignored",
        "use_batch = training or running_mean is None; without track_running_stats there are no running statistics",
    )


def _read_running(layer: Subject) -> tuple[Array, Array]:
    found = layer.running
    if found is None:
        raise TargetFailure("keeps no running statistics")
    return found[0].copy(), found[1].copy()


def _update_running(batches: list[Array], recipes: list[Recipe], start: tuple[Array, Array]) -> tuple[Array, Array]:
    """The running statistics after these batches, each with its recipe."""
    running = start
    for x, recipe in zip(batches, recipes, strict=True):
        running = updated_running(Case(recipe, x, running=running))
    return running


def _difference(got: tuple[Array, Array], right: tuple[Array, Array]) -> float:
    return float(np.max([error(g, r) for g, r in zip(got, right, strict=True)]))
