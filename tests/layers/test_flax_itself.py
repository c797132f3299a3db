"""The dialect of Flax against Flax: its norms become ours and ours its, with outputs and running statistics alike.

Outputs agree to 2e-5 relative to their size, which is float32 twice over: Flax takes the variance as the mean of
squares less the square of the mean, which rounds more often.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import normlab
from normlab.errors import UsageError
from tests.layers.channels_last import ours

jax = pytest.importorskip("jax", reason="the dialect is held to Flax itself where Flax is installed")
linen = pytest.importorskip("flax.linen", reason="the dialect is held to Flax itself where Flax is installed")
nnx = pytest.importorskip("flax.nnx", reason="the dialect is held to Flax itself where Flax is installed")

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
SHAPE = (6, 5, 4, 8)  # channels last
GENERATOR = np.random.default_rng(0)


def images() -> np.ndarray:
    return GENERATOR.normal(1, 2, SHAPE).astype(np.float32)


def filled(variables: Any) -> Any:
    """The variables with numbers that are no defaults."""
    return jax.tree.map(lambda v: GENERATOR.uniform(0.5, 1.5, v.shape).astype(np.float32), variables)


# what Linen has beside the variables, and what it is told of itself
LINEN: dict[str, tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = {
    "batch": (linen.BatchNorm, {"use_running_average": True}, {}),
    "batch, other numbers": (
        linen.BatchNorm,
        {"use_running_average": True, "epsilon": 0.1, "momentum": 0.7},
        {"eps": 0.1, "momentum": 0.7},
    ),
    "batch, no scale": (linen.BatchNorm, {"use_running_average": True, "use_scale": False}, {}),
    "batch, no bias": (linen.BatchNorm, {"use_running_average": True, "use_bias": False}, {}),
    "layer": (linen.LayerNorm, {}, {}),
    "layer, no bias": (linen.LayerNorm, {"use_bias": False, "epsilon": 1e-2}, {"kind": "LayerNorm", "eps": 1e-2}),
    "layer, no scale": (linen.LayerNorm, {"use_scale": False}, {"kind": "LayerNorm"}),
    "group": (linen.GroupNorm, {"num_groups": 2}, {"kind": "GroupNorm", "groups": 2}),
    "instance": (linen.InstanceNorm, {}, {"kind": "InstanceNorm"}),
    "rms": (linen.RMSNorm, {}, {"kind": "RMSNorm"}),
}


@pytest.mark.parametrize("name", LINEN)
def test_variables_of_linen_become_ours_and_go_back(name: str) -> None:
    make, options, told = LINEN[name]
    layer, x = make(**options), images()
    variables = filled(layer.init(jax.random.key(0), x))
    made = normlab.from_flax(variables, **told).eval()
    expected = np.asarray(layer.apply(variables, x))
    np.testing.assert_allclose(ours(made, x), expected, **CLOSE)
    back = normlab.to_flax(made)
    for collection, values in variables.items():
        for key, value in values.items():
            np.testing.assert_array_equal(back[collection][key], value)
    if set(back["params"]) == set(variables["params"]):  # ours have a weight where theirs go without
        np.testing.assert_allclose(np.asarray(layer.apply(back, x)), expected, **CLOSE)


def test_training_moves_its_statistics_and_ours_alike() -> None:
    layer = linen.BatchNorm(use_running_average=False, momentum=0.8)
    variables = filled(layer.init(jax.random.key(0), images()))
    count = SHAPE[0] * SHAPE[1] * SHAPE[2]
    made = normlab.from_flax(variables, momentum=0.8, count=count).train()
    for _ in range(3):
        x = images()
        expected, moved = layer.apply(variables, x, mutable=["batch_stats"])
        variables = {**variables, **moved}
        np.testing.assert_allclose(ours(made, x), expected, **CLOSE)
    found = normlab.to_flax(made, count=count)["batch_stats"]
    for key, expected in variables["batch_stats"].items():
        np.testing.assert_allclose(found[key], expected, **CLOSE)


class Block(linen.Module):  # type: ignore[misc]
    """Norms at several depths, one without a scale."""

    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        y = linen.BatchNorm(use_running_average=True)(linen.Conv(8, (1, 1))(x))
        y = linen.LayerNorm(use_scale=False)(y)
        return linen.Dense(2)(linen.RMSNorm()(y))


class Net(linen.Module):  # type: ignore[misc]
    """Two blocks and a norm with a name of its own."""

    @linen.compact  # type: ignore[untyped-decorator]
    def __call__(self, x: Any) -> Any:
        return linen.GroupNorm(num_groups=1, name="GroupNorm_last")(Block()(Block()(x)))


# Bug: a norm without a scale was passed over.
def test_all_norms_of_a_model_of_linen() -> None:
    variables = filled(Net().init(jax.random.key(0), images()))
    found = normlab.from_flax(variables, groups=1)
    kinds = {path: type(layer).__name__ for path, layer in found.items()}
    block = {"BatchNorm_0": "BatchNorm", "LayerNorm_0": "LayerNorm", "RMSNorm_0": "RMSNorm"}
    inside = {f"Block_{i}.{name}": kind for i in (0, 1) for name, kind in block.items()}
    assert kinds == {**inside, "GroupNorm_last": "GroupNorm"}
    np.testing.assert_array_equal(
        found["Block_1.LayerNorm_0"].bias.detach(), variables["params"]["Block_1"]["LayerNorm_0"]["bias"]
    )


NNX: dict[str, Callable[[], Any]] = {
    "batch": lambda: nnx.BatchNorm(8, momentum=0.7, epsilon=0.1, rngs=nnx.Rngs(0)),
    "batch, no scale": lambda: nnx.BatchNorm(8, use_scale=False, rngs=nnx.Rngs(0)),
    "layer": lambda: nnx.LayerNorm(8, epsilon=1e-2, rngs=nnx.Rngs(0)),
    "layer, no bias": lambda: nnx.LayerNorm(8, use_bias=False, rngs=nnx.Rngs(0)),
    "group": lambda: nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0)),
    "instance": lambda: nnx.InstanceNorm(8, rngs=nnx.Rngs(0)),
    "rms": lambda: nnx.RMSNorm(8, rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("name", NNX)
def test_layers_of_nnx(name: str) -> None:
    layer, x = NNX[name](), images()
    nnx.update(layer, filled(nnx.state(layer)))
    made = normlab.from_flax(layer).eval()
    if name.startswith("batch"):
        layer.use_running_average = True
        assert made.momentum == pytest.approx(1 - layer.momentum)
    assert made.eps == layer.epsilon
    np.testing.assert_allclose(ours(made, x), np.asarray(layer(x)), **CLOSE)


def test_all_norms_of_a_model_of_nnx() -> None:
    rngs = nnx.Rngs(0)
    inner = nnx.Sequential(nnx.Linear(8, 8, rngs=rngs), nnx.LayerNorm(8, rngs=rngs))
    found = normlab.from_flax(nnx.Sequential(inner, nnx.BatchNorm(8, rngs=rngs)))
    assert {path: type(layer).__name__ for path, layer in found.items()} == {
        "layers.0.layers.1": "LayerNorm",
        "layers.1": "BatchNorm",
    }
    with pytest.raises(UsageError, match="expected variables of Linen, or a layer or model of NNX, got list"):
        normlab.from_flax([1, 2])


def test_parameters_in_half_precision() -> None:
    layer = nnx.LayerNorm(8, param_dtype=jax.numpy.bfloat16, rngs=nnx.Rngs(0))
    assert normlab.from_flax(layer).weight.tolist() == [1.0] * 8
