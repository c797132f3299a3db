"""The real image sets, where NORMLAB_TEST_DATA names the folder that holds them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.data


def real(name: str) -> Path:
    folder = os.environ.get("NORMLAB_TEST_DATA")
    if not folder:
        pytest.skip("NORMLAB_TEST_DATA does not name a folder with the real image sets")
    path = Path(folder) / name
    if not path.exists():
        pytest.skip(f"NORMLAB_TEST_DATA holds no {name}")
    return path


@pytest.mark.slow
def test_cifar10_in_parquet(load):
    data = load(real("cifar10"))
    assert (len(data.train), len(data.val), len(data.test)) == (40_000, 10_000, 10_000)
    assert (data.class_names[0], data.class_names[-1], data.channels, data.size) == ("airplane", "truck", 3, (32, 32))
    for split, each in ((data.train, 4000), (data.val, 1000), (data.test, 1000)):
        assert np.bincount(split.labels).tolist() == [each] * 10
    # the mean and standard deviation that everybody uses for CIFAR-10; JPEG moves them a little
    np.testing.assert_allclose(data.channel_mean, [0.4914, 0.4822, 0.4465], atol=0.002)
    np.testing.assert_allclose(data.channel_std, [0.2470, 0.2435, 0.2616], atol=0.003)


def test_flowers(load):
    data = load(real("flowers"))
    assert data.class_names == ("daisy", "dandelion", "rose", "sunflower", "tulip")
    assert (data.size, data.channels) == ((128, 128), 3)
    total = np.bincount(np.concatenate([data.train.labels, data.val.labels, data.test.labels]))
    assert total.tolist() == [764, 1052, 784, 733, 984]
    np.testing.assert_allclose(np.bincount(data.train.labels) / total, 0.7, atol=0.002)
    assert load(real("flowers"), image_size=64).size == (64, 64)


def test_exact_cifar10(load):
    path = real("cifar10-exact.npz")
    data = load(path)
    assert (len(data.train), len(data.val), len(data.test)) == (4068, 1017, 1017)
    assert data.class_names[3] == "cat"
    with np.load(path) as arrays:
        assert np.array_equal(data.test.images, arrays["x_test"])
        assert np.array_equal(data.test.labels, arrays["y_test"])
