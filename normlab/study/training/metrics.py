"""Classification metrics from labels and predictions, in vectorized NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from normlab.errors import DataError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class ClassificationMetrics:
    """What a set of predictions is worth.

    `micro_f1` pools true and false positives over the classes. In single-label classification each wrong
    prediction is one false positive and one false negative, so micro-F1 *equals* accuracy; it is reported
    because people look for it, not because it says more. `balanced_accuracy` is the mean over the classes that occur of
    the share of each that is named rightly.
    """

    accuracy: float
    micro_f1: float
    macro_f1: float
    per_class_f1: NDArray[np.float64]
    confusion: NDArray[np.int64]
    balanced_accuracy: float


def confusion_matrix(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    """Count how often true class i was called j, as a (num_classes, num_classes) array.

    `labels` and `predictions` are integer arrays of shape (N,) with values in [0, num_classes). Raises
    DataError for other shapes or values.
    """
    truth, called = (
        _as_classes("labels", labels, num_classes),
        _as_classes("predictions", predictions, num_classes),
    )
    if truth.shape != called.shape:
        raise DataError(f"labels and predictions must be equally many, got {truth.size} and {called.size}")
    counts = np.bincount(truth * num_classes + called, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def per_class_f1(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    """F1 of each class, 2 TP / (2 TP + FP + FN), from a (K, K) confusion matrix; shape (K,).

    A class that neither occurs nor is ever predicted has no F1: NaN.
    """
    hits = np.diagonal(confusion).astype(np.float64)
    mentions = confusion.sum(axis=0) + confusion.sum(axis=1)
    return np.divide(2 * hits, mentions, out=np.full(hits.shape, np.nan), where=mentions > 0)


def classification_metrics(labels: ArrayLike, predictions: ArrayLike, num_classes: int) -> ClassificationMetrics:
    """Accuracy, micro-F1, macro-F1, per-class F1 and the confusion matrix of single-label predictions.

    `labels` and `predictions` are integer arrays of shape (N,), N >= 1, with values in [0, num_classes).
    Macro-F1 is the plain mean over the classes that occur in either array, as scikit-learn averages it.
    Raises DataError for empty arrays, other shapes, or values out of range.
    """
    confusion = confusion_matrix(labels, predictions, num_classes)
    total = int(confusion.sum())
    if total == 0:
        raise DataError("labels and predictions are empty; metrics need at least one sample")
    hits = int(np.trace(confusion))
    # One wrong prediction is one false positive and one false negative: 2 TP / (2 TP + FP + FN) = TP / N.
    micro_f1 = 2 * hits / (2 * hits + 2 * (total - hits))
    scores = per_class_f1(confusion)
    truth = confusion.sum(axis=1)
    recall = np.diagonal(confusion)[truth > 0] / truth[truth > 0]
    return ClassificationMetrics(
        hits / total, micro_f1, float(np.nanmean(scores)), scores, confusion, float(recall.mean())
    )


def _as_classes(name: str, values: ArrayLike, num_classes: int) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise DataError(f"{name} must be integers of shape (N,), got {array.dtype} of shape {array.shape}")
    if array.size and not (array.min() >= 0 and array.max() < num_classes):
        raise DataError(f"{name} must lie in [0, {num_classes}), got {array.min()} to {array.max()}")
    return array.astype(np.int64)
