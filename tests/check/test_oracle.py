"""The oracle against torch, against differences of itself, and against sixty digits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normlab.check.oracle import (
    KINDS,
    Case,
    Recipe,
    exact_forward,
    forward,
    input_gradient,
    parameter_gradients,
    updated_running,
)
from normlab.check.probe import sample

SHAPE = (5, 6, 4, 3)
SETTINGS = [
    (Recipe("batch", 6, tracks=True), SHAPE),
    (Recipe("instance", 6), SHAPE),
    (Recipe("group", 6, groups=3), SHAPE),
    (Recipe("layer", 6), SHAPE),
    (Recipe("layer", 6, over="trailing"), (5, 4, 6)),
    (Recipe("layer", 12, over="trailing", trailing=2), (5, 4, 3)),
    (Recipe("layer", 6, over="channels"), SHAPE),
    (Recipe("rms", 6, over="trailing"), (5, 4, 6)),
    (Recipe("batch-instance", 6, tracks=True), SHAPE),
    (Recipe("batch", 6, channel_axis=-1, tracks=True), (5, 4, 3, 6)),
]
IDS = [f"{r.kind}-{r.over}-{r.channel_axis}" for r, _ in SETTINGS]


def case_of(recipe: Recipe, shape: tuple[int, ...], training: bool = True) -> Case:
    rng = np.random.default_rng(0)
    c = recipe.channels
    gate = rng.uniform(0.1, 0.9, c) if recipe.kind == "batch-instance" else None
    bias = rng.normal(size=c) if recipe.centers else None
    running = (rng.normal(size=c), rng.uniform(0.5, 2, c)) if recipe.tracks else None
    return Case(recipe, sample(shape), rng.uniform(0.5, 2, c), bias, gate, running, training)


@pytest.mark.parametrize(("recipe", "shape"), SETTINGS, ids=IDS)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_are_the_slopes_of_the_output(recipe: Recipe, shape: tuple[int, ...], training: bool) -> None:
    case = case_of(recipe, shape, training)
    dy = sample(shape, 1.0, seed=3)
    dx = input_gradient(case, dy)
    v = np.random.default_rng(1).normal(size=shape)

    def loss(c: Case) -> float:
        return float((forward(c) * dy).sum())

    slope = (loss(case.with_x(case.x + 1e-6 * v)) - loss(case.with_x(case.x - 1e-6 * v))) / 2e-6
    assert slope == pytest.approx(float((dx * v).sum()), rel=1e-6, abs=1e-6)
    for name, got in parameter_gradients(case, dy).items():
        value = getattr(case, name)
        d = np.random.default_rng(2).normal(size=value.shape)
        ends = [loss(replace(case, **{name: value + s * 1e-6 * d})) for s in (1, -1)]
        assert (ends[0] - ends[1]) / 2e-6 == pytest.approx(float((got * d).sum()), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    ("recipe", "shape", "module"),
    [
        (SETTINGS[0][0], SHAPE, torch.nn.BatchNorm2d(6)),
        (SETTINGS[1][0], SHAPE, torch.nn.InstanceNorm2d(6, affine=True)),
        (SETTINGS[2][0], SHAPE, torch.nn.GroupNorm(3, 6)),
        (SETTINGS[4][0], (5, 4, 6), torch.nn.LayerNorm(6)),
        (replace(SETTINGS[7][0], eps=1e-6), (5, 4, 6), torch.nn.RMSNorm(6, eps=1e-6)),
    ],
    ids=["batch", "instance", "group", "layer", "rms"],
)
def test_agrees_with_torch(recipe: Recipe, shape: tuple[int, ...], module: torch.nn.Module) -> None:
    module = module.double()
    case = case_of(recipe, shape)
    with torch.no_grad():
        module.weight.copy_(torch.from_numpy(case.weight))  # type: ignore[operator, arg-type]
        if case.bias is not None:
            module.bias.copy_(torch.from_numpy(case.bias))  # type: ignore[operator]
        if case.running is not None:
            module.running_mean.copy_(torch.from_numpy(case.running[0]))  # type: ignore[operator]
            module.running_var.copy_(torch.from_numpy(case.running[1]))  # type: ignore[operator]
    x = torch.from_numpy(case.x).requires_grad_(True)
    y = module(x)
    np.testing.assert_allclose(forward(case), y.detach().numpy(), rtol=1e-9, atol=1e-9)
    dy = sample(shape, 1.0, seed=3)
    (dx,) = torch.autograd.grad(y, x, torch.from_numpy(dy))
    np.testing.assert_allclose(input_gradient(case, dy), dx.numpy(), rtol=1e-8, atol=1e-9)
    if recipe.tracks:
        mean, var = updated_running(case)
        np.testing.assert_allclose(mean, module.running_mean.numpy(), rtol=1e-12)  # type: ignore[operator, union-attr]
        np.testing.assert_allclose(var, module.running_var.numpy(), rtol=1e-12)  # type: ignore[operator, union-attr]


@pytest.mark.parametrize(("recipe", "shape"), SETTINGS, ids=IDS)
@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (1e6, 1.0), (0.0, 1e-8), (1e-3, 1e3)])
def test_float64_agrees_with_sixty_digits(recipe: Recipe, shape: tuple[int, ...], mean: float, std: float) -> None:
    case = case_of(recipe, shape).with_x(np.random.default_rng(5).normal(mean, std, shape))
    condition = 1 + abs(mean) / std
    np.testing.assert_allclose(forward(case), exact_forward(case), rtol=1e-13 * condition, atol=1e-13 * condition)
    if recipe.tracks:
        case = replace(case, training=False)
        np.testing.assert_allclose(forward(case), exact_forward(case), rtol=1e-12)


@pytest.mark.parametrize(("recipe", "shape"), SETTINGS, ids=IDS)
def test_the_grid_is_undone(recipe: Recipe, shape: tuple[int, ...]) -> None:
    x = sample(shape)
    np.testing.assert_array_equal(recipe.from_grid(recipe.to_grid(x), shape), x)


@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(2, 5),
    groups=st.integers(1, 3),
    per_group=st.integers(1, 3),
    spatial=st.lists(st.integers(1, 4), min_size=1, max_size=3),
)
def test_every_pool_is_standardized(kind: str, n: int, groups: int, per_group: int, spatial: list[int]) -> None:
    recipe = Recipe(kind, groups * per_group, groups=groups, eps=0.0)
    x = np.random.default_rng(0).normal(3, 2, (n, groups * per_group, *spatial))
    p = Case(recipe, x).passes()[-1]
    if p.count < 2:
        return
    xhat = p.xhat
    if recipe.centers:
        np.testing.assert_allclose(p.pool(xhat), 0, atol=1e-10)
    np.testing.assert_allclose(p.pool(xhat**2), 1, atol=1e-10)


def test_the_running_statistics_of_one_value_stay_finite() -> None:
    case = Case(Recipe("batch", 2, tracks=True), np.ones((1, 2)), running=(np.zeros(2), np.ones(2)))
    assert np.isfinite(updated_running(case)[1]).all()
