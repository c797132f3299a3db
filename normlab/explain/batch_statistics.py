"""Why a batch size hurts batch norm: the loss under three kinds of statistics.

A network with batch norm is trained on statistics of its own small batches and used on running averages of
them. Evaluating one trained network three ways takes the loss apart:

- *batch*: statistics of each evaluation batch, of the size trained with. Against the next, this costs the
  noise of few samples.
- *recomputed*: the mean over the training set with the final weights. What the network could do.
- *running*: the averages kept during training. Against the one before, this costs the mismatch between
  training and evaluation.

Recomputing is Wu & Johnson 2021, *Rethinking "Batch" in BatchNorm* (arXiv:2105.07576), section 3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from normlab.errors import UsageError


@dataclass(frozen=True)
class ThreeWays:
    """Mean cross entropy and accuracy of one network under the three kinds of statistics."""

    batch_size: int
    loss: dict[str, float]
    accuracy: dict[str, float]

    @property
    def noise(self) -> float:
        """What a batch's own statistics cost against those of the training set, in loss."""
        return self.loss["batch"] - self.loss["recomputed"]

    @property
    def mismatch(self) -> float:
        """What the running averages cost against those of the training set, in loss."""
        return self.loss["running"] - self.loss["recomputed"]


def three_ways(
    model: nn.Module,
    training: Callable[[], list[Tensor]],
    images: Tensor,
    labels: Tensor,
    batch_size: int,
) -> ThreeWays:
    """Evaluate `model` on standardized images (N, C, H, W) and labels (N,) under the three kinds of statistics.

    `training` yields the batches of standardized training images to recompute from. The model is copied, not
    touched. Raises UsageError for a model without running statistics, or a batch size below 2.
    """
    if not statistics_layers(model):
        raise UsageError("the model keeps no running statistics, so there is nothing to take apart")
    if batch_size < 2:
        raise UsageError(f"batch_size must be at least 2 for statistics of a batch, got {batch_size}")
    results = {
        "running": _evaluate(copy.deepcopy(model).eval(), images, labels, 250),
        "recomputed": _evaluate(recomputed(model, training()), images, labels, 250),
        "batch": _evaluate(_on_batches(model), images, labels, batch_size),
    }
    return ThreeWays(
        batch_size,
        {name: loss for name, (loss, _) in results.items()},
        {name: accuracy for name, (_, accuracy) in results.items()},
    )


def statistics_layers(model: nn.Module) -> list[nn.Module]:
    """The layers that keep running statistics."""
    return [module for module in model.modules() if isinstance(getattr(module, "running_mean", None), Tensor)]


def recomputed(model: nn.Module, batches: list[Tensor]) -> nn.Module:
    """A copy of `model`, in evaluation mode, whose running statistics are the plain average over `batches`."""
    answer = copy.deepcopy(model).eval()
    layers = statistics_layers(answer)
    for layer in layers:
        layer.reset_running_stats()  # type: ignore[operator]
        layer.momentum = None  # type: ignore[assignment]
        layer.train()
    with torch.no_grad():
        for batch in batches:
            answer(batch)
    return answer.eval()


def _on_batches(model: nn.Module) -> nn.Module:
    """A copy of `model` that normalizes with each batch's own statistics."""
    answer = copy.deepcopy(model).eval()
    for layer in statistics_layers(answer):
        layer.train()
    return answer


def _evaluate(model: nn.Module, images: Tensor, labels: Tensor, batch: int) -> tuple[float, float]:
    loss, hits, seen = 0.0, 0, 0
    with torch.no_grad():
        for start in range(0, len(images), batch):
            x, y = images[start : start + batch], labels[start : start + batch]
            if len(x) < min(batch, len(images)):
                break  # a short last batch would have statistics of another size
            logits = model(x)
            loss += float(functional.cross_entropy(logits, y, reduction="sum"))
            hits += int((logits.argmax(1) == y).sum())
            seen += len(x)
    return loss / np.float64(seen), hits / seen
