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

from normlab.errors import DtypeError, InputError
from normlab.layers import checks, plain
from normlab.layers.leaves import as_leaf, is_root, refuse_script, traces
from normlab.layers.operators import seen_through
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

    def __prepare_scriptable__(self) -> nn.Module:
        refuse_script(self)

    def forward(self, input: Tensor) -> Tensor:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input)
        if traces(input) or (seen_through(input) and plain.is_wanted(input)):
            return super().forward(input)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        shape = _check(self, input, weight, bias)
        return _normalized(input, weight, bias, shape, _eps(self), True)


class RMSNorm(nn.RMSNorm):
    """Normalization by the root mean square over the last dimensions, `normalized_shape`.

        y = weight * x / sqrt(mean(x^2) + eps)

    A `torch.nn.RMSNorm`; eps of None is the machine epsilon of the dtype computed in: float32 or float64. Complex
    inputs are computed by torch. Raises ValueError for an input of another shape, or of integers.
    Zhang & Sennrich 2019, arXiv:1910.07467.
    """

    def __prepare_scriptable__(self) -> nn.Module:
        refuse_script(self)

    def forward(self, x: Tensor | None = None, *, input: Tensor | None = None) -> Tensor:
        """torch's name for it is x here, and input in its other layers: each will do."""
        if isinstance(x, Tensor) and isinstance(input, Tensor):  # torch.fx traces both names
            raise TypeError("RMSNorm.forward() got both x and input, which are two names of one argument; give one")
        input = input if x is None else x
        if input is None:
            raise TypeError("RMSNorm.forward() missing 1 required positional argument: 'x'")
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input)
        if traces(input) or (seen_through(input) and plain.is_wanted(input)):
            return super().forward(input)
        weight: Tensor | None = self.weight
        try:
            shape = _check(self, input, weight, None)
        except DtypeError:
            if input.is_complex():  # which no other norm of torch's takes
                return super().forward(input)
            raise
        # torch's guide says that of x's dtype; but it computes from halves in float32, and takes the epsilon of that
        computed = torch.float32 if input.element_size() < 4 else input.dtype
        eps = torch.finfo(computed).eps if self.eps is None else _eps(self)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling() and input.is_inference():
            input = input.clone()  # which the backward pass can keep
        y = _normalized(input, weight, None, shape, eps, False)
        if not _is_channels_last(input):
            return y
        if input.dim() not in (4, 5):  # torch has such a memory format for images and volumes only
            return y.contiguous()
        return y.movedim(1, -1).contiguous().movedim(-1, 1)


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

    def forward(self, input: Tensor) -> Tensor:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input)
        if traces(input) or (seen_through(input) and plain.is_wanted(input)):
            return super().forward(input.movedim(1, -1)).movedim(-1, 1)
        if not input.is_floating_point():
            checks.floats(type(self).__name__, input)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        channels = input.shape[1] if input.dim() > 1 else 0
        if channels != self.num_channels and not (weight is not None and channels == weight.numel()):
            raise InputError(
                f"ChannelNorm: expected an input (N, C, *) with {self.num_channels} channels in dimension 1, "
                f"got shape {tuple(input.shape)}"
            )
        if not checks.match(input, weight, (channels,)) or not checks.match(input, bias, (channels,)):
            held = {"weight": weight, "bias": bias}
            checks.elements(type(self).__name__, input, held, (channels,))
            checks.dtypes(type(self).__name__, input, held)
        return normalize(input, weight, bias, 0, _eps(self), True, _is_channels_last(input))


def _check(layer: LayerNorm | RMSNorm, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[int, ...]:
    shape, title = tuple(layer.normalized_shape), type(layer).__name__
    if tuple(x.shape[-len(shape) :]) != shape:
        raise InputError(f"{title}: expected an input whose last dimensions are {shape}, got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        checks.floats(title, x)
    if not checks.match(x, weight, shape) or not checks.match(x, bias, shape):
        held = {"weight": weight, "bias": bias}
        checks.elements(title, x, held, shape)
        if isinstance(layer, LayerNorm):
            checks.dtypes(title, x, held)
    return shape


def _normalized(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, shape: tuple[int, ...], eps: float, centred: bool
) -> Tensor:
    if len(shape) == x.dim() - 1 and _is_channels_last(x):  # whole samples: in the order of their memory
        weight, bias = (None if p is None else p.movedim(0, -1) for p in (weight, bias))
        return normalize(x.movedim(1, -1), weight, bias, math.prod(shape), eps, centred).movedim(-1, 1)
    return normalize(x, weight, bias, math.prod(shape), eps, centred)


def _is_channels_last(x: Tensor) -> bool:
    return x.dim() > 2 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def _eps(layer: LayerNorm | RMSNorm) -> float:
    eps: Any = layer.eps
    return eps if type(eps) is float else checks.number(type(layer).__name__, eps)
