"""Triton's kernels at the ends of the exponent: as `tests.kernels.test_exponents`, of which this takes the cases."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import normlab
from normlab.kernels import stages
from tests.kernels import test_exponents as common
from tests.kernels.gpu.interpreting import DEVICE, cut, interpret, triton_gpu

# the interpreter computes in NumPy, which warns of what overflows before it is computed in float64
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    interpret(monkeypatch)
    with normlab.use_backend("triton_gpu"):
        yield


def check(norm: str, size: float, x: Tensor, g: Tensor, *residual: Tensor, act: str | None = None) -> None:
    form = {"act": act} if act else {}
    inputs = [v.to(DEVICE) for v in (x, g, *residual)]
    got = common.run(common.make(norm, size, **form).to(DEVICE), *inputs)
    common.compare([v.cpu() for v in got], common.truth(common.make(norm, size, **form), x, g, *residual))


# Bug: float32 inputs beyond 1.8e19 gave zeros and an infinite variance, as their squares overflowed.
@pytest.mark.parametrize("norm", common.NORMS)
def test_ends_of_the_exponent(norm: str) -> None:
    for size, layout in ((1e-30, "first"), (1e38, "last")):
        check(norm, size, *(v[:2] for v in common.elements(norm, size, layout, torch.float32)))


@pytest.mark.slow
@pytest.mark.parametrize("size", common.SIZES)
@pytest.mark.parametrize("norm", common.NORMS)
def test_every_size(norm: str, size: float) -> None:
    for layout in ("first", "last"):
        check(norm, size, *common.elements(norm, size, layout, torch.float32))


@pytest.mark.parametrize(("norm", "act"), [("bn", "relu"), ("gn", "gelu"), ("bin", None)])
def test_fused_forms(norm: str, act: str | None) -> None:
    for size, layout in ((1e-30, "last"), (1e20, "first")):
        x, g = (v[:2] for v in common.elements(norm, size, layout, torch.float32))
        residual = g.flip(0).contiguous(memory_format=torch.channels_last) if layout == "last" else g.flip(0)
        check(norm, size, x, g, residual, act=act)


def test_bfloat16() -> None:
    for size in (1e-30, 1e30):  # (the interpreter flushes bfloat16 numbers below 1e-38, a device does not)
        check("gn", size, *common.elements("gn", size, "first", torch.bfloat16))


@pytest.mark.parametrize("norm", ["bn", "gn"])
def test_one_far_plane_among_many_tiles(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some instances repeat a step in float64, others do not; planes are measured in parts."""
    for constant, value in (("_TILE", 64), ("_ROW", 32), ("_SHORT", 4), ("_COLUMNS", 2), ("_WAVES", 1)):
        monkeypatch.setattr(cut, constant, value)
    monkeypatch.setattr(triton_gpu, "processors", lambda device: 16)
    stages.recipe.cache_clear()  # plans of another cut
    x, g = (torch.randn(3, 6, 9, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    x[1, 3] *= 1e25
    x[2, :2] *= 1e-25
    check(norm, 1.0, x, g)
    stages.recipe.cache_clear()


@pytest.mark.parametrize("norm", ["bn", "in"])
def test_large_gradients(norm: str) -> None:
    """Products of the gradient and x overflow, dx does not."""
    x, g = common.elements(norm, 1e15, "first", torch.float32)
    check(norm, 1e15, x, g * 1e30)


def test_running_statistics_in_evaluation() -> None:
    """Their own size, and a difference from the running mean that float32 does not hold."""
    for mean, var in ((5e-31, 1e-60), (5e19, 1e38), (3e38, 3e38)):
        size = 2 * abs(mean) if mean < 1e38 else 1e38
        x, g = common.elements("bn", size, "first", torch.float32)
        x[0, 0] = -mean
        layers = [common.make("bn", size).eval() for _ in range(2)]
        for layer in layers:
            layer.running_mean.fill_(mean)
            layer.running_var.fill_(var)
        got = common.run(layers[0].to(DEVICE), x.to(DEVICE), g.to(DEVICE))
        common.compare([v.cpu() for v in got], common.truth(layers[1], x, g))


def test_infinite_running_variance_stays_infinite() -> None:
    """Bug: the update subtracted the old variance from the new one, and infinity from infinity is not a number."""
    mean, var = torch.zeros(2, device=DEVICE), torch.full((2,), torch.inf, device=DEVICE)
    stages.forward("bn", torch.randn(3, 2, 5, device=DEVICE), {}, update=(mean, var, 0.1))
    assert var.isinf().all()
    assert mean.isfinite().all()
