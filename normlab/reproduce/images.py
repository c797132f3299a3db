"""Images as the teaching experiments have them: the first ones in the source's order, the mean image taken off."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from normlab import data

# SHA-256 of the first 1,000 training images of CIFAR-10, uint8 (1000, 3, 32, 32)
_ORIGINAL = "29afc5d98b6b245b6205dadfe60b5574e777abc30e0de91e95a288ef54435f58"
_ORIGINAL_COUNT = 1000
_BLOCKS = 200  # of 256 images: as much of a source as is read


@dataclass(frozen=True)
class Images:
    """Training and validation images, float32 (N, C, H, W) from 0 to 255 less the mean image, and labels.

    `original` says that the first 1,000 are the very images of the reported experiments.
    """

    X_train: np.ndarray
    y_train: np.ndarray
    X_val: np.ndarray
    y_val: np.ndarray
    num_classes: int
    name: str
    original: bool

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.X_train.shape[1:])

    def describe(self) -> str:
        size = " x ".join(map(str, self.shape))
        text = f"{self.name}: {len(self.X_train)} training and {len(self.X_val)} validation images of {size}"
        return text + (", the original ones" if self.original else ", not the images of the report")

    @property
    def scale(self) -> str:
        """How these images depart from those of the reports; empty if they are the same."""
        return "" if self.original else f"on {self.name.partition(' (')[0]}"

    def as_data(self) -> dict[str, np.ndarray]:
        """The data as `normlab.scratch.solver.Solver` takes them."""
        return {name: getattr(self, name) for name in ("X_train", "y_train", "X_val", "y_val")}


def load_images(source: str | None, train: int, val: int) -> Images:
    """The first `train` and the last `val` of the training images, of the embedded digits without a source.

    Fewer if there are not so many: validation takes at most a fifth. The mean image is that of all training images
    but the validation ones. Raises what `normlab.data.load` raises.
    """
    dataset = data.load("digits" if source is None else source)
    images, labels = _in_source_order(source, dataset)
    val = min(val, len(images) // 5)
    rest = len(images) - val
    train = min(train, rest)
    mean = images[:rest].mean(0, dtype=np.float64).astype(np.float32)
    name = "the digits that come with normlab (no --data was named)" if source is None else dataset.name
    return Images(
        X_train=images[:train].astype(np.float32) - mean,
        y_train=labels[:train],
        X_val=images[rest:].astype(np.float32) - mean,
        y_val=labels[rest:],
        num_classes=dataset.num_classes,
        name=name,
        original=hashlib.sha256(images[:_ORIGINAL_COUNT].tobytes()).hexdigest() == _ORIGINAL,
    )


def _in_source_order(source: str | None, dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """The training images in the order of the source, where it holds plain arrays; else in that of the split."""
    from normlab.data._load import _open

    if source is not None:
        part = _open(Path(source).expanduser()).parts.get("train")
        first = None if part is None else next(part.blocks(), None)
        if part is not None and isinstance(first, np.ndarray):
            blocks = [np.asarray(block, np.uint8) for block in islice(part.blocks(), _BLOCKS)]
            images = np.concatenate(blocks)
            return images, part.labels[: len(images)]
    images = np.concatenate([dataset.train.images, dataset.val.images])
    return images, np.concatenate([dataset.train.labels, dataset.val.labels])
