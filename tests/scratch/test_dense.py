# ruff: noqa: NPY002 - the teaching code of this field draws from the global state
"""Affine, ReLU and dropout against torch, numerical gradients and the teaching assignment's published values."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from normlab.scratch.layers import (
    affine_backward,
    affine_forward,
    dropout_backward,
    dropout_forward,
    relu_backward,
    relu_forward,
)
from tests.scratch.oracle import check_pair

DTYPES = (np.float32, np.float64)


def _normal(*shape: int, dtype: type = np.float64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(3, 5), (1, 2, 3), (4, 1, 3, 2)])
def test_affine_is_torchs_linear(shape: tuple[int, ...], dtype: type) -> None:
    inputs = int(np.prod(shape[1:]))
    arrays = [_normal(*shape, dtype=dtype), _normal(inputs, 4, dtype=dtype, seed=1), _normal(4, dtype=dtype, seed=2)]
    check_pair(affine_forward, affine_backward, arrays, lambda x, w, b: x.flatten(1) @ w + b)


def test_affine_gives_the_published_values() -> None:
    x = np.linspace(-0.1, 0.5, num=2 * 4 * 5 * 6).reshape(2, 4, 5, 6)
    w = np.linspace(-0.2, 0.3, num=120 * 3).reshape(120, 3)
    out, _ = affine_forward(x, w, np.linspace(-0.3, 0.1, num=3))
    expected = [[1.49834967, 1.70660132, 1.91485297], [3.25553199, 3.5141327, 3.77273342]]
    np.testing.assert_allclose(out, expected, rtol=1e-8)


def test_affine_saves_the_gradient_of_its_input_on_request() -> None:
    out, cache = affine_forward(_normal(3, 5), _normal(5, 2), np.zeros(2))
    dx, dw, db = affine_backward(out, cache, need_dx=False)
    _, full_dw, full_db = affine_backward(out, cache)
    assert dx is None
    assert np.array_equal(dw, full_dw)
    assert np.array_equal(db, full_db)


def test_a_float64_bias_does_not_upcast_a_float32_layer() -> None:
    out, cache = affine_forward(_normal(3, 5, dtype=np.float32), _normal(5, 2, dtype=np.float32), np.zeros(2))
    assert out.dtype == np.float32
    assert [g.dtype for g in affine_backward(np.ones((3, 2)), cache)] == [np.float32] * 3


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 1)])
def test_relu_is_torchs(shape: tuple[int, ...], dtype: type) -> None:
    x = _normal(*shape, dtype=dtype)
    check_pair(relu_forward, relu_backward, [x + np.sign(x) * dtype(0.01)], torch.relu)


def test_relu_passes_nan_and_takes_zero_as_off() -> None:
    out, cache = relu_forward(np.array([np.nan, 0.0, -0.0, 2.0]))
    assert np.isnan(out[0])
    assert list(relu_backward(np.ones(4), cache)[1:]) == [0, 0, 1]


@pytest.mark.parametrize("p", [0.25, 0.4, 0.7, 1.0])
def test_a_seed_gives_the_mask_of_the_teaching_assignment(p: float) -> None:
    x = _normal(5, 7) + 10
    np.random.seed(123)
    expected = x * (np.random.rand(5, 7) < p) / p
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    out, _ = dropout_forward(x, {"mode": "train", "p": p, "seed": 123})
    np.testing.assert_allclose(out, expected, rtol=1e-12)
    assert np.array_equal(np.random.get_state()[1], before), "a seed of its own leaves NumPy's global state alone"


def test_without_a_seed_the_mask_comes_from_numpys_global_state() -> None:
    x = _normal(5, 7)
    np.random.seed(9)
    expected = (np.random.rand(5, 7) < 0.5) / 0.5
    np.random.seed(9)
    np.testing.assert_array_equal(dropout_forward(x, {"mode": "train", "p": 0.5})[0], x * expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", ["inverted", "vanilla"])
@pytest.mark.parametrize("mode", ["train", "test"])
def test_dropout_multiplies_by_its_mask(kind: str, mode: str, dtype: type) -> None:
    param = {"mode": mode, "p": 0.4, "seed": 3, "kind": kind}
    keep = np.random.RandomState(3).rand(4, 6) < 0.4
    if mode == "train":
        factor = keep / (0.4 if kind == "inverted" else 1.0)
    else:
        factor = np.full((4, 6), 1.0 if kind == "inverted" else 0.4)
    tensor = torch.from_numpy(factor.astype(dtype))
    x = _normal(4, 6, dtype=dtype)
    check_pair(lambda x: dropout_forward(x, param), dropout_backward, [x], lambda x: x * tensor)


@pytest.mark.parametrize("kind", ["inverted", "vanilla"])
def test_both_kinds_have_the_expectation_that_they_answer_in_testing(kind: str) -> None:
    x = np.full((500, 500), 10.0)
    param = {"p": 0.25, "kind": kind, "rng": np.random.RandomState(0)}
    train, _ = dropout_forward(x, {**param, "mode": "train"})
    test, _ = dropout_forward(x, {**param, "mode": "test"})
    # standard error of the share kept: sqrt(0.75 * 0.25 / 250,000) = 0.00087, relatively 0.0035
    assert abs(train.mean() / test.mean() - 1) < 0.014


def test_non_contiguous_arrays_serve_as_well() -> None:
    x, w = _normal(5, 3).T, _normal(4, 10)[:, ::2].T
    np.testing.assert_allclose(affine_forward(x, w, np.zeros(4))[0], np.array(x) @ np.array(w))


def test_an_empty_batch_passes() -> None:
    out, cache = affine_forward(np.zeros((0, 2, 3)), np.zeros((6, 4)), np.zeros(4))
    assert out.shape == (0, 4)
    assert [g.shape for g in affine_backward(out, cache)] == [(0, 2, 3), (6, 4), (4,)]


def test_a_wrong_gradient_is_caught() -> None:
    def wrong(dout: np.ndarray, cache: tuple) -> tuple:
        dx, dw, db = affine_backward(dout, cache)
        return dx, dw * 1.001, db

    arrays = [_normal(3, 5), _normal(5, 4), _normal(4)]
    with pytest.raises(AssertionError, match="gradient 1"):
        check_pair(affine_forward, wrong, arrays, lambda x, w, b: x @ w + b)
