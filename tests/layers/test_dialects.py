"""Norms of other libraries, as their documentation lays them out, and back."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.errors import UsageError
from tests.layers.test_restore import Activated

C = 6
RNG = np.random.default_rng(0)
GAMMA, BETA, MEAN = (RNG.normal(size=C).astype(np.float32) for _ in range(3))
VAR = RNG.uniform(0.5, 2, C).astype(np.float32)


def x() -> Tensor:
    return torch.randn(4, C, 5, 3, generator=torch.Generator().manual_seed(0))


def by_statistics(eps: float) -> Tensor:
    gamma, beta, mean, var = (torch.from_numpy(v).reshape(1, C, 1, 1) for v in (GAMMA, BETA, MEAN, VAR))
    return gamma * (x() - mean) / (var + eps).sqrt() + beta


class Variable:
    """As Keras 3 has them."""

    def __init__(self, value: np.ndarray) -> None:
        self.value = value

    def numpy(self) -> np.ndarray:
        return self.value


class BatchNormalization(SimpleNamespace):
    """As Keras's, by its attributes."""


KERAS: dict[str, Any] = {
    "layer": BatchNormalization(
        name="bn",
        axis=-1,
        momentum=0.9,
        epsilon=1e-3,
        center=True,
        scale=True,
        gamma=Variable(GAMMA),
        beta=Variable(BETA),
        moving_mean=Variable(MEAN),
        moving_variance=Variable(VAR),
    ),
    "configuration": {
        "class_name": "BatchNormalization",
        "config": {"momentum": 0.9, "epsilon": 1e-3, "axis": 3},
        "weights": [GAMMA, BETA, MEAN, VAR],
    },
}


@pytest.mark.parametrize("form", KERAS)
def test_batch_norm_of_keras(form: str) -> None:
    layer = normlab.from_keras(KERAS[form])
    assert (layer.eps, layer.momentum) == (1e-3, pytest.approx(0.1))
    torch.testing.assert_close(layer.eval()(x()), by_statistics(1e-3))


def test_weights_of_keras_alone() -> None:
    by_name = {"bn/gamma:0": GAMMA, "bn/beta:0": BETA, "bn/moving_mean:0": MEAN, "bn/moving_variance:0": VAR}
    for weights in ([GAMMA, BETA, MEAN, VAR], by_name):
        layer = normlab.from_keras(weights)
        assert (layer.eps, layer.momentum) == (1e-3, pytest.approx(0.01))
        torch.testing.assert_close(layer.eval()(x()), by_statistics(1e-3))


def test_a_batch_norm_of_keras_without_a_scale() -> None:
    layer = normlab.from_keras(
        {"class_name": "BatchNormalization", "config": {"scale": False}, "weights": [BETA, MEAN, VAR]}
    )
    assert layer.weight.tolist() == [1] * C
    assert layer.bias.tolist() == pytest.approx(BETA.tolist())


def test_a_model_of_keras() -> None:
    model = SimpleNamespace(layers=[SimpleNamespace(name="dense"), KERAS["layer"]])
    assert list(normlab.from_keras(model)) == ["bn"]


def test_count_turns_the_biased_variance_into_the_unbiased_one() -> None:
    layer = normlab.from_keras([GAMMA, BETA, MEAN, VAR], count=10)
    np.testing.assert_allclose(layer.running_var, VAR * 10 / 9, rtol=1e-6)
    np.testing.assert_allclose(normlab.to_keras(layer, count=10)["weights"][3], VAR, rtol=1e-6)


LAYERS: dict[str, nn.Module] = {
    "batch": normlab.layers.BatchNorm(C, eps=2e-3, momentum=0.2),
    "group": normlab.layers.GroupNorm(3, C, eps=2e-3),
    "layer": normlab.layers.LayerNorm(C, eps=2e-3),
    "rms": normlab.layers.RMSNorm(C, eps=2e-3),
    "instance": normlab.layers.InstanceNorm(C, eps=2e-3, affine=True),
    "torch": nn.BatchNorm2d(C, eps=2e-3, momentum=0.2),
}


def filled(name: str) -> Any:
    layer: Any = LAYERS[name]
    with torch.no_grad():
        for key, v in (("weight", GAMMA), ("bias", BETA), ("running_mean", MEAN), ("running_var", VAR)):
            if getattr(layer, key, None) is not None:
                getattr(layer, key).copy_(torch.from_numpy(v))
    return layer.eval()


def same(found: Any, layer: Any) -> None:
    torch.testing.assert_close(dict(found.named_parameters()), dict(layer.named_parameters()))
    assert found.eps == pytest.approx(layer.eps)
    given = x() if not isinstance(layer, nn.LayerNorm | nn.RMSNorm) else x().movedim(1, -1)
    torch.testing.assert_close(found.eval()(given), layer(given))
    if hasattr(layer, "momentum") and getattr(layer, "running_mean", None) is not None:
        assert found.momentum == pytest.approx(layer.momentum)


@pytest.mark.parametrize("name", LAYERS)
def test_to_keras_and_back(name: str) -> None:
    layer = filled(name)
    same(normlab.from_keras(normlab.to_keras(layer)), layer)


@pytest.mark.parametrize("name", LAYERS)
def test_to_flax_and_back(name: str) -> None:
    layer = filled(name)
    kinds = {"batch": "BatchNorm", "torch": "BatchNorm", "rms": "RMSNorm"}
    kind = kinds.get(name, name.capitalize() + "Norm")
    momentum = 0.8 if kind == "BatchNorm" else 0.99
    found = normlab.from_flax(normlab.to_flax(layer), kind, groups=3, eps=2e-3, momentum=momentum)
    same(found, layer)


