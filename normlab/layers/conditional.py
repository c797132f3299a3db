"""Norms whose scale and shift depend on a condition given with the call: a class, a vector, another image, a map.

Each normalizes without a weight and bias of its own, by a norm of the family or of positions, and applies
y = scale * norm(x) + shift; scale and shift are numbers per sample and channel, and under `SPADE` per position. The
output has the dtype of x. Raises InputError where the condition does not fit x or the layer.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.errors import InputError, UsageError
from normlab.layers.leaves import as_leaf, is_root, traces
from normlab.layers.norms import make_norm
from normlab.layers.positions import LayerNorm

__all__ = ["SPADE", "AdaIN", "AdaLN", "AdaLNZero", "ConditionalBatchNorm", "FiLM", "modulate"]


def modulate(y: Tensor, scale: Tensor, shift: Tensor, dim: int = 1) -> Tensor:
    """scale * y + shift, with scale and shift (N, C) for y whose channels are in dimension `dim`, or of y's rank."""
    scale, shift = (_broadcast_parameter(v, y, dim, name) for name, v in (("scale", scale), ("shift", shift)))
    return (y * scale + shift).to(y.dtype)  # y comes first: its memory format is kept


def _broadcast_parameter(v: Tensor, y: Tensor, dim: int, name: str) -> Tensor:
    if v.dim() == y.dim() and all(own in (1, size) for own, size in zip(v.shape, y.shape, strict=True)):
        return v
    if v.shape != (y.shape[0], y.shape[dim]):
        raise InputError(
            f"{name}: expected shape {(y.shape[0], y.shape[dim])}, one number per sample and channel, got "
            f"{tuple(v.shape)} for an input of shape {tuple(y.shape)}"
        )
    shape = [1] * y.dim()
    shape[0], shape[dim] = v.shape
    return v.reshape(shape)


def _pair(title: str, given: Any, names: str, otherwise: str) -> tuple[Tensor, Tensor]:
    """What was given as two tensors of floating-point numbers."""
    if not (
        isinstance(given, tuple | list)
        and len(given) == 2
        and all(isinstance(v, Tensor) and v.is_floating_point() for v in given)
    ):
        raise InputError(f"{title}: expected a pair {names} of floating-point tensors{otherwise}, got {_say(given)}")
    return given[0], given[1]


def _features(title: str, name: str, given: Any, expected: tuple[int | None, ...]) -> Tensor:
    """What was given as a tensor of floating-point numbers of this shape, None standing for any size."""
    if not (
        isinstance(given, Tensor)
        and given.is_floating_point()
        and given.dim() == len(expected)
        and all(size in (None, own) for size, own in zip(expected, given.shape, strict=True))
    ):
        sizes = ", ".join("*" if size is None else str(size) for size in expected)
        raise InputError(f"{title}: expected {name} of shape ({sizes}), floating-point, got {_say(given)}")
    return given


def _say(given: Any) -> str:
    if isinstance(given, Tensor):
        return f"{given.dtype} of shape {tuple(given.shape)}"
    if isinstance(given, tuple | list):
        return f"a {type(given).__name__} of {', '.join(map(_say, given)) or 'nothing'}"
    return f"{given!r}"


def _whole(title: str, **sizes: Any) -> None:
    for name, size in sizes.items():
        if type(size) is not int or size < 1:
            raise UsageError(f"{title}: {name}={size!r}; expected a whole number of at least 1")


