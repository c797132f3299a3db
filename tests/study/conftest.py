"""A small image set that a network learns in seconds: bright squares in one of four corners."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from normlab.data import Dataset, Split
from normlab.study.axes import Cell
from tests.study.processes import STARTED

torch.set_num_threads(1)


def corners(count: int, seed: int) -> Split:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 4
    images = rng.integers(0, 150, (count, 1, 8, 8), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = divmod(int(label), 2)
        image[0, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4] += 90
    return Split(images, labels.astype(np.int64))


def corner_set(train: int = 128) -> Dataset:
    split = corners(train, 1)
    return Dataset(
        name="corners",
        class_names=("a", "b", "c", "d"),
        train=split,
        val=corners(64, 2),
        test=corners(64, 3),
        channel_mean=np.array([split.images.mean() / 255], np.float32),
        channel_std=np.array([split.images.std() / 255], np.float32),
        hash=f"corners-{train}",
    )


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return corner_set()


@pytest.fixture(autouse=True)
def nobody_stays() -> Iterator[None]:
    """Whatever a test started is gone when it ends, however it ends."""
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()
        process.wait()


def make_cell(**changes: Any) -> Cell:
    facts: dict[str, Any] = {
        "norm": "bn",
        "model": "resnet8:width=4",
        "seed": 0,
        "epochs": 2,
        "batch_size": 32,
        "optimizer": "sgd",
        "lr": 0.05,
        "schedule": "constant",
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "dropout": 0.0,
        "augment": "none",
    }
    return Cell(**{**facts, **changes})
