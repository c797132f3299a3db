# ruff: noqa: NPY002 - the notebooks seed NumPy's global generator
"""The cells of the notebook on batch and layer normalization, with the figures that they print."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from normlab.scratch.course.classifiers.fc_net import FullyConnectedNet
from normlab.scratch.course.layers import (
    batchnorm_backward,
    batchnorm_backward_alt,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
)
from tests.scratch.course.cells import below, gradient_errors, net_errors, rel_error


def _activations(N: int) -> np.ndarray:
    np.random.seed(231)
    X, W1, W2 = np.random.randn(N, 50), np.random.randn(50, 60), np.random.randn(60, 3)
    return np.maximum(0, X.dot(W1)).dot(W2)


def test_batchnorm_train_forward() -> None:
    a = _activations(200)
    np.testing.assert_allclose(a.mean(0), [-2.3814598, -13.18038246, 1.91780462], rtol=1e-8)
    np.testing.assert_allclose(a.std(0), [27.18502186, 34.21455511, 37.68611762], rtol=1e-8)
    out, _ = batchnorm_forward(a, np.ones(3), np.zeros(3), {"mode": "train"})
    assert np.abs(out.mean(0)).max() < 1e-15
    np.testing.assert_allclose(out.std(0), [0.99999999, 1.0, 1.0], atol=1e-8)
    gamma, beta = np.asarray([1.0, 2.0, 3.0]), np.asarray([11.0, 12.0, 13.0])
    out, _ = batchnorm_forward(a, gamma, beta, {"mode": "train"})
    np.testing.assert_allclose(out.mean(0), [11, 12, 13], rtol=1e-14)
    np.testing.assert_allclose(out.std(0), [0.99999999, 1.99999999, 2.99999999], atol=1e-8)


def test_batchnorm_test_forward() -> None:
    np.random.seed(231)
    W1, W2 = np.random.randn(50, 60), np.random.randn(60, 3)
    bn_param: dict[str, Any] = {"mode": "train"}
    for _ in range(50):
        a = np.maximum(0, np.random.randn(200, 50).dot(W1)).dot(W2)
        batchnorm_forward(a, np.ones(3), np.zeros(3), bn_param)
    bn_param["mode"] = "test"
    a = np.maximum(0, np.random.randn(200, 50).dot(W1)).dot(W2)
    out, _ = batchnorm_forward(a, np.ones(3), np.zeros(3), bn_param)
    np.testing.assert_allclose(out.mean(0), [-0.03927354, -0.04349152, -0.10452688], atol=1e-8)
    np.testing.assert_allclose(out.std(0), [1.01531428, 1.01238373, 0.97819988], atol=1e-8)


@pytest.mark.parametrize("backward", [batchnorm_backward, batchnorm_backward_alt])
def test_batchnorm_backward(backward: Any) -> None:
    np.random.seed(231)
    arrays = 5 * np.random.randn(4, 5) + 12, np.random.randn(5), np.random.randn(5)
    errors = gradient_errors(batchnorm_forward, backward, arrays, [{"mode": "train"}], np.random.randn(4, 5))
    below(errors, (1.7029261167605239e-09, 7.420414216247087e-13, 2.8795057655839487e-12))


def test_batchnorm_backward_alt_is_the_other_one() -> None:
    np.random.seed(231)
    x, gamma, beta = 5 * np.random.randn(100, 500) + 12, np.random.randn(500), np.random.randn(500)
    dout = np.random.randn(100, 500)
    _, cache = batchnorm_forward(x, gamma, beta, {"mode": "train"})
    pairs = zip(batchnorm_backward(dout, cache), batchnorm_backward_alt(dout, cache), strict=True)
    below([rel_error(a, b) for a, b in pairs], (1e-11, 1e-11, 1e-14))


@pytest.mark.parametrize("keywords", [{"normalization": "batchnorm"}, {"use_batchnorm": True}])
def test_nets_with_batchnorm(keywords: dict[str, Any]) -> None:
    np.random.seed(231)
    X, y = np.random.randn(2, 15), np.random.randint(10, size=(2,))
    for reg, loss in ((0, 2.2611955101340957), (3.14, 6.996533220108303)):
        model = FullyConnectedNet(
            [20, 30], input_dim=15, num_classes=10, reg=reg, weight_scale=5e-2, dtype=np.float64, **keywords
        )
        assert model.loss(X, y)[0] == pytest.approx(loss, rel=1e-13)
        errors = net_errors(model, X, y)
        names = ("W1", "W2", "W3", "b1", "b2", "b3", "beta1", "beta2", "gamma1", "gamma2")
        assert tuple(errors) == names
        # biases before a norm have no effect, so their errors are rounding over 1e-8
        assert max(errors[name] for name in names if name[0] != "b" or name in ("b3", "beta1", "beta2")) < 1e-3
        assert max(errors[name] for name in ("b1", "b2")) < 1e-5


def test_layernorm_forward() -> None:
    a = _activations(4)
    np.testing.assert_allclose(a.mean(1), [-59.06673243, -47.60782686, -43.31137368, -26.40991744], rtol=1e-8)
    np.testing.assert_allclose(a.std(1), [10.07429373, 28.39478981, 35.28360729, 4.01831507], rtol=1e-8)
    out, _ = layernorm_forward(a, np.ones(3), np.zeros(3), {})
    assert np.abs(out.mean(1)).max() < 1e-14
    np.testing.assert_allclose(out.std(1), [0.99999995, 0.99999999, 1.0, 0.99999969], atol=1e-8)
    out, _ = layernorm_forward(a, 3 * np.ones(3), 5 * np.ones(3), {})
    np.testing.assert_allclose(out.mean(1), [5, 5, 5, 5], rtol=1e-14)
    np.testing.assert_allclose(out.std(1), [2.99999985, 2.99999998, 2.99999999, 2.99999907], atol=1e-8)


def test_layernorm_backward() -> None:
    np.random.seed(231)
    arrays = 5 * np.random.randn(4, 5) + 12, np.random.randn(5), np.random.randn(5)
    errors = gradient_errors(layernorm_forward, layernorm_backward, arrays, [{}], np.random.randn(4, 5))
    below(errors, (1.433615657860454e-09, 4.519489546032799e-12, 2.276445013433725e-12))


def test_nets_with_layernorm() -> None:
    np.random.seed(231)
    X, y = np.random.randn(2, 15), np.random.randint(10, size=(2,))
    model = FullyConnectedNet(
        [20, 30], input_dim=15, num_classes=10, weight_scale=5e-2, dtype=np.float64, normalization="layernorm"
    )
    assert max(net_errors(model, X, y).values()) < 1e-4
