"""On a CUDA device: the Triton backend against the reference in float64, at sizes that occupy a device; and training.

`pytest tests/gpu tests/kernels/gpu`: the latter take the device, too, for their smaller and odder shapes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

import normlab
from normlab.kernels import positions, stages
from normlab.norms import family as norms
from tests.gpu.training import batch, make_step, network, state
from tests.kernels import test_exponents as exponents
from tests.layers.parity import unit

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

NORMS = ("bn", "in", "bin", "ln", "gn")
SHAPES = ((32, 64, 56, 56), (96, 48, 7, 7), (2, 5, 301, 299), (3, 520, 33), (1, 3, 1000, 1001))


@contextmanager
def host_must_not_wait() -> Iterator[None]:
    """Within the block, whatever makes the host wait for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_cuda_tensors_are_served_by_triton() -> None:
    for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        assert normlab.backend_for(torch.zeros(1, dtype=dtype, device="cuda")) == "triton_gpu"


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


def check(norm: str, shape: tuple[int, ...], dtype: torch.dtype, last: bool, act: str | None, training: bool) -> None:
    torch.manual_seed(0)
    x, dy = noise(shape, dtype, last), noise(shape, dtype, last)
    residual = None if act is None else noise(shape, dtype, last)
    names = (*norms.describe(norm).parameters, "running_mean", "running_var")
    rows = {k: torch.rand(shape[1], device="cuda") + 0.5 for k in names}
    with normlab.use_backend("triton_gpu"):
        got = both_ways(norm, x, dy, residual, act, training, rows)
    wide = {k: v.double() for k, v in rows.items()}
    with normlab.use_backend("reference"):
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
def test_training(norm: str, shape: tuple[int, ...], last: bool) -> None:
    check(norm, shape, torch.float32, last, None, training=True)
    check(norm, shape, torch.bfloat16, last, "relu", training=True)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_evaluation(norm: str, last: bool) -> None:
    check(norm, (32, 64, 28, 28), torch.float32, last, "gelu", training=False)
    check(norm, (32, 64, 28, 28), torch.float16, last, None, training=False)


@pytest.mark.parametrize("norm", [*NORMS, *exponents.POSITIONS])
def test_ends_of_the_exponent(norm: str) -> None:
    """Where squares leave float32, the result need not."""
    for size in (1e-30, 1e20, 1e38):
        x, g = (v.cuda() for v in exponents.elements(norm, size, "first", torch.float32))
        got = exponents.run(exponents.make(norm, size).cuda(), x, g)
        exponents.compare(got, exponents.truth(exponents.make(norm, size).cuda(), x, g))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("centred", [True, False], ids=["centred", "rms"])
