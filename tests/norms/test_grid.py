"""Pooling against NumPy's mean and variance of the pooled elements; the arithmetic of maps; running statistics."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from normlab.norms import grid
from normlab.norms.grid import Affine, Grid, Moments, pull_back, update_running

POOLINGS: dict[str, tuple[int, ...]] = {"n": (0, 3), "c": (2, 3), "n c": (0, 2, 3), "c n": (0, 2, 3), "": (3,)}


@st.composite
def planes(draw: st.DrawFn) -> tuple[np.ndarray, int]:
    """x (N, C, S) of any offset and spread, and a number of groups that divides C."""
    n, width, groups, size = (draw(st.integers(1, 5)) for _ in range(4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    offset, spread = draw(st.floats(-1e5, 1e5)), draw(st.floats(1e-3, 1e3))
    return rng.normal(offset, spread, (n, groups * width, size)) + rng.normal(0, spread, (n, 1, 1)), groups


def moments(x: np.ndarray, library: str) -> Moments:
    n, channels, size = x.shape
    numbers = x.mean(2), x.var(2)
    if library == "torch":
        numbers = torch.from_numpy(numbers[0]), torch.from_numpy(numbers[1])
    return Moments(lambda: numbers, (n, channels), size)


@pytest.mark.parametrize("library", ["numpy", "torch"])
@pytest.mark.parametrize("pooling", POOLINGS)
@given(planes())
def test_pooling(pooling: str, library: str, drawn: tuple[np.ndarray, int]) -> None:
    x, groups = drawn
    n, channels, size = x.shape
    m = moments(x, library)
    for over in pooling.split():
        m = m.pool(over, groups if over == "c" else 1)
    parts = x.reshape(n, groups, channels // groups, size) if "c" in pooling else x[:, :, None]
    over_axes = POOLINGS[pooling]
    mean, var = (
        np.broadcast_to(f(parts, axis=over_axes, keepdims=True), parts[..., :1].shape) for f in (np.mean, np.var)
    )
    # the elements themselves are only known to a rounding error of their offset
    rounding = 1e-13 * (1 + np.abs(x).max())
    np.testing.assert_allclose(
        np.broadcast_to(m.mean, (n, channels)), mean.reshape(n, channels), rtol=1e-12, atol=rounding
    )
    np.testing.assert_allclose(
        np.broadcast_to(m.var, (n, channels)),
        var.reshape(n, channels),
        rtol=1e-9,
        atol=rounding * (rounding + np.sqrt(var.max())) * 10,
    )
    assert m.count == np.prod([parts.shape[axis] for axis in over_axes])


def test_pooling_does_not_cancel() -> None:
    """E[x^2] - E[x]^2 would have no digit left."""
    x = np.random.default_rng(0).normal(1e8, 1, (6, 4, 50))
    np.testing.assert_allclose(moments(x, "numpy").pool("n").var[0], x.var((0, 2)), rtol=1e-6)
    np.testing.assert_allclose(moments(x, "numpy").pool("c").var[:, 0], x.var((1, 2)), rtol=1e-6)


def test_wrong_axis() -> None:
    with pytest.raises(ValueError, match=r"over='s'; expected 'n' \(samples\) or 'c' \(channels\)"):
        moments(np.ones((2, 3, 4)), "numpy").pool("s")


def test_wrong_groups() -> None:
    with pytest.raises(ValueError, match="3 channels do not divide into groups=2"):
        moments(np.ones((2, 3, 4)), "numpy").pool("c", 2)


def test_running_statistics_replace_the_pooling_over_samples() -> None:
    running = np.full((1, 3), 5.0), np.full((1, 3), 7.0)

    def measure() -> Any:
        raise AssertionError("batch norm in evaluation does not look at x's moments")

    pooled = Moments(measure, (2, 3), 4, training=False, running=running).pool("n")
    assert pooled.mean is running[0]
    assert pooled.var is running[1]


def test_batch_is_told_once_pooled() -> None:
    m = moments(np.random.default_rng(0).normal(size=(4, 3, 5)), "numpy")
    assert m.batch is None
    pooled = m.pool("n")
    mean, var, count = m.batch
    assert count == 20
    assert mean is pooled.mean
    assert var is pooled.var
    assert m.pool("n") is pooled, "measured once"


# --- maps ----------------------------------------------------------------------------------------------------------


def at(a: Affine, x: np.ndarray) -> np.ndarray:
    return a.scale * (x - a.center) + a.shift


@given(st.integers(0, 10**6))
def test_sum_and_multiple_of_maps(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a = Affine(*rng.normal(size=(3, 4, 5)))
    b = Affine(*rng.normal(size=(3, 1, 5)))
    x, weight = rng.normal(size=(2, 4, 5))
    np.testing.assert_allclose(at(a + b, x), at(a, x) + at(b, x), atol=1e-12)
    np.testing.assert_allclose(at(b + a, x), at(a, x) + at(b, x), atol=1e-12)
    np.testing.assert_allclose(at(weight * a, x), weight * at(a, x), atol=1e-12)
    np.testing.assert_allclose(at(a * 2.0, x), 2 * at(a, x), atol=1e-12)
    np.testing.assert_allclose(at(0.25 * a + 0.75 * b, x), 0.25 * at(a, x) + 0.75 * at(b, x), atol=1e-12)


def test_sum_keeps_the_finer_center() -> None:
    fine, coarse = Affine(np.ones((4, 5)), np.ones((4, 5))), Affine(np.ones((1, 5)), np.zeros((1, 5)))
    assert (fine + coarse).center is fine.center
    assert (coarse + fine).center is fine.center


# --- derivatives of single operations; whole grid functions are in test_program.py ----------------------------------


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: a + b,
        lambda a, b: 3 - a + b - 2,
        lambda a, b: a * b,
        lambda a, b: 2 * a / (1 + b * b),
        lambda a, b: 1 / (2 + b * b) - a,
        lambda a, b: -a * b,
        lambda a, b: a**3 + b**2,
        lambda a, b: grid.sqrt(1 + a * a),
        lambda a, b: grid.rsqrt(1 + b * b) * a,
        lambda a, b: grid.exp(-a * a) + b,
        lambda a, b: grid.maximum(a, 0.1) * b,
        lambda a, b: grid.maximum(a, b) * b,
        lambda a, b: grid.minimum(a, 2 * b) + b,
        lambda a, b: grid.average(a * b, "n", parts=2) * a,
        lambda a, b: grid.average(a, "n") * b,
        lambda a, b: grid.average(a * b, "c"),
        lambda a, b: grid.average(a, "c", 2) * a,
        lambda a, b: grid.stop_gradient(a) * b + a,
        lambda a, b: grid.average(grid.average(a, "c"), "n") * b,
    ],
)
@pytest.mark.parametrize("shape", [(3, 4), (1, 4)])
def test_derivative(function: Any, shape: tuple[int, int]) -> None:
    """The tape beside torch's autograd, where b (1 or N, C) broadcasts."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 4)), rng.normal(size=shape)
    tape: list = []
    grids = Grid(a, tape), Grid(b, tape)
    result = function(*grids)
    seed = rng.normal(size=result.value.shape)
    cotangent = pull_back(tape, [(result, seed)])

    leaves = torch.tensor(a, requires_grad=True), torch.tensor(b, requires_grad=True)
    plain = function(leaves[0], leaves[1])
    if "stop_gradient" in function.__code__.co_names:
        plain = leaves[0].detach() * leaves[1] + leaves[0]
    np.testing.assert_allclose(result.value, plain.detach(), rtol=1e-14)
    wants = torch.autograd.grad(plain, leaves, torch.tensor(seed), allow_unused=True)
    for leaf, want in zip(grids, wants, strict=True):
        got = cotangent(leaf)
        assert (got is None) == (want is None)
        if want is not None:
            np.testing.assert_allclose(np.broadcast_to(got, want.shape), want, rtol=1e-13, atol=1e-13)