class ConditionalBatchNorm(nn.Module):
    """Batch norm with a weight and bias for each class: y = weight[label] * bn(x) + bias[label].

    `forward(x, labels)`, labels (N,) whole numbers below `classes`. The weights start at 1 with a spread of 0.02, the
    biases at 0, in one embedding (classes, 2 C). De Vries et al. 2017, arXiv:1707.00683; with classes as in Dumoulin,
    Shlens & Kudlur 2017, arXiv:1610.07629.
    """

    def __init__(
        self, channels: int, *, classes: int = 10, norm: str = "bn", eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        super().__init__()
        _whole("ConditionalBatchNorm", classes=classes)
        self.num_features = channels
        self.bn = make_norm(norm, channels, affine=False, eps=eps, momentum=momentum)
        self.embed = nn.Embedding(classes, 2 * channels)
        nn.init.normal_(self.embed.weight[:, :channels].detach(), 1.0, 0.02)
        nn.init.zeros_(self.embed.weight[:, channels:].detach())

    def forward(self, input: Tensor, labels: Tensor) -> Tensor:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input, labels)
        self._check(input, labels)
        weight, bias = self.embed(labels.long()).chunk(2, 1)
        return modulate(self.bn(input), weight, bias)

    def _check(self, x: Tensor, labels: Any) -> None:
        n, classes = x.shape[0], self.embed.num_embeddings
        whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.dtype == torch.bool)
        if not whole or labels.shape != (n,):
            raise InputError(
                f"ConditionalBatchNorm: expected labels of shape ({n},), whole numbers, got {_say(labels)}"
            )
        seen = labels.device.type == "cpu" and n > 0 and not torch.compiler.is_compiling()  # elsewhere it would wait
        if seen and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            found = f"{int(labels.min())} to {int(labels.max())}"
            raise InputError(
                f"ConditionalBatchNorm: expected labels from 0 to {classes - 1}, got {found}; build it with classes=..."
            )


class AdaIN(nn.Module):
    """Adaptive instance norm: y = std(style) * (x - mean_s) / sqrt(var_s + eps) + mean(style).

    `forward(x, style)` takes the statistics of each plane of another image's features (N, C, *), std being
    sqrt(var + eps), or a pair (scale, shift), each (N, C). No parameters. Huang & Belongie 2017, arXiv:1703.06868.
    """

    def __init__(self, channels: int, *, eps: float = 1e-5) -> None:
        super().__init__()
        self.num_features, self.eps = channels, eps
        self.instance_norm = make_norm("in", channels, affine=False, eps=eps)

    def forward(self, input: Tensor, style: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input, style)
        if isinstance(style, Tensor):
            if style.dim() < 3 or style.shape[:2] != input.shape[:2] or not style.is_floating_point():
                raise InputError(
                    f"AdaIN: expected style features of shape ({input.shape[0]}, {input.shape[1]}, *) or a pair "
                    f"(scale, shift), got {_say(style)}"
                )
            planes = style.flatten(2)
            planes = planes.float() if planes.element_size() < 4 else planes
            mean = planes.mean(2, keepdim=True)
            style = ((planes - mean).square().mean(2) + self.eps).sqrt(), mean[:, :, 0]
        return modulate(self.instance_norm(input), *_pair("AdaIN", style, "(scale, shift)", " or style features"))


class FiLM(nn.Module):
    """Feature-wise linear modulation: y = gamma * x + beta, gamma and beta per sample and channel.

    `forward(x, condition)` takes the pair (gamma, beta), each (N, C); or, of a layer built with `condition=D`, vectors
    (N, D), from which a linear layer makes gamma - 1 and beta. Perez et al. 2018, arXiv:1709.07871.
    """

    def __init__(self, channels: int, *, condition: int | None = None, dim: int = 1) -> None:
        super().__init__()
        if condition is not None:
            _whole("FiLM", condition=condition)
        self.num_features, self.dim = channels, dim
        self.linear = None if condition is None else nn.Linear(condition, 2 * channels)

    def forward(self, input: Tensor, condition: Tensor | tuple[Tensor, Tensor]) -> Tensor:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input, condition)
        if self.linear is None:
            more = " (build it with condition=D to give vectors (N, D))"
        else:
            more = f" or a tensor (N, {self.linear.in_features})"
            if isinstance(condition, Tensor):
                width = self.linear.in_features
                gamma, beta = self.linear(_features("FiLM", "condition", condition, (len(input), width))).chunk(2, 1)
                condition = 1 + gamma, beta
        return modulate(input, *_pair("FiLM", condition, "(gamma, beta)", more), self.dim)


