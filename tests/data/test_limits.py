"""Small files that hold more than anybody has, and the flag that lets them pass."""

from __future__ import annotations

import io
import os
import socket
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from normlab.data import _limits, _pixels
from normlab.errors import DataError
from tests.data.makers import encoded, images, write_folder


def zip_bomb(path: Path) -> Path:
    path = path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"a/{number}.png", bytes(1 << 20))
    return path


def tar_bomb(path: Path) -> Path:
    path = path / "bomb.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for number in range(3):
            info = tarfile.TarInfo(f"a/{number}.png")
            info.size = 1 << 20
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    return path


def npz_bomb(path: Path) -> Path:
    path = path / "bomb.npz"
    np.savez_compressed(path, x_train=np.zeros((1000, 32, 32), np.uint8), y_train=np.arange(1000) % 2)
    return path


# A zip bomb of 1 MB, and a Parquet file of 684 KB with 10^8 rows, took minutes and gigabytes.
@pytest.mark.parametrize("make", [zip_bomb, tar_bomb, npz_bomb])
def test_what_unpacks_like_a_bomb_is_refused(make, tmp_path, load, monkeypatch):
    monkeypatch.setattr(_limits, "MOST_UNPACKED", 1 << 19)
    path = make(tmp_path)
    with pytest.raises(DataError, match="--no-limits"):
        load(path)
    if make is npz_bomb:
        assert len(load(path, no_limits=True).class_names) == 2
    else:
        with pytest.raises(DataError, match=r"class|images"):
            load(path, no_limits=True)


@pytest.mark.parametrize("kind", ["npz", "csv", "parquet"])
def test_rows_that_nobody_has_are_refused(kind, tmp_path, load, monkeypatch):
    monkeypatch.setattr(_limits, "MOST_ROWS", 30)
    monkeypatch.setattr("normlab.data._table.MOST_ROWS", 30)
    x, y = images(40), np.arange(40) % 2
    path = tmp_path / f"many.{kind}"
    if kind == "npz":
        np.savez(path, x_train=x, y_train=y)
    elif kind == "csv":
        for number, image in enumerate(x):
            (tmp_path / f"{number}.png").write_bytes(encoded(image))
        path.write_text("path,label\n" + "".join(f"{n}.png,{label}\n" for n, label in enumerate(y)))
    else:
        pa = pytest.importorskip("pyarrow")
        import pyarrow.parquet as pq

        pq.write_table(pa.table({"image": [encoded(image) for image in x], "label": y}), path)
    with pytest.raises(DataError, match="rows, more than 30"):
        load(path)
    data = load(path, no_limits=True)
    assert sum(map(len, (data.train, data.val, data.test))) == 40


def test_folders_that_nobody_nests_are_refused(root, tmp_path, load):
    write_folder(root)
    deep = root.joinpath(*["d"] * 70)
    deep.mkdir(parents=True)
    with pytest.raises(DataError, match="folders deep"):
        load(root)
    archive = tmp_path / "deep.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("d/" * 70 + "a/1.png", encoded(images(1)[0]))
    with pytest.raises(DataError, match="71 folders deep"):
        load(archive)


def test_a_large_image_is_decoded_alone(root, load, monkeypatch):
    write_folder(root)
    before = load(root).hash
    monkeypatch.setattr(_pixels, "_LARGE", 0)
    assert load(root, image_size=9).train.images.shape[2:] == (9, 9)
    assert not _pixels._ALONE.locked()
    assert load(root).hash == before


# A pipe as data was waited for for ever; /dev/zero filled the memory.
@pytest.mark.parametrize("name", ["pipe", "pipe.csv", "pipe.npz", "pipe.parquet", "/dev/zero", "socket.zip"])
def test_only_files_and_folders_are_opened(name, tmp_path, load):
    path = tmp_path / name
    if name.startswith("pipe"):
        os.mkfifo(path)
    elif name.startswith("socket"):
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(path))
    with pytest.raises(DataError, match="a pipe, a socket or a device"):
        load(path)


# Labels of more digits than Python turns into a number ended in a traceback.
def test_a_label_of_thousands_of_digits_is_a_name(tmp_path, load):
    rows = [f"{k}.png,{'9' * 5000 if k % 2 else '7'}" for k in range(16)]
    for k, image in enumerate(images(16)):
        (tmp_path / f"{k}.png").write_bytes(encoded(image))
    (tmp_path / "table.csv").write_text("path,label\n" + "\n".join(rows))
    assert load(tmp_path / "table.csv").class_names == ("7", "9" * 5000)