def test_nothing_depends_on_an_unused_grid() -> None:
    tape: list = []
    used, unused = Grid(np.ones((1, 2)), tape), Grid(np.ones((1, 2)), tape)
    cotangent = pull_back(tape, [(used * 2, np.ones((1, 2)))])
    assert cotangent(unused) is None
    assert cotangent(used).tolist() == [[2, 2]]


# --- running statistics --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_array", [np.array, torch.tensor])
def test_update_running(as_array: Any) -> None:
    running = as_array([1.0, 2.0]), as_array([4.0, 8.0])
    update_running(running, (as_array([[3.0, 6.0]]), as_array([[2.0, 4.0]]), 5), 0.25)
    assert running[0].tolist() == [1.5, 3.0]
    assert running[1].tolist() == [3.625, 7.25]  # 0.75 * 4 + 0.25 * 2 * 5 / 4


def test_update_running_biased() -> None:
    running = np.zeros(1), np.zeros(1)
    update_running(running, (np.ones(1), np.ones(1), 2), 0.5, unbiased=False)
    assert running[1].tolist() == [0.5]


def test_standardize() -> None:
    m = moments(np.random.default_rng(0).normal(3, 2, (2, 3, 400)), "numpy")
    a = grid.standardize(m, SimpleNamespace(weight=2.0, bias=1.0, eps=0.5))
    np.testing.assert_allclose(a.scale, 2 / np.sqrt(m.var + 0.5))
    assert a.center is m.mean
    assert a.shift == 1.0
