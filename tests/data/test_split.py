"""The stratified split, the statistics of the training split, the embedded digits, and what an import costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import normlab.data
from normlab.data._dataset import channel_statistics
from normlab.data._source import WHOLE
from normlab.data._split import assign
from normlab.errors import DataError
from tests.data.makers import images


def names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


@given(st.lists(st.integers(3, 60), min_size=2, max_size=6), st.integers(0, 2**32), st.data())
def test_every_image_is_in_one_split_and_every_class_in_every_split(counts, seed, data):
    labels = np.array(data.draw(st.permutations(np.repeat(np.arange(len(counts)), counts).tolist())))
    rows = assign({WHOLE: labels}, {WHOLE: np.ones(len(labels), bool)}, names(len(counts)), seed)
    dealt = {split: own[WHOLE] for split, own in rows.items()}
    assert sorted(np.concatenate(list(dealt.values())).tolist()) == list(range(len(labels)))
    for split, share in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        assert np.all(np.diff(dealt[split]) > 0)
        own = np.bincount(labels[dealt[split]], minlength=len(counts))
        assert np.all(own >= 1)
        assert np.all(np.abs(own - share * np.array(counts)) <= 1.1)


def test_dropped_rows_are_in_no_split():
    labels = np.arange(60) % 3
    keep = np.arange(60) >= 15
    rows = assign({"train": labels, "test": labels}, {"train": keep, "test": ~keep}, names(3), 0)
    assert rows["test"]["test"].tolist() == list(range(15))
    assert sorted(np.concatenate([rows[split]["train"] for split in ("train", "val")])) == list(range(15, 60))
    assert len(rows["val"]["train"]) == 9


def test_a_split_that_is_left_empty_is_an_error():
    labels = np.arange(20) % 2
    everything = np.ones(20, bool)
    with pytest.raises(DataError, match="no usable image in the test part"):
        assign({"train": labels, "test": labels}, {"train": everything, "test": ~everything}, names(2), 0)
    with pytest.raises(DataError, match="no training images, only test and val"):
        assign({"val": labels, "test": labels}, {"val": everything, "test": everything}, names(2), 0)


@pytest.mark.parametrize("shape", [(7, 3, 5, 6), (600, 1, 128, 128)])  # the second is more than one block
def test_channel_statistics_are_those_of_the_scaled_pixels(shape):
    x = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    mean, std = channel_statistics(x)
    assert mean.dtype == std.dtype == np.float32
    scaled = x / 255
    np.testing.assert_allclose(mean, scaled.mean((0, 2, 3)), rtol=1e-7)
    np.testing.assert_allclose(std, scaled.std((0, 2, 3)), rtol=1e-7)


def test_statistics_come_from_the_training_split_only(tmp_path, load):
    x, y = images(40), np.arange(40) % 2
    dark, light = x // 8, x // 8 + 200
    np.savez(tmp_path / "a.npz", x_train=dark, y_train=y, x_val=light, y_val=y, x_test=light, y_test=y)
    data = load(tmp_path / "a.npz")
    np.testing.assert_allclose(data.channel_mean, (dark / 255).mean((0, 2, 3)), rtol=1e-6)
    assert data.channel_mean.max() < 0.1


def test_digits_are_those_of_scikit_learn():
    oracle = pytest.importorskip("sklearn.datasets")
    levels, labels = oracle.load_digits(return_X_y=True)
    with np.load(Path(normlab.data.__file__).with_name("digits.npz")) as ours:
        assert (ours["levels"].reshape(-1, 64) == levels).all()
        assert (ours["labels"] == labels).all()


def test_digits(load, tmp_path):
    data = load("digits")
    assert (data.name, data.class_names, data.channels, data.size) == ("digits", names(10), 1, (8, 8))
    assert (data.num_classes, len(data.train) + len(data.val) + len(data.test)) == (10, 1797)
    found = np.concatenate([split.images[:, 0] for split in (data.train, data.val, data.test)])
    assert len({x.tobytes() for x in found}) == 1797
    assert set(np.unique(found)) == set(np.rint(np.arange(17) * 255 / 16))
    # a cell's key holds this hash: studies of earlier versions go on
    assert data.hash == "2001207a34e0d2c8b07412cce5b35f4ca544d5368884fd8e5ecba425fd5b7450"
    assert load("digits").hash == data.hash != load("digits", seed=1).hash
    assert load("digits", image_size=16).size == (16, 16)
    assert not (tmp_path / "the cache").exists()
    assert repr(data) == "Dataset('digits', classes=10, train=1259, val=269, test=269, shape=(1, 8, 8))"


def test_the_readers_do_not_import_torch():
    code = "import sys, normlab.data; normlab.data.load('digits'); print('torch' in sys.modules, 'PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.split() == ["False", "False"]
