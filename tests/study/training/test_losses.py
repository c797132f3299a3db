"""What the loss of a training counts: classes by their weights, and images in pairs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from normlab.data import Dataset, Split
from normlab.study.training.cell import Training, balanced_weights, train_cell
from tests.study.conftest import corner_set, make_cell


def uneven() -> Dataset:
    whole = corner_set()
    rows = np.flatnonzero((whole.train.labels != 3) | (np.arange(len(whole.train)) < 16))
    return replace(whole, train=Split(whole.train.images[rows].copy(), whole.train.labels[rows]), hash="uneven")


def test_classes_count_alike() -> None:
    dataset = uneven()
    weights = balanced_weights(dataset, torch.device("cpu"))
    counts = np.bincount(dataset.train.labels)
    np.testing.assert_allclose(weights.numpy() * counts, len(dataset.train) / 4, rtol=1e-6)
    training = Training(make_cell(class_weights="balanced"), dataset)
    logits, labels = torch.randn(6, 4), torch.tensor([0, 1, 2, 3, 3, 0])
    assert torch.equal(training.loss(logits, labels), functional.cross_entropy(logits, labels, weights))
    assert Training(make_cell(), dataset).class_weights is None


def test_images_are_mixed_in_pairs(dataset: Dataset) -> None:
    training = Training(make_cell(mixup=0.4), dataset)
    images, labels = training.train_feed[np.arange(32)]
    mixed, shares = training.mixed(images, labels, 1)
    assert mixed.dtype == torch.uint8
    torch.testing.assert_close(shares.sum(1), torch.ones(32))
    # every image is a mixture of itself and one other, in the shares of their classes
    own = shares[torch.arange(32), labels]
    share = float(own.min())
    close = [
        [bool((share * a.float() + (1 - share) * b.float() - m.float()).abs().max() <= 0.51) for b in images]
        for a, m in zip(images, mixed, strict=True)
    ]
    assert all(any(row) for row in close)
    again, _ = training.mixed(images, labels, 1)
    assert torch.equal(again, mixed)
    assert not torch.equal(training.mixed(images, labels, 2)[0], mixed)


@pytest.mark.parametrize("changes", [{"mixup": 0.2, "label_smoothing": 0.1}, {"class_weights": "balanced"}])
def test_they_train(changes: dict[str, object]) -> None:
    outcome = train_cell(make_cell(epochs=6, **changes), uneven())
    assert outcome.test is not None
    assert outcome.test["accuracy"] > 0.6
    assert outcome.test["balanced_accuracy"] > 0.5
    assert make_cell(**changes).key("d") != make_cell().key("d")