class AdaLN(nn.Module):
    """Adaptive layer norm: y = (1 + scale) * (x - mean_c) / sqrt(var_c + eps) + shift.

    (shift, scale) = linear(silu(condition)), in this order, the condition (N, D). Of tokens (N, T, C), or with `dim=1`
    of images (N, C, *). Peebles & Xie 2023, arXiv:2212.09748.
    """

    parts = 2

    def __init__(self, channels: int, *, condition: int | None = None, eps: float = 1e-6, dim: int = -1) -> None:
        super().__init__()
        if condition is not None:
            _whole(type(self).__name__, condition=condition)
        self.num_features, self.dim = channels, dim
        self.norm = LayerNorm(channels, eps, elementwise_affine=False)
        self.linear = nn.Linear(condition or channels, self.parts * channels)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in ("weight", "bias"):  # the authors': adaLN_modulation = Sequential(SiLU(), Linear(...))
            theirs = f"{prefix}adaLN_modulation.1.{name}"
            if theirs in state_dict:
                state_dict[f"{prefix}linear.{name}"] = state_dict.pop(theirs)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(self, input: Tensor, condition: Tensor) -> Any:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input, condition)
        return self._modulated(input, condition)[0]

    def _modulated(self, x: Tensor, condition: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        condition = _features(type(self).__name__, "condition", condition, (len(x), self.linear.in_features))
        shift, scale, *others = self.linear(functional.silu(condition)).chunk(self.parts, 1)
        y = self.norm(x.movedim(self.dim, -1)).movedim(-1, self.dim)
        return modulate(y, 1 + scale, shift, self.dim), tuple(others)


class AdaLNZero(AdaLN):
    """`AdaLN` that also returns a gate for the residual branch, everything starting at zero: `y, gate = layer(x, c)`.

    (shift, scale, gate) = linear(silu(condition)); the gate is of x's rank, for x + gate * branch(y). The linear layer
    starts at zero, so that a block starts as the identity. Peebles & Xie 2023, arXiv:2212.09748.
    """

    parts = 3

    def __init__(self, channels: int, **options: Any) -> None:
        super().__init__(channels, **options)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, input: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        if traces(input) and not is_root(self, input):
            node = as_leaf(self, input, condition)
            return node[0], node[1]
        y, (gate,) = self._modulated(input, condition)
        return y, _broadcast_parameter(gate.to(y.dtype), y, self.dim, "gate")


class SPADE(nn.Module):
    """Spatially adaptive normalization: y = (1 + gamma(map)) * norm(x) + beta(map), at every position.

    `forward(x, map)`, map (N, labels, H', W'), resized to x by its nearest pixels; gamma and beta are convolutions of
    relu(conv(map)). The authors' names: `mlp_shared.0`, `mlp_gamma`, `mlp_beta`. Park et al. 2019, arXiv:1903.07291.
    """

    def __init__(self, channels: int, *, labels: int = 1, hidden: int = 128, norm: str = "bn", kernel: int = 3) -> None:
        super().__init__()
        _whole("SPADE", labels=labels, hidden=hidden, kernel=kernel)
        if kernel % 2 == 0:
            raise UsageError(f"SPADE: kernel={kernel}; expected an odd size")
        self.num_features, self.labels = channels, labels
        self.param_free_norm = make_norm(norm, channels, affine=False)
        self.mlp_shared = nn.Sequential(nn.Conv2d(labels, hidden, kernel, padding=kernel // 2), nn.ReLU())
        self.mlp_gamma = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)
        self.mlp_beta = nn.Conv2d(hidden, channels, kernel, padding=kernel // 2)

    def forward(self, input: Tensor, map: Tensor) -> Tensor:
        if traces(input) and not is_root(self, input):
            return as_leaf(self, input, map)
        map = _features("SPADE", "map", map, (len(input), self.labels, None, None))
        hidden = self.mlp_shared(functional.interpolate(map, size=input.shape[2:], mode="nearest"))
        return modulate(self.param_free_norm(input), 1 + self.mlp_gamma(hidden), self.mlp_beta(hidden))
