"""Batch, layer and group normalization against torch and numerical gradients; running statistics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from normlab.scratch.gradient_check import rel_error
from normlab.scratch.layers import (
    batchnorm_backward,
    batchnorm_backward_alt,
    batchnorm_forward,
    layernorm_backward,
    layernorm_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
)
from tests.scratch.oracle import check_pair

DTYPES = (np.float32, np.float64)
BACKWARDS = (batchnorm_backward, batchnorm_backward_alt)


def _inputs(shape: tuple[int, ...], dtype: type, affine: tuple[int, ...] | None = None) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    affine = affine or shape[1:2]
    x = (2 * rng.normal(size=shape) + 3).astype(dtype)
    return [x, rng.normal(size=affine).astype(dtype), rng.normal(size=affine).astype(dtype)]


def _torch_batchnorm(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor) -> torch.Tensor:
    return F.batch_norm(x, None, None, gamma, beta, training=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backward", BACKWARDS)
@pytest.mark.parametrize("shape", [(4, 5), (7, 1), (3, 8)])
def test_batchnorm_is_torchs(shape: tuple[int, int], backward: Callable[..., Any], dtype: type) -> None:
    check_pair(lambda *a: batchnorm_forward(*a, {"mode": "train"}), backward, _inputs(shape, dtype), _torch_batchnorm)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(64, 50), (100, 100), (200, 65), (500, 16)])
def test_batchnorm_of_larger_batches_is_torchs(shape: tuple[int, int], dtype: type) -> None:
    check_pair(
        lambda *a: batchnorm_forward(*a, {"mode": "train"}),
        batchnorm_backward_alt,
        _inputs(shape, dtype),
        _torch_batchnorm,
        numerical=False,
    )


@pytest.mark.parametrize("backward", BACKWARDS)
def test_batchnorm_in_testing_uses_running_statistics_as_constants(backward: Callable[..., Any]) -> None:
    rng = np.random.default_rng(1)
    mean, var = rng.normal(size=5), rng.uniform(0.5, 2, 5)
    param = {"mode": "test", "running_mean": mean, "running_var": var}
    check_pair(
        lambda *a: batchnorm_forward(*a, dict(param)),
        backward,
        _inputs((4, 5), np.float64),
        lambda x, g, b: F.batch_norm(x, torch.tensor(mean), torch.tensor(var), g, b, training=False),
    )


def test_both_backward_passes_agree_on_one_cache() -> None:
    x, gamma, beta = _inputs((50, 30), np.float64)
    _, cache = batchnorm_forward(x, gamma, beta, {"mode": "train"})
    dout = np.random.default_rng(1).normal(size=x.shape)
    for one, two in zip(batchnorm_backward(dout, cache), batchnorm_backward_alt(dout, cache), strict=True):
        assert rel_error(one, two) < 1e-9


@pytest.mark.parametrize("forward", [batchnorm_forward, spatial_batchnorm_forward])
def test_running_statistics_weigh_the_old_and_take_the_biased_variance(forward: Callable[..., Any]) -> None:
    shape = (6, 3) if forward is batchnorm_forward else (6, 3, 4, 5)
    x, gamma, beta = _inputs(shape, np.float64)
    axes = (0,) if x.ndim == 2 else (0, 2, 3)
    param: dict[str, Any] = {"mode": "train"}
    forward(x, gamma, beta, param)
    np.testing.assert_allclose(param["running_mean"], 0.1 * x.mean(axes), rtol=1e-12)
    np.testing.assert_allclose(param["running_var"], 0.1 * x.var(axes), rtol=1e-12)
    param["momentum"] = 0.75
    forward(x + 1, gamma, beta, param)
    expected = 0.75 * 0.1 * x.mean(axes) + 0.25 * (x + 1).mean(axes)
    np.testing.assert_allclose(param["running_mean"], expected, rtol=1e-12)
    kept = {key: np.copy(value) for key, value in param.items()}
    forward(x - 5, gamma, beta, {**param, "mode": "test"})
    assert all(np.array_equal(param[key], kept[key]) for key in kept), "testing changes nothing"


def test_running_statistics_warm_up_to_the_distribution() -> None:
    rng = np.random.RandomState(231)
    w1, w2 = rng.randn(50, 60), rng.randn(60, 3)
    param: dict[str, Any] = {"mode": "train"}
    for _ in range(50):
        batchnorm_forward(np.maximum(0, rng.randn(200, 50) @ w1) @ w2, np.ones(3), np.zeros(3), param)
    param["mode"] = "test"
    out, _ = batchnorm_forward(np.maximum(0, rng.randn(200, 50) @ w1) @ w2, np.ones(3), np.zeros(3), param)
    assert abs(out.mean(0)).max() < 0.2
    assert abs(out.std(0) - 1).max() < 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(4, 5), (1, 6), (3, 2)])
def test_layernorm_is_torchs(shape: tuple[int, int], dtype: type) -> None:
    check_pair(
        lambda *a: layernorm_forward(*a, {}),
        layernorm_backward,
        _inputs(shape, dtype),
        lambda x, g, b: F.layer_norm(x, x.shape[1:], g, b),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 1), (3, 1, 2, 2)])
def test_spatial_batchnorm_is_torchs(shape: tuple[int, ...], dtype: type) -> None:
    check_pair(
        lambda *a: spatial_batchnorm_forward(*a, {"mode": "train"}),
        spatial_batchnorm_backward,
        _inputs(shape, dtype),
        _torch_batchnorm,
    )


def test_spatial_batchnorm_is_batchnorm_of_the_reshaped_array() -> None:
    x, gamma, beta = _inputs((2, 3, 4, 5), np.float64)
    out, _ = spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"})
    flat, _ = batchnorm_forward(x.transpose(0, 2, 3, 1).reshape(-1, 3), gamma, beta, {"mode": "train"})
    np.testing.assert_allclose(out, flat.reshape(2, 4, 5, 3).transpose(0, 3, 1, 2), atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), [((2, 6, 4, 5), 2), ((1, 4, 3, 3), 4), ((3, 5, 2, 1), 1)])
def test_spatial_groupnorm_is_torchs(shape: tuple[int, ...], groups: int, dtype: type) -> None:
    def forward(x: np.ndarray, gamma: np.ndarray, beta: np.ndarray) -> Any:
        return spatial_groupnorm_forward(x, gamma, beta, groups, {})

    check_pair(
        forward,
        spatial_groupnorm_backward,
        _inputs(shape, dtype, (1, shape[1], 1, 1)),
        lambda x, g, b: F.group_norm(x, groups, g.flatten(), b.flatten()),
    )


def test_normalization_leaves_mean_beta_and_std_gamma() -> None:
    x = 4 * np.random.default_rng(0).normal(size=(2, 3, 4, 5)) + 10
    gamma, beta = np.array([3.0, 4.0, 5.0]), np.array([6.0, 7.0, 8.0])
    out, _ = spatial_batchnorm_forward(x, gamma, beta, {"mode": "train"})
    np.testing.assert_allclose(out.mean((0, 2, 3)), beta, rtol=1e-12)
    np.testing.assert_allclose(out.std((0, 2, 3)), gamma, rtol=1e-6)


def test_eps_is_honoured() -> None:
    x, gamma, beta = _inputs((8, 3), np.float64)
    out, _ = batchnorm_forward(x, gamma, beta, {"mode": "train", "eps": 1.0})
    np.testing.assert_allclose(out, gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + 1) + beta, rtol=1e-10)


def test_a_large_mean_costs_no_precision() -> None:
    x, gamma, beta = _inputs((64, 4), np.float32)
    far, _ = batchnorm_forward(x + np.float32(4096), gamma, beta, {"mode": "train"})
    exact = (x + np.float32(4096)).astype(np.float64)
    expected = gamma * (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5) + beta
    np.testing.assert_allclose(far, expected, atol=1e-4)


def test_dtypes_never_grow() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    param = {"mode": "train", "running_mean": np.zeros(3), "running_var": np.ones(3), "momentum": np.float64(0.9)}
    out, cache = batchnorm_forward(x, np.ones(3), np.zeros(3), param)
    assert out.dtype == param["running_mean"].dtype == np.float32
    for backward in BACKWARDS:
        assert {g.dtype for g in backward(np.ones((4, 3)), cache)} == {np.dtype(np.float32)}
