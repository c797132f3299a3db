"""When a training ends, and which epoch's network is tested."""

from __future__ import annotations

import math
from typing import Any

import pytest

from normlab.study.ending import best_of, is_over, kept_of


def records(*accuracies: float | None) -> list[dict[str, Any]]:
    return [{"epoch": i, "val_accuracy": value} for i, value in enumerate(accuracies, start=1)]


def test_the_best_epoch_is_the_first_of_equal_ones() -> None:
    found = records(0.2, 0.5, 0.5, 0.4)
    assert best_of(found)["epoch"] == 2
    assert kept_of(found, True)["epoch"] == 2
    assert kept_of(found, False)["epoch"] == kept_of(found, None)["epoch"] == 4
    assert best_of(records(math.nan, None, 0.1))["epoch"] == 3


@pytest.mark.parametrize(
    ("accuracies", "patience", "over"),
    [
        ((), 1, False),
        ((0.5,), 1, False),
        ((0.5, 0.4), 1, True),
        ((0.5, 0.5), 1, True),
        ((0.5, 0.4), 2, False),
        ((0.5, 0.4, 0.6), 2, False),
        ((0.5, 0.4, 0.3), 0, False),
        ((0.1, 0.2, 0.3, 0.4), 1, True),  # all that were planned
    ],
)
def test_patience_counts_epochs_since_the_best(accuracies: tuple[float, ...], patience: int, over: bool) -> None:
    assert is_over(records(*accuracies), 4, patience) == over
