"""`LayerNorm`, `RMSNorm` and `ChannelNorm` beside a float64 oracle and torch's own layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from normlab.kernels import positions, use_backend
from normlab.kernels.cpu import positions as numba_positions
from normlab.layers import norms as layers
from tests.layers.parity import BACKENDS, ULPS, arrange, backend, unit

KINDS = ("layer", "rms", "channel")
# rows and their length, or (N, C, *): odd sizes, one row, one element, more than a block, more than a unit of work
ROWS = [(1, 1), (5, 1), (1, 7), (3, 2), (9, 31), (7, 33), (300, 129), (65, 768), (3, 4097), (1, 70_000), (2, 3, 5, 17)]
COLUMNS = [
    (3, 5),
    (1, 1, 1),
    (2, 3, 1),
    (2, 7, 9),
    (3, 8, 5, 4),
    (2, 129, 33),
    (1, 4097, 3),
    (2, 6, 3, 4, 2),
    (2, 96, 2500),
]


class Permuted(nn.LayerNorm):
    """ConvNeXt's layer norm as it is written there."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


def pair(kind: str, size: int, dtype: torch.dtype = torch.float32, **options: object) -> tuple[nn.Module, nn.Module]:
    """Our layer and torch's, with the same random parameters."""
    ours, stock = {
        "layer": (layers.LayerNorm, nn.LayerNorm),
        "rms": (layers.RMSNorm, nn.RMSNorm),
        "channel": (layers.ChannelNorm, lambda size, **options: Permuted(size, eps=1e-6, **options)),
    }[kind]
    ours, stock = ours(size, dtype=dtype, **options), stock(size, dtype=dtype, **options)
    generator = torch.Generator().manual_seed(size)
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(generator=generator)
    stock.load_state_dict(ours.state_dict())
    return ours, stock


def size_of(kind: str, x: Tensor) -> int:
    return x.shape[1 if kind == "channel" else -1]


def oracle(kind: str, x: Tensor, dy: Tensor, layer: nn.Module, eps: float) -> list[Tensor]:
    """y and all gradients in float64, from the formula."""
    over = 1 if kind == "channel" else -1
    wide, *parameters = (v.detach().double().requires_grad_() for v in (x, *layer.parameters()))
    centred = wide if kind == "rms" else wide - wide.mean(over, keepdim=True)
    y = (centred / torch.sqrt((centred**2).mean(over, keepdim=True) + eps)).movedim(over, -1)
    for name, value in zip((name for name, _ in layer.named_parameters()), parameters, strict=True):
        y = y * value if name == "weight" else y + value
    y = y.movedim(-1, over)
    return [y.detach(), *torch.autograd.grad(y, [wide, *parameters], dy.double())]


def run(layer: nn.Module, x: Tensor, dy: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], dy)]


def check(
    kind: str, shape: tuple[int, ...], dtype: torch.dtype = torch.float32, layout: str = "first", mean: float = 0.0,
    **options: object,
) -> None:  # fmt: skip
    """Raise AssertionError unless our layer agrees with the oracle in value and gradients, and with torch in form."""
    generator = torch.Generator().manual_seed(sum(shape))
    x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    x = arrange(x + mean, layout)
    ours, stock = pair(kind, size_of(kind, x), dtype, **options)
    eps = torch.finfo(dtype).eps if ours.eps is None else ours.eps
    want = oracle(kind, x, dy, ours, eps)
    got, torchs = run(ours, x, dy), run(stock, x, dy)
    names = ["y", "dx", *(f"d_{name}" for name, _ in ours.named_parameters())]
    # one over the smallest deviation scales dx, and the rounding of a large x is part of x
    scales = [1 + float(v.abs().max()) for v in want]
    over = 1 if kind == "channel" else -1
    if kind != "rms" and x.shape[over] == 1:  # dx is zero, the difference of two numbers as large as this
        scales[1] += (
            2 * eps**-0.5 * float(dy.abs().max()) * float(ours.weight.abs().max() if "weight" in options else 4)
        )
    for name, mine, exact, theirs, scale in zip(names, got, want, torchs, scales, strict=True):
        assert mine.shape == theirs.shape, name
        assert mine.dtype == theirs.dtype, name
        error = float((mine.double() - exact).abs().max())
        assert error <= ULPS * unit(dtype) * scale, f"{name}: error {error}, {scale=}"
    if x.is_contiguous():
        assert got[0].is_contiguous()


CASES = [(kind, shape) for kind in KINDS for shape in (COLUMNS if kind == "channel" else ROWS)]


@pytest.mark.covering("kind", "shape")
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "shape"), CASES)
def test_values_and_gradients(kind: str, shape: tuple[int, ...], dtype: torch.dtype, backend_name: str) -> None:
    with backend(backend_name):
        check(kind, shape, dtype)


