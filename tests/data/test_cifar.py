"""CIFAR in its four official layouts, and pickles that ask for more than arrays."""

from __future__ import annotations

import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from normlab.data._pickles import load_plain
from normlab.errors import DataError
from tests.data.makers import Python2Pickle, images

EACH = 20
TEN = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def batch(seed: int, classes: int) -> tuple[np.ndarray, list[int]]:
    labels = [i % classes for i in range(EACH)]
    return images(EACH, (32, 32), seed=seed).reshape(EACH, -1), labels


def python2(value: object) -> bytes:
    return Python2Pickle().dump(value)


PICKLERS = {"python 2": python2, **{f"protocol {n}": lambda v, n=n: pickle.dumps(v, n) for n in (2, 4, 5)}}


def write_cifar10(root: Path, dump=python2) -> Path:
    root = root / "cifar-10-batches-py"
    root.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        data, labels = batch(i, 10)
        fields = {"batch_label": name, "labels": labels, "data": data, "filenames": [f"{k}.png" for k in labels]}
        (root / name).write_bytes(dump(fields))
    (root / "batches.meta").write_bytes(dump({"num_cases_per_batch": EACH, "label_names": TEN, "num_vis": 3072}))
    (root / "readme.html").write_text("")
    return root


def write_cifar10_binary(root: Path) -> Path:
    root = root / "cifar-10-batches-bin"
    root.mkdir()
    for i, name in enumerate([*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]):
        data, labels = batch(i, 10)
        (root / name).write_bytes(np.column_stack([np.array(labels, np.uint8), data]).tobytes())
    (root / "batches.meta.txt").write_text("\n".join(TEN) + "\n\n")
    return root


def write_cifar100(root: Path, binary: bool) -> Path:
    root = root / "cifar-100"
    root.mkdir()
    for i, name in enumerate(("train", "test")):
        data, labels = batch(i, 4)
        if binary:
            columns = [np.full(EACH, 9, np.uint8), np.array(labels, np.uint8), data]
            (root / f"{name}.bin").write_bytes(np.column_stack(columns).tobytes())
        else:
            (root / name).write_bytes(python2({"data": data, "coarse_labels": [9] * EACH, "fine_labels": labels}))
    fine = ["apple", "aquarium_fish", "baby", "bear"]
    if binary:
        (root / "fine_label_names.txt").write_text("\n".join(fine) + "\n")
        (root / "coarse_label_names.txt").write_text("food\n")
    else:
        (root / "meta").write_bytes(python2({"fine_label_names": fine, "coarse_label_names": ["food"]}))
    return root


@pytest.mark.parametrize("dump", PICKLERS.values(), ids=PICKLERS)
def test_cifar10_pickles_of_any_python(tmp_path, load, dump):
    data = load(write_cifar10(tmp_path, dump))
    assert data.class_names == tuple(TEN)
    assert (len(data.train), len(data.val), len(data.test)) == (80, 20, 20)
    pixels, labels = batch(5, 10)
    assert np.array_equal(data.test.images.reshape(EACH, -1), pixels)
    assert data.test.labels.tolist() == labels
    everything = {row.tobytes() for split in (data.train, data.val) for row in split.images}
    assert everything == {row.tobytes() for i in range(5) for row in batch(i, 10)[0]}


def test_the_layouts_and_their_archives_agree(tmp_path, load):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    pickled = write_cifar10(tmp_path / "a")
    binary = write_cifar10_binary(tmp_path / "b")
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(pickled, pickled.name)
    expected = load(pickled)
    assert load(binary).hash == expected.hash
    assert load(binary).class_names == expected.class_names
    packed = load(tmp_path / "cifar-10-python.tar.gz")
    assert (packed.hash, packed.name) == (expected.hash, "cifar-10-python")
    assert load(tmp_path / "a").hash == expected.hash  # the folder around the official one


@pytest.mark.parametrize("binary", [False, True])
def test_cifar100_uses_the_fine_labels(tmp_path, load, binary):
    data = load(write_cifar100(tmp_path, binary))
    assert data.class_names == ("apple", "aquarium_fish", "baby", "bear")
    assert data.test.labels.tolist() == batch(1, 4)[1]
    assert np.array_equal(data.test.images.reshape(EACH, -1), batch(1, 4)[0])


