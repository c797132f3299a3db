"""Running statistics that stay as they are, also in training, and statistics taken anew on other images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normlab.errors import UsageError
from normlab.layers import checks
from normlab.layers._torch import BatchNormBase
from normlab.layers.images import Images, batches, given_to
from normlab.layers.modes import in_mode
from normlab.layers.recasting import Recast, recast, undo

Model = TypeVar("Model", bound=nn.Module)


class Frozen(Recast):
    """A layer with running statistics that stays in evaluation mode."""

    training: bool
    _had_gradients: dict[str, bool]

    def train(self, mode: bool = True) -> Any:
        return super().train(False)  # type: ignore[misc]


def freeze(model: Model, *, affine: bool = False) -> Model:
    """Have every batch norm use its running statistics in training too, in place; returns the model.

    So does every other norm of the family that pools over the batch. Left as they are: instance norms that keep
    statistics, EvoNorm-B0, and norms of other libraries that are no subclass of torch's batch norm. The statistics
    survive `model.train()` and copying, and are not updated. With `affine` weight and bias get no gradient either.
    A strong baseline for fine-tuning with small batches. `unfreeze` is the way back. Raises UsageError if the model has
    no such norm.
    """
    for layer in _running_layers(model, "freeze"):
        if not isinstance(layer, Frozen):
            recast(layer, Frozen)
            vars(layer)["_had_gradients"] = {name: p.requires_grad for name, p in _affine(layer)}
        layer.eval()
        if affine:
            for _, p in _affine(layer):
                p.requires_grad_(False)
    return model


def unfreeze(model: Model) -> Model:
    """Undo `freeze`, in place; returns the model. Call `model.train()` afterwards.

    Raises UsageError for what is no module.
    """
    checks.module("unfreeze", model)
    for layer in model.modules():
        if isinstance(layer, Frozen):
            had = vars(layer).pop("_had_gradients")
            for name, p in _affine(layer):
                p.requires_grad_(had.get(name, p.requires_grad))
            undo(layer, Frozen)
    return model


def _affine(layer: Any) -> Iterator[tuple[str, nn.Parameter]]:
    """Weight and bias, or what they are computed from, each by the name of the one that it stands for."""
    yield from layer.named_parameters(recurse=False)
    if parametrize.is_parametrized(layer):
        for name, held in layer.parametrizations.items():
            yield from ((name, p) for p in held.parameters(recurse=False))


def recalibrate(model: Model, images: Images) -> Model:
    """Take the running statistics of every batch norm anew on these images, in place; returns the model.

    The norms are those of `freeze`, frozen ones included. Their statistics become the averages over the batches (Li et
    al. 2016, arXiv:1603.04779: adapted to the domain of the images); everything else of the model is in evaluation mode
    meanwhile. `images` are a batch or batches of inputs as the model takes them, (N, C, H, W), with or without labels.
    Raises UsageError if the model has no such norm or there are no images; if that fails, or the model does, the
    statistics are what they were.
    """
    layers = _running_layers(model, "recalibrate")
    before = [(held, held.clone()) for layer in layers for held in _statistics(layer)]
    momenta = [layer.momentum for layer in layers]
    uncounted = [layer for layer in layers if layer.num_batches_tracked is None]
    try:
        with in_mode(model, False), torch.no_grad():
            for layer in uncounted:
                layer.num_batches_tracked = torch.tensor(0, device=layer.running_mean.device)
            for layer in layers:
                layer.reset_running_stats()
                layer.momentum = None  # an average of all batches
                layer.training = True
            count = 0
            for batch in batches(images, "recalibrate: images"):
                with given_to(model, "recalibrate", "the images"):
                    model(batch)
                count += 1
        if not count:
            raise UsageError("recalibrate: there are no images; expected at least one batch of them")
    except BaseException:
        for held, value in before:
            held.copy_(value)
        raise
    finally:
        for layer in uncounted:
            layer.num_batches_tracked = None
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    return model


def _statistics(layer: Any) -> list[Tensor]:
    held = (layer.running_mean, layer.running_var, layer.num_batches_tracked)
    return [v for v in held if v is not None]


def _running_layers(model: nn.Module, what: str) -> list[Any]:
    checks.module(what, model)
    found = [m for m in model.modules() if isinstance(m, BatchNormBase) and m.running_mean is not None]
    if not found:
        raise UsageError(f"{what}: this model has no norm with running statistics, as batch norm has")
    return found
