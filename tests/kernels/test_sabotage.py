"""The teeth of the other tests: each mistake planted in normlab makes the comparison raise, on every backend.

The same comparisons pass while nothing is planted (`test_control`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from normlab.kernels import layout, stages
from normlab.kernels.cpu import planes as numba_cpu
from normlab.kernels.reference import planes as reference
from normlab.layers import norms as layers
from normlab.norms import family as norms
from normlab.norms import grid
from normlab.norms.application import Application
from normlab.norms.grid import Affine, Moments, rsqrt, sqrt, stop_gradient
from tests.layers.parity import BACKENDS, SHAPES, Case, check
from tests.layers.test_large_mean import check_errors

Plant = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A monkeypatch whose changes reach the programs that have been traced already."""
    stages.recipe.cache_clear()
    yield monkeypatch
    stages.recipe.cache_clear()


# --- the grid functions --------------------------------------------------------------------------------------------


def standardize(change: Callable[[Moments, Any], Affine]) -> Plant:
    return lambda patch: patch.setattr(norms, "standardize", change)


def grid_function(name: str, function: Callable) -> Plant:
    return lambda patch: patch.setitem(norms._REGISTRY, name, replace(norms.describe(name), grid=function))


def pooled_without_spread(patch: pytest.MonkeyPatch) -> None:
    def pooled(self: Moments, over: str, groups: int, parts: int, merged: int) -> Moments:
        average = lambda v: grid.average(v, over, groups, parts=parts)  # noqa: E731
        return Moments(lambda: (average(self.mean), average(self.var)), self.shape, self.count * merged)

    patch.setattr(Moments, "_pool", pooled)


def batch_in_evaluation(patch: pytest.MonkeyPatch) -> None:
    original = Moments.__init__

    def init(self: Moments, *args: Any, **options: Any) -> None:
        original(self, *args, **{**options, "training": True})

    patch.setattr(Moments, "__init__", init)