def test_missing_batches_are_all_named(tmp_path, load):
    root = write_cifar10(tmp_path)
    (root / "data_batch_2").unlink()
    (root / "test_batch").unlink()
    with pytest.raises(DataError, match=r"missing\n  'data_batch_2'\n  'test_batch'"):
        load(root)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": images(4, (32, 32)).reshape(4, -1)}, r"'data_batch_3' has no field 'labels'; found \['data'\]"),
        ({"data": images(4).reshape(4, -1), "labels": [0] * 4}, r"'data' is uint8 \(4, 192\); expected uint8 \(N, 307"),
        ({"data": b"pixels", "labels": [0]}, "'data' is bytes"),
        ({"data": images(4, (32, 32)).reshape(4, -1), "labels": [0] * 3}, r"'labels' has shape \(3,\); .* \(4,\)"),
        (
            {"data": images(2, (32, 32)).reshape(2, -1), "labels": [10, -1]},
            r"2 of 2 labels(?s:.)*row 0: 10\n  row 1: -1",
        ),
        ({"data": images(1, (32, 32)).reshape(1, -1), "labels": ["cat"]}, "something else than integers"),
        (["data"], "a list instead of a dictionary"),
    ],
)
def test_a_batch_with_wrong_fields(tmp_path, load, fields, message):
    root = write_cifar10(tmp_path)
    (root / "data_batch_3").write_bytes(python2(fields))
    with pytest.raises(DataError, match=message):
        load(root)


def test_binary_files_of_a_wrong_length_or_with_wrong_labels(tmp_path, load):
    root = write_cifar10_binary(tmp_path)
    (root / "data_batch_4.bin").write_bytes(bytes(3072))
    with pytest.raises(DataError, match=r"'data_batch_4.bin' has 3072 bytes; expected a multiple of 3073"):
        load(root)
    (root / "data_batch_4.bin").write_bytes(b"\x0b" + bytes(3072))
    with pytest.raises(DataError, match="row 0: 11"):
        load(root)


class Touch:
    """Unpickled by an ordinary unpickler, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path, load):
    root = write_cifar10(tmp_path)
    for protocol in range(6):
        evil = pickle.dumps({"data": Touch(tmp_path / "owned"), "labels": []}, protocol)
        (root / "data_batch_1").write_bytes(evil)
        with pytest.raises(DataError, match=r"'data_batch_1' is refused: .*'posix.mkdir'.*malicious"):
            load(root)
        assert not (tmp_path / "owned").exists()
    pickle.loads(evil)  # the bait is real
    assert (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "evil",
    [
        b"\x80\x02cbuiltins\neval\nU\x011\x85R.",
        b"\x80\x02cnumpy\nload\nU\x01x\x85R.",
        b"\x80\x02cnumpy.core.multiarray\nfromstring\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x14ndarray.__reduce_ex__\x93.",  # dotted names reach attributes
        python2({"data": np.zeros(2, np.uint64)}).replace(b"U\x02u8", b"U\x02O8"),
        b"\x80\x02}r\xff\xff\xff\x7f.",  # a memo of two thousand million places
        b"\x80\x02}r\x00\x00\x00\x01.",  # and one that would fit
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.",  # a bytearray of a thousand gigabytes
        b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00xX\x04\x00\x00\x00zlib\x86R.",
        b"\x80\x02\x82\x01.",
        b"Pcat /etc/passwd\n.",
        b"",
        b"(" * 1000,
    ],
)
def test_hostile_streams(evil):
    with pytest.raises(DataError, match=r"'it' is (refused|not a pickle)"):
        load_plain(evil, "'it'")


def test_an_array_whose_bytes_are_missing():
    good = python2({"data": np.arange(4, dtype=np.uint8)})
    assert load_plain(good, "it")["data"].tolist() == [0, 1, 2, 3]
    for shape in (5, 2**31 - 1, -4):
        evil = good.replace(b"K\x01(J" + struct.pack("<i", 4), b"K\x01(J" + struct.pack("<i", shape))
        assert evil != good
        with pytest.raises(DataError, match="'it' is not a pickle"):
            load_plain(evil, "'it'")


@given(st.data())
def test_a_damaged_pickle_gives_data_or_a_data_error(data):
    good = bytearray(pickle.dumps({"data": np.zeros((2, 3), np.uint8), "labels": [1, 2]}, data.draw(st.integers(0, 5))))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    try:
        loaded = load_plain(bytes(good), "it")
    except DataError:
        return
    assert isinstance(loaded, dict)
