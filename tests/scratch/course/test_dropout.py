# ruff: noqa: NPY002 - the notebooks seed NumPy's global generator
"""The cells of the notebook on dropout, with the figures that they print."""

from __future__ import annotations

import numpy as np
import pytest

from normlab.scratch.course.classifiers.fc_net import FullyConnectedNet, dropout_backward, dropout_forward
from tests.scratch.course.cells import below, gradient_errors, net_errors


def test_dropout_forward() -> None:
    np.random.seed(231)
    x = np.random.randn(500, 500) + 10
    for p, mean, zero in (
        (0.25, 10.014059116977283, 0.749784),
        (0.4, 9.977917658761159, 0.600796),
        (0.7, 9.987811912159426, 0.30074),
    ):
        out, _ = dropout_forward(x, {"mode": "train", "p": p})
        out_test, _ = dropout_forward(x, {"mode": "test", "p": p})
        assert x.mean() == pytest.approx(10.000207878477502, rel=1e-13)
        assert out.mean() == pytest.approx(mean, rel=1e-13)
        assert out_test.mean() == pytest.approx(10.000207878477502, rel=1e-13)
        assert (out == 0).mean() == pytest.approx(zero, rel=1e-12)
        assert (out_test == 0).mean() == 0


def test_dropout_backward() -> None:
    np.random.seed(231)
    x = np.random.randn(10, 10) + 10
    param = {"mode": "train", "p": 0.2, "seed": 123}
    below(gradient_errors(dropout_forward, dropout_backward, [x], [param], np.random.randn(10, 10)), [5.44560814e-11])


@pytest.mark.parametrize("keyword", ["dropout", "dropout_keep_ratio"])
def test_nets_with_dropout(keyword: str) -> None:
    """The weights of the later nets depend on the seed of the earlier ones' masks, which is NumPy's global one."""
    np.random.seed(231)
    X, y = np.random.randn(2, 15), np.random.randint(10, size=(2,))
    for keep, loss, published in (
        (1, 2.3004790897684924, (1.48e-07, 2.21e-05, 3.53e-07, 5.38e-09, 2.09e-09, 5.80e-11)),
        (0.75, 2.302371489704412, (1.90e-07, 4.76e-06, 2.60e-08, 4.73e-09, 1.82e-09, 1.70e-10)),
        (0.5, 2.3042759220785896, (3.11e-07, 1.84e-08, 5.35e-08, 5.37e-09, 2.99e-09, 1.13e-10)),
    ):
        model = FullyConnectedNet(
            [20, 30], input_dim=15, num_classes=10, weight_scale=5e-2, dtype=np.float64, seed=123, **{keyword: keep}
        )
        assert model.use_dropout == (keep != 1)
        assert model.loss(X, y)[0] == pytest.approx(loss, rel=1e-14)
        below(list(net_errors(model, X, y).values()), published)


def test_a_dropout_of_zero_is_none() -> None:
    model = FullyConnectedNet([20], input_dim=15, dropout=0)
    assert not model.use_dropout
    assert model.dropout_param == {}


def test_a_seed_leaves_the_weights_to_the_global_generator() -> None:
    drawn = []
    for seed in (1, 2):
        np.random.seed(231)
        drawn.append(FullyConnectedNet([20], input_dim=15, dropout=0.5, seed=seed).params["W1"])
    assert np.array_equal(*drawn)
    first, second = (FullyConnectedNet([20], input_dim=15, seed=3).params["W1"] for _ in range(2))
    assert not np.array_equal(first, second)
