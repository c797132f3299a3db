"""What needs no network, against counting and scikit-learn."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from normlab.data import load
from normlab.study.floors import floors


def test_the_floors_of_the_digits() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    data = load("digits")
    found = floors(data)
    assert found["chance"] == pytest.approx(0.1)
    labels = np.asarray(data.train.labels)
    largest = np.bincount(labels).argmax()
    assert found["largest class"] == pytest.approx(np.mean(np.asarray(data.test.labels) == largest))
    x, test = (np.asarray(split.images).reshape(len(split), -1) / 255 for split in (data.train, data.test))
    theirs = linear_model.RidgeClassifier(10.0).fit(x, labels).score(test, np.asarray(data.test.labels))
    assert found["linear classifier"] == pytest.approx(theirs, abs=0.03)
    assert floors(data) == found


def test_an_uneven_split_has_a_floor_above_chance() -> None:
    data = load("digits")
    few = np.flatnonzero((np.asarray(data.test.labels) == 3) | (np.asarray(data.test.labels) == 4))
    test = dataclasses.replace(data.test, images=data.test.images[few], labels=data.test.labels[few])
    labels = np.where(np.asarray(data.train.labels) < 8, 3, data.train.labels).astype(data.train.labels.dtype)
    train = dataclasses.replace(data.train, labels=labels)
    found = floors(dataclasses.replace(data, train=train, test=test))
    assert found["largest class"] == pytest.approx(np.mean(np.asarray(test.labels) == 3))