@pytest.mark.parametrize("shape", [(8192, 1024), (301, 4097), (3, 200_003), (32, 96, 784), (3, 385, 33)], ids=str)
def test_positions(shape: tuple[int, ...], centred: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, g, weight, bias = noise(shape, dtype, False), noise(shape, dtype, False), *torch.randn(2, shape[1]).cuda()
    answers = []
    for name, wide in (("triton_gpu", False), ("reference", True)):
        with normlab.use_backend(name):
            tensors = [v.double() if wide else v for v in (x, g, weight, bias)]
            y, cache = positions.forward(tensors[0], *tensors[2:], centred=centred)
            answers.append((y, *positions.backward(tensors[1], tensors[0], tensors[2], cache)))
    count = x.numel() / shape[1]  # of positions: rounding errors of long sums add up like a random walk
    for name, got, want in zip(("y", "dx", "d_weight", "d_bias"), *answers, strict=True):
        ulps = 4 if got.dtype == torch.bfloat16 else 32 * max(1, count**0.5 / 16)
        bound = ulps * unit(got.dtype) * (1 + float(want.abs().max()))
        error = float((got.double() - want).abs().max())
        assert error <= bound, f"{name} is off by {error:.2e}, allowed {bound:.2e}"


@pytest.mark.parametrize("norm", NORMS)
def test_same_results_every_time(norm: str) -> None:
    """Instances that compute the same numbers for themselves neither race nor wait."""
    torch.manual_seed(0)
    x, dy = noise((32, 64, 56, 56), torch.float32, True), noise((32, 64, 56, 56), torch.float32, True)
    rows = {k: torch.rand(64, device="cuda") + 0.5 for k in ("weight", "bias", "rho", "running_mean", "running_var")}
    first = both_ways(norm, x, dy, None, "silu", True, rows)
    for _ in range(20):
        again = both_ways(norm, x, dy, None, "silu", True, rows)
        for name, v in first.items():
            assert torch.equal(v, again[name]), name


@pytest.mark.parametrize("norm", NORMS)
def test_host_never_waits(norm: str) -> None:
    torch.manual_seed(0)
    x, dy = noise((8, 16, 14, 14), torch.float32, False), noise((8, 16, 14, 14), torch.float32, False)
    rows = {k: torch.rand(16, device="cuda") + 0.5 for k in ("weight", "bias", "rho", "running_mean", "running_var")}
    both_ways(norm, x, dy, None, "relu", True, rows)  # compiled
    with host_must_not_wait():
        both_ways(norm, x, dy, None, "relu", True, rows)


@pytest.mark.parametrize(
    ("norm", "options"),
    [*((norm, {}) for norm in NORMS), ("bn", {"momentum": None}), ("in", {"track_running_stats": True})],
    ids=str,
)
def test_host_never_waits_for_a_layer(norm: str, options: dict) -> None:
    layer = normlab.make_norm(norm, 16, act="relu", **options).cuda()
    x = torch.randn(8, 16, 14, 14, device="cuda", requires_grad=True)
    dy = torch.randn_like(x)
    layer(x, x).backward(dy)  # compiled
    with host_must_not_wait():
        layer(x, x).backward(dy)
        layer.eval()(x)


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("norm", NORMS)
def test_host_never_waits_in_a_training_step(norm: str, autocast: bool) -> None:
    step = make_step(network(norm, "cuda"), *batch(32, "cuda"), autocast)
    step()
    with host_must_not_wait():
        step()


@pytest.mark.parametrize("norm", NORMS)
def test_training_step_in_a_graph(norm: str) -> None:
    """A captured step, replayed, trains as the step itself does."""
    plain, captured = network(norm, "cuda"), network(norm, "cuda")
    images, labels = batch(32, "cuda")
    step = make_step(plain, images, labels)
    for _ in range(3 + 4):
        step()

    step = make_step(captured, images, labels)
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):  # compiles, and makes the optimizer's buffers
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    for _ in range(4):
        graph.replay()
    assert torch.isfinite(loss)
    wanted = plain.state_dict()
    for name, v in captured.state_dict().items():
        # convolutions may choose another algorithm, which rounds otherwise
        torch.testing.assert_close(v, wanted[name], rtol=2e-2, atol=2e-3, msg=lambda text, k=name: f"{k}: {text}")


@pytest.mark.parametrize("norm", NORMS)
def test_mixed_precision(norm: str) -> None:
    """Under autocast layers take bfloat16 and keep float32 statistics; the loss falls as without."""
    ends = []
    for autocast in (False, True):
        net = network(norm, "cuda")
        step = make_step(net, *batch(64, "cuda"), autocast=autocast)
        losses = [float(step()) for _ in range(15)]
        assert losses[-1] < 0.95 * losses[0]
        assert all(v.dtype == torch.float32 for v in net.state_dict().values() if v.is_floating_point())
        ends.append(losses[-1])
    assert abs(ends[1] - ends[0]) < 0.05 * ends[0]


@pytest.mark.parametrize("norm", NORMS)
def test_same_weights_every_time(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two trainings from the same weights end in the same bits, where the convolutions do."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    ends = []
    for _ in range(2):
        net = network(norm, "cuda")
        step = make_step(net, *batch(32, "cuda"))
        for _ in range(5):
            step()
        ends.append(state(net))
    for name, v in ends[0].items():
        assert torch.equal(v, ends[1][name]), name


def test_more_than_2_to_the_31_elements() -> None:
    """Offsets are 64 bits wide, forward and backward."""
    shape = (3, 1, 900_000_000)
    if torch.cuda.mem_get_info()[0] < 5 * 2 * 3 * 900_000_000:
        pytest.skip("needs 27 GB of free memory")
    x = torch.randn(shape, device="cuda", dtype=torch.bfloat16)
    y, cache = stages.forward("in", x, {})
    means = [x[n].float().mean() for n in range(3)]
    stds = [x[n].float().std() for n in range(3)]
    for n in range(3):
        wanted = (x[n, 0, -1000:].float() - means[n]) / stds[n]
        torch.testing.assert_close(y[n, 0, -1000:].float(), wanted, rtol=1e-2, atol=1e-2)
    # with dy = y = (x - mean) / std: dx = (dy - mean(dy) - y mean(dy y)) / std = 0, but for rounding y
    dx, _ = stages.backward(y, cache)
    assert float(dx[:, 0, -1000:].abs().max()) < 2e-2
