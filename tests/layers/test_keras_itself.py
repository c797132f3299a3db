"""The dialect of Keras against Keras: its layers become ours and ours its, with outputs and moving statistics alike.

Outputs agree to 2e-5 relative to their size, which is float32 twice over: Keras normalizes batches by
x * (gamma / sqrt(var + eps)) + (beta - mean * ...), which rounds more often.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

import normlab
from tests.layers.channels_last import ours

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras", reason="the dialect is held to Keras itself where Keras is installed")

# Keras's own conversion to arrays does not know NumPy's argument copy
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CLOSE = {"rtol": 2e-5, "atol": 2e-5}
SHAPE = (6, 5, 4, 8)  # channels last
GENERATOR = np.random.default_rng(0)


def images() -> np.ndarray:
    return GENERATOR.normal(1, 2, SHAPE).astype(np.float32)


def filled(layer: Any) -> Any:
    """The layer, built for these images, with weights that are no defaults."""
    layer.build(SHAPE)
    layer.set_weights([GENERATOR.uniform(0.5, 1.5, w.shape).astype(np.float32) for w in layer.get_weights()])
    return layer


def theirs(layer: Any, x: np.ndarray, **options: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(layer(x, **options)))


LAYERS = {
    "batch": lambda: keras.layers.BatchNormalization(),
    "batch, other numbers": lambda: keras.layers.BatchNormalization(epsilon=0.1, momentum=0.7),
    "batch, no scale": lambda: keras.layers.BatchNormalization(scale=False),
    "layer": lambda: keras.layers.LayerNormalization(),
    "layer, no center": lambda: keras.layers.LayerNormalization(center=False, epsilon=1e-2),
    "group": lambda: keras.layers.GroupNormalization(groups=2),
    "instance": lambda: keras.layers.GroupNormalization(groups=-1),
    "rms": lambda: keras.layers.RMSNormalization(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_its_layers_become_ours_and_go_back(name: str) -> None:
    layer, x = filled(LAYERS[name]()), images()
    made = normlab.from_keras(layer).eval()
    expected = theirs(layer, x)
    np.testing.assert_allclose(ours(made, x), expected, **CLOSE)
    written = normlab.to_keras(made)
    again = getattr(keras.layers, written["class_name"]).from_config(written["config"])
    again.build(SHAPE)
    again.set_weights(written["weights"])
    np.testing.assert_allclose(theirs(again, x), expected, **CLOSE)


def test_training_moves_its_statistics_and_ours_alike() -> None:
    layer = filled(keras.layers.BatchNormalization(momentum=0.8))
    count = SHAPE[0] * SHAPE[1] * SHAPE[2]
    made = normlab.from_keras(layer, count=count).train()
    for _ in range(3):
        x = images()
        np.testing.assert_allclose(ours(made, x), theirs(layer, x, training=True), **CLOSE)
    for got, expected in zip(normlab.to_keras(made, count=count)["weights"], layer.get_weights(), strict=True):
        np.testing.assert_allclose(got, expected, **CLOSE)


def test_all_norms_of_a_model() -> None:
    norms = (keras.layers.BatchNormalization(name="one"), keras.layers.LayerNormalization(name="two"))
    model = keras.Sequential([keras.layers.Input(SHAPE[1:]), keras.layers.Conv2D(4, 1, name="conv"), *norms])
    found = normlab.from_keras(model)
    assert {name: type(layer).__name__ for name, layer in found.items()} == {"one": "BatchNorm", "two": "LayerNorm"}
