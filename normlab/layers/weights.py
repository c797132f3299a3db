"""Normalization of weights instead of activations: parametrizations of convolutions and linear layers.

`normalize_weights(model, "ws")`, or in a network of ours a norm's name with "+ws" after it: "gn+ws". The model trains
what it had; the weight that a layer uses is computed from it (`torch.nn.utils.parametrize`).
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from normlab.errors import UsageError
from normlab.layers.norms import factory
from normlab.norms.family import describe, norm_names

__all__ = ["ScaledStandardized", "Standardized", "normalize_weights"]

Model = TypeVar("Model", bound=nn.Module)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Standardized(nn.Module):
    """Weight standardization: (w - mean) / sqrt(var + eps) over the inputs of each output.

    Qiao, Wang, Liu, Shen & Yuille 2019, arXiv:1903.10520.
    """

    def __init__(self, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        var, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        return ((rows - mean) * torch.rsqrt(var + self.eps)).reshape(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


class ScaledStandardized(nn.Module):
    """Scaled weight standardization: gain * (w - mean) / sqrt(max(var * inputs, eps)), a gain for each output.

    Brock, De & Smith 2021, arXiv:2101.08692, where a network's activations are scaled by a constant of their own.
    """

    def __init__(self, outputs: int, eps: float = 1e-4) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, weight: Tensor) -> Tensor:
        rows = weight.flatten(1)
        var, mean = torch.var_mean(rows, 1, correction=0, keepdim=True)
        scale = torch.rsqrt((var * rows.shape[1]).clamp(min=self.eps)) * self.gain[:, None]
        return ((rows - mean) * scale).reshape(weight.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def standardize(layer: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", Standardized())


def standardize_scaled(layer: nn.Module) -> None:
    weight: Tensor = layer.weight  # type: ignore[assignment]
    gain = ScaledStandardized(len(weight)).to(weight.device, weight.dtype)
    parametrize.register_parametrization(layer, "weight", gain)


def by_length(layer: nn.Module) -> None:
    parametrizations.weight_norm(layer)


def by_largest_singular_value(layer: nn.Module) -> None:
    parametrizations.spectral_norm(layer)


def normalize_weights(model: Model, how: str, *, linear: bool = True) -> Model:
    """Normalize the weights of a model's convolutions, and of its linear layers unless `linear=False`; returns it.

    | how | the weight used, of each output |
    |---|---|
    | "ws" | (w - mean) / sqrt(var + eps) |
    | "sws" | gain * (w - mean) / sqrt(max(var * inputs, eps)) |
    | "wn" | g * v / norm(v): `torch.nn.utils.parametrizations.weight_norm` |
    | "spectral" | w / sigma, sigma the largest singular value: `parametrizations.spectral_norm` |

    In place: build optimizers afterwards. Raises UsageError for another name, or a weight that is normalized already.
    """
    try:
        entry = describe(how)
    except UsageError:
        entry = None
    if entry is None or entry.of_weights is None:
        known = [name for name in norm_names() if describe(name).of_weights]
        raise UsageError(f"normalize_weights: how={how!r}; expected one of: {', '.join(known)}")
    apply = factory(entry.of_weights)
    kinds = (*_CONVOLUTIONS, nn.Linear) if linear else _CONVOLUTIONS
    chosen = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, kinds)]
    for path, layer in chosen:
        if parametrize.is_parametrized(layer, "weight"):
            raise UsageError(
                f"normalize_weights: the weight of {path or 'the model'!r} is parametrized already, so nothing was "
                "changed; normalize the other parts one by one, or remove its parametrization first"
            )
    for _, layer in chosen:
        apply(layer)
    return model
