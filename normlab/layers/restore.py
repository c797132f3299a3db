"""The way back: the layers that a model had before, and torch's own where it was written with ours.

Code that supports torch's layers only (exporters, converters, attribution) can be given the model then.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.nn import functional

from normlab.kernels.activations import Activation
from normlab.layers import checks, norms, positions
from normlab.layers._torch import BatchNormBase, InstanceNormBase
from normlab.layers.acting import in_torch
from normlab.layers.fuse import straighten
from normlab.layers.recasting import Recast, become, recast
from normlab.layers.swap import turn_back

Model = TypeVar("Model", bound=nn.Module)


def restore_norms(model: Model) -> Model:
    """Put back the layers that `swap_norms` and `fuse_norms` took, and torch's in the place of ours; returns the model.

    In place: the same modules, parameters, buffers, hooks and `state_dict` keys. An addition and an activation that a
    layer of ours was built with become calls of torch's functions behind torch's layer. Warns of layers that torch has
    no counterpart of (batch-instance norm, filter response norm, your own): they stay. Raises UsageError for
    what is no module.
    """
    checks.module("restore_norms", model)
    stays = []
    for name, module in model.named_modules():
        straighten(module)
        if not turn_back(module) and isinstance(module, (norms.Norm, positions.LayerNorm, positions.RMSNorm)):
            stock = _stock(module)
            if stock is None:
                stays.append(f"{name or 'the model'} ({module})")
            else:
                _turn_into(module, stock)
    if stays:
        warnings.warn(f"restore_norms: torch has no such layer, so it stays: {'; '.join(stays)}", stacklevel=2)
    return model


class BatchNorm(BatchNormBase):
    """torch's batch norm for an input of any rank."""

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected at least 2D input (got {input.dim()}D input)")


class InstanceNorm(InstanceNormBase):
    """torch's instance norm for batches of any rank."""

    def forward(self, input: Tensor) -> Tensor:
        return self._apply_instance_norm(input)  # type: ignore[no-any-return, no-untyped-call]


class ChannelNorm(nn.LayerNorm):
    """torch's layer norm over the channels of (N, C, *)."""

    def forward(self, input: Tensor) -> Tensor:
        last = input.movedim(1, -1)
        return functional.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps).movedim(-1, 1)


class Followed(Recast):
    """A layer of torch's with an addition and an activation behind it."""

    _act: Activation | None

    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor:
        y = super().forward(input)  # type: ignore[misc]
        y = y if residual is None else y + residual
        return y if self._act is None else in_torch(self._act)(y)


def _restorer_of_running(kind: type) -> Callable[[Any], nn.Module]:
    return lambda layer: kind(
        layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats, device="meta"
    )


def _group(layer: Any) -> nn.Module:
    groups = layer.options.get("groups", 1)
    return nn.GroupNorm(groups, layer.num_features, layer.eps, layer.affine, device="meta")


def _layer(kind: type) -> Callable[[Any], nn.Module]:
    return lambda layer: kind(layer.normalized_shape, layer.eps, layer.elementwise_affine, device="meta")


_FOR_ANY_RANK: dict[type, Callable[[Any], nn.Module]] = {
    nn.BatchNorm2d: _restorer_of_running(BatchNorm),
    nn.InstanceNorm2d: _restorer_of_running(InstanceNorm),
    nn.GroupNorm: _group,
}
_RANKED = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


def _stock(layer: Any) -> nn.Module | None:
    """torch's layer that computes what one of ours does, on the meta device; None if there is none."""
    if isinstance(layer, positions.ChannelNorm):
        return _layer(ChannelNorm)(layer)
    if isinstance(layer, positions.LayerNorm):
        return _layer(nn.LayerNorm)(layer)
    if isinstance(layer, positions.RMSNorm):
        return _layer(nn.RMSNorm)(layer)
    kind = next((kind for kind in _RANKED if isinstance(layer, kind)), None)
    if kind is not None:
        return _restorer_of_running(kind)(layer)
    named = (layer.entry.stock or "").format(d=2)
    made = _FOR_ANY_RANK.get(norms.factory(named)) if named.startswith("torch.") else None  # type: ignore[call-overload]
    return None if made is None else made(layer)


def _turn_into(layer: nn.Module, stock: nn.Module) -> None:
    """Turn a layer of ours into one of the class of stock, in place."""
    act = getattr(layer, "act", None)
    added = [name for name in vars(layer) if name in _OURS and name not in vars(stock)]
    for name in added:
        vars(layer).pop(name)
    for name in [name for name, b in layer._buffers.items() if b is None and name not in stock._buffers]:
        del layer._buffers[name]
    vars(layer).update({k: v for k, v in vars(stock).items() if k not in vars(layer)})
    become(layer, type(stock))
    if act is not None:
        recast(layer, Followed)
        vars(layer)["_act"] = act


_OURS = {*vars(norms.GroupNorm(1, 1)), *vars(norms.BatchNorm(1)), *vars(norms.InstanceNorm(1))}
