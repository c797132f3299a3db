"""Who serves what, that the choice is visible, and that a slower backend never serves silently."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import normlab
from normlab.errors import UsageError
from normlab.kernels import BackendWarning, positions, registry, stages
from normlab.kernels.contract import POSITIONS
from normlab.kernels.gpu import backend as gpu
from tests.layers.parity import (
    ACTS,
    BACKENDS,
    NORMS,
    SHAPES,
    STOCK_ULPS,
    Case,
    arrange,
    backend,
    compare,
    make_input,
    oracle,
    our_layer,
    randomize,
    run,
    stock_layer,
)


@pytest.fixture
def nothing_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process: no warning has been given."""
    monkeypatch.setattr(registry, "_warned", set())


@pytest.mark.parametrize(
    ("x", "name"),
    [
        (np.zeros(1, np.float32), "numba_cpu"),
        (np.zeros(1, np.float64), "numba_cpu"),
        (torch.zeros(1), "numba_cpu"),
        (torch.zeros(1, dtype=torch.float64), "numba_cpu"),
        (np.zeros(1, np.float16), "numba_cpu"),
        (torch.zeros(1, dtype=torch.float16), "numba_cpu"),
        (torch.zeros(1, dtype=torch.bfloat16), "numba_cpu"),
        (np.zeros(1, np.longdouble), "reference"),
        (torch.zeros(1, device="meta"), "reference"),
    ],
)
def test_choice(x: object, name: str) -> None:
    assert normlab.backend_for(x) == name


# --- CUDA tensors: the choice looks at nothing but dtype and device ------------------------------------------------


