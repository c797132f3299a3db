"""When a training ends, and which of its epochs' networks is tested and kept.

Both go by validation accuracy, and of equal ones by the earlier epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

R = TypeVar("R", bound=Mapping[str, Any])


def best_of(epochs: Sequence[R]) -> R:
    """The record of the epoch of the highest validation accuracy, the first of several."""
    return max(epochs, key=_accuracy)


def kept_of(epochs: Sequence[R], best_epoch: object) -> R:
    """The record of the epoch whose network is tested: the last, or with `best_epoch` the best."""
    return best_of(epochs) if best_epoch is True else epochs[-1]


def is_over(epochs: Sequence[Mapping[str, Any]], planned: int, patience: int) -> bool:
    """Whether a training ends here: all planned epochs are done, or the best is `patience` epochs ago."""
    if len(epochs) >= planned:
        return True
    if not patience or not epochs:
        return False
    accuracies = [_accuracy(record) for record in epochs]
    return len(epochs) - 1 - accuracies.index(max(accuracies)) >= patience


def _accuracy(record: Mapping[str, Any]) -> float:
    value = record.get("val_accuracy")
    return float(value) if isinstance(value, int | float) and not math.isnan(value) else -math.inf
