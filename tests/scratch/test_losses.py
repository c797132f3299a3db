"""The two losses against torch and numerical gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normlab.scratch.gradient_check import eval_numerical_gradient, rel_error
from normlab.scratch.layers import softmax_loss, svm_loss


def _scores(dtype: type) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(size=(7, 4)).astype(dtype), rng.integers(4, size=7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_loss_is_torchs_cross_entropy(dtype: type) -> None:
    x, y = _scores(dtype)
    tensor = torch.tensor(x, requires_grad=True)
    expected = F.cross_entropy(tensor, torch.tensor(y))
    expected.backward()
    loss, dx = softmax_loss(x, y)
    assert dx.dtype == dtype
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(dx, tensor.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_hinge_loss_is_torchs_multi_margin_loss(dtype: type) -> None:
    x, y = _scores(dtype)
    tensor = torch.tensor(x, requires_grad=True)
    expected = F.multi_margin_loss(tensor, torch.tensor(y)) * 4  # torch divides by the classes, too
    expected.backward()
    loss, dx = svm_loss(x, y)
    assert dx.dtype == dtype
    assert loss == pytest.approx(float(expected.detach()), rel=1e-6)
    np.testing.assert_allclose(dx, tensor.grad.numpy(), atol=1e-6)


@pytest.mark.parametrize("function", [softmax_loss, svm_loss])
def test_gradients_are_the_numerical_ones(function) -> None:  # type: ignore[no-untyped-def]
    x, y = _scores(np.float64)
    assert rel_error(function(x, y)[1], eval_numerical_gradient(lambda x: function(x, y)[0], x)) < 1e-6


def test_equal_scores_give_the_published_losses() -> None:
    x = 0.001 * np.random.RandomState(231).randn(50, 10)
    y = np.random.RandomState(1).randint(10, size=50)
    assert svm_loss(x, y)[0] == pytest.approx(9.0, abs=0.01)
    assert softmax_loss(x, y)[0] == pytest.approx(2.3, abs=0.01)


def test_huge_scores_do_not_overflow() -> None:
    loss, dx = softmax_loss(np.array([[1e4, -1e4], [1e4, 1e4]], np.float32), np.array([0, 1]))
    assert loss == pytest.approx(np.log(2) / 2, rel=1e-6)
    assert np.isfinite(dx).all()