def on_cuda(dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    return SimpleNamespace(dtype=dtype, device=torch.device("cuda", 0))


@pytest.fixture
def triton_there(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """As where triton is installed; nothing is remembered of it."""
    monkeypatch.setattr(gpu, "triton_missing", lambda: None)
    registry._chosen.clear()
    yield monkeypatch
    registry._chosen.clear()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_cuda_is_served_by_triton(dtype: torch.dtype, triton_there: pytest.MonkeyPatch) -> None:
    assert normlab.backend_for(on_cuda(dtype)) == "triton_gpu"
    with normlab.use_backend("reference"):
        assert normlab.backend_for(on_cuda(dtype)) == "reference"


def test_cuda_without_triton_says_so_once(triton_there: pytest.MonkeyPatch, nothing_warned: None) -> None:
    triton_there.setattr(gpu, "triton_missing", lambda: "triton is not installed")
    assert normlab.backend_for(on_cuda()) == "reference"
    with pytest.warns(BackendWarning, match="'cuda:0' .triton is not installed. is served by the slower"):
        registry.planes_for(on_cuda())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert registry.planes_for(on_cuda()).__name__ == "normlab.kernels.reference.planes"
    with (
        pytest.raises(
            UsageError,
            match=r"cannot serve a tensor on device 'cuda:0' \(triton is not installed\); install triton",
        ),
        normlab.use_backend("triton_gpu"),
    ):
        registry.planes_for(on_cuda())


def test_positions_on_cuda_are_served_as_planes_are(triton_there: pytest.MonkeyPatch) -> None:
    assert normlab.backend_for(on_cuda(), POSITIONS) == "triton_gpu"
    triton_there.setattr(gpu, "triton_missing", lambda: "triton is not installed")
    registry._chosen.clear()
    assert normlab.backend_for(on_cuda(), POSITIONS) == "reference"


# --- a backend of one's own ------------------------------------------------------------------------------------------


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(registry, "_BACKENDS", dict(registry._BACKENDS))
    yield
    registry._chosen.clear()


@pytest.mark.parametrize("asked", [True, False])
def test_a_third_backend_takes_one_line(asked: bool, table: None) -> None:
    """It serves planes and positions alike, by `use_backend` or, with a device of its own, by itself."""
    from normlab.kernels.reference import planes, positions

    served: list[str] = []

    def recording(module: ModuleType) -> SimpleNamespace:
        def record(direction: str, *args: Any) -> Any:
            served.append(f"{module.__name__.rpartition('.')[2]} {direction}")
            return getattr(module, direction)(*args)

        both = {name: partial(record, name) for name in ("forward", "backward")}
        return SimpleNamespace(**{**vars(module), **both})

    toy = SimpleNamespace(serves=lambda x, entry: None, planes=recording(planes), positions=recording(positions))
    normlab.kernels.register("toy", toy, devices=() if asked else ("cpu",))
    x = torch.randn(2, 8, 3, requires_grad=True)
    for module in (normlab.make_norm("gn", 8), normlab.layers.ChannelNorm(8)):
        with normlab.use_backend("reference"):
            want = module(x)
        with normlab.use_backend("toy") if asked else nullcontext():
            assert normlab.backend_for(x) == "toy"
            got = module(x)
            got.sum().backward()
        assert torch.equal(got, want)
    assert served == ["planes forward", "planes backward", "positions forward", "positions backward"]


def test_why_triton_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    assert gpu.triton_missing.__wrapped__() == "triton is not installed"


@pytest.mark.parametrize(
    ("x", "why"),
    [
        (np.zeros(1, np.float32), "a NumPy array; use 'numba_cpu' or 'reference'"),
        (
            on_cuda(torch.float8_e5m2),
            "dtype float8_e5m2 on device 'cuda:0'; expected one of: float32, float64, float16, bfloat16",
        ),
    ],
)
def test_what_triton_cannot_serve(x: object, why: str) -> None:
    with pytest.raises(UsageError, match=f"'triton_gpu' cannot serve {why}"), normlab.use_backend("triton_gpu"):
        registry.planes_for(x)


@pytest.mark.parametrize("interpreted", ["0", "1"])
def test_cpu_tensors_only_in_the_interpreter(interpreted: str) -> None:
    """Whether kernels are interpreted is settled when they are loaded: in a process of its own."""
    pytest.importorskip("triton", minversion="3.7" if interpreted == "1" else None)
    program = (
        "import torch, normlab\n"
        "layer = normlab.make_norm('bn', 3)\n"
        "with normlab.use_backend('triton_gpu'):\n"
        "    layer(torch.randn(2, 3, 5)).sum().backward()\n"
        "print(layer.weight.grad.shape, bool(layer.running_var.ne(1).all()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TRITON_INTERPRET": interpreted},
    )
    if interpreted == "1":
        assert done.stdout == "torch.Size([3]) True\n", done.stderr
    else:
        assert "'triton_gpu' cannot serve a tensor on device 'cpu'; move it to a CUDA device, or set" in done.stderr


def test_use_backend_is_for_its_block_and_thread() -> None:
    x = torch.zeros(1)
    seen = []
    with normlab.use_backend("reference"):
        assert normlab.backend_for(x) == "reference"
        thread = threading.Thread(target=lambda: seen.append(normlab.backend_for(x)))
        thread.start()
        thread.join()
        with normlab.use_backend("numba_cpu"):
            assert normlab.backend_for(x) == "numba_cpu"
        assert normlab.backend_for(x) == "reference"
    assert normlab.backend_for(x) == "numba_cpu"
    assert seen == ["numba_cpu"]


def test_block_ends_after_an_error() -> None:
    with pytest.raises(ZeroDivisionError), normlab.use_backend("reference"):
        raise ZeroDivisionError
    assert normlab.backend_for(torch.zeros(1)) == "numba_cpu"


@pytest.mark.parametrize("norm", NORMS)
def test_layers_run_on_the_chosen_backend(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from normlab.kernels.cpu import planes as numba_cpu
    from normlab.kernels.reference import planes as reference

    served = []
    for module in (numba_cpu, reference):
        original = module.forward
        monkeypatch.setattr(module, "forward", lambda *a, m=module, f=original: (served.append(m), f(*a))[1])
    layer, x = our_layer(Case(norm)), torch.randn(SHAPES[4])
    layer(x)
    with normlab.use_backend("reference"):
        layer(x)
    assert served == [numba_cpu, reference]


LONG = np.dtype(np.longdouble).name


def test_the_slower_backend_says_so_once(nothing_warned: None) -> None:
    x = np.ones((4, 8, 3), np.longdouble)
    with pytest.warns(BackendWarning, match=f"dtype {LONG} is served by the slower 'reference' backend"):
        stages.forward("gn", x, {})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        stages.forward("gn", x, {})
        stages.forward("bn", x, {})


def test_no_warning_where_the_reference_was_asked_for(nothing_warned: None) -> None:
    with normlab.use_backend("reference"):
        stages.forward("gn", np.ones((4, 8, 3), np.longdouble), {})


def test_numba_cannot_be_forced_on_what_it_does_not_take() -> None:
    with (
        pytest.raises(UsageError, match=f"'numba_cpu' cannot serve dtype {LONG}; use 'reference'"),
        backend("numba_cpu"),
    ):
        stages.forward("gn", np.ones((4, 8, 3), np.longdouble), {})


# --- lengths ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("length", [0, 1, 7, 9])
def test_no_kernel_is_called_with_another_length(length: int, backend_name: str) -> None:
    """Bug: a weight that was replaced after construction was read, and its gradient written, out of bounds."""
    x, right, wrong = torch.randn(2, 8, 3), torch.ones(8), torch.ones(length)
    with backend(backend_name):
        for params in ({"weight": wrong, "bias": right}, {"weight": right, "bias": wrong}):
            with pytest.raises(ValueError, match=rf"expected shape \(8,\), one for each channel .*, got \({length},\)"):
                stages.forward("bn", x, params)
        for pair in ((wrong, right), (right, wrong)):
            with pytest.raises(ValueError, match=r"running_(mean|var): expected shape \(8,\)"):
                stages.forward("bn", x, {}, update=(*pair, 0.1))
            with pytest.raises(ValueError, match=r"running_(mean|var): expected shape \(8,\)"):
                stages.forward("bn", x, {}, training=False, running=pair)
        for given in ((wrong, None), (None, wrong)):
            with pytest.raises(ValueError, match="expected 8 numbers, as many as a position has elements"):
                positions.forward(x, *given)


def test_a_parameter_cut_between_the_passes_is_refused() -> None:
    x, weight = torch.randn(2, 8, 3), torch.ones(8)
    y, cache = stages.forward("bn", x, {"weight": weight})
    weight.data = torch.ones(20)
    with pytest.raises(ValueError, match=r"weight: expected shape \(8,\)"):
        stages.backward(y, cache)


# --- half precision ------------------------------------------------------------------------------------------------

HALVES = (torch.float16, torch.bfloat16)


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("norm", NORMS)
def test_half_precision(norm: str, dtype: torch.dtype, layout: str, backend_name: str) -> None:
    """Rounded once, at the end: as exact as the output's dtype can be."""
    case = Case(norm, (6, 8, 5, 5), dtype, layout, mean=3.0, backend=backend_name)
    generator = torch.Generator().manual_seed(0)
    layer = our_layer(case)
    randomize(layer, generator)
    known = {k: v.clone() for k, v in layer.state_dict().items()}
    x, dy = make_input(case, generator), torch.randn(case.shape, generator=generator).to(dtype)
    with backend(backend_name):
        got = run(layer, x, dy)
    compare(got, oracle(case, x, dy, known), 1, str(case))


# what float16 needs for other activations is compiled for this test alone
HALVES_AND_ACTS = [
    pytest.param(dtype, act, marks=pytest.mark.slow if dtype == torch.float16 and act not in (None, "relu") else ())
    for dtype in HALVES
    for act in ACTS
]


@pytest.mark.covering("norm", "dtype", "layout")
@pytest.mark.parametrize(("dtype", "act"), HALVES_AND_ACTS)
@pytest.mark.parametrize("added", [True, False])
@pytest.mark.parametrize("samples", [6, 16])  # in passes over the batch, and for norms within samples in blocks of them
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("norm", NORMS)
def test_half_input_to_a_float32_layer(
    norm: str, dtype: torch.dtype, layout: str, samples: int, added: bool, act: str | None
) -> None:
    """As under mixed precision: outputs and gradients have their inputs' dtypes, the statistics stay float32."""
    generator = torch.Generator().manual_seed(0)
    layer = normlab.make_norm(norm, 8, act=act)
    randomize(layer, generator)
    shape = samples, 8, 5, 5
    x, residual, dy = (arrange(torch.randn(shape, generator=generator).to(dtype), layout) for _ in range(3))
    wide = copy.deepcopy(layer).double()

    def results(layer: torch.nn.Module, *given: torch.Tensor) -> list[torch.Tensor]:
        x, residual, dy = given
        inputs = [v.clone().requires_grad_() for v in ([x, residual] if added else [x])]
        y = layer(*inputs)
        grads = torch.autograd.grad(y, [*inputs, *layer.parameters()], dy)
        return [y.detach(), *grads, *layer.buffers()]

    got = results(layer, x, residual, dy)
    with backend("reference"):
        want = results(wide, x.double(), residual.double(), dy.double())
    halves = 2 + added
    assert [v.dtype for v in got[:halves]] == [dtype] * halves
    assert all(v.dtype in (torch.float32, torch.int64) for v in got[halves:])
    for g, w in zip(got, want, strict=True):
        scale = w.abs().max().item() if w.numel() else 0
        rounding = torch.finfo(g.dtype).eps if g.is_floating_point() else 0
        torch.testing.assert_close(
            g.double(), w.double(), rtol=0, atol=scale * rounding * (1 if g.dtype == dtype else 32)
        )


@pytest.mark.parametrize("norm", ["bn", "in", "gn"])
def test_half_precision_is_as_exact_as_torchs(norm: str) -> None:
    case = Case(norm, (16, 8, 9, 9), torch.bfloat16, mean=5.0)
    generator = torch.Generator().manual_seed(0)
    layer, stock = our_layer(case), stock_layer(case)
    randomize(layer, generator)
    stock.load_state_dict(layer.state_dict())
    known = {k: v.clone() for k, v in layer.state_dict().items()}
    x, dy = make_input(case, generator), torch.randn(case.shape, generator=generator).bfloat16()
    ours, torchs = run(layer, x, dy), run(stock, x, dy)
    want = oracle(case, x, dy, known)
    for name, grad in want.grads.items():
        errors = [(got.grads[name].double() - grad).abs().max().item() for got in (ours, torchs)]
        assert errors[0] <= 1.01 * errors[1], name
    assert (ours.y.double() - want.y).abs().max() <= 1.01 * (torchs.y.double() - want.y).abs().max()


def test_half_precision_of_numpy() -> None:
    x = np.random.default_rng(0).normal(size=(4, 8, 5)).astype(np.float16)
    y, cache = stages.forward("in", x, {}, act="relu", residual=x)
    dx, _ = stages.backward(x, cache)
    wide, wide_cache = stages.forward("in", x.astype(float), {}, act="relu", residual=x.astype(float))
    assert (y.dtype, dx.dtype, cache.to_residual.dtype) == (np.float16,) * 3
    np.testing.assert_allclose(y, wide, atol=2e-3)
    np.testing.assert_allclose(dx, stages.backward(x.astype(float), wide_cache)[0], atol=2e-3)


# --- NumPy arrays --------------------------------------------------------------------------------------------------


@pytest.mark.covering("norm", "layout", "backend_name")
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", NORMS)
def test_numpy_as_torch(norm: str, dtype: torch.dtype, layout: str, backend_name: str) -> None:
    """The same numbers, types and memory order come out for a NumPy array as for a tensor."""
    case = Case(norm, dtype=dtype, layout=layout, backend=backend_name)
    generator = torch.Generator().manual_seed(0)
    layer = our_layer(case)
    randomize(layer, generator)
    x, dy = make_input(case, generator), torch.randn(case.shape, generator=generator).to(dtype)
    params = {k: v.detach().numpy() for k, v in layer.named_parameters()}
    options = {"groups": case.groups} if norm == "gn" else {}
    with backend(backend_name):
        want = run(layer, x, dy)
        y, cache = stages.forward(norm, x.numpy(), params, options=options)
        dx, grads = stages.backward(dy.numpy(), cache)
    for got, tensor in [(y, want.y), (dx, want.grads["x"]), *((grads[k], want.grads[k]) for k in params)]:
        assert isinstance(got, np.ndarray)
        # sums over positions may be taken in another order
        np.testing.assert_allclose(got, tensor.numpy(), rtol=0, atol=STOCK_ULPS * torch.finfo(dtype).eps)
        assert got.dtype == tensor.numpy().dtype
        assert got.strides == tensor.numpy().strides
    if norm in ("bn", "bin"):
        mean, var, count = cache.batch
        assert count == x[:, 0].numel()
        np.testing.assert_allclose(mean, x.double().mean((0, 2, 3)), atol=1e-6)
        np.testing.assert_allclose(var, x.double().var((0, 2, 3), correction=0), rtol=1e-6)
    else:
        assert cache.batch is None


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_numpy_in_evaluation(backend_name: str) -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 5, 4, 3))
    mean, var, weight, bias = rng.uniform(0.5, 2, (4, 4))
    params = {"weight": weight, "bias": bias}
    with backend(backend_name):
        y, cache = stages.forward("bn", x, params, training=False, running=(mean, var), eps=0.1)
        dx, grads = stages.backward(dy, cache)
    xhat = (x - mean[:, None]) / np.sqrt(var + 0.1)[:, None]
    np.testing.assert_allclose(y, weight[:, None] * xhat + bias[:, None], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dx, dy * (weight / np.sqrt(var + 0.1))[:, None], rtol=1e-12)
    np.testing.assert_allclose(grads["weight"], (dy * xhat).sum((0, 2)), rtol=1e-12)
    np.testing.assert_allclose(grads["bias"], dy.sum((0, 2)), rtol=1e-12)


@pytest.mark.parametrize("layout", ["first", "last"])
def test_dense_input_is_not_copied(layout: str) -> None:
    x = make_input(Case(layout=layout), torch.Generator())
    _, cache = stages.forward("gn", x, {})
    assert cache.x.data_ptr() == x.data_ptr()


def test_input_and_gradient_are_left_alone() -> None:
    for norm in NORMS:
        x, dy = torch.randn(3, 8, 5, 4), torch.randn(3, 8, 5, 4)
        copies = x.clone(), dy.clone()
        run(our_layer(Case(norm)), x, dy)
        assert torch.equal(x, copies[0])
        assert torch.equal(dy, copies[1])
