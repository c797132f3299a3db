# ruff: noqa: NPY002 - the notebooks seed NumPy's global generator
"""The cells of the notebook on fully connected nets, with the figures that they print."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from normlab.scratch.course.classifiers.fc_net import (
    FullyConnectedNet,
    TwoLayerNet,
    affine_backward,
    affine_forward,
    affine_relu_backward,
    affine_relu_forward,
    relu_backward,
    relu_forward,
    softmax_loss,
    svm_loss,
)
from normlab.scratch.course.gradient_check import eval_numerical_gradient
from normlab.scratch.course.optim import adam, rmsprop, sgd_momentum
from normlab.scratch.course.solver import Solver
from tests.scratch.course.cells import below, gradient_errors, net_errors, rel_error


def test_affine_forward() -> None:
    x = np.linspace(-0.1, 0.5, num=2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    w = np.linspace(-0.2, 0.3, num=120 * 3).reshape(120, 3)
    out, _ = affine_forward(x, w, np.linspace(-0.3, 0.1, num=3))
    correct = np.array([[1.49834967, 1.70660132, 1.91485297], [3.25553199, 3.5141327, 3.77273342]])
    assert rel_error(out, correct) == pytest.approx(9.769849468192957e-10, rel=1e-5)


def test_affine_backward() -> None:
    np.random.seed(231)
    arrays = np.random.randn(10, 2, 3), np.random.randn(6, 5), np.random.randn(5)
    errors = gradient_errors(affine_forward, affine_backward, arrays, (), np.random.randn(10, 5))
    below(errors, (5.399100368651805e-11, 9.904211865398145e-11, 2.4122867568119087e-11))


def test_relu() -> None:
    out, _ = relu_forward(np.linspace(-0.5, 0.5, num=12).reshape(3, 4))
    correct = np.array(
        [[0, 0, 0, 0], [0, 0, 0.04545455, 0.13636364], [0.22727273, 0.31818182, 0.40909091, 0.5]],
    )
    assert rel_error(out, correct) == pytest.approx(4.999999798022158e-08, rel=1e-5)
    np.random.seed(231)
    x = np.random.randn(10, 10)
    below(gradient_errors(relu_forward, relu_backward, [x], (), np.random.randn(*x.shape)), [3.2756349136310288e-12])


def test_affine_relu() -> None:
    np.random.seed(231)
    arrays = np.random.randn(2, 3, 4), np.random.randn(12, 10), np.random.randn(10)
    errors = gradient_errors(affine_relu_forward, affine_relu_backward, arrays, (), np.random.randn(2, 10))
    below(errors, (6.395535042049294e-11, 8.162015570444288e-11, 7.826724021458994e-12))


def test_losses() -> None:
    np.random.seed(231)
    x = 0.001 * np.random.randn(50, 10)
    y = np.random.randint(10, size=50)
    published = ((svm_loss, 8.999602749096233, 1.4021566006651672e-09), (softmax_loss, 2.3025458445007376, 8.2341e-09))
    for loss, value, error in published:
        got, dx = loss(x, y)
        assert got == pytest.approx(value, rel=1e-13)
        numerical = eval_numerical_gradient(lambda x, loss=loss: loss(x, y)[0], x, verbose=False)
        below([rel_error(numerical, dx)], [error])


def test_two_layer_net() -> None:
    np.random.seed(231)
    N, D, H, C = 3, 5, 50, 7
    np.random.randn(N, D), np.random.randint(C, size=N)
    model = TwoLayerNet(input_dim=D, hidden_dim=H, num_classes=C, weight_scale=1e-3)
    assert abs(model.params["W1"].std() - 1e-3) < 1e-4
    assert abs(model.params["W2"].std() - 1e-3) < 1e-4
    assert np.all(model.params["b1"] == 0)
    assert np.all(model.params["b2"] == 0)
    model.params["W1"] = np.linspace(-0.7, 0.3, num=D * H).reshape(D, H)
    model.params["b1"] = np.linspace(-0.1, 0.9, num=H)
    model.params["W2"] = np.linspace(-0.3, 0.4, num=H * C).reshape(H, C)
    model.params["b2"] = np.linspace(-0.9, 0.1, num=C)
    X = np.linspace(-5.5, 4.5, num=N * D).reshape(D, N).T
    correct = np.array(
        [
            [11.53165108, 12.2917344, 13.05181771, 13.81190102, 14.57198434, 15.33206765, 16.09215096],
            [12.05769098, 12.74614105, 13.43459113, 14.1230412, 14.81149128, 15.49994135, 16.18839143],
            [12.58373087, 13.20054771, 13.81736455, 14.43418138, 15.05099822, 15.66781506, 16.2846319],
        ]
    )
    assert np.abs(model.loss(X) - correct).sum() < 1e-6
    y = np.asarray([0, 5, 1])
    assert abs(model.loss(X, y)[0] - 3.4702243556) < 1e-10
    model.reg = 1.0
    assert abs(model.loss(X, y)[0] - 26.5948426952) < 1e-10
    for reg, published in (
        (0.0, {"W1": 1.83e-08, "W2": 3.12e-10, "b1": 9.83e-09, "b2": 4.33e-10}),
        (0.7, {"W1": 2.53e-07, "W2": 2.85e-08, "b1": 1.56e-08, "b2": 7.76e-10}),
    ):
        model.reg = reg
        errors = net_errors(model, X, y)
        below(list(errors.values()), list(published.values()))


REG = {
    0: (2.3004790897684924, (1.48e-07, 2.21e-05, 3.53e-07, 5.38e-09, 2.09e-09, 5.80e-11)),
    3.14: (7.052114776533016, (3.90e-09, 6.87e-08, 2.13e-08, 1.48e-08, 1.72e-09, 1.57e-10)),
}


def test_fully_connected_net() -> None:
    np.random.seed(231)
    X, y = np.random.randn(2, 15), np.random.randint(10, size=(2,))
    for reg, (loss, published) in REG.items():
        model = FullyConnectedNet([20, 30], input_dim=15, num_classes=10, reg=reg, weight_scale=5e-2, dtype=np.float64)
        assert model.loss(X, y)[0] == pytest.approx(loss, rel=1e-14)
        errors = net_errors(model, X, y)
        assert list(errors) == ["W1", "W2", "W3", "b1", "b2", "b3"]
        below(list(errors.values()), published)


def test_update_rules() -> None:
    shape = (4, 5)
    w = np.linspace(-0.4, 0.6, num=20).reshape(shape)
    dw = np.linspace(-0.6, 0.4, num=20).reshape(shape)
    v = np.linspace(0.6, 0.9, num=20).reshape(shape)
    config: dict[str, Any] = {"learning_rate": 1e-3, "velocity": v}
    next_w, _ = sgd_momentum(w, dw, config=config)
    expected = np.linspace(0.1406, 1.4096, num=20).reshape(shape)
    assert rel_error(next_w, expected) < 1e-8
    assert rel_error(config["velocity"], np.linspace(0.5406, 0.8096, num=20).reshape(shape)) < 1e-8

    config = {"learning_rate": 1e-2, "cache": v}
    next_w, _ = rmsprop(w, dw, config=config)
    assert next_w[0, 0] == pytest.approx(-0.39223849, abs=1e-8)
    assert next_w[3, 4] == pytest.approx(0.5957, abs=1e-3)
    assert rel_error(config["cache"][0, :2], np.array([0.5976, 0.6126277])) < 1e-7

    m, v = np.linspace(0.6, 0.9, num=20).reshape(shape), np.linspace(0.7, 0.5, num=20).reshape(shape)
    config = {"learning_rate": 1e-2, "m": m, "v": v, "t": 5}
    next_w, _ = adam(w, dw, config=config)
    assert rel_error(next_w[0, :3], np.array([-0.40094747, -0.34836187, -0.29577703])) < 1e-7
    assert rel_error(config["v"][0, :2], np.array([0.69966, 0.68908382])) < 1e-7
    assert rel_error(config["m"][0, :2], np.array([0.48, 0.49947368])) < 1e-7
    assert config["t"] == 6


def test_a_net_overfits_fifty_samples() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(10, size=50)
    X = rng.normal(size=(10, 3, 8, 8))[y] + 0.5 * rng.normal(size=(50, 3, 8, 8))
    data = {"X_train": X, "y_train": y, "X_val": X, "y_val": y, "X_test": X, "y_test": y}
    np.random.seed(0)
    for hidden in ([100, 100], [100] * 4):
        model = FullyConnectedNet(hidden, input_dim=192, weight_scale=1e-1, dtype=np.float64)
        solver = Solver(
            model, data, print_every=10, num_epochs=30, batch_size=25, update_rule="sgd",
            optim_config={"learning_rate": 3e-2}, verbose=False,
        )  # fmt: skip
        solver.train()
        assert len(solver.loss_history) == 60
        assert len(solver.train_acc_history) == 31
        assert solver.check_accuracy(X, y) == 1
