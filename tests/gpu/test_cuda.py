"""On a CUDA device: the Triton backend against the reference in float64, at sizes that occupy a device.

`pytest -m gpu tests/gpu`; tests/core/test_triton.py runs there, too, on smaller and odder shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from normlab import norms, stages
from normlab.planes import reference

from ..core.parity import unit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NORMS = ("bn", "in", "bin", "ln", "gn")
SHAPES = ((32, 64, 56, 56), (96, 48, 7, 7), (2, 5, 301, 299), (3, 520, 33), (1, 3, 1000, 1001))


@contextmanager
def served_by(backend: Any) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "serving", lambda x: backend)
        yield


@pytest.fixture
def triton_gpu() -> Any:
    from normlab.planes import triton_gpu

    return triton_gpu


def noise(shape: tuple[int, ...], dtype: torch.dtype, last: bool) -> Tensor:
    v = torch.randn(shape, device="cuda").to(dtype)
    return v.movedim(1, -1).contiguous().movedim(-1, 1) if last else v


def both_ways(
    norm: str, x: Tensor, dy: Tensor, residual: Tensor | None, act: str | None, training: bool, rows: dict[str, Tensor]
) -> dict[str, Tensor]:
    """y, gradients and running statistics, by name."""
    entry = norms.describe(norm)
    rows = {k: v.clone() for k, v in rows.items()}
    running = (rows["running_mean"], rows["running_var"]) if entry.running else None
    y, cache = stages.forward(
        norm, x, {k: rows[k] for k in entry.parameters}, training=training, running=None if training else running,
        act=act, residual=residual, update=(*running, 0.1) if training and running else None,
    )  # fmt: skip
    dx, grads = stages.backward(dy, cache)
    answers = {"y": y, "dx": dx, **{f"d{k}": v for k, v in grads.items()}}
    if running:
        answers |= {"running_mean": running[0], "running_var": running[1]}
    return answers if cache.to_residual is None else {**answers, "dresidual": cache.to_residual}


def check(
    backend: Any, norm: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool, act: str | None, training: bool
) -> None:
    torch.manual_seed(0)
    x, dy = noise(shape, dtype, last), noise(shape, dtype, last)
    residual = None if act is None else noise(shape, dtype, last)
    names = (*norms.describe(norm).parameters, "running_mean", "running_var")
    rows = {k: torch.rand(shape[1], device="cuda") + 0.5 for k in names}
    with served_by(backend):
        got = both_ways(norm, x, dy, residual, act, training, rows)
    wide = {k: v.double() for k, v in rows.items()}
    with served_by(reference):
        wider = None if residual is None else residual.double()
        want = both_ways(norm, x.double(), dy.double(), wider, act, training, wide)
    assert list(got) == list(want)
    terms = x[:, 0].numel() ** 0.5  # rounding errors of long sums add up like a random walk
    for name, expected in want.items():
        v = got[name]
        assert v.dtype == (dtype if v.shape == x.shape else torch.float32)
        assert v.shape != x.shape or v.stride() == x.stride()
        # in half precision dz is rounded before dx is made of it
        ulps = 32 * max(1, terms / 16) if v.dtype == torch.float32 else 4
        bound = ulps * unit(v.dtype) * (1 + float(expected.abs().max()))
        error = float((v.double() - expected).abs().max())
        assert error <= bound, f"{norm} {shape} {dtype}: {name} is off by {error:.2e}, allowed {bound:.2e}"


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("norm", NORMS)
def test_training(norm: str, shape: tuple[int, ...], last: bool, triton_gpu: Any) -> None:
    check(triton_gpu, norm, shape, torch.float32, last, None, training=True)
    check(triton_gpu, norm, shape, torch.bfloat16, last, "relu", training=True)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_evaluation(norm: str, last: bool, triton_gpu: Any) -> None:
    check(triton_gpu, norm, (32, 64, 28, 28), torch.float32, last, "gelu", training=False)
    check(triton_gpu, norm, (32, 64, 28, 28), torch.float16, last, None, training=False)


@pytest.mark.parametrize("norm", NORMS)
def test_same_results_every_time(norm: str, triton_gpu: Any) -> None:
    """Instances that compute the same numbers for themselves neither race nor wait."""
    torch.manual_seed(0)
    x, dy = noise((32, 64, 56, 56), torch.float32, True), noise((32, 64, 56, 56), torch.float32, True)
    rows = {k: torch.rand(64, device="cuda") + 0.5 for k in ("weight", "bias", "rho", "running_mean", "running_var")}
    with served_by(triton_gpu):
        first = both_ways(norm, x, dy, None, "silu", True, rows)
        for _ in range(20):
            again = both_ways(norm, x, dy, None, "silu", True, rows)
            for name, v in first.items():
                assert torch.equal(v, again[name]), name


@pytest.mark.parametrize("norm", NORMS)
def test_host_never_waits(norm: str, triton_gpu: Any) -> None:
    torch.manual_seed(0)
    x, dy = noise((8, 16, 14, 14), torch.float32, False), noise((8, 16, 14, 14), torch.float32, False)
    rows = {k: torch.rand(16, device="cuda") + 0.5 for k in ("weight", "bias", "rho", "running_mean", "running_var")}
    with served_by(triton_gpu):
        both_ways(norm, x, dy, None, "relu", True, rows)  # compiled
        torch.cuda.set_sync_debug_mode("error")
        try:
            both_ways(norm, x, dy, None, "relu", True, rows)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_more_than_2_to_the_31_elements(triton_gpu: Any) -> None:
    """Offsets are 64 bits wide."""
    shape = (3, 1, 900_000_000)
    if torch.cuda.mem_get_info()[0] < 4 * 2 * 3 * 900_000_000:
        pytest.skip("needs 22 GB of free memory")
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    with served_by(triton_gpu):
        y, _ = stages.forward("in", x, {})
    ends = y[:, 0, -1000:].float()
    tail = x[:, 0, -1000:].float()
    for n in range(3):
        mean, std = x[n].float().mean(), x[n].float().std()
        torch.testing.assert_close(ends[n], (tail[n] - mean) / std, rtol=1e-2, atol=1e-2)
