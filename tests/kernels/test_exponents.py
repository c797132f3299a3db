"""Right to the ends of the exponent: squares, products and coefficients leave float32 where the results do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import normlab
from normlab.layers import ChannelNorm, LayerNorm, RMSNorm

NORMS = ("bn", "in", "bin", "ln", "gn", "rms")
POSITIONS: dict[str, Any] = {"LayerNorm": LayerNorm, "RMSNorm": RMSNorm, "ChannelNorm": ChannelNorm}
SIZES = (1e-30, 1e-22, 1e18, 1e20, 1e30, 1e38)


def make(norm: str, size: float, **form: Any) -> nn.Module:
    """A layer whose eps is small beside the variance, and with parameters of its own."""
    eps = min(1e-5, 1e-2 * size * size)
    layer = POSITIONS[norm](6, eps=eps) if norm in POSITIONS else normlab.make_norm(norm, 6, eps=eps, **form)
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator)
    return layer


def elements(norm: str, size: float, layout: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shape = (4, 6, 6, 6) if norm != "LayerNorm" else (40, 6)
    x, g = (torch.randn(shape, generator=generator) for _ in range(2))
    x = ((x.clamp(-3, 3) + 0.1) * size).to(dtype)
    if layout == "last" and x.ndim == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return x, g.to(dtype)


def run(layer: nn.Module, x: Tensor, g: Tensor, *more: Tensor) -> list[Tensor]:
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x, *more)
    grads = torch.autograd.grad(y, [x, *layer.parameters()], g)
    return [y.detach(), *grads, *(b for b in layer.buffers() if b.is_floating_point())]


def truth(layer: nn.Module, x: Tensor, g: Tensor, *more: Tensor) -> list[Tensor]:
    """The same in float64, where nothing overflows, by the specification."""
    with normlab.use_backend("reference"):
        return run(layer.double(), x.double(), g.double(), *(v.double() for v in more))


def compare(got: list[Tensor], want: list[Tensor]) -> None:
    for mine, exact in zip(got, want, strict=True):
        unit = 2.0**-7 if mine.dtype == torch.bfloat16 else 2.0**-18
        rounded = exact.to(mine.dtype).double()
        representable = rounded.isfinite()
        assert torch.equal(mine.isfinite(), representable)
        scale = float(exact[representable].abs().max()) if representable.any() else 0.0
        error = (mine.double() - exact)[representable].abs()
        assert error.numel() == 0 or float(error.max()) <= unit * scale + 2.0**-140


# Bug: `BatchNorm(1)([[1e20], [-1e20], [3e20], [0]])` was zeros, as its variance in float32 is infinite.
@pytest.mark.covering
@pytest.mark.parametrize("layout", ["first", "last"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("norm", [*NORMS, *POSITIONS])
def test_every_size(norm: str, size: float, layout: str) -> None:
    x, g = elements(norm, size, layout, torch.float32)
    compare(run(make(norm, size), x, g), truth(make(norm, size), x, g))


@pytest.mark.covering
@pytest.mark.parametrize("act", ["relu", "gelu"])
@pytest.mark.parametrize("size", [1e-30, 1e20, 1e38])
@pytest.mark.parametrize("norm", ["bn", "gn", "ln"])
def test_fused_forms(norm: str, size: float, act: str) -> None:
    for layout in ("first", "last"):
        x, g = elements(norm, size, layout, torch.float32)
        residual = g.flip(0).contiguous(
            memory_format=torch.channels_last if layout == "last" else torch.preserve_format
        )
        layers = [make(norm, size, act=act) for _ in range(2)]
        compare(run(layers[0], x, g, residual), truth(layers[1], x, g, residual))


@pytest.mark.parametrize("size", [1e-30, 1e20, 1e38])
@pytest.mark.parametrize("norm", ["bn", "gn", *POSITIONS])
def test_bfloat16(norm: str, size: float) -> None:
    x, g = elements(norm, size, "first", torch.bfloat16)
    compare(run(make(norm, size), x, g), truth(make(norm, size), x, g))


def test_many_samples() -> None:
    """In blocks of samples, in several units."""
    x, g = (torch.randn(32, 6, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(2))
    x[5, 3] *= 1e25
    x[7] *= 1e-25
    for norm in NORMS:
        compare(run(make(norm, 1.0), x, g), truth(make(norm, 1.0), x, g))


def test_large_gradients() -> None:
    """Products of the gradient and x overflow, dx does not."""
    for norm in (*NORMS, *POSITIONS):
        x, g = elements(norm, 1e15, "first", torch.float32)
        g = g * 1e30
        compare(run(make(norm, 1e15), x, g), truth(make(norm, 1e15), x, g))


def test_running_statistics_in_evaluation() -> None:
    for size in (1e-30, 1e20, 1e38):
        layers = [make("bn", size).eval() for _ in range(2)]
        x, g = elements("bn", size, "first", torch.float32)
        for layer in layers:
            layer.running_mean.fill_(size / 2)
            layer.running_var.fill_(min(size * size, 1e38))
        compare(run(layers[0], x, g), truth(layers[1], x, g))
