# ruff: noqa: NPY002 - the teaching code of this field draws from the global state
"""Networks: numerical gradients, published losses, torch's scores, dtypes and parameter names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from normlab.errors import UsageError
from normlab.scratch.gradient_check import eval_numerical_gradient
from normlab.scratch.nets import ConvNet, FullyConnectedNet

FC_NORMS = (None, "batchnorm", "layernorm")
CONV_NORMS = (None, "batchnorm", "groupnorm")


def _check(net: Any, X: np.ndarray, y: np.ndarray) -> None:
    loss, grads = net.loss(X, y)
    assert set(grads) == set(net.params)
    assert np.isfinite(loss)
    for name, grad in grads.items():
        numerical = eval_numerical_gradient(lambda _: net.loss(X, y)[0], net.params[name], h=1e-6)
        np.testing.assert_allclose(grad, numerical, rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("normalization", FC_NORMS)
@pytest.mark.parametrize("keep", [1, 0.6])
def test_gradients_of_the_fully_connected_net(normalization: str | None, keep: float) -> None:
    rng = np.random.default_rng(0)
    net = FullyConnectedNet([7, 6], 5, 3, keep, normalization, reg=0.3, weight_scale=0.5, dtype=np.float64, seed=3)
    _check(net, rng.normal(size=(6, 5)), rng.integers(3, size=6))


@pytest.mark.parametrize("normalization", CONV_NORMS)
def test_gradients_of_the_convolutional_net(normalization: str | None) -> None:
    rng = np.random.default_rng(0)
    net = ConvNet(
        (2, 7, 6),
        [4, 2],
        3,
        [5],
        3,
        weight_scale=None,
        reg=0.1,
        dtype=np.float64,
        normalization=normalization,
        num_groups=2,
        dropout_keep=0.7,
        seed=1,
    )
    _check(net, rng.normal(size=(3, 2, 7, 6)), rng.integers(3, size=3))


def test_initial_losses_are_the_published_ones() -> None:
    np.random.seed(231)
    X, y = np.random.randn(2, 15), np.random.randint(10, size=(2,))
    for reg, expected in ((0, 2.3004790897684924), (3.14, 7.052114776533016)):
        net = FullyConnectedNet([20, 30], input_dim=15, num_classes=10, reg=reg, weight_scale=5e-2, dtype=np.float64)
        assert net.loss(X, y)[0] == pytest.approx(expected, rel=1e-12)


def test_the_convolutional_net_starts_out_knowing_nothing() -> None:
    net = ConvNet(seed=0)
    X, y = np.random.default_rng(0).normal(size=(20, 3, 32, 32)), np.arange(20) % 10
    assert net.loss(X, y)[0] == pytest.approx(np.log(10), abs=0.01)
    net.reg = 0.5
    assert net.loss(X, y)[0] > np.log(10) + 0.05


@pytest.mark.parametrize("normalization", FC_NORMS)
def test_scores_of_the_fully_connected_net_are_torchs(normalization: str | None) -> None:
    net = FullyConnectedNet([8, 6], 12, 4, normalization=normalization, weight_scale=0.3, seed=0)
    X = np.random.default_rng(1).normal(size=(9, 12)).astype(np.float32)
    y = np.arange(9) % 4
    net.loss(X, y)  # running statistics
    modules: list[nn.Module] = []
    for i, (width, wanted) in enumerate([(12, 8), (8, 6)], 1):
        modules.append(_linear(net, i, width, wanted))
        if normalization:
            norm = nn.BatchNorm1d(wanted) if normalization == "batchnorm" else nn.LayerNorm(wanted)
            if isinstance(norm, nn.BatchNorm1d):
                norm.running_mean = torch.tensor(net.bn_params[i - 1]["running_mean"])
                norm.running_var = torch.tensor(net.bn_params[i - 1]["running_var"])
            modules.append(norm)
        modules.append(nn.ReLU())
    expected = nn.Sequential(*modules, _linear(net, 3, 6, 4)).eval()(torch.tensor(X))
    scores = net.loss(X)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected.detach().numpy(), atol=1e-5)


def _linear(net: Any, number: int, inputs: int, outputs: int) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    layer.load_state_dict(
        {"weight": torch.tensor(net.params[f"W{number}"].T), "bias": torch.tensor(net.params[f"b{number}"])}
    )
    return layer


def test_parameters_are_named_and_shaped_as_published() -> None:
    net = FullyConnectedNet([5, 4], 6, 3, normalization="batchnorm")
    assert {name: value.shape for name, value in net.params.items()} == {
        "W1": (6, 5), "b1": (5,), "gamma1": (5,), "beta1": (5,),
        "W2": (5, 4), "b2": (4,), "gamma2": (4,), "beta2": (4,),
        "W3": (4, 3), "b3": (3,),
    }  # fmt: skip
    conv = ConvNet((3, 8, 8), 6, 3, hidden_dim=7, normalization="groupnorm", num_groups=3)
    assert {name: value.shape for name, value in conv.params.items()} == {
        "W1": (6, 3, 3, 3), "b1": (6,), "gamma1": (1, 6, 1, 1), "beta1": (1, 6, 1, 1),
        "W2": (96, 7), "b2": (7,), "W3": (7, 10), "b3": (10,),
    }  # fmt: skip
    assert {value.dtype for value in conv.params.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize("net", [FullyConnectedNet([4], 12, 3, 0.5, reg=np.float64(0.1)), ConvNet((3, 2, 2), 2, 1, 3)])
def test_float32_stays_float32(net: Any) -> None:
    X, y = np.ones((5, 3, 2, 2)), np.zeros(5, np.int64)
    assert net.loss(X).dtype == np.float32
    loss, grads = net.loss(X, y)
    assert isinstance(loss, float)
    assert {grad.dtype for grad in grads.values()} == {np.dtype(np.float32)}


def test_seeds_and_generators() -> None:
    same = [FullyConnectedNet([4], 6, seed=3).params["W1"] for _ in range(2)]
    assert np.array_equal(*same)
    drawn = [FullyConnectedNet([4], 6, rng=np.random.RandomState(3)).params["W1"] for _ in range(2)]
    assert np.array_equal(*drawn)
    X, y = np.ones((4, 6)), np.zeros(4, np.int64)
    fixed = FullyConnectedNet([50], 6, dropout_keep_ratio=0.5, seed=3)
    assert fixed.loss(X, y)[0] == fixed.loss(X, y)[0]
    free = FullyConnectedNet([50], 6, dropout_keep_ratio=0.5, weight_scale=1, rng=np.random.RandomState(3))
    assert free.loss(X, y)[0] != free.loss(X, y)[0]


def test_dropout_is_off_in_testing() -> None:
    net = FullyConnectedNet([50], 6, dropout_keep=0.5, weight_scale=1, rng=np.random.RandomState(0))
    X = np.random.default_rng(0).normal(size=(4, 6))
    assert np.array_equal(net.loss(X), net.loss(X))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FullyConnectedNet([0]), r"hidden_dims must be an integer of at least 1, got 0"),
        (lambda: FullyConnectedNet([4, 2.5]), r"hidden_dims\[1\] must be an integer of at least 1, got 2.5"),
        (lambda: FullyConnectedNet([4], normalization="groupnorm"), r"normalization must be one of None, 'batchnorm'"),
        (lambda: FullyConnectedNet([4], dropout_keep=0), r"dropout_keep must be a number in \(0, 1\], got 0"),
        (lambda: FullyConnectedNet([4], dtype=np.float16), r"dtype must be float32 or float64, got float16"),
        (lambda: FullyConnectedNet([4], reg=-1), r"reg must be a number in \[0, inf\], got -1"),
        (lambda: ConvNet(filter_size=4), r"filter_size must be odd.*got 4"),
        (
            lambda: ConvNet((3, 2, 2), [4, 4]),
            r"input_dim is \(3, 2, 2\); expected \(C, H, W\) with H and W of at least 4",
        ),
        (lambda: ConvNet((3, 32)), r"input_dim is \(3, 32\); expected \(C, H, W\)"),
        (
            lambda: ConvNet((1, 4, 4), 6, 3, 2, normalization="groupnorm").loss(np.ones((1, 1, 4, 4))),
            r"G=4 does not divide the 6 channels of x; choose a divisor of 6",
        ),
    ],
)
def test_bad_settings_are_named(build: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build()
