"""The training plan, and the model that it trains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from normlab.errors import UsageError


@dataclass(frozen=True)
class Plan:
    """How a model will be trained.

    `batch_size` is what one process puts through the model at once; `last_batch` the size of an epoch's last
    batch where it is not dropped; `accumulate` batches make one optimizer step; `weight_decay` is what the
    optimizer applies to all parameters, unless it is given itself and says so per group.
    """

    batch_size: int = 32
    last_batch: int | None = None
    accumulate: int = 1
    checkpointing: bool = False
    ddp: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (
            ("--batch-size", self.batch_size),
            ("--last-batch", self.last_batch),
            ("--accumulate", self.accumulate),
        ):
            if value is not None and value < 1:
                raise UsageError(f"{name} {value}: expected 1 or more")
        if self.weight_decay < 0:
            raise UsageError(f"--weight-decay {self.weight_decay}: expected 0 or more")
        if self.last_batch is not None and self.last_batch > self.batch_size:
            raise UsageError(f"--last-batch {self.last_batch}: expected at most --batch-size {self.batch_size}")

    @property
    def smallest(self) -> int:
        """The fewest samples that the model ever sees at once in training."""
        return min(self.batch_size, self.last_batch or self.batch_size)


def load_model(target: str) -> tuple[Any, Any]:
    """The model, and the optimizer where the factory returns (model, optimizer); raises UsageError."""
    import torch

    from normlab.check.subjects import TargetFailure, load
    from normlab.check.subjects.base import guarded

    try:
        found, _, name = load(target)
        made = found if isinstance(found, torch.nn.Module) else guarded(found)
    except TargetFailure as e:
        raise UsageError(f"TARGET {target!r}: the factory {e}") from e
    model, optimizer = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, torch.nn.Module):
        raise UsageError(f"TARGET {target!r}: {name} returned {type(model).__name__}; expected a torch.nn.Module")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise UsageError(
            f"TARGET {target!r}: {name} answered (model, {type(optimizer).__name__}); expected (model, optimizer)"
        )
    return model, optimizer
