"""Parquet in the Hugging Face image layout."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from normlab.errors import DataError
from tests.data.makers import encoded, images, write_folder


def write(path, count=40, classes=4, seed=0, image="img", label="label", nested=True, names=None, changes=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = images(count, seed=seed)
    files = [encoded(x) for x in pixels]
    labels = [i % classes for i in range(count)]
    for row, data in (changes or {}).items():
        files[row] = data
    column = [{"bytes": data, "path": f"{i}.png"} for i, data in enumerate(files)] if nested else files
    table = pa.table({image: column, label: labels})
    if names:
        features = {"info": {"features": {label: {"names": names, "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    pq.write_table(table, path, row_group_size=15)
    return pixels, labels


@pytest.mark.parametrize("label", ["label", "fine_label"])
@pytest.mark.parametrize(("image", "nested"), [("img", True), ("image", True), ("image", False)])
def test_columns(root, load, image, label, nested):
    write(root / "train-00000-of-00002.parquet", image=image, label=label, nested=nested)
    write(root / "train-00001-of-00002.parquet", seed=1, image=image, label=label, nested=nested)
    pixels, labels = write(root / "test-00000-of-00001.parquet", 12, seed=2, image=image, label=label, nested=nested)
    data = load(root)
    assert (len(data.train), len(data.val), len(data.test)) == (64, 16, 12)
    assert np.array_equal(data.test.images, pixels)
    assert data.test.labels.tolist() == labels


def test_a_single_file_is_split(root, load):
    write(root / "train.parquet")
    data = load(root / "train.parquet")
    assert (len(data.train), len(data.val), len(data.test)) == (24, 8, 8)
    assert load(root).hash == data.hash


def test_class_names(tmp_path, load):
    write(tmp_path / "a" / "data" / "train.parquet", names=["ant", "bee", "</script>", "dog"])
    assert load(tmp_path / "a").class_names == ("ant", "bee", "</script>", "dog")
    write(tmp_path / "cifar10" / "train.parquet", classes=10)
    assert load(tmp_path / "cifar10").class_names[:2] == ("airplane", "automobile")
    write(tmp_path / "cifar100" / "train.parquet", classes=10)
    assert load(tmp_path / "cifar100").class_names[:2] == ("0", "1")


@pytest.mark.parametrize("column", ["path", "image"])
def test_paths_and_texts(root, load, column):
    written = write_folder(root / "pictures")
    names = list(written)
    table = pa.table(
        {column: [f"pictures/{name}" for name in names], "label": [name.partition("/")[0] for name in names]}
    )
    pq.write_table(table, root / "list.parquet")
    data = load(root / "list.parquet")
    assert data.class_names == ("cat", "dog")
    for x, y in zip(data.train.images, data.train.labels, strict=True):
        assert any(np.array_equal(x, written[n]) for n in names if n.startswith(data.class_names[y]))
    (root / "pictures" / names[0]).unlink()
    with pytest.raises(DataError, match=r"1 of 20 images cannot be used\n  'list.parquet' row 0: .*No such file"):
        load(root / "list.parquet")


def test_labels_from_1(root, load):
    write(root / "a.parquet")
    table = pq.read_table(root / "a.parquet")
    pq.write_table(table.set_column(1, "label", pa.array([i % 4 + 1 for i in range(40)])), root / "a.parquet")
    assert load(root / "a.parquet").class_names == ("1", "2", "3", "4")


def test_images_stored_as_jpeg_are_said_to_be(tmp_path, load):
    write(tmp_path / "lossless.parquet")
    assert load(tmp_path / "lossless.parquet").notes == ()
    write(tmp_path / "lossy.parquet", changes={row: encoded(x, "JPEG") for row, x in enumerate(images(40))})
    assert "JPEG" in load(tmp_path / "lossy.parquet").notes[0]


def test_bad_rows_are_named_with_their_file(root, load):
    write(root / "train-0.parquet", changes={3: b"no image", 17: encoded(images(1)[0])[:80]})
    write(root / "train-1.parquet", changes={5: None}, seed=1)
    with pytest.raises(DataError) as caught:
        load(root)
    message = str(caught.value)
    assert "3 of 80 images cannot be used" in message
    for where in ("'train-0.parquet' row 3: ", "'train-0.parquet' row 17: ", "'train-1.parquet' row 5: no image bytes"):
        assert f"\n  {where}" in message
    data = load(root, skip_bad=True)
    assert len(data.train) + len(data.val) + len(data.test) == 77


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"picture": [b"x"], "label": [0]}, r"no column one of img, image; found picture \(binary\), label \(int64\)"),
        ({"img": [b"x"], "class": [0]}, "no column one of label, fine_label, labels"),
        ({"img": ["x"], "label": [0]}, "column 'img' is string; expected binary"),
        ({"img": [b"x"], "label": [0.5]}, "column 'label' is double; expected integer"),
        ({"path": ["x.png"], "label": [0]}, "column 'path' is string; expected binary.*there is none of them"),
        ({"img": [b"x", b"y"], "label": [0, None]}, r"1 labels are missing\n  row 1"),
        ({"img": [b"x", b"y"], "label": [0, -1]}, r"column 'label': 1 of 2 labels(?s:.)*row 1: -1"),
        ({"img": [b"x", b"y"], "label": [0, 2]}, "no image has label 1"),
    ],
)
def test_wrong_columns(root, load, columns, message):
    pq.write_table(pa.table(columns), root / "train.parquet")
    with pytest.raises(DataError, match=message) as caught:
        load(root)
    assert "train.parquet" in str(caught.value) or "label" in message


def test_damaged_and_unnamed_files(root, load):
    write(root / "train.parquet")
    data = (root / "train.parquet").read_bytes()
    (root / "extra.parquet").write_bytes(data)
    with pytest.raises(DataError, match=r"these do not(?s:.)*'extra.parquet'"):
        load(root)
    (root / "extra.parquet").unlink()
    for damaged in (data[:-100], data[:100] + bytes(2000) + data[2100:], b"PAR1", b""):
        (root / "train.parquet").write_bytes(damaged)
        with pytest.raises(DataError, match=r"cannot (read 'train.parquet' as Parquet|be used)"):
            load(root)
