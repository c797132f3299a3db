"""Norms that are no map of each plane: element-wise ones, mixed ones, and those of positions or windows.

Each is a module of torch's operations, registered by `normlab.norms.modules`, built for a number of channels; input and
output are (N, C, *), of the same dtype; half precision is computed with in float32. What is marked `dim` also takes
tokens (N, T, C) by `dim=-1`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.errors import InputError, UsageError
from normlab.layers import checks
from normlab.layers.checkpoints import flatten
from normlab.layers.functional import normalize
from normlab.layers.leaves import as_leaf, is_root, traces
from normlab.layers.positions import LayerNorm
from normlab.norms.family import default_groups
from normlab.norms.grid import update_running

__all__ = [
    "AdaNorm",
    "Derf",
    "DivisiveNorm",
    "DyT",
    "ElementwiseLayerNorm",
    "EvoNormB0",
    "EvoNormS0",
    "FilterResponseTLU",
    "GroupWeightNorm",
    "LayerScale",
    "LocalResponseNorm",
    "QKNorm",
    "ScaleNorm",
]


def along(v: Tensor, x: Tensor, dim: int) -> Tensor:
    """Numbers per channel, shaped to broadcast along dimension `dim` of x."""
    shape = [1] * x.dim()
    shape[dim] = -1
    return v.reshape(shape)


class _Leaf(nn.Module):
    """A module that torch.fx takes for a leaf, as it does torch's; no parameter of another length is broadcast."""

    num_features: int
    dim = 1  # of the channels
    takes_half = False  # what computes with half precision itself is given it; any other has float32 in its place

    def _lengths(self) -> dict[str, int]:
        """How many numbers each parameter and buffer has."""
        return {}

    def _compute(self, input: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, input: Tensor) -> Tensor:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input)
        for name, length in self._lengths().items():
            held = getattr(self, name)
            if held is not None and tuple(held.shape) != (length,):
                raise InputError(
                    f"{type(self).__name__}: expected {name} to have shape ({length},), got {tuple(held.shape)}"
                )
        self._check(input)
        if self.takes_half or input.element_size() >= 4:
            return self._compute(input)
        return self._compute(input.float()).to(input.dtype)

    def _check(self, x: Tensor) -> None:
        checks.floats(type(self).__name__, x)
        if x.dim() < 2 or x.shape[self.dim] != self.num_features:
            raise InputError(
                f"{type(self).__name__}: expected {self.num_features} channels in dimension {self.dim}, got an input "
                f"of shape {tuple(x.shape)}"
            )


class _Channels(_Leaf):
    """A module with a weight and a bias for each channel, which lies in dimension `dim`."""

    def __init__(self, channels: int, *, affine: bool = True, dim: int = 1) -> None:
        super().__init__()
        self.num_features, self.affine, self.dim = channels, affine, dim
        self.weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def _lengths(self) -> dict[str, int]:
        return {"weight": self.num_features, "bias": self.num_features}

    def _affine(self, y: Tensor) -> Tensor:
        if self.weight is None or self.bias is None:
            return y
        return along(self.weight, y, self.dim) * y + along(self.bias, y, self.dim)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        flatten(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"{self.num_features}, affine={self.affine}"


class DyT(_Channels):
    """Dynamic tanh: y = weight * tanh(alpha * x) + bias, alpha one number that starts at `alpha_init_value`.

    Zhu, Chen, He, LeCun & Liu 2025, arXiv:2503.10622.
    """

    def __init__(self, channels: int, *, alpha_init_value: float = 0.5, affine: bool = True, dim: int = 1) -> None:
        super().__init__(channels, affine=affine, dim=dim)
        self.alpha_init_value = alpha_init_value
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init_value)))

    def _lengths(self) -> dict[str, int]:
        return super()._lengths() | {"alpha": 1}

    def _compute(self, input: Tensor) -> Tensor:
        return self._affine(torch.tanh(self.alpha * input))