@pytest.mark.parametrize("name", LAYERS)
def test_to_onnx_and_back(name: str) -> None:
    onnx = pytest.importorskip("onnx")
    layer = filled(name)
    model = normlab.to_onnx(layer, rank=4)
    onnx.checker.check_model(model)
    (found,) = normlab.from_onnx(model).values()
    same(found, layer)
    from onnx.reference import ReferenceEvaluator

    given = x() if name not in ("layer", "rms") else x().movedim(1, -1)
    (want,) = ReferenceEvaluator(model).run(None, {"x": given.numpy()})
    torch.testing.assert_close(found(given), torch.from_numpy(np.asarray(want)), rtol=1e-4, atol=1e-5)


def test_variables_of_a_model_of_flax() -> None:
    variables = {
        "params": {
            "Conv_0": {"kernel": np.ones((3, 3, 1, C))},
            "Block_0": {"BatchNorm_0": {"scale": GAMMA, "bias": BETA}, "LayerNorm_0": {"scale": GAMMA, "bias": BETA}},
            "head": {"kernel": np.ones((C, 2)), "bias": np.ones(2)},
        },
        "batch_stats": {"Block_0": {"BatchNorm_0": {"mean": MEAN, "var": VAR}}},
    }
    found = normlab.from_flax(variables)
    assert list(found) == ["Block_0.BatchNorm_0", "Block_0.LayerNorm_0"]
    batch, layer = found.values()
    assert (batch.eps, batch.momentum, layer.eps) == (1e-5, pytest.approx(0.01), 1e-6)
    torch.testing.assert_close(batch.eval()(x()), by_statistics(1e-5))
    model = nn.ModuleDict({"block": nn.ModuleDict({"norm": batch})})
    np.testing.assert_array_equal(normlab.to_flax(model)["batch_stats"]["block"]["norm"]["var"], VAR)


def test_an_exported_model_of_onnx() -> None:
    pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    arrays = {"s": GAMMA, "b": BETA, "m": MEAN, "v": VAR}
    node = helper.make_node("BatchNormalization", ["x", *arrays], ["y"], epsilon=1e-4, momentum=0.7)
    layer = normlab.from_onnx(node, arrays)
    assert layer.momentum == pytest.approx(0.3)
    torch.testing.assert_close(layer.eval()(x()), by_statistics(1e-4))
    tensors = {k: numpy_helper.from_array(v) for k, v in arrays.items()}
    torch.testing.assert_close(normlab.from_onnx(node, tensors).eval()(x()), by_statistics(1e-4))
    lrn = normlab.from_onnx(helper.make_node("LRN", ["x"], ["y"], size=3))
    torch.testing.assert_close(lrn(x()), nn.LocalResponseNorm(3)(x()))
    with pytest.raises(UsageError, match="input 's' of BatchNormalization is no initializer"):
        normlab.from_onnx(node)
    with pytest.raises(UsageError, match="'Relu' is no norm"):
        normlab.from_onnx(helper.make_node("Relu", ["x"], ["y"]))


def test_mistakes() -> None:
    with pytest.raises(UsageError, match="'Dense' is no norm"):
        normlab.from_keras({"class_name": "Dense"})
    with pytest.raises(UsageError, match="expected 4 weights"):
        normlab.from_keras([GAMMA, BETA])
    with pytest.raises(UsageError, match="kind='Dense'"):
        normlab.from_flax({"params": {}}, "Dense")
    with pytest.raises(UsageError, match="has no counterpart"):
        normlab.to_keras(nn.Linear(2, 2))


# Bug: it became an RMS norm, which divides by another number.
def test_rms_scaling_of_keras_is_no_rms_norm() -> None:
    with pytest.raises(UsageError, match=r"rms_scaling=True\) divides by the standard deviation"):
        normlab.from_keras(
            {"class_name": "LayerNormalization", "config": {"rms_scaling": True, "center": False}, "weights": [GAMMA]}
        )


# the activation was left out without a word
@pytest.mark.parametrize("layer", ["bn", "swapped back", "theirs"])
def test_an_activation_has_no_place(layer: str) -> None:
    made = normlab.make_norm("bn", C, act="relu")
    if layer == "swapped back":
        made = normlab.restore_norms(made)
    if layer == "theirs":
        made = Activated(C)
    for function in (normlab.to_keras, *([normlab.to_onnx] if find_spec("onnx") else [])):
        with pytest.raises(UsageError, match=r"applies .*(relu|ReLU).* itself"):
            function(made)


# a norm of the channels became one of the last dimension
def test_a_norm_of_channels_is_no_layer_norm_of_onnx() -> None:
    pytest.importorskip("onnx")
    layer = normlab.layers.ChannelNorm(C)
    for made in (layer, normlab.restore_norms(normlab.layers.ChannelNorm(C))):
        with pytest.raises(UsageError, match="ChannelNorm may normalize other dimensions"):
            normlab.to_onnx(made)
    (weight, bias), config = (normlab.to_keras(layer)[key] for key in ("weights", "config"))
    want = torch.nn.functional.layer_norm(x().movedim(1, -1), (C,), *map(torch.from_numpy, (weight, bias)), 1e-6)
    assert config["axis"] == -1
    torch.testing.assert_close(layer(x()).movedim(1, -1), want)


# all dimensions of its weight are normalized, and Keras was told the last
def test_a_layer_norm_of_several_dimensions_in_keras() -> None:
    for layer in (nn.LayerNorm((C, 5, 3)), nn.RMSNorm((5, 3))):
        found = normlab.to_keras(layer)
        assert found["config"]["axis"] == list(range(-len(layer.normalized_shape), 0))
        assert found["weights"][0].shape == layer.normalized_shape
        assert normlab.from_keras(found).normalized_shape == layer.normalized_shape
