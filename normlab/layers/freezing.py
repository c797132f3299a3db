"""Running statistics that stay as they are, also in training, and statistics taken anew on other images."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from normlab.errors import UsageError
from normlab.layers._torch import BatchNormBase
from normlab.layers.recasting import Recast, recast, undo

Model = TypeVar("Model", bound=nn.Module)


class Frozen(Recast):
    """A layer with running statistics that stays in evaluation mode."""

    training: bool
    _had_gradients: list[tuple[str, bool]]

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


def freeze(model: Model, *, affine: bool = False) -> Model:
    """Have every norm with running statistics use them in training too, in place; returns the model.

    They survive `model.train()` and copying, and are not updated. With `affine` weight and bias get no gradient either.
    A strong baseline for fine-tuning with small batches. `unfreeze` is the way back. Raises UsageError if the model has
    no such norm.
    """
    for layer in _running(model, "freeze"):
        if not isinstance(layer, Frozen):
            recast(layer, Frozen)
            had = [(name, p.requires_grad) for name, p in layer.named_parameters(recurse=False)]
            vars(layer)["_had_gradients"] = had
        layer.eval()
        if affine:
            for p in layer.parameters(recurse=False):
                p.requires_grad_(False)
    return model


def unfreeze(model: Model) -> Model:
    """Undo `freeze`, in place; returns the model. Call `model.train()` afterwards."""
    for layer in model.modules():
        if isinstance(layer, Frozen):
            for name, had in vars(layer).pop("_had_gradients"):
                layer.get_parameter(name).requires_grad_(had)
            undo(layer)
    return model


def recalibrate(model: Model, images: Tensor | Iterable[Any]) -> Model:
    """Take the running statistics of every norm anew on these images, in place; returns the model.

    They become the averages over the batches (Li et al. 2016, arXiv:1603.04779: adapted to the domain of the images);
    everything else of the model is in evaluation mode meanwhile. `images` are a batch or batches of inputs as the model
    takes them, (N, C, H, W), with or without labels. Raises UsageError if the model has no such norm or there are no
    images.
    """
    layers = _running(model, "recalibrate")
    modes = {module: module.training for module in model.modules()}
    momenta = [layer.momentum for layer in layers]
    model.eval()
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # an average of all batches
        layer.training = True
    try:
        count = 0
        with torch.no_grad():
            for batch in [images] if isinstance(images, Tensor) else images:
                model(batch[0] if isinstance(batch, tuple | list) else batch)
                count += 1
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, mode in modes.items():
            module.training = mode
    if not count:
        raise UsageError("recalibrate: there are no images; expected at least one batch of them")
    return model


def _running(model: nn.Module, what: str) -> list[Any]:
    found = [m for m in model.modules() if isinstance(m, BatchNormBase) and m.running_mean is not None]
    if not found:
        raise UsageError(f"{what}: this model has no norm with running statistics, as batch norm has")
    return found