class Derf(_Channels):
    """y = weight * erf(alpha * x + shift) + bias, alpha and shift one number each.

    Chen, Lu, Zhu, Sun & Liu 2025, arXiv:2512.10938.
    """

    def __init__(
        self, channels: int, *, alpha_init_value: float = 0.5, shift_init_value: float = 0.0, affine: bool = True,
        dim: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(channels, affine=affine, dim=dim)
        self.alpha = nn.Parameter(torch.full((1,), float(alpha_init_value)))
        self.shift = nn.Parameter(torch.full((1,), float(shift_init_value)))

    def _lengths(self) -> dict[str, int]:
        return super()._lengths() | {"alpha": 1, "shift": 1}

    def _compute(self, input: Tensor) -> Tensor:
        return self._affine(torch.erf(self.alpha * input + self.shift))


class LayerScale(_Leaf):
    """y = gamma * x, gamma a number per channel that starts at `init_values`. Touvron et al. 2021, arXiv:2103.17239."""

    def __init__(self, channels: int, *, init_values: float = 1e-5, dim: int = 1) -> None:
        super().__init__()
        self.num_features, self.dim = channels, dim
        self.gamma = nn.Parameter(torch.full((channels,), float(init_values)))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        flatten(self, state_dict, prefix, {"weight": "gamma"})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _lengths(self) -> dict[str, int]:
        return {"gamma": self.num_features}

    def _compute(self, input: Tensor) -> Tensor:
        return input * along(self.gamma, input, self.dim)


def _variance(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Over these dimensions, which are kept; `torch.var` warns where there are no samples."""
    return (x - x.mean(dims, keepdim=True)).square().mean(dims, keepdim=True)


class EvoNormB0(_Channels):
    """EvoNorm-B0: y = weight * x / max(sqrt(var_ns + eps), v * x + sqrt(var_s + eps)) + bias.

    It normalizes and activates at once. `running_var` averages the unbiased batch variance, as `bn`, and stands in
    for it in evaluation. timm's checkpoints load. Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967.
    """

    running_var: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True) -> None:
        super().__init__(channels, affine=affine)
        # no batches are counted, so they cannot be averaged
        self.eps, self.momentum = eps, checks.number(type(self).__name__, momentum, "momentum")
        self.v = nn.Parameter(torch.ones(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def _lengths(self) -> dict[str, int]:
        return super()._lengths() | {"v": self.num_features, "running_var": self.num_features}

    def _check(self, x: Tensor) -> None:
        super()._check(x)
        if self.training:
            checks.more_than_one_value(type(self).__name__, x, True)

    def _compute(self, input: Tensor) -> Tensor:
        positions = tuple(range(2, input.dim()))
        if self.training and input.numel():
            var = _variance(input, (0, *positions)).flatten()
            with torch.no_grad():
                unused = torch.zeros_like(self.running_var)
                batch = unused, var.detach(), input.numel() // input.shape[1]
                update_running((unused, self.running_var), batch, self.momentum)
        else:
            var = self.running_var
        own = _variance(input, positions) if positions else torch.zeros_like(input)
        gated = along(self.v, input, 1) * input + (own + self.eps).sqrt()
        return self._affine(input / torch.maximum(along(var + self.eps, input, 1).sqrt(), gated))


class EvoNormS0(_Channels):
    """EvoNorm-S0: y = weight * x * sigmoid(v * x) / sqrt(var_gs + eps) + bias, of groups of channels.

    It normalizes and activates at once; nothing depends on the batch. timm's checkpoints load.
    Liu, Brock, Simonyan & Le 2020, arXiv:2004.02967.
    """

    def __init__(self, channels: int, *, groups: int | None = None, eps: float = 1e-5, affine: bool = True) -> None:
        super().__init__(channels, affine=affine)
        self.groups = default_groups(channels) if groups is None else groups
        if self.groups < 1 or channels % self.groups:
            raise UsageError(f"EvoNormS0: {channels} channels do not divide into groups={groups}")
        self.eps = eps
        self.v = nn.Parameter(torch.ones(channels))

    def _lengths(self) -> dict[str, int]:
        return super()._lengths() | {"v": self.num_features}

    def _compute(self, input: Tensor) -> Tensor:
        var = _variance(input.unflatten(1, (self.groups, -1)).flatten(2), (2,))
        each = var.repeat_interleave(self.num_features // self.groups, 1)  # (N, C, 1)
        std = (each + self.eps).sqrt().reshape(*input.shape[:2], *(1 for _ in input.shape[2:]))
        return self._affine(input * torch.sigmoid(along(self.v, input, 1) * input) / std)


class LocalResponseNorm(_Leaf, nn.LocalResponseNorm):
    """y = x / (k + alpha * the sum of x^2 over `size` neighbouring channels) ** beta: AlexNet's, with its constants.

    torch's layer of this name divides its alpha by the size, and has k = 1.
    Krizhevsky, Sutskever & Hinton 2012.
    """

    def __init__(
        self, channels: int, *, size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 2.0
    ) -> None:
        nn.LocalResponseNorm.__init__(self, size, alpha * size, beta, k)
        self.num_features = channels

    def _compute(self, input: Tensor) -> Tensor:
        x = input if input.dim() > 2 else input[:, :, None]  # torch's function wants a position
        y = functional.local_response_norm(x, self.size, self.alpha, self.beta, self.k)
        return y.reshape(input.shape) if input.dim() == 2 else y


class DivisiveNorm(_Channels):
    """Divisive normalization: of x less its local mean, by the local root mean square.

        v = x - mean_w(x),   y = weight * v / sqrt(sigma^2 + mean_w(v^2)) + bias

    The means are over all channels and a window of `window` positions each way; at the border over what there is of
    it. Ren, Liao, Urtasun, Sinz & Zemel 2017, arXiv:1611.04520; local contrast normalization of Jarrett et al. 2009
    but for its Gaussian window.
    """

    def __init__(self, channels: int, *, window: int = 5, sigma: float = 1.0, affine: bool = True) -> None:
        super().__init__(channels, affine=affine)
        if window < 1 or window % 2 == 0:
            raise UsageError(f"DivisiveNorm: window={window}; expected an odd number of positions")
        self.window, self.sigma = window, sigma

    def _compute(self, input: Tensor) -> Tensor:
        v = input - self._local_mean(input)
        return self._affine(v / (self.sigma**2 + self._local_mean(v.square())).sqrt())

    def _local_mean(self, x: Tensor) -> Tensor:
        mean, rank = x.mean(1, keepdim=True), x.dim() - 2
        if not 1 <= rank <= 3:
            return mean
        pool: Any = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
        # torch's own padding refuses a volume that is smaller than the window
        around = [self.window // 2] * (2 * rank)
        inside = functional.pad(torch.ones_like(mean[:1]), around)
        averaged: Tensor = pool(functional.pad(mean, around), self.window, 1) / pool(inside, self.window, 1)
        return averaged


class ScaleNorm(_Leaf):
    """y = g * x / max(|x|, eps), |x| the length of x over the channels at each position, g one number.

    g starts at sqrt(C). Nguyen & Salazar 2019, arXiv:1910.05895.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, dim: int = 1) -> None:
        super().__init__()
        self.num_features, self.eps, self.dim = channels, eps, dim
        self.g = nn.Parameter(torch.tensor([math.sqrt(channels)]))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        flatten(self, state_dict, prefix, {"scale": "g", "weight": "g"})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _lengths(self) -> dict[str, int]:
        return {"g": 1}

    def _compute(self, input: Tensor) -> Tensor:
        y: Tensor = self.g * input / input.norm(dim=self.dim, keepdim=True).clamp(min=self.eps)
        return y


class AdaNorm(_Leaf):
    """y = c * (1 - k * z) * z with z = (x - mean_c) / sqrt(var_c + eps) at each position, the first factor a constant.

    It has no parameters. Xu, Sun, Zhang, Zhao & Lin 2019, arXiv:1911.07013.
    """

    def __init__(self, channels: int, *, c: float = 1.0, k: float = 0.1, eps: float = 1e-5, dim: int = 1) -> None:
        super().__init__()
        self.num_features, self.c, self.k, self.eps, self.dim = channels, c, k, eps, dim

    def _compute(self, input: Tensor) -> Tensor:
        x = input.movedim(self.dim, -1)
        z = functional.layer_norm(x, x.shape[-1:], eps=self.eps)
        return (self.c * (1 - self.k * z).detach() * z).movedim(-1, self.dim)


class QKNorm(_Leaf):
    """Queries or keys divided by their root mean square, each head by itself.

        y = weight * x / sqrt(mean_h(x^2) + eps),   h the channels of a head

    Weight has a number for each channel of a head, which the heads share. With `heads=1` it is the RMS norm of each
    position over its channels. Henry et al. 2020, arXiv:2010.04245; with RMS as in Dehghani et al. 2023,
    arXiv:2302.05442.
    """

    def __init__(self, channels: int, *, heads: int = 1, eps: float = 1e-6, affine: bool = True, dim: int = 1) -> None:
        super().__init__()
        if heads < 1 or channels % heads:
            raise UsageError(f"QKNorm: {channels} channels do not divide into heads={heads}")
        self.num_features, self.heads, self.eps, self.dim = channels, heads, eps, dim
        self.weight = nn.Parameter(torch.ones(channels // heads)) if affine else None

    def _lengths(self) -> dict[str, int]:
        return {"weight": self.num_features // self.heads}

    def _compute(self, input: Tensor) -> Tensor:
        x = input.movedim(self.dim, -1)
        each = x.unflatten(-1, (self.heads, -1))
        weight = None if self.weight is None else self.weight.to(each.dtype)
        y = functional.rms_norm(each, each.shape[-1:], weight, self.eps)
        return y.flatten(-2).movedim(-1, self.dim)


class FilterResponseTLU(_Channels):
    """Filter response normalization with its activation, whose threshold is learned for each channel.

        y = max(weight * x / sqrt(mean_s(x^2) + eps) + bias, tau)

    tau starts at 0. The authors' checkpoints, with `gamma` and `beta`, load, and timm's do. It normalizes and activates
    at once. Singh & Krishnan 2020, arXiv:1911.09737.
    """

    takes_half = True

    def __init__(self, channels: int, *, eps: float = 1e-6, affine: bool = True) -> None:
        super().__init__(channels, affine=affine)
        self.eps = eps
        self.tau = nn.Parameter(torch.zeros(channels))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        flatten(self, state_dict, prefix, {"gamma": "weight", "beta": "bias"})
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _lengths(self) -> dict[str, int]:
        return super()._lengths() | {"tau": self.num_features}

    def _compute(self, input: Tensor) -> Tensor:
        rows: dict[str, Tensor] = {k: v for k in ("weight", "bias") if (v := getattr(self, k)) is not None}
        y = normalize("frn", input, rows, eps=self.eps)
        return torch.maximum(y, along(self.tau, y, 1).to(y.dtype))


class GroupWeightNorm(_Leaf):
    """Group normalization with one weight and bias for each group instead of each channel.

    Wu & He 2018, arXiv:1803.08494, but for the affine map.
    """

    takes_half = True

    def __init__(self, channels: int, *, groups: int | None = None, eps: float = 1e-5) -> None:
        super().__init__()
        self.groups = default_groups(channels) if groups is None else groups
        if self.groups < 1 or channels % self.groups:
            raise UsageError(f"GroupWeightNorm: {channels} channels do not divide into groups={groups}")
        self.num_features, self.eps = channels, eps
        self.weight = nn.Parameter(torch.ones(self.groups))
        self.bias = nn.Parameter(torch.zeros(self.groups))

    def _lengths(self) -> dict[str, int]:
        return {"weight": self.groups, "bias": self.groups}

    def _compute(self, input: Tensor) -> Tensor:
        width = self.num_features // self.groups
        rows = {"weight": self.weight.repeat_interleave(width), "bias": self.bias.repeat_interleave(width)}
        return normalize("gn", input, rows, options=(("groups", self.groups),), eps=self.eps)


class ElementwiseLayerNorm(LayerNorm):
    """Layer normalization over (C, *size), with a weight and bias for each element: torch's `LayerNorm((C, H, W))`.

    Ba, Kiros & Hinton 2016, arXiv:1607.06450.
    """

    def __init__(self, channels: int, *, size: Any, eps: float = 1e-5, **options: Any) -> None:
        sizes = (size,) if isinstance(size, int) else tuple(size)
        super().__init__((channels, *sizes), eps, **options)
