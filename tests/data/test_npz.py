"""NumPy archives: layouts of the axes, pixel types, and every field that can be wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest

from normlab.data import load
from normlab.errors import DataError
from tests.data.makers import images

X, Y = images(40, (6, 5)), np.arange(40) % 4


@pytest.fixture
def save(tmp_path):
    def save(**fields: object):
        np.savez(tmp_path / "set.npz", **fields)
        return tmp_path / "set.npz"

    return save


def test_the_arrays_come_back_as_they_are(save, load):
    test_x, test_y = images(8, (6, 5), seed=1), np.arange(8) % 4
    data = load(save(x_train=X, y_train=Y, x_test=test_x, y_test=test_y))
    assert data.name == "set"
    assert data.class_names == ("0", "1", "2", "3")
    assert (len(data.train), len(data.val), len(data.test)) == (32, 8, 8)
    assert np.array_equal(data.test.images, test_x)
    assert data.test.labels.tolist() == test_y.tolist()
    by_pixels = {x.tobytes(): y for x, y in zip(X, Y, strict=True)}
    assert all(by_pixels[x.tobytes()] == y for x, y in zip(data.train.images, data.train.labels, strict=True))


@pytest.mark.parametrize("kind", [np.uint8, np.float16, np.float32, np.float64, ">f4"])
@pytest.mark.parametrize("axes", ["NCHW", "NHWC", "NHW"])
@pytest.mark.parametrize("compress", [np.savez, np.savez_compressed])
def test_axes_and_pixel_types(tmp_path, load, kind, axes, compress):
    x = {"NCHW": X, "NHWC": X.transpose(0, 2, 3, 1), "NHW": X[:, 0]}[axes]
    x = np.ascontiguousarray(x) if kind == np.uint8 else (x / 255).astype(kind)
    # float16 resolves 1/2048 below 1, so that all 256 levels survive
    compress(tmp_path / "a.npz", x_train=x, y_train=Y[:, None].astype(np.float32))
    expected = X[:, :1] if axes == "NHW" else X
    data = load(tmp_path / "a.npz")
    found = np.concatenate([split.images for split in (data.train, data.val, data.test)])
    assert sorted(x.tobytes() for x in found) == sorted(x.tobytes() for x in expected)


def test_class_names_and_a_validation_split(save, load):
    data = load(
        save(x_train=X, y_train=Y, x_val=X[:8], y_val=Y[:8], x_test=X[8:16], y_test=Y[8:16], class_names=list("abcd"))
    )
    assert data.class_names == ("a", "b", "c", "d")
    assert (len(data.train), len(data.val), len(data.test)) == (40, 8, 8)


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (Y + 1, ("1", "2", "3", "4")),
        (np.eye(4)[Y], ("0", "1", "2", "3")),
        (np.array(list("bdac"))[Y], ("a", "b", "c", "d")),
        (np.array([b"b", b"d", b"a", b"c"])[Y], ("a", "b", "c", "d")),
        (Y[:, None].astype(np.uint8), ("0", "1", "2", "3")),
    ],
)
def test_labels_in_other_forms(save, load, labels, names):
    data = load(save(X=X, y=labels))
    assert data.class_names == names
    order = {"a": 2, "b": 0, "c": 3, "d": 1}
    by_pixels = {x.tobytes(): y for x, y in zip(X, Y, strict=True)}
    for x, label in zip(data.train.images, data.train.labels, strict=True):
        name = names[label]
        assert order.get(name, label) == by_pixels[x.tobytes()]


def test_names_of_splits_in_other_orders(save, load):
    data = load(
        save(train_images=X, train_labels=Y + 1, val_images=X[:8], val_labels=Y[:8] + 1, X_test=X[:4], Y_test=Y[:4] + 1)
    )
    assert (len(data.train), len(data.val), len(data.test)) == (40, 8, 4)
    assert data.test.labels.tolist() == Y[:4].tolist()
    assert load(save(x_train=X, y_train=Y + 1, class_names=list("abcd"))).class_names == tuple("abcd")


def test_arrays_are_resized_when_asked(save, load):
    data = load(save(x_train=np.full((30, 3, 8, 12), 77, np.uint8), y_train=Y[:30]), image_size=4)
    assert data.size == (4, 4)
    assert np.all(data.train.images == 77)
    assert np.all(data.channel_std == 1)  # nothing to divide by in a constant channel


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"x_train": X}, "no field y_train; found x_train"),
        ({"images": X, "labels": Y}, "no field x_train, y_train; found images, labels"),
        ({"x_train": X, "y_train": Y, "y_test": Y}, "no field x_test"),
        ({"x_train": X, "y_train": Y[:-1]}, r"y_train has shape \(39,\); expected one label per image: \(40,\)"),
        ({"x_train": X[:, :2], "y_train": Y}, r"x_train is uint8 \(40, 2, 6, 5\); expected \(N, C, H, W\)"),
        ({"x_train": X[0, 0], "y_train": Y[:6]}, r"x_train is uint8 \(6, 5\); expected"),
        ({"x_train": X[:0], "y_train": Y[:0]}, "no images"),
        ({"x_train": X.astype(np.int64), "y_train": Y}, "x_train is int64 .*expected uint8, or floats in"),
        ({"x_train": X / 254, "y_train": Y}, "x_train rows 0 to 39 range from 0.0 to 1.003"),
        ({"x_train": X / 255 - 0.5, "y_train": Y}, "x_train rows 0 to 39 range from -0.5"),
        ({"x_train": np.where(X == 3, np.nan, X / 255), "y_train": Y}, "range from nan to nan"),
        ({"x_train": np.asfortranarray(X), "y_train": Y}, "Fortran order"),
        ({"x_train": X, "y_train": Y - 1}, r"y_train: 10 of 40 labels are not class numbers(?s:.)*row 0: -1"),
        ({"x_train": X, "y_train": np.where(Y == 2, np.nan, Y)}, r"10 of 40 labels(?s:.)*row 2: nan"),
        ({"x_train": X, "y_train": Y + 0.5}, "40 of 40 labels(?s:.)*and 20 more"),
        ({"x_train": X, "y_train": np.where(Y == 3, 2**40, Y)}, "10 of 40 labels"),
        ({"x_train": X, "y_train": np.where(Y == 3, 10**6, Y)}, "without gaps\n  no image has label 3(?s:.)*more"),
        ({"x_train": X, "y_train": Y.astype("M8[D]")}, "y_train has dtype datetime64"),
        ({"x_train": X, "y_train": np.ones((40, 4))}, r"y_train has shape \(40, 4\)"),
        ({"x_train": X, "y_train": Y, "class_names": ["a", "b"]}, r"20 of 40 labels .*\(0 to 1\)"),
        ({"x_train": X, "y_train": Y * 0}, "only one class, '0'"),
        ({"x_train": X, "y_train": Y, "x_test": X[:, :, :4], "y_test": Y}, r"parts differ .*'x_test': \(3, 4, 5\)"),
        ({"x_train": X[:5], "y_train": Y[:5]}, r"needs at least 3\n  '0': 2\n  '1': 1"),
        ({"x_train": X.astype(object), "y_train": Y}, "x_train holds pickled objects"),
        ({"x_train": X, "y_train": Y.astype(object)}, "y_train holds pickled objects"),
    ],
)
def test_wrong_fields(save, load, fields, message):
    with pytest.raises(DataError, match=message) as caught:
        load(save(**fields))
    assert "set.npz" in str(caught.value)


def test_a_header_that_promises_more_than_the_file_holds(tmp_path, load, save):
    save(x_train=X, y_train=Y)
    with zipfile.ZipFile(tmp_path / "set.npz") as old, zipfile.ZipFile(tmp_path / "short.npz", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b"(40, 3, 6, 5)", b"(90, 3, 6, 5)") if name == "x_train.npy" else data)
    with pytest.raises(DataError, match=r"y_train has shape \(40,\); expected one label per image: \(90,\)"):
        load(tmp_path / "short.npz")
    with zipfile.ZipFile(tmp_path / "set.npz") as old, zipfile.ZipFile(tmp_path / "short.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name)[: -10 if name == "x_train.npy" else None])
    with pytest.raises(DataError, match="x_train is truncated"):
        load(tmp_path / "short.npz")


def test_damaged_files(tmp_path, load, save):
    path = save(x_train=X, y_train=Y)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot read"):
        load(path)
    path.write_bytes(data[:400] + b"\xff" + data[401:])
    with pytest.raises(DataError, match=r"cannot read .*x_train"):
        load(path)


# KeyError: "There is no item named 'x_train.npy' in the archive"
def test_members_that_are_no_arrays_are_none(tmp_path, load):
    with zipfile.ZipFile(tmp_path / "set.npz", "w") as file:
        file.writestr("x_train", b"pixels")
        file.writestr("y_train", b"labels")
    with pytest.raises(DataError, match="no field x_train, y_train; found none"):
        load(tmp_path / "set.npz")


# a folder named digits and the embedded digits were told apart by nothing that anybody said
def test_the_embedded_digits_are_meant_unless_a_path_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("digits").notes == ()
    (tmp_path / "digits").mkdir()
    assert "./digits" in load("digits").notes[0]
    with pytest.raises(DataError, match="digits"):
        load("./digits")  # an empty folder
