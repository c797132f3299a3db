"""What an accuracy has to beat to mean anything: three baselines that need no network."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normlab.data import Dataset, Split
from normlab.study.verdict import CHANCE, LARGEST, LINEAR

_MOST_TRAIN, _MOST_EVAL = 4000, 2000  # images; more do not move a floor by much
_SIDE = 16  # pixels; larger images are averaged down to about this
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0)  # relative to the variance of a pixel times the number of images

Array = NDArray[np.float64]


def floors(dataset: Dataset) -> dict[str, float]:
    """Accuracies on the test split by name: chance, always the largest class, and a linear classifier on the pixels.

    The largest class is that of the training split. The linear classifier is a ridge regression of the classes on
    standardized pixels, of images averaged down to some 16 x 16, its penalty chosen on the validation split. It is the
    same at every call.
    """
    counts = np.bincount(np.asarray(dataset.train.labels), minlength=dataset.num_classes)
    largest = float(np.mean(np.asarray(dataset.test.labels) == counts.argmax()))
    return {CHANCE: 1 / dataset.num_classes, LARGEST: largest, LINEAR: _linear(dataset)}


def _linear(dataset: Dataset) -> float:
    x, y = _pixels(dataset.train, _MOST_TRAIN)
    mean, std = x.mean(axis=0), x.std(axis=0)
    std[std == 0] = 1.0
    x = (x - mean) / std
    targets = np.eye(dataset.num_classes)[y]
    offset = targets.mean(axis=0)
    products, sums = x.T @ x, x.T @ (targets - offset)

    def right(split: Split, weights: Array) -> float:
        images, labels = _pixels(split, _MOST_EVAL)
        return float(np.mean(((images - mean) / std @ weights + offset).argmax(axis=1) == labels))

    fits = [np.linalg.solve(products + p * len(x) * np.eye(len(products)), sums) for p in _PENALTIES]
    return right(dataset.test, max(fits, key=lambda weights: right(dataset.val, weights)))


def _pixels(split: Split, most: int) -> tuple[Array, NDArray[np.intp]]:
    """So many images of a split, evenly spread over it, as rows of pixels, and their classes."""
    chosen = np.unique(np.linspace(0, len(split) - 1, min(most, len(split))).round().astype(np.intp))
    images = np.asarray(split.images)[chosen].astype(np.float64) / 255
    n, channels, height, width = images.shape
    step = max(1, min(height, width) // _SIDE)
    cut = images[:, :, : height // step * step, : width // step * step]
    small = cut.reshape(n, channels, height // step, step, width // step, step).mean(axis=(3, 5))
    return small.reshape(n, -1), np.asarray(split.labels)[chosen].astype(np.intp)
