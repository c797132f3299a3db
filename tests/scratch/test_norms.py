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
    spatial_batchinstancenorm_backward,
    spatial_batchinstancenorm_forward,
    spatial_batchnorm_backward,
    spatial_batchnorm_forward,
    spatial_groupnorm_backward,
    spatial_groupnorm_forward,
    spatial_instancenorm_backward,
    spatial_instancenorm_forward,
    spatial_layernorm_backward,
    spatial_layernorm_forward,
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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (1, 4, 3, 3), (3, 5, 2, 2)])
def test_spatial_layernorm_is_torchs_with_one_group(shape: tuple[int, ...], dtype: type) -> None:
    check_pair(
        lambda *a: spatial_layernorm_forward(*a, {}),
        spatial_layernorm_backward,
        _inputs(shape, dtype, (1, shape[1], 1, 1)),
        lambda x, g, b: F.group_norm(x, 1, g.flatten(), b.flatten()),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (1, 4, 3, 3), (3, 5, 2, 2)])
def test_spatial_instancenorm_is_torchs(shape: tuple[int, ...], dtype: type) -> None:
    check_pair(
        lambda *a: spatial_instancenorm_forward(*a, {}),
        spatial_instancenorm_backward,
        _inputs(shape, dtype, (1, shape[1], 1, 1)),
        lambda x, g, b: F.instance_norm(x, weight=g.flatten(), bias=b.flatten()),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("shape", [(2, 6, 4, 5), (3, 5, 2, 2), (4, 1, 3, 3)])
def test_spatial_batchinstancenorm_mixes_torchs_two(shape: tuple[int, ...], mode: str, dtype: type) -> None:
    rng = np.random.default_rng(3)
    channels = shape[1]
    mean, var = rng.normal(size=channels).astype(dtype), rng.uniform(1, 2, channels).astype(dtype)

    def forward(*arrays: np.ndarray) -> Any:
        return spatial_batchinstancenorm_forward(*arrays, {"mode": mode, "running_mean": mean, "running_var": var})

    def reference(x: torch.Tensor, gamma: torch.Tensor, beta: torch.Tensor, rho: torch.Tensor) -> torch.Tensor:
        running = torch.tensor(mean), torch.tensor(var)
        batch = F.batch_norm(x, *running, training=mode == "train")
        gamma, beta, rho = (v[:, None, None] for v in (gamma, beta, rho))
        return gamma * (rho * batch + (1 - rho) * F.instance_norm(x)) + beta

    arrays = [*_inputs(shape, dtype), rng.uniform(size=channels).astype(dtype)]
    check_pair(forward, spatial_batchinstancenorm_backward, arrays, reference)


def test_batch_instance_norm_at_the_ends_of_its_gate() -> None:
    x, gamma, beta = _inputs((3, 4, 5, 5), np.float64)
    param: dict[str, Any] = {"mode": "train"}
    out, _ = spatial_batchinstancenorm_forward(x, gamma, beta, np.ones(4), param)
    expected: dict[str, Any] = {"mode": "train"}
    np.testing.assert_allclose(out, spatial_batchnorm_forward(x, gamma, beta, expected)[0], rtol=1e-12, atol=1e-12)
    assert np.array_equal(param["running_mean"], expected["running_mean"])
    assert np.array_equal(param["running_var"], expected["running_var"])
    out, _ = spatial_batchinstancenorm_forward(x, gamma, beta, np.zeros(4), param)
    column = (1, 4, 1, 1)
    instance, _ = spatial_instancenorm_forward(x, gamma.reshape(column), beta.reshape(column), {})
    np.testing.assert_allclose(out, instance, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize(
    ("forward", "backward"),
    [(batchnorm_forward, batchnorm_backward_alt), (spatial_batchnorm_forward, spatial_batchnorm_backward)],
)
def test_an_empty_batch_passes_and_moves_no_statistic(
    forward: Callable[..., Any], backward: Callable[..., Any], mode: str
) -> None:
    shape = (0, 3) if forward is batchnorm_forward else (0, 3, 2, 2)
    param = {"mode": mode, "running_mean": np.ones(3), "running_var": np.full(3, 2.0)}
    out, cache = forward(np.zeros(shape), np.ones(3), np.zeros(3), param)
    assert [g.shape for g in backward(out, cache)] == [shape, (3,), (3,)]
    assert param["running_mean"].tolist() == [1, 1, 1]
    assert param["running_var"].tolist() == [2, 2, 2]


def test_empty_batches_pass_through_the_norms_of_single_samples() -> None:
    out, cache = layernorm_forward(np.zeros((0, 3)), np.ones(3), np.zeros(3), {})
    assert [g.shape for g in layernorm_backward(out, cache)] == [(0, 3), (3,), (3,)]
    column = np.ones((1, 4, 1, 1))
    out, cache = spatial_groupnorm_forward(np.zeros((0, 4, 2, 2)), column, column, 2, {})
    assert [g.shape for g in spatial_groupnorm_backward(out, cache)] == [(0, 4, 2, 2), (1, 4, 1, 1), (1, 4, 1, 1)]


def test_layer_norm_takes_gamma_inside_the_means() -> None:
    x, gamma, beta = _inputs((4, 6), np.float64)
    out, cache = layernorm_forward(x, gamma, beta, {})
    dout = np.random.default_rng(1).normal(size=out.shape)
    dx, _, _ = layernorm_backward(dout, cache)
    xhat, inverse = cache["xhat"], cache["inverse"]
    mean = dout.mean(1, keepdims=True)
    trap = gamma * inverse * (dout - mean - xhat * (dout * xhat).mean(1, keepdims=True))
    assert rel_error(dx, trap) > 0.1


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