def groups_and_width_exchanged(patch: pytest.MonkeyPatch) -> None:
    original = Moments.pool
    patch.setattr(
        Moments, "pool", lambda m, over, groups=1: original(m, over, m.shape[1] // groups if groups > 1 else 1)
    )


# --- the derivative ------------------------------------------------------------------------------------------------


def pull(change: Callable[..., tuple]) -> Plant:
    """`change(b, c, grads, mean, center)` of the true pull-back."""
    original = Application.pull

    def changed(self: Application, scale: Any, center: Any, *sums: Any) -> tuple:
        b, c, grads = original(self, scale, center, *sums)
        return change(b, c, grads, grid.raw(self.measured[0]), center) if self.measured else (b, c, grads)

    return lambda patch: patch.setattr(Application, "pull", changed)


def parameter_gradient(name: str, factor: float) -> Plant:
    return pull(lambda b, c, grads, *_: (b, c, {k: v * factor if k == name else v for k, v in grads.items()}))


# --- running statistics --------------------------------------------------------------------------------------------


def update(change: Callable[..., None]) -> Plant:
    """`change(running, batch, momentum)` updates the running statistics, in place of the backend."""
    original = stages.forward

    def changed(*args: Any, update: Any = None, **options: Any) -> Any:
        y, cache = original(*args, **options)
        if update is not None:
            mean, var, momentum = update
            change((mean.numpy(), var.numpy()), cache.batch, momentum)
        return y, cache

    return lambda patch: patch.setattr(stages, "forward", changed)


true_update = grid.update_running


def batches_not_counted(patch: pytest.MonkeyPatch) -> None:
    original = layers.Norm._normalize

    def changed(self: layers.Norm, *args: Any, **options: Any) -> Any:
        y = original(self, *args, **options)
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.sub_(1)
        return y

    patch.setattr(layers.Norm, "_normalize", changed)


# --- memory --------------------------------------------------------------------------------------------------------


def channels_last_is_lost(patch: pytest.MonkeyPatch) -> None:
    first = layout.Layout(False, False)
    patch.setattr(layout.Layout, "dense_of", classmethod(lambda cls, x, foldable: (first, first.dense(x))))


def strides_ignored(patch: pytest.MonkeyPatch) -> None:
    """Read the memory of a channels-last tensor as if it were channels-first."""
    original = stages.forward

    def changed(norm: Any, x: Any, *args: Any, **options: Any) -> Any:
        return original(norm, torch.as_strided(x, x.shape, torch.empty(x.shape).stride()), *args, **options)

    patch.setattr(stages, "forward", changed)


BN, EVAL, LAST = Case("bn"), Case("bn", training=False), Case("bn", layout="last")
SABOTAGE: dict[str, tuple[Plant, Case]] = {
    "eps outside the root": (
        standardize(lambda m, p: Affine(p.weight / (sqrt(m.var) + p.eps), m.mean, p.bias)),
        Case("bn", options={"eps": 1e-3}),
    ),
    "eps left out": (standardize(lambda m, p: Affine(p.weight * rsqrt(m.var), m.mean, p.bias)), Case("gn")),
    "eps of another size": (
        standardize(lambda m, p: Affine(p.weight * rsqrt(m.var + 1e-3), m.mean, p.bias)),
        Case("in"),
    ),
    "unbiased variance normalizes": (
        standardize(lambda m, p: Affine(p.weight * rsqrt(m.var * m.count / (m.count - 1) + p.eps), m.mean, p.bias)),
        BN,
    ),
    "no bias": (standardize(lambda m, p: Affine(p.weight * rsqrt(m.var + p.eps), m.mean)), Case("ln")),
    "no weight": (standardize(lambda m, p: Affine(rsqrt(m.var + p.eps), m.mean, p.bias)), Case("ln")),
    "bias is scaled too": (
        standardize(lambda m, p: Affine(p.weight * rsqrt(m.var + p.eps), m.mean, p.bias * p.weight)),
        Case("gn"),
    ),
    "variance is taken as a constant": (
        standardize(lambda m, p: Affine(p.weight * rsqrt(stop_gradient(m.var) + p.eps), m.mean, p.bias)),
        Case("ln"),
    ),
    "mean is taken as a constant": (
        standardize(lambda m, p: Affine(p.weight * rsqrt(m.var + p.eps), stop_gradient(m.mean), p.bias)),
        BN,
    ),
    "batch instead of instance": (grid_function("in", lambda m, p: norms.batch(m, p)), Case("in")),
    "layer instead of group": (grid_function("gn", lambda m, p, *, groups: norms.layer(m, p)), Case("gn")),
    "gate the other way round": (
        grid_function("bin", lambda m, p: (1 - p.rho) * norms.batch(m, p) + p.rho * norms.instance(m, p)),
        Case("bin"),
    ),
    "gate does not learn": (
        parameter_gradient("rho", 0.0),
        Case("bin"),
    ),
    "groups and their width exchanged": (groups_and_width_exchanged, Case("gn", groups=2)),
    "pooled variance without the spread of the means": (pooled_without_spread, Case("ln")),
    "batch statistics in evaluation": (batch_in_evaluation, EVAL),
    "no mean term in dx": (pull(lambda b, c, grads, mean, center: (b, b * (center - mean), grads)), BN),
    "no variance term in dx": (pull(lambda b, c, grads, *_: (b * 0, c, grads)), BN),
    "half the variance term in dx": (pull(lambda b, c, grads, *_: (b * 0.5, c, grads)), LAST),
    "wrong center in dx": (pull(lambda b, c, grads, mean, center: (b, c + b * mean * 0.01, grads)), Case("gn")),
    "gradient of the weight halved": (parameter_gradient("weight", 0.5), BN),
    "gradient of the bias missing": (parameter_gradient("bias", 0.0), Case("ln")),
    "momentum the other way round": (update(lambda r, batch, m: true_update(r, batch, 1 - m)), BN),
    "running variance is biased": (update(lambda r, batch, m: true_update(r, batch, m, unbiased=False)), BN),
    "running statistics are kept": (update(lambda r, batch, m: None), Case("bin")),
    "batches are not counted": (batches_not_counted, BN),
    "one decimal off in the momentum": (update(lambda r, batch, m: true_update(r, batch, m * 1.001)), BN),
    "channels-last is lost": (channels_last_is_lost, Case("gn", layout="last")),
    "strides are ignored": (strides_ignored, Case("gn", layout="last")),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SABOTAGE)
def test_sabotage(name: str, backend: str, planted: pytest.MonkeyPatch) -> None:
    plant, case = SABOTAGE[name]
    plant(planted)
    with pytest.raises(AssertionError):
        check(replace(case, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", {str(case): case for _, case in SABOTAGE.values()}.values(), ids=str)
def test_control(case: Case, backend: str) -> None:
    check(replace(case, backend=backend))


# --- the kernels ---------------------------------------------------------------------------------------------------


def kernel(name: str, change: Callable) -> Plant:
    return lambda patch: patch.setattr(reference, name, change)


def by_cancellation(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """E[x^2] - E[x]^2 in float32."""
    mean = x.mean(2)
    return mean.astype(float), ((x * x).mean(2) - mean * mean).astype(float)


def on_rounded_center(x: np.ndarray, scale: np.ndarray, center: np.ndarray, shift: np.ndarray) -> np.ndarray:
    center = center.astype(x.dtype)  # and what the rounding lost is not made up for
    return scale[:, :, None] * (x - center[:, :, None]) + shift[:, :, None]


def rounded_center_in_numba(patch: pytest.MonkeyPatch) -> None:
    original = numba_cpu.forward

    def changed(recipe: Any, order: Any, x: Any, params: Any, running: Any, eps: float, out: Any, *rest: Any) -> Any:
        saved = original(recipe, order, x, params, running, eps, out, *rest)
        planes = order.planes(out)
        n, channels, _ = saved.plan.sizes
        scale, center = saved.memory[: 5 * n * channels].reshape(5, n, channels)[2:4]
        planes -= (scale * (center.astype(planes.dtype) - center))[:, :, None].astype(planes.dtype)
        return saved

    patch.setattr(numba_cpu, "forward", changed)


def one_element_off(patch: pytest.MonkeyPatch) -> None:
    """The last element is not written."""
    original = numba_cpu.backward

    def changed(saved: Any, order: Any, x: Any, g: Any, out: Any, *rest: Any) -> Any:
        grads = original(saved, order, x, g, out, *rest)
        order.planes(out)[-1, -1, -1] = 0
        return grads

    patch.setattr(numba_cpu, "backward", changed)


FAR = Case("bn", (8, 16, 14, 14), mean=1000.0)
FEW = Case("bn", mean=2000.0)
KERNELS: dict[str, tuple[Plant, Callable[[Case], None], Case]] = {
    "variance by cancellation": (
        kernel("moments", by_cancellation),
        check_errors,
        replace(FAR, backend="reference"),
    ),
    "center is rounded": (kernel("affine", on_rounded_center), check, replace(FEW, backend="reference")),
    "center is rounded, in numba": (rounded_center_in_numba, check, FEW),
    "the last element is not written": (one_element_off, check, BN),
    "dots are not centred": (
        kernel("dots", lambda g, x, center: (g.sum(2, dtype=float), (g * x).sum(2, dtype=float))),
        check,
        Case("bn", backend="reference"),
    ),
    "dx without its constant": (
        kernel(
            "combine",
            lambda g, x, center, a, b, c: a[:, :, None] * g + b[:, :, None] * (x - center[:, :, None]),
        ),
        check,
        Case("gn", SHAPES[3], backend="reference"),
    ),
}


@pytest.mark.parametrize("name", KERNELS)
def test_sabotaged_kernel(name: str, planted: pytest.MonkeyPatch) -> None:
    plant, compare, case = KERNELS[name]
    compare(case)
    plant(planted)
    with pytest.raises(AssertionError):
        compare(case)


@pytest.mark.parametrize("backend", BACKENDS)
def test_swapped_gate_fails_against_torch_alone(backend: str, planted: pytest.MonkeyPatch) -> None:
    """A mistake that oracle and layer share would be caught by torch's layer."""
    from tests.layers import parity

    planted.setattr(parity, "oracle", lambda *given: parity.Result(torch.empty(0), {}, {}))
    planted.setattr(
        parity, "compare", lambda got, want, *rest, true=parity.compare: want.grads and true(got, want, *rest)
    )
    check(Case("bn", backend=backend))
    standardize(lambda m, p: Affine(p.weight * rsqrt(m.var + 2 * p.eps), m.mean, p.bias))(planted)
    stages.recipe.cache_clear()
    with pytest.raises(AssertionError, match="against torch's layer"):
        check(Case("bn", backend=backend, options={"eps": 1e-2}))
