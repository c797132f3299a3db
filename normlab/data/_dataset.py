"""What every reader produces: three splits of uint8 images, with their statistics and their digest."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int64]

Levels = tuple[int, int]
SIXTEEN_BITS: Levels = (0, 65535)

_BLOCK_BYTES = 8 << 20


@dataclass(frozen=True, eq=False)
class Split:
    """Images, uint8 (N, C, H, W), read-only and often memory-mapped, and labels, int64 (N,).

    Indexing `images` with an integer array copies those rows into memory; slicing gives a read-only view.
    """

    images: Pixels
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split({' x '.join(map(str, self.images.shape))})"


@dataclass(frozen=True)
class Copies:
    """Rows of one split and the rows of another that they are copies of, and whether pixel for pixel."""

    of: str
    among: str
    rows: tuple[tuple[int, int, bool], ...]  # row of `of`, row of `among`, exact


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labelled images in three splits, with the statistics of the training split.

    `channel_mean` and `channel_std` are float32 (C,), of the training pixels divided by 255. `hash` is a
    SHA-256 in hexadecimal over pixels, labels and split. `notes` are sentences on what was resized or
    left out; `copies` are images that two splits have; `levels` are the pixels of 16-bit images that became 0 and 255.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    channel_mean: NDArray[np.float32]
    channel_std: NDArray[np.float32]
    hash: str
    notes: tuple[str, ...] = ()
    copies: tuple[Copies, ...] = ()
    levels: Levels = SIXTEEN_BITS

    @property
    def channels(self) -> int:
        return int(self.train.images.shape[1])

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return int(self.train.images.shape[2]), int(self.train.images.shape[3])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __repr__(self) -> str:
        counts = f"train={len(self.train)}, val={len(self.val)}, test={len(self.test)}"
        return f"Dataset({self.name!r}, classes={self.num_classes}, {counts}, shape={self.train.images.shape[1:]})"


def measured(name: str, class_names: tuple[str, ...], splits: dict[str, Split], notes: tuple[str, ...]) -> Dataset:
    """The dataset of these splits, its statistics and digest computed block by block."""
    mean, std = channel_statistics(splits["train"].images)
    return Dataset(name, class_names, splits["train"], splits["val"], splits["test"], mean, std, digest(splits), notes)


def blocks_of(images: Pixels) -> Iterator[Pixels]:
    """Consecutive rows, a few megabytes at a time."""
    rows = max(1, _BLOCK_BYTES // max(1, math.prod(images.shape[1:])))
    for start in range(0, len(images), rows):
        yield images[start : start + rows]


def channel_statistics(images: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and standard deviation of each channel of images / 255, float32 (C,).

    They come from the channel's histogram, so they are exact before the last rounding. A channel that is
    constant gets the standard deviation 1, so that dividing by it is harmless.
    """
    counts = np.zeros((images.shape[1], 256), np.int64)
    for block in blocks_of(images):
        for channel in range(images.shape[1]):
            counts[channel] += np.bincount(block[:, channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    total = counts.sum(1)
    mean = counts @ levels / total
    std = np.sqrt((counts * np.square(levels - mean[:, None])).sum(1) / total)
    std[(counts > 0).sum(1) == 1] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def digest(splits: dict[str, Split]) -> str:
    """SHA-256 over every split's name, shape, labels and pixels, in hexadecimal."""
    sha: Any = hashlib.sha256(b"normlab data 1")
    for name, split in splits.items():
        sha.update(f"{name} {split.images.shape}".encode())
        sha.update(split.labels.astype("<i8").tobytes())
        for block in blocks_of(split.images):
            sha.update(np.ascontiguousarray(block).data)
    return str(sha.hexdigest())