@pytest.mark.covering("kind", "layout", "backend_name")
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("layout", ["last", "sliced", "transposed", "expanded"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(6, 8), (4, 8, 7), (3, 8, 5, 4), (2, 8, 3, 4, 2)])
def test_memory(kind: str, shape: tuple[int, ...], layout: str, backend_name: str) -> None:
    with backend(backend_name):
        check(kind, shape, layout=layout)


@pytest.mark.parametrize("options", [{"elementwise_affine": False}, {"bias": False}, {"eps": 0.1}])
@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_options(kind: str, options: dict) -> None:
    if "eps" in options:
        x = torch.randn(3, 6, 6)
        ours = layers.LayerNorm(6, **options) if kind == "layer" else layers.ChannelNorm(6, **options)
        stock = (
            nn.LayerNorm(6, **options)
            if kind == "layer"
            else lambda x: nn.functional.layer_norm(x.movedim(1, -1), (6,), eps=0.1).movedim(-1, 1)
        )
        torch.testing.assert_close(ours(x), stock(x))
    else:
        check(kind, (4, 6, 8), **options)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_rms_norm_eps_of_none_is_torchs(dtype: torch.dtype) -> None:
    x = (torch.randn(5, 16) * 1e-2).to(dtype)
    got, want = layers.RMSNorm(16, dtype=dtype)(x), nn.RMSNorm(16, dtype=dtype)(x)
    assert got.dtype == want.dtype
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        layers.RMSNorm(16, eps=0.5, elementwise_affine=False, dtype=dtype)(x),
        nn.RMSNorm(16, eps=0.5, elementwise_affine=False, dtype=dtype)(x),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("backend_name", [None, "reference"])
