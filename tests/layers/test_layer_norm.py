"""`LayerNorm(normalized_shape)` as torch's: any trailing dimensions, element-wise weight and bias."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from normlab.layers import norms as layers
from tests.layers.parity import BACKENDS, ULPS, arrange, backend, unit

SHAPES = [(5, 8), (3, 4, 6), (2, 3, 4, 5), (2, 3, 2, 3, 4), (7,), (1, 8), (4, 1)]
CASES = [(shape, shape[-last:]) for shape in SHAPES for last in range(1, max(2, len(shape))) if shape[-last:] != (1,)]


def textbook(x: torch.Tensor, shape: tuple[int, ...], eps: float) -> torch.Tensor:
    over = tuple(range(-len(shape), 0))
    mean = x.mean(over, keepdim=True)
    return (x - mean) / torch.sqrt(((x - mean) ** 2).mean(over, keepdim=True) + eps)


@pytest.mark.covering("layout", "dtype", "backend_name")
@pytest.mark.parametrize("backend_name", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["first", "last", "sliced", "transposed"])
@pytest.mark.parametrize(("shape", "normalized"), CASES)
def test_as_torch(
    shape: tuple[int, ...], normalized: tuple[int, ...], layout: str, dtype: torch.dtype, backend_name: str
) -> None:
    generator = torch.Generator().manual_seed(sum(shape))
    ours, stock = layers.LayerNorm(normalized, dtype=dtype), nn.LayerNorm(normalized, dtype=dtype)
    with torch.no_grad():
        for p in ours.parameters():
            p.normal_(generator=generator)
    stock.load_state_dict(ours.state_dict())
    x, dy = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    x = (arrange(x, layout) if len(shape) > 1 else x).requires_grad_()
    with backend(backend_name):
        y = ours(x)
        got = [y, *torch.autograd.grad(y, [x, ours.weight, ours.bias], dy)]
    if x.is_contiguous():
        assert y.is_contiguous()

    wide, w, b = (v.detach().double().requires_grad_() for v in (x, ours.weight, ours.bias))
    y64 = textbook(wide, normalized, 1e-5) * w + b
    want = [y64, *torch.autograd.grad(y64, [wide, w, b], dy.double())]
    y_stock = stock(x)
    torchs = [y_stock, *torch.autograd.grad(y_stock, [x, stock.weight, stock.bias], dy)]
    for name, a, b, c in zip(("y", "dx", "dweight", "dbias"), got, want, torchs, strict=True):
        assert a.shape == c.shape, name
        assert a.dtype == c.dtype, name
        bound = ULPS * unit(dtype) * (1 + float(b.detach().abs().max()))
        assert float((a.double() - b).detach().abs().max()) <= bound, name
        assert float((a - c).detach().abs().max()) <= 8 * bound, name


@pytest.mark.parametrize("options", [{"elementwise_affine": False}, {"bias": False}, {"eps": 0.1}])
def test_options(options: dict) -> None:
    x = torch.randn(4, 6, 8)
    ours, stock = layers.LayerNorm(8, **options), nn.LayerNorm(8, **options)
    assert list(ours.state_dict()) == list(stock.state_dict())
    torch.testing.assert_close(ours(x), stock(x))


def test_wrong_shape() -> None:
    with pytest.raises(ValueError, match=r"last dimensions are \(8, 4\), got shape \(2, 4, 8\)"):
        layers.LayerNorm((8, 4))(torch.randn(2, 4, 8))


def test_channels_last_is_kept() -> None:
    x = torch.randn(3, 8, 5, 4).to(memory_format=torch.channels_last)
    y = layers.LayerNorm((8, 5, 4), elementwise_affine=False)(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, nn.LayerNorm((8, 5, 4), elementwise_affine=False)(x))


@pytest.mark.parametrize("backend_name", BACKENDS)
def test_gradcheck(backend_name: str) -> None:
    layer = layers.LayerNorm((3, 4), dtype=torch.float64)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    with backend(backend_name):
        assert torch.autograd.gradcheck(layer, x)
