"""Layers with statistics per position: `LayerNorm` and `RMSNorm` as torch's, and ConvNeXt's `ChannelNorm`.

The first two are subclasses of torch's layers: arguments, defaults, `state_dict` and whatever looks for them by their
class are the same; only who computes is not. Any leading shape, any float dtype. A tensor is copied only where a
position's elements do not lie one after the other (or, channels-first, one channel's positions). Weight and bias are
applied, and their gradients summed, in the pass that normalizes (`normlab.kernels.positions`). The gradient is
written by hand; further derivatives, and the transforms of `torch.func`, are torch's (`normlab.layers.derivatives`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from normlab.layers.position_operators import normalize

__all__ = ["ChannelNorm", "LayerNorm", "RMSNorm"]


class LayerNorm(nn.LayerNorm):
    """Layer normalization over the last dimensions, `normalized_shape`, of each sample (or position).

        y = weight * (x - mean) / sqrt(var + eps) + bias

    A `torch.nn.LayerNorm`: weight and bias are element-wise, of `normalized_shape`. In a convolutional network,
    `LayerNorm((C, H, W))` fixes the image size; `make_norm("ln", C)` has the same statistics and one weight and bias
    per channel. Raises ValueError for an input of another shape, or not of floats. Ba, Kiros & Hinton 2016,
    arXiv:1607.06450.
    """

    def forward(self, x: Tensor) -> Tensor:
        shape = _check(self, x)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if x.dim() > 2 and len(shape) == x.dim() - 1 and not x.is_contiguous():
            last = x.movedim(1, -1)
            if last.is_contiguous():  # whole samples, channels-last: in the order of their memory
                weight, bias = (None if p is None else p.movedim(0, -1) for p in (weight, bias))
                return normalize(last, weight, bias, math.prod(shape), self.eps, True).movedim(-1, 1)
        return normalize(x, weight, bias, math.prod(shape), self.eps, True)


class RMSNorm(nn.RMSNorm):
    """Normalization by the root mean square over the last dimensions, `normalized_shape`.

        y = weight * x / sqrt(mean(x^2) + eps)

    A `torch.nn.RMSNorm`; eps of None is the machine epsilon of the dtype computed in: float32 or float64.
    Raises ValueError for an input of another shape, or not of floats. Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def forward(self, x: Tensor) -> Tensor:
        shape = _check(self, x)
        # torch's guide says that of x's dtype; but it computes from halves in float32, and takes the epsilon of that
        computed = torch.float32 if x.element_size() < 4 else x.dtype
        eps = torch.finfo(computed).eps if self.eps is None else self.eps
        return normalize(x, self.weight, None, math.prod(shape), eps, False)


class ChannelNorm(LayerNorm):
    """Layer normalization over the channels at every position of (N, C, *): the LayerNorm of ConvNeXt.

        y = weight * (x - mean) / sqrt(var + eps) + bias

    Equal to `x.movedim(1, -1)`, `torch.nn.LayerNorm(num_channels, eps=1e-6)`, and back (timm and torchvision:
    LayerNorm2d), whose `state_dict` it has, without the copies: channels-first and channels-last are normalized as they
    lie, and stay so. Raises ValueError for an input without channels in dimension 1, or of another number of them.
    Liu et al. 2022, arXiv:2201.03545.
    """

    def __init__(
        self,
        num_channels: int,
        eps: float = 1e-6,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(num_channels, eps, elementwise_affine, bias, device, dtype)
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() < 2 or x.shape[1] != self.num_channels:
            raise ValueError(
                f"ChannelNorm: expected an input (N, C, *) with {self.num_channels} channels in dimension 1, "
                f"got shape {tuple(x.shape)}"
            )
        _check_floats(self, x)
        if x.dim() > 2 and not x.is_contiguous():
            last = x.movedim(1, -1)
            if last.is_contiguous():
                return normalize(last, self.weight, self.bias, self.num_channels, self.eps, True).movedim(-1, 1)
        return normalize(x, self.weight, self.bias, 0, self.eps, True)


def _check(layer: LayerNorm | RMSNorm, x: Tensor) -> tuple[int, ...]:
    shape = layer.normalized_shape
    if tuple(x.shape[-len(shape) :]) != shape:
        raise ValueError(
            f"{type(layer).__name__}: expected an input whose last dimensions are {shape}, got shape {tuple(x.shape)}"
        )
    _check_floats(layer, x)
    return shape


def _check_floats(layer: nn.Module, x: Tensor) -> None:
    if not x.is_floating_point():
        raise ValueError(f"{type(layer).__name__}: expected a floating-point input, got {x.dtype}; convert it first")
