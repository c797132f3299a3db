"""Train a network of `normlab.scratch` and record its losses and accuracies, epoch by epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from normlab.reproduce.images import Images
from normlab.scratch.nets import FullyConnectedNet
from normlab.scratch.solver import Solver


@dataclass(frozen=True)
class Curves:
    """Losses by iteration; accuracies before training and after every epoch."""

    loss: list[float]
    train: list[float]
    val: list[float]

    @property
    def best_train(self) -> float:
        return max(self.train)

    @property
    def best_val(self) -> float:
        return max(self.val)

    @property
    def epoch_losses(self) -> list[float]:
        """The loss of the first iteration, then the mean over the iterations of each epoch."""
        each = np.array_split(np.asarray(self.loss), len(self.train) - 1) if len(self.train) > 1 else []
        return [self.loss[0], *(float(part.mean()) for part in each)]

    def records(self, **labels: Any) -> list[dict[str, Any]]:
        """A record an epoch."""
        return [
            {**labels, "epoch": epoch, "train_accuracy": train, "val_accuracy": val, "loss": loss}
            for epoch, (train, val, loss) in enumerate(zip(self.train, self.val, self.epoch_losses, strict=True))
        ]


def fully_connected(images: Images, hidden_dims: Sequence[int], **settings: Any) -> Callable[..., Any]:
    """A `FullyConnectedNet` for these images, but for its `rng`."""
    return partial(FullyConnectedNet, hidden_dims, images.X_train[0].size, images.num_classes, **settings)


def train(build: Callable[..., Any], images: Images, seed: int, *, rule: str, lr: float, **settings: Any) -> Curves:
    """Trains `build(rng=...)`; weights, batches and dropout all come from the seed."""
    rng = np.random.RandomState(seed)
    solver = Solver(
        build(rng=rng),
        images.as_data(),
        update_rule=rule,
        optim_config={"learning_rate": lr},
        verbose=False,
        rng=rng,
        **settings,
    )
    with np.errstate(over="ignore", invalid="ignore"):  # training may diverge; the curves then say so
        solver.train()
    return Curves(solver.loss_history, solver.train_acc_history, solver.val_acc_history)
