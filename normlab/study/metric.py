"""What norms are compared by: a figure of the test split, and the same of validation for what is chosen before.

Every metric lies in [0, 1], more is better, and a difference is in percentage points. The loss is compared as
exp(-loss): the geometric mean of the probability that the network gave to the right class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from normlab.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """One way to compare: `column` is the recorded figure without its split, `title` what a verdict calls it."""

    column: str
    title: str

    def of(self, record: Mapping[str, Any], split: str = "") -> float:
        """The metric's value in a record, whose names begin with the split where there is one; NaN for none."""
        value = record.get(f"{split}_{self.column}" if split else self.column)
        if not isinstance(value, int | float | np.number) or isinstance(value, bool):
            return math.nan
        return math.exp(-float(value)) if self.column == "loss" else float(value)


METRICS = {
    "accuracy": Metric("accuracy", "test accuracy"),
    "macro-f1": Metric("macro_f1", "test macro-F1"),
    "balanced-accuracy": Metric("balanced_accuracy", "balanced test accuracy"),
    "loss": Metric("loss", "mean test likelihood"),
}
DEFAULT = "accuracy"


def metric_named(name: str) -> Metric:
    """The metric of a name. Raises UsageError for one that there is not."""
    if name not in METRICS:
        raise UsageError(f"--metric {name!r} is not known; expected one of: {', '.join(METRICS)}")
    return METRICS[name]


def metric_of(facts: Mapping[str, Any]) -> Metric:
    """The metric that the facts of a study name; accuracy where they name none."""
    return metric_named(str(facts.get("metric", DEFAULT)))