@pytest.mark.parametrize(("kind", "shape"), [("layer", (33, 65)), ("rms", (33, 65)), ("channel", (3, 20, 5, 4))])
def test_half_precision(
    kind: str, shape: tuple[int, ...], backend_name: str | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No further from the truth than rounding the result is; served by the compiled kernels without a warning."""
    with backend(backend_name or "numba_cpu"):
        check(kind, shape, dtype, eps=1e-3) if kind == "rms" else check(kind, shape, dtype)
    mixed, _ = pair(kind, shape[1])  # float32 parameters
    x = torch.randn(shape).to(dtype).requires_grad_()
    y = mixed(x)
    dx, *grads = torch.autograd.grad(y.sum(), [x, *mixed.parameters()])
    assert (y.dtype, dx.dtype, {g.dtype for g in grads}) == (dtype, dtype, {torch.float32})


@pytest.mark.covering
@pytest.mark.parametrize("mean", [0.0, 1.0, 10.0, 100.0, 1000.0, 10_000.0])
@pytest.mark.parametrize(("kind", "shape", "layout"), [
    ("layer", (64, 768), "first"), ("layer", (16, 4096), "first"), ("rms", (64, 768), "first"),
    ("channel", (2, 96, 14, 14), "first"), ("channel", (2, 96, 14, 14), "last"),
])  # fmt: skip
def test_error_at_large_means(kind: str, shape: tuple[int, ...], layout: str, mean: float) -> None:
    """At most twice torch's, or half a rounding unit of the largest value where torch's is below that."""
    generator = torch.Generator().manual_seed(int(mean))
    x, dy = (torch.randn(shape, generator=generator) for _ in range(2))
    x = arrange(x + mean, layout)
    ours, stock = pair(kind, size_of(kind, x))
    want = oracle(kind, x, dy, ours, ours.eps or torch.finfo(x.dtype).eps)
    for mine, theirs, exact in zip(run(ours, x, dy), run(stock, x, dy), want, strict=True):
        rounding = unit(torch.float32) * float(exact.abs().max())
        bound = 2 * max(float((theirs - exact).abs().max()), rounding)
        assert float((mine - exact).abs().max()) <= bound


def test_extreme_rows() -> None:
    """The estimate of the mean is far off, all elements are equal, infinite or not a number: as torch's."""
    x = torch.randn(6, 4000)
    x[0, :8] = 1e4  # all of the first few are outliers
    x[1] = 1e7 + torch.arange(4000) % 7
    x[2] = 3.0
    x[3, 5] = torch.nan
    x[4, 5] = torch.inf
    ours, stock = pair("layer", 4000)
    want = oracle("layer", x, x, ours, 1e-5)[0].float()
    torch.testing.assert_close(ours(x)[[0, 1, 2, 5]], want[[0, 1, 2, 5]])
    assert ours(x)[[3, 4]].isnan().all()
    assert stock(x)[[3, 4]].isnan().all()
    columns = layers.ChannelNorm(4000, eps=1e-5)
    columns.load_state_dict(ours.state_dict())
    torch.testing.assert_close(columns(x.T.contiguous()[None])[0].T[[0, 1, 2, 5]], want[[0, 1, 2, 5]])


@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, backend_name: str) -> None:
    ours, _ = pair(kind, 4, torch.float64)
    x = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in ours.named_parameters()]

    def function(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(ours, dict(zip(names, values, strict=True)), (x,))

    with backend(backend_name):
        assert torch.autograd.gradcheck(function, (x, *ours.parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_state_dict_goes_both_ways(kind: str) -> None:
    ours, stock = pair(kind, 6)
    assert list(ours.state_dict()) == list(stock.state_dict())
    with torch.no_grad():
        for p in stock.parameters():
            p.normal_()
    ours.load_state_dict(stock.state_dict())
    x = torch.randn(3, 6, 6)
    torch.testing.assert_close(ours(x), stock(x))
    assert isinstance(ours, nn.RMSNorm if kind == "rms" else nn.LayerNorm)


@pytest.mark.parametrize("kind", KINDS)
def test_empty_batch(kind: str) -> None:
    ours, stock = pair(kind, 6)
    for x in (torch.randn(0, 6, 6), torch.randn(2, 6, 0) if kind == "channel" else torch.randn(2, 0, 6)):
        for mine, theirs in zip(run(ours, x, x), run(stock, x, x), strict=True):
            torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize(("kind", "shape"), [("layer", (999, 300)), ("rms", (64, 5000)), ("channel", (3, 50, 3000))])
def test_as_many_threads_as_there_are_make_no_difference(kind: str, shape: tuple[int, ...]) -> None:
    ours, _ = pair(kind, shape[1])
    x, dy = torch.randn(shape), torch.randn(shape)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(run(ours, x, dy))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        for a, b in zip(found[0], others, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_has_no_gradient(kind: str) -> None:
    ours, _ = pair(kind, 6)
    x = torch.randn(3, 6, 6)
    assert not ours.requires_grad_(False)(x).requires_grad
    ours.weight.requires_grad_()
    ours(x).sum().backward()
    assert ours.weight.grad is not None
    assert all(p.grad is None for name, p in ours.named_parameters() if name != "weight")


@pytest.mark.parametrize("kind", KINDS)
def test_change_in_place_is_noticed(kind: str) -> None:
    x = torch.randn(3, 6, 6, requires_grad=True)
    copy = x * 1
    y = pair(kind, 6)[0](copy)
    copy.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize(
    ("kind", "x", "message"),
    [
        ("layer", torch.randn(3, 5), r"LayerNorm: .* last dimensions are \(6,\), got shape \(3, 5\)"),
        ("rms", torch.randn(()), r"RMSNorm: expected an input whose last dimensions are \(6,\), got shape \(\)"),
        ("channel", torch.randn(3, 5, 6), r"ChannelNorm: .* \(N, C, \*\) with 6 channels .* \(3, 5, 6\)"),
        ("channel", torch.randn(6), r"ChannelNorm: expected an input \(N, C, \*\)"),
        *((kind, torch.ones(6, 6).long(), "expected a floating-point input, got torch.int64") for kind in KINDS),
    ],
)  # fmt: skip
def test_wrong_input(kind: str, x: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pair(kind, 6)[0](x)


def test_memory_format_is_kept() -> None:
    x = torch.randn(2, 6, 5, 4)
    last = x.to(memory_format=torch.channels_last)
    ours, _ = pair("channel", 6)
    assert ours(last).is_contiguous(memory_format=torch.channels_last)
    assert ours(x).is_contiguous()
    torch.testing.assert_close(ours(last), ours(x))


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("shape", [(7, 5), (3, 5, 6)])
def test_numpy_arrays(shape: tuple[int, ...], name: str) -> None:
    """Arrays are served as tensors are, with a weight that does not lie in one piece."""
    rng = np.random.default_rng(0)
    x, g, weight = rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(10)[::2]
    with use_backend(name):
        y, cache = positions.forward(x, weight, centred=False)
        dx, d_weight, d_bias = positions.backward(g, x, weight, cache)
        tensors = [torch.from_numpy(v.copy()) for v in (x, g, weight)]
        y_torch, cache = positions.forward(tensors[0], tensors[2], centred=False)
        gradients = positions.backward(tensors[1], tensors[0], tensors[2], cache)
    for a, b in zip((y, dx, d_weight, d_bias), (y_torch, *gradients), strict=True):
        assert isinstance(a, np.ndarray)
        np.testing.assert_allclose(a, b.numpy(), rtol=1e-13)
    h = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(y, h * weight.reshape((1, -1, 1)[: len(shape)]), rtol=1e-12)


def test_nothing_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slices of rows, or of channels, are read where they lie."""
    seen = []
    original = numba_positions.forward
    monkeypatch.setattr(numba_positions, "forward", lambda x, *rest: seen.append(x.data_ptr()) or original(x, *rest))
    rows, planes = torch.randn(6, 16), torch.randn(4, 16, 5, 3)
    for layer, x in (
        (layers.LayerNorm(8), rows[::2, 8:]),
        (layers.RMSNorm(16), rows[:1].expand(4, 16)),
        (layers.ChannelNorm(8), planes[::2, 8:]),
        (layers.ChannelNorm(16), planes.to(memory_format=torch.channels_last)),
    ):
        layer(x)
        assert seen[-1] == x.data_ptr()
